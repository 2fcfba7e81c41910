"""What one team tries on another's things, with its own credentials: on loopback and on a cluster.

Each function tries every action and tells what came of it: whether the server did it, or showed anything of it.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import requests
from botocore.exceptions import ClientError

from wukong.stages import access

REFUSED = (400, 403, 404)
OBJECT = "same/pretrain/KEY/model/weights"
"""The path of an object that each team has, below its storage."""


def prefix_of(team: str) -> str:
    return access.storage_of_team(team).removeprefix(f"s3://{access.BUCKET}/")


def s3(thief: Any, victim: str, own: str) -> dict[str, bool]:
    """Try the other team's objects; of every stage, since a key may open those of one alone.

    Args:
        thief: a client with a key of the team ``own``.
        victim: the other team, which has ``OBJECT``.
        own: the team whose key it is, below whose storage a copy would go.
    """
    bucket, prefix = {"Bucket": access.BUCKET}, prefix_of(victim)
    key = f"{prefix}/{OBJECT}"
    source = {"Bucket": access.BUCKET, "Key": key}
    climbing = f"{prefix_of(own)}/../{victim}/{OBJECT}"
    tried: dict[str, list[Callable[[], Any]]] = {
        "reads an object": [
            partial(thief.get_object, **bucket, Key=key),
            partial(thief.head_object, **bucket, Key=key),
            partial(thief.get_object, **bucket, Key=climbing),
        ],
        "lists objects": [
            partial(thief.list_objects_v2, **bucket, Prefix=f"{prefix}/{folder}")
            for folder in ("", "same/pretrain/", "same/runs/", "same/experiments/", "same/crawl/", "kfp/", "inputs/")
        ]
        + [partial(thief.list_objects_v2, **bucket, Prefix=above) for above in ("", "teams/")],
        "writes an object": [
            partial(thief.put_object, **bucket, Key=key, Body=b"changed"),
            partial(thief.put_object, **bucket, Key=f"{prefix}/inputs/queries.txt", Body=b"changed"),
            partial(thief.create_multipart_upload, **bucket, Key=key),
        ],
        "copies an object": [
            partial(thief.copy_object, **bucket, Key=f"{prefix_of(own)}/kfp/stolen", CopySource=source),
            partial(thief.copy_object, **bucket, Key=f"{prefix_of(own)}/same/crawl/KEY/stolen", CopySource=source),
        ],
        "deletes an object": [
            partial(thief.delete_object, **bucket, Key=key),
            lambda: _only_if_deleted(thief.delete_objects(**bucket, Delete={"Objects": [{"Key": key}]})),
        ],
    }
    return {what: any(done(each) for each in asked) for what, asked in tried.items()}


def _only_if_deleted(answer: Mapping[str, Any]) -> None:
    if answer.get("Errors"):
        raise ClientError({"ResponseMetadata": {"HTTPStatusCode": 403}}, "DeleteObjects")  # type: ignore[typeddict-item]


def done(ask: Callable[[], Any]) -> bool:
    """Whether the store does what is asked."""
    try:
        ask()
    except ClientError as error:
        assert error.response["ResponseMetadata"]["HTTPStatusCode"] in REFUSED, error
        return False
    return True


def mlflow(
    address: str, user: Mapping[str, str], workspaces: tuple[str, ...], theirs: Mapping[str, str]
) -> dict[str, bool]:
    """Try the other team's runs and models, in each of some workspaces and in none.

    Args:
        address: the server's.
        user: a Secret's values, of the team that tries.
        workspaces: those that the requests name in turn.
        theirs: the other team's ``workspace``, ``experiment`` and ``run`` by their IDs, the ``name`` of both its
            experiment and its model, ``artifacts``, the run's folder as the server passes it on, in which there is a
            file ``secret.txt``, and ``secret``, a text that is in what the server says of each of these.
    """
    of, run, model = {"experiment_id": theirs["experiment"]}, {"run_id": theirs["run"]}, {"name": theirs["name"]}
    version, file = {**model, "version": "1"}, f"{theirs['artifacts']}/secret.txt"
    proxy = "/api/2.0/mlflow-artifacts/artifacts"
    source = f"mlflow-artifacts:/{theirs['artifacts']}"
    tried: dict[str, list[tuple[str, str, Mapping[str, Any]]]] = {
        "reads an experiment": [
            ("GET", "/api/2.0/mlflow/experiments/get", of),
            ("GET", "/api/2.0/mlflow/experiments/get-by-name", {"experiment_name": theirs["name"]}),
            ("POST", "/api/2.0/mlflow/experiments/search", {"max_results": 100}),
        ],
        "reads a run": [
            ("GET", "/api/2.0/mlflow/runs/get", run),
            ("POST", "/api/2.0/mlflow/runs/search", {"experiment_ids": [theirs["experiment"]]}),
            ("GET", "/api/2.0/mlflow/metrics/get-history", {**run, "metric_key": "loss"}),
            ("GET", "/api/2.0/mlflow/artifacts/list", run),
        ],
        "reads a file of a run": [
            ("GET", f"{proxy}/{file}", {}),
            ("GET", f"{proxy}?path={theirs['artifacts']}", {}),
            ("GET", "/get-artifact", {**run, "path": "secret.txt"}),
        ],
        "reads a model": [
            ("GET", "/api/2.0/mlflow/registered-models/get", model),
            ("GET", "/api/2.0/mlflow/registered-models/search", {}),
            ("GET", "/api/2.0/mlflow/model-versions/get", version),
            ("GET", "/api/2.0/mlflow/model-versions/search", {}),
            ("GET", "/api/2.0/mlflow/model-versions/get-download-uri", version),
            ("GET", "/model-versions/get-artifact", {**version, "path": "secret.txt"}),
        ],
        "changes a run": [
            ("POST", "/api/2.0/mlflow/runs/create", of),
            ("POST", "/api/2.0/mlflow/runs/set-tag", {**run, "key": "a", "value": "b"}),
            ("POST", "/api/2.0/mlflow/runs/delete", run),
            ("POST", "/api/2.0/mlflow/experiments/delete", of),
            ("PUT", f"{proxy}/{theirs['artifacts']}/more.txt", {}),
            ("DELETE", f"{proxy}/{file}", {}),
        ],
        "changes a model": [
            ("POST", "/api/2.0/mlflow/registered-models/set-tag", {**model, "key": "a", "value": "b"}),
            ("POST", "/api/2.0/mlflow/registered-models/alias", {**model, "alias": "champion", "version": "1"}),
            ("DELETE", "/api/2.0/mlflow/model-versions/delete", version),
            ("DELETE", "/api/2.0/mlflow/registered-models/delete", model),
            ("POST", "/api/2.0/mlflow/model-versions/create", {**model, "source": source, **run}),
            ("POST", "/api/2.0/mlflow/model-versions/create", {**model, "source": source}),
        ],
        "becomes a user of the workspace": [
            ("POST", "/api/3.0/mlflow/workspaces", {"name": "of-the-thief"}),
            ("PATCH", f"/api/3.0/mlflow/workspaces/{theirs['workspace']}", {"description": "changed"}),
            ("DELETE", f"/api/3.0/mlflow/workspaces/{theirs['workspace']}", {}),
            ("POST", "/api/2.0/mlflow/users/create", {"username": "of-the-thief", "password": "of twelve letters"}),
            ("POST", "/api/3.0/mlflow/roles/create", {"workspace": theirs["workspace"], "name": "of-the-thief"}),
            (
                "POST",
                "/api/3.0/mlflow/users/permissions/grant",
                {
                    "username": user["MLFLOW_TRACKING_USERNAME"],
                    "resource_type": "experiment",
                    "resource_id": "*",
                    "permission": "MANAGE",
                },
            ),
        ],
    }
    who = (user["MLFLOW_TRACKING_USERNAME"], user["MLFLOW_TRACKING_PASSWORD"])

    def done(method: str, path: str, values: Mapping[str, Any], workspace: str) -> bool:
        answer = requests.request(
            method,
            f"{address}{path}",
            auth=who,
            headers={"X-MLFLOW-WORKSPACE": workspace} if workspace else {},
            params=values if method == "GET" else None,
            json=values if method != "GET" else None,
            timeout=60,
        )
        assert answer.ok or answer.status_code in REFUSED, answer.text
        # What the thief has itself may be called the same, and a search finds that: it shows nothing of the other's.
        if path.endswith("/search") or (method == "GET" and {"name", "experiment_name"} & values.keys()):
            return theirs["secret"] in answer.text
        return answer.ok

    return {
        what: any(done(*each, workspace) for each in asked for workspace in ("", *workspaces))
        for what, asked in tried.items()
    }
