"""The cluster's own jobs: credentials, made through a Kubernetes API on loopback under the Roles of `k8s/`; backups."""

import io
import json
import re
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import api_server
import pytest
import yaml
from api_server import ApiServer
from manifests import plain

from infra import cluster
from wukong.errors import StackError, StorageError
from wukong.stages import access
from wukong.store import manifest, storage

KEYS = {*access.S3_KEYS, "mlflow-s3", "setup-s3"}
OTHER_KEYS = KEYS - {"wukong-s3"}
BASE = Path(__file__).parents[2] / "k8s" / "base"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """A cluster with KFP in it, in which the setup job may do what its Roles say."""
    documents = list(yaml.safe_load_all((BASE / "setup.yaml").read_text(encoding="utf-8")))
    roles = [document for document in documents if document["kind"] == "Role"]
    with api_server.running(tmp_path, monkeypatch) as api:
        api.rules = {role["metadata"]["namespace"]: role["rules"] for role in roles}
        api.secrets["kubeflow/mysql-secret"] = {"username": "root", "password": ""}
        for each in plain():
            api.put(each)
        yield api


def changes(server: ApiServer) -> list[str]:
    return [request for request in server.requests if not request.startswith("GET")]


def test_credentials_are_made_and_fit_together(server: ApiServer) -> None:
    cluster.make_credentials("wukong", "kubeflow")
    made = server.secrets
    identities = json.loads(made["wukong/object-store"]["s3.json"])["identities"]
    assert {identity["name"] for identity in identities} == KEYS
    for identity in identities:
        (key,) = identity["credentials"]
        assert key["accessKey"] == made[f"wukong/{identity['name']}"]["AWS_ACCESS_KEY_ID"]
        assert key["secretKey"] == made[f"wukong/{identity['name']}"]["AWS_SECRET_ACCESS_KEY"]
    password = made["wukong/postgres"]["POSTGRES_PASSWORD"]
    assert f":{password}@postgres:" in made["wukong/mlflow-server"]["MLFLOW_BACKEND_STORE_URI"]
    copied = {name.removeprefix("kubeflow/") for name in made if name.startswith("kubeflow/")} - {"mysql-secret"}
    assert copied == {*access.copied_to_components()}
    assert all(made[f"kubeflow/{name}"] == made[f"wukong/{name}"] for name in copied)
    users = [made[f"wukong/{name}"] for name in ("mlflow-admin", "wukong-mlflow", "runs-mlflow", "search-mlflow")]
    assert [user["MLFLOW_TRACKING_USERNAME"] for user in users] == ["admin", "stages", "runs", "search"]
    assert len({user["MLFLOW_TRACKING_PASSWORD"] for user in users}) == 4
    assert made["wukong/kfp-mysql"] == {"username": "root", "password": ""}
    secret = [value for name in (*KEYS, "postgres") for value in made[f"wukong/{name}"].values()]
    assert len(set(secret)) == len(secret) == 2 * len(KEYS) + 1
    assert not [request for request in server.requests if "statefulsets" in request], "the store starts with these"


def test_the_servers_file_is_what_mlflow_reads(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.make_credentials("wukong", "kubeflow")
    (tmp_path / "auth.ini").write_text(server.secrets["wukong/mlflow-server"]["auth.ini"])
    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(tmp_path / "auth.ini"))
    import importlib.util

    import mlflow

    # The module alone: its package needs Flask extensions that only the server's image has.
    file = Path(mlflow.__file__).parent / "server" / "auth" / "config.py"
    specification = importlib.util.spec_from_file_location("mlflow_auth_config", file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    read = module.read_auth_config()
    assert read.database_uri.endswith("/mlflow_auth")
    assert read.default_permission == "NO_PERMISSIONS"


def test_a_second_run_changes_nothing(server: ApiServer) -> None:
    cluster.make_credentials("wukong", "kubeflow")
    before, count = dict(server.secrets), len(changes(server))
    cluster.make_credentials("wukong", "kubeflow")
    assert server.secrets == before
    assert len(changes(server)) == count


def test_a_run_that_was_cut_short_continues(server: ApiServer) -> None:
    cluster.make_credentials("wukong", "kubeflow")
    complete = dict(server.secrets)
    for name in ("wukong/object-store", "kubeflow/wukong-mlflow"):
        del server.secrets[name]
    cluster.make_credentials("wukong", "kubeflow")
    assert server.secrets == complete


def test_the_operators_own_s3_key_is_used(server: ApiServer) -> None:
    own = {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "mine"}
    server.secrets["wukong/wukong-s3"] = own
    cluster.make_credentials("wukong", "kubeflow")
    assert server.secrets["wukong/wukong-s3"] == server.secrets["kubeflow/component-crawl-s3"] == own
    for name in OTHER_KEYS:
        assert server.secrets[f"wukong/{name}"] == own
    (identity,) = json.loads(server.secrets["wukong/object-store"]["s3.json"])["identities"]
    assert {"Admin", "Write:wukong", "Write:mlflow", "Write:wukong/*/crawl/*"} <= set(identity["actions"])


def test_the_operators_own_keys_for_each_use_are_kept(server: ApiServer) -> None:
    own = {
        name: {"AWS_ACCESS_KEY_ID": name, "AWS_SECRET_ACCESS_KEY": "mine"}
        for name in ("wukong/wukong-s3", "wukong/mlflow-s3")
    }
    server.secrets.update(own)
    cluster.make_credentials("wukong", "kubeflow")
    assert {name: server.secrets[name] for name in own} == own
    assert server.secrets["wukong/setup-s3"] == own["wukong/wukong-s3"]


def test_a_store_that_does_not_know_a_key_starts_again(server: ApiServer) -> None:
    cluster.make_credentials("wukong", "kubeflow")
    before = server.secrets["wukong/wukong-s3"]
    del server.secrets["wukong/job-crawl-s3"]
    server.requests.clear()
    for _ in range(2):
        cluster.make_credentials("wukong", "kubeflow")
    (started,) = [request for request in server.requests if "statefulsets" in request]
    assert started == "PATCH /apis/apps/v1/namespaces/wukong/statefulsets/object-store"
    assert server.secrets["wukong/wukong-s3"] == before
    identities = json.loads(server.secrets["wukong/object-store"]["s3.json"])["identities"]
    assert {identity["name"] for identity in identities} == KEYS


def test_without_a_store_of_its_own_nothing_is_started_again(server: ApiServer) -> None:
    cluster.make_credentials("wukong", "kubeflow")
    del server.objects["/apis/apps/v1/namespaces/wukong/statefulsets/object-store"]
    del server.secrets["wukong/job-crawl-s3"]
    cluster.make_credentials("wukong", "kubeflow")
    assert "wukong/job-crawl-s3" in server.secrets


def test_the_components_copies_are_deleted_with_their_settings(server: ApiServer) -> None:
    """By Kubernetes' garbage collector, through the owner."""
    cluster.make_credentials("wukong", "kubeflow")
    for name in ("wukong-mlflow", "component-crawl-s3"):
        (owner,) = server.named("secrets", "kubeflow")[name]["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"]) == (
            "ConfigMap",
            "wukong-settings",
            "uid of kubeflow/wukong-settings",
        )
    assert not any("ownerReferences" in each["metadata"] for each in server.named("secrets", "wukong").values())


def test_without_the_components_settings_it_says_so(server: ApiServer) -> None:
    del server.objects["/api/v1/namespaces/kubeflow/configmaps/wukong-settings"]
    with pytest.raises(StackError, match=r'refuses GET .*/kubeflow/.*configmaps "wukong-settings" not found'):
        cluster.make_credentials("wukong", "kubeflow")


def test_a_secret_without_its_key_is_named(server: ApiServer) -> None:
    server.secrets["wukong/wukong-s3"] = {"AWS_ACCESS_KEY_ID": "AKIA"}
    with pytest.raises(StackError, match="wukong/wukong-s3 lacks AWS_SECRET_ACCESS_KEY"):
        cluster.make_credentials("wukong", "kubeflow")


@pytest.fixture
def bucket(tmp_path: Path) -> str:
    """A bucket with a manifest, a record, an experiment, and data that is not backed up."""
    root = storage.from_path(tmp_path / "bucket")
    for path in ("demo/filter/abc/manifest.json", "demo/runs/r/filter.json", "demo/experiments/1.json"):
        storage.write_json(f"{root}/{path}", {"path": path})
    storage.write_bytes(f"{root}/demo/filter/abc/train/00000.tar", b"pictures")
    storage.write_json(f"{root}/demo/filter/abc/_parts/0.json", {})
    return root


def test_a_backup_holds_what_data_is_found_by_and_restores_it(bucket: str, tmp_path: Path) -> None:
    made = cluster.back_up(bucket, storage.from_path(tmp_path / "backups"), 30)
    target = storage.from_path(tmp_path / "restored")
    storage.write_json(f"{target}/demo/runs/r/filter.json", {"newer": True})
    assert cluster.restore(made, target) == 2
    assert storage.read_json(f"{target}/demo/filter/abc/manifest.json") == {"path": "demo/filter/abc/manifest.json"}
    assert storage.read_json(f"{target}/demo/runs/r/filter.json") == {"newer": True}, "what is there stays"
    assert len(storage.list_files(target)) == 3


def test_a_backup_holds_the_table_of_a_manifests_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "MOST_IN_JSON", 1)
    stage = manifest.Stage(storage.from_path(tmp_path / "bucket/demo"), "crawl", {})
    for name in ("a.parquet", "b.parquet"):
        storage.write_bytes(stage.path(name), b"data")
    made = stage.commit([stage.describe(name) for name in ("a.parquet", "b.parquet")])
    archive = cluster.back_up(storage.from_path(tmp_path / "bucket"), storage.from_path(tmp_path / "backups"), 30)
    target = storage.from_path(tmp_path / "restored")
    assert cluster.restore(archive, target) == 2
    assert manifest.load(f"{target}/demo/crawl/{stage.key}") == made


def test_old_backups_go_and_the_newest_stays(bucket: str, tmp_path: Path) -> None:
    folder, day = storage.from_path(tmp_path / "backups"), datetime(2026, 1, 1, tzinfo=UTC)
    made = [cluster.back_up(bucket, folder, 30, day + timedelta(days=days)) for days in (0, 10, 35)]
    assert storage.list_files(folder) == made[1:]
    assert cluster.back_up(bucket, folder, 0, day + timedelta(days=100)) in storage.list_files(folder)


@pytest.mark.parametrize("name", ["../outside.json", "%2e%2e/outside.json"])
def test_an_archive_that_leaves_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = 2
        archive.addfile(entry, io.BytesIO(b"{}"))
    with pytest.raises(StorageError, match=re.escape(name)):
        cluster.restore(storage.from_path(tmp_path / "bad.tar"), storage.from_path(tmp_path / "target"))
    assert not (tmp_path / "outside.json").exists()
