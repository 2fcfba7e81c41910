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
        raise ClientError({"ResponseMetadata": {"HTTPStatusCode": 403}}, "DeleteObjects")


def done(ask: Callable[[], Any]) -> bool:
    """Whether the store does what is asked."""
    try:
        ask()
    except ClientError as error:
        assert error.response["ResponseMetadata"]["HTTPStatusCode"] in REFUSED, error
        return False
    return True


def mlflow(address: str, user: Mapping[str, str], own: str, theirs: Mapping[str, str]) -> dict[str, bool]:
    """Try the other team's runs and models, in its workspace, in the own, in the default one and without naming one.

    Args:
        address: the server's.
        user: a Secret's values, of the team that tries.
        own: that team.
        theirs: the other team's ``workspace``, ``experiment`` and ``run`` by their IDs, the ``name`` of both its
            experiment and its model, and ``artifacts``, the run's folder as the server passes it on, in which there is
            a file ``secret.txt``. ``secret`` is a text that is in this file and in what the server says of experiment
            and run, ``model`` one that is in what it says of the model's version.
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
        # In the own workspace the name is that of the own model.
        if method != "GET" and "name" in values and "source" not in values and workspace == own != theirs["workspace"]:
            return False
        answer = requests.request(
            method,
            f"{address}{path}",
            auth=who,
            headers={"X-MLFLOW-WORKSPACE": workspace} if workspace else {},
            params=values if method == "GET" else None,
            json=values if method != "GET" else None,
            timeout=60,
        )
        # What the thief has itself may be called the same, and a search finds that: it shows nothing of the other's.
        if path.endswith("/search") or (method == "GET" and {"name", "experiment_name"} & values.keys()):
            return theirs["secret"] in answer.text or theirs["model"] in answer.text
        assert answer.ok or answer.status_code in REFUSED, answer.text
        return bool(answer.ok)

    return {
        what: any(done(*each, workspace) for each in asked for workspace in ("", own, theirs["workspace"], "default"))
        for what, asked in tried.items()
    }


def kfp(address: str, token: str, victim: str, theirs: Mapping[str, str]) -> dict[str, bool]:
    """Try the other team's runs, pipelines and recurring runs.

    Args:
        address: of KFP's API.
        token: of the team that tries.
        victim: the other team.
        theirs: the IDs of its ``experiment``, ``run``, ``pipeline``, ``version`` and ``recurring`` run.
    """
    root, space = f"{address}/apis/v2beta1", f"?namespace={victim}"
    run, pipeline = f"/runs/{theirs['run']}", f"/pipelines/{theirs['pipeline']}"
    version, recurring = f"{pipeline}/versions/{theirs['version']}", f"/recurringruns/{theirs['recurring']}"
    reference = {"pipeline_id": theirs["pipeline"], "pipeline_version_id": theirs["version"]}
    of_theirs = {
        "display_name": "stolen",
        "experiment_id": theirs["experiment"],
        "pipeline_version_reference": reference,
    }
    bearer = {"Authorization": f"Bearer {token}"}
    somebody = f"system:serviceaccount:{victim}:submitter"
    claims = [
        {header: prefix + somebody}
        for header in ("kubeflow-userid", "x-goog-authenticated-user-email")
        for prefix in ("", "accounts.google.com:")
    ]
    tried: dict[str, list[tuple[str, str, Mapping[str, Any] | None, Mapping[str, str]]]] = {
        "lists runs": [
            ("GET", f"/runs{space}", None, bearer),
            ("GET", f"/runs?experiment_id={theirs['experiment']}", None, bearer),
            ("GET", f"/recurringruns{space}", None, bearer),
            ("GET", f"/experiments{space}", None, bearer),
        ],
        "reads a run": [
            ("GET", run, None, bearer),
            ("GET", recurring, None, bearer),
            ("GET", f"/experiments/{theirs['experiment']}", None, bearer),
        ],
        "ends a run": [
            ("POST", f"{run}:terminate", None, bearer),
            ("POST", f"{run}:archive", None, bearer),
            ("POST", f"{run}:retry", None, bearer),
            ("DELETE", run, None, bearer),
            ("POST", f"{recurring}:disable", None, bearer),
            ("DELETE", recurring, None, bearer),
        ],
        "starts a run": [
            ("POST", "/runs", of_theirs, bearer),
            ("POST", "/experiments", {"display_name": "stolen", "namespace": victim}, bearer),
        ],
        "reads a pipeline": [
            ("GET", f"/pipelines{space}", None, bearer),
            ("GET", pipeline, None, bearer),
            ("GET", f"{pipeline}/versions", None, bearer),
            ("GET", version, None, bearer),
        ],
        "changes a pipeline": [
            ("DELETE", version, None, bearer),
            ("DELETE", pipeline, None, bearer),
            ("POST", "/pipelines", {"display_name": "stolen", "namespace": victim}, bearer),
        ],
        "says in a header who it is": [("GET", path, None, each) for path in (f"/runs{space}", run) for each in claims],
    }

    def done_by(method: str, path: str, body: Mapping[str, Any] | None, headers: Mapping[str, str]) -> bool:
        answer = requests.request(method, f"{root}{path}", json=body, headers=dict(headers), timeout=60)
        assert answer.ok or answer.status_code in (*REFUSED, 401), (method, path, answer.text)
        return bool(answer.ok)

    return {what: any(done_by(*each) for each in asked) for what, asked in tried.items()}


RESOURCES = {
    "reads a Secret": [
        ("get", "", "secrets", "wukong-s3"),
        ("get", "", "secrets", "mlpipeline-minio-artifact"),
        ("list", "", "secrets", ""),
    ],
    "reads a setting": [
        ("get", "", "configmaps", "wukong-settings"),
        ("get", "", "configmaps", "ray-job"),
        ("list", "", "configmaps", ""),
    ],
    "reads a log": [("get", "", "pods", ""), ("list", "", "pods", ""), ("get", "", "pods/log", "")],
    "makes a pod": [("create", "", "pods", ""), ("create", "", "pods/exec", ""), ("create", "batch", "jobs", "")],
    "makes a RayJob": [("create", "ray.io", "rayjobs", ""), ("delete", "ray.io", "rayjobs", "")],
    "looks at RayJobs": [("get", "ray.io", "rayjobs", ""), ("list", "ray.io", "rayjobs", "")],
    "makes a workflow": [
        ("create", "argoproj.io", "workflows", ""),
        ("create", "argoproj.io", "workflowtaskresults", ""),
    ],
    "takes a token": [
        ("create", "", "serviceaccounts/token", "submitter"),
        ("create", "", "serviceaccounts/token", "default-editor"),
        ("impersonate", "", "serviceaccounts", "submitter"),
    ],
    "gives itself a right": [
        ("create", "rbac.authorization.k8s.io", "rolebindings", ""),
        ("bind", "rbac.authorization.k8s.io", "roles", "members"),
        ("patch", "", "namespaces", ""),
    ],
    "changes a quota": [("patch", "", "resourcequotas", ""), ("patch", "kueue.x-k8s.io", "clusterqueues", "")],
    "changes a policy": [("delete", "networking.k8s.io", "networkpolicies", "")],
}
"""What a team's account asks the Kubernetes API for in another namespace: verb, group, resource, name."""


def kubernetes(review: Callable[[Mapping[str, str]], bool], namespace: str) -> dict[str, bool]:
    """Ask what an account may do in a namespace.

    Args:
        review: whether the account may do what is described, as Kubernetes describes it in an access review.
        namespace: the other team's, or the installation's.
    """

    def may(verb: str, group: str, resource: str, name: str) -> bool:
        kind, _, part = resource.partition("/")
        asked = {"namespace": namespace, "verb": verb, "group": group, "resource": kind, "subresource": part}
        return review(asked | {"name": name})

    return {what: any(may(*each) for each in asked) for what, asked in RESOURCES.items()}
