"""What the cluster's own jobs run: make credentials, buckets and MLflow's users, back up and restore manifests.

``python -m infra.cluster credentials|buckets|mlflow-users|back-up|restore``; the Jobs and CronJobs are in ``k8s/base``.
``s3-policy`` is for people.
"""

import argparse
import hashlib
import io
import json
import logging
import os
import sys
import tarfile
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import unquote

from infra import s3_keys
from infra.cluster_api import Cluster
from infra.cluster_secrets import Secrets, mlflow_user, random_text, s3_key
from wukong.commands.output import print_json
from wukong.errors import StorageError
from wukong.runtime import logs
from wukong.stages import access
from wukong.store import manifest, storage
from wukong.tracking import availability
from wukong.tracking.mlflow_rest import EXISTS, MISSING, Server

# What a bucket's data is found again by. The data itself (tars, Parquet, weights) is not copied.
_SMALL = ("manifest.json", "/experiments/", "/runs/")
_ARCHIVE = "manifests-%Y%m%dT%H%M%SZ.tar"
MLFLOW_USERS = {
    "stages": {"experiment": "EDIT", "registered_model": "EDIT"},
    "runs": {"experiment": "EDIT", "registered_model": "READ"},
    "search": {"experiment": "READ", "registered_model": "READ"},
}
"""What each of MLflow's users may do with experiments and models; it may make both of its own."""

log = logging.getLogger(__name__)


def make_credentials(namespace: str, kfp_namespace: str) -> None:
    """Make the Secrets of the S3 keys and MLflow users that are missing; copy those of components to KFP's namespace.

    A Secret that exists is kept as it is, so a second run changes nothing, and one that the operator made first (an S3
    key of their own) is used. What follows from another Secret is made from that one's values as they stand, so a run
    that was cut short continues where it stopped.

    There is an S3 key for each kind of pod (``wukong.stages.access`` says what each may do): ``job-STAGE-s3`` of a
    stage's Ray pods, ``component-…-s3`` of components, ``search-s3`` of the search page, ``backup-s3`` of the backup,
    ``mlflow-s3`` of MLflow's server, for the bucket ``mlflow``, ``setup-s3`` of the setup job, which makes buckets, and
    ``wukong-s3``, all of the bucket ``wukong``, for people and for what deletes old outputs. If the operator made
    ``wukong-s3``, the others are copies of it unless they exist as well.

    There are four users of MLflow: its administrator (``mlflow-admin``); ``stages``, who registers models
    (``wukong-mlflow``); ``runs`` of all other components and of trainings (``runs-mlflow``); and ``search`` of the
    search page (``search-mlflow``); ``make_mlflow_users`` makes the last three.

    The copies in KFP's namespace belong to the ConfigMap ``wukong-settings`` there, and are deleted with it.

    SeaweedFS learns its keys when it starts. Where it ran with others before, it is started again.

    Args:
        namespace: where the platform runs.
        kfp_namespace: where pipelines' components run.

    Raises:
        StackError: the Kubernetes API refuses, or a Secret lacks a key.
    """
    cluster = Secrets(Cluster())
    s3 = cluster.get_or_create(namespace, "wukong-s3", s3_key)
    known = json.loads((cluster.get(namespace, "object-store") or {}).get("s3.json", "{}")).get("identities", [])
    others = (name for name in s3_keys.NAMES if name != "wukong-s3")
    make = s3_key if cluster.made_here(namespace, "wukong-s3") else lambda: s3
    keys = {"wukong-s3": s3} | {name: cluster.get_or_create(namespace, name, make) for name in others}
    identities = json.dumps({"identities": _identities(known, keys)})
    if cluster.put(namespace, "object-store", {"s3.json": identities}) and known:
        cluster.restart(namespace, "object-store", hashlib.sha256(identities.encode()).hexdigest()[:16])
    cluster.get_or_create(namespace, "mlflow-admin", lambda: mlflow_user("admin"))
    users = {
        "wukong-mlflow": cluster.get_or_create(namespace, "wukong-mlflow", lambda: mlflow_user("stages")),
        "runs-mlflow": cluster.get_or_create(namespace, "runs-mlflow", lambda: mlflow_user("runs")),
        "search-mlflow": cluster.get_or_create(namespace, "search-mlflow", lambda: mlflow_user("search")),
    }
    postgres = cluster.get_or_create(namespace, "postgres", lambda: {"POSTGRES_PASSWORD": random_text(32)})
    cluster.get_or_create(namespace, "mlflow-server", lambda: _mlflow_server(postgres["POSTGRES_PASSWORD"]))
    held = keys | users
    for name in access.copied_to_components():
        cluster.put(kfp_namespace, name, held[name], owner="wukong-settings")
    # KFP's own manifests make this Secret; where its database is somebody else's, its backup is too.
    kfp = cluster.get(kfp_namespace, "mysql-secret")
    if kfp is None:
        log.warning("%s has no Secret mysql-secret: KFP's database is not backed up from here", kfp_namespace)
    cluster.put(namespace, "kfp-mysql", kfp or {"username": "root", "password": ""})


def make_buckets(names: list[str]) -> None:
    """Make the buckets that are missing. While the object store comes up, this waits (``wukong.store.patient_store``).

    Args:
        names: the names of the buckets.

    Raises:
        StorageError: it did not come up, or refuses.
    """
    for name in names:
        log.info("bucket %s %s", name, "made" if storage.make_bucket(name) else "is there")


def make_mlflow_users(users: Mapping[str, Mapping[str, str]], team: str = "") -> None:
    """Give MLflow's server its users, and what each needs of it. It waits for the server.

    ``stages`` may make experiments and models, read and change all of them, and delete none that another has made;
    ``runs`` the same of experiments, and it reads models. ``search`` may read all of both. None gives permissions or
    makes users. ``MLFLOW_TRACKING_USERNAME`` and ``MLFLOW_TRACKING_PASSWORD`` are the administrator's.

    Where the server has workspaces, all this holds in one of them: in the team's, which is made if there is none, or in
    the one that is called default.

    Args:
        users: ``USERNAME`` and ``PASSWORD`` of each key of ``MLFLOW_USERS``; a user that exists gets the password too.
        team: whose users these are; empty for those of the installation.

    Raises:
        StorageError: the server did not come up.
        MlflowError: it refuses.
    """
    if team:
        availability.MLFLOW.until_answered(partial(Server("").ask, "POST", "workspaces", {"name": team}, "3.0", EXISTS))
    for kind, permissions in MLFLOW_USERS.items():
        _make_mlflow_user(users[kind]["USERNAME"], users[kind]["PASSWORD"], permissions, team)


def delete_mlflow_users(users: Mapping[str, Mapping[str, str]]) -> None:
    """Delete users from MLflow's server. What they have made stays, and so does their workspace.

    Args:
        users: ``USERNAME`` of each key of ``MLFLOW_USERS``.

    Raises:
        StorageError: the server did not come up.
        MlflowError: it refuses.
    """
    for kind in MLFLOW_USERS:
        user = {"username": users[kind]["USERNAME"]}
        availability.MLFLOW.until_answered(partial(Server("").ask, "DELETE", "users/delete", user, but=MISSING))
        log.info("MLflow has no user %s any more", user["username"])


def _make_mlflow_user(name: str, password: str, permissions: Mapping[str, str], workspace: str) -> None:
    server = Server(workspace)

    def make() -> None:
        user = {"username": name, "password": password}
        if not server.ask("POST", "users/create", user, but=EXISTS):
            server.ask("PATCH", "users/update-password", user)
        for kind, permission in permissions.items():
            grant = {"username": name, "resource_type": kind, "resource_id": "*", "permission": permission}
            server.ask("POST", "users/permissions/grant", grant, "3.0", EXISTS)
        if "EDIT" in permissions.values():
            role = _role_of_makers(server, workspace or "default")
            server.ask("POST", "roles/assign", {"username": name, "role_id": role}, "3.0", EXISTS)

    availability.MLFLOW.until_answered(make)
    said = ", ".join(f"{kind} {permission}" for kind, permission in permissions.items())
    log.info("MLflow's user %s has the permissions %s", name, said)


def _role_of_makers(server: Server, workspace: str) -> int:
    """The ID of the role that may make experiments and models in a workspace. It reads none that others have made."""
    named = {"workspace": workspace, "name": "makers"}
    server.ask("POST", "roles/create", named, "3.0", EXISTS)
    roles = server.ask("GET", "roles/list", {"workspace": workspace}, "3.0")["roles"]
    (role,) = (int(role["id"]) for role in roles if role["name"] == named["name"])
    grant = {"role_id": role, "resource_type": "workspace", "resource_pattern": "*", "permission": "USE"}
    server.ask("POST", "roles/permissions/add", grant, "3.0", EXISTS)
    return role


def back_up(source: str, target: str, keep_days: int, now: datetime | None = None) -> str:
    """Copy every manifest, experiment and record below a URI into one tar, then delete tars older than ``keep_days``.

    Args:
        source: URI prefix, for instance a bucket.
        target: URI of the folder of backups.
        keep_days: age in days from which a backup is deleted; the newest is always kept.
        now: the time that names the backup, UTC.

    Returns:
        URI of the new backup, which appears only when complete.
    """
    now = now or datetime.now(UTC)
    uris = [uri for uri in storage.list_files(source, ".json") if any(part in uri for part in _SMALL)]
    made = storage.join(target, now.strftime(_ARCHIVE))
    with storage.open_output(made) as stream, tarfile.open(fileobj=stream, mode="w|") as archive:
        for uri in uris:
            data = storage.read_bytes(uri)
            files = {uri: data}
            if uri.endswith("/manifest.json") and (table := manifest.table_uri(uri, json.loads(data))):
                files = {table: storage.read_bytes(table), uri: data}
            for each, content in files.items():
                entry = tarfile.TarInfo(each[len(source.rstrip("/")) + 1 :])
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    log.info("%s: %d files", made, len(uris))
    for uri in storage.list_files(target, ".tar"):
        moment = datetime.strptime(uri.rsplit("/", 1)[1], _ARCHIVE).replace(tzinfo=UTC)
        if moment < now - timedelta(days=keep_days) and uri != made:
            storage.delete(uri)
            log.info("%s: older than %d days, deleted", uri, keep_days)
    return made


def restore(archive: str, target: str) -> int:
    """Write back what ``back_up`` copied; what is there is not overwritten. Returns how many files were written.

    Raises:
        StorageError: the archive holds a path that leaves its folder.
    """
    written = 0
    with storage.open_input(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as entries:
        for entry in entries:
            if ".." in unquote(entry.name).split("/"):
                raise StorageError(f"{archive} holds the path {entry.name!r}: it was not made by a backup")
            uri = storage.join(target, entry.name)
            content = entries.extractfile(entry)
            if content is not None and not storage.exists(uri):
                storage.write_bytes(uri, content.read())
                written += 1
    return written


def _identities(known: list[dict[str, Any]], keys: Mapping[str, Mapping[str, str]]) -> list[dict[str, Any]]:
    """SeaweedFS' identities: ours, after those that somebody else added.

    Args:
        known: the identities as they are.
        keys: the S3 keys by the names of their Secrets.
    """
    others = [identity for identity in known if identity["name"] not in s3_keys.NAMES]
    return [*others, *s3_keys.identities(keys, {name: s3_keys.actions_of(name) for name in keys})]


def _mlflow_server(password: str) -> dict[str, str]:
    server = f"postgresql://mlflow:{password}@postgres:5432"
    auth = {
        "default_permission": "NO_PERMISSIONS",
        "database_uri": f"{server}/mlflow_auth",
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
        "auth_cache_ttl_seconds": "60",  # to check a password takes longer than most requests
    }
    return {
        "MLFLOW_BACKEND_STORE_URI": f"{server}/mlflow",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": random_text(40),
        "auth.ini": "[mlflow]\n" + "".join(f"{key} = {value}\n" for key, value in auth.items()),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run one of the cluster's jobs."""
    logs.start(formatter=logs.PLAIN)
    parser = argparse.ArgumentParser(prog="python -m infra.cluster", description=__doc__.split("\n", 1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    credentials = commands.add_parser("credentials", help="make the Secrets that are missing")
    credentials.add_argument("--namespace", required=True)
    credentials.add_argument("--kfp-namespace", required=True)
    commands.add_parser("buckets", help="make the buckets that WUKONG_BUCKETS names")
    users = commands.add_parser(
        "mlflow-users", help="make MLflow's users STAGES_USERNAME, RUNS_…, SEARCH_…, with …_PASSWORD"
    )
    users.add_argument("--team", default="", help="make them in this workspace, which is made too")
    users.add_argument("--delete", action="store_true", help="delete them")
    policy = commands.add_parser("s3-policy", help="print an S3 key's policy, for a store that has IAM's")
    policy.add_argument("key", metavar="KEY", help=", ".join(access.S3_KEYS))
    policy.add_argument("--team", help="of this team's key")
    backup = commands.add_parser("back-up", help="copy manifests and records into one tar")
    backup.add_argument("source")
    backup.add_argument("target")
    backup.add_argument("--keep-days", type=int, default=30)
    restored = commands.add_parser("restore", help="write back what back-up copied")
    restored.add_argument("archive")
    restored.add_argument("target")
    options = parser.parse_args(arguments)
    if options.command == "credentials":
        make_credentials(options.namespace, options.kfp_namespace)
    elif options.command == "buckets":
        make_buckets(os.environ["WUKONG_BUCKETS"].split(","))
    elif options.command == "mlflow-users":
        keys = ("USERNAME", "PASSWORD")
        held = {kind: {key: os.environ[f"{kind.upper()}_{key}"] for key in keys} for kind in MLFLOW_USERS}
        delete_mlflow_users(held) if options.delete else make_mlflow_users(held, options.team)
    elif options.command == "s3-policy":
        known = access.s3_keys_of_team(options.team) if options.team else access.S3_KEYS
        if options.key not in known:
            parser.error(f"there is no key {options.key}; the keys are {', '.join(known)}")
        print_json(s3_keys.policy_of(known[options.key]))
    elif options.command == "back-up":
        back_up(options.source, options.target, options.keep_days)
    else:
        log.info("%d files written", restore(options.archive, options.target))
    return 0


if __name__ == "__main__":
    sys.exit(main())
