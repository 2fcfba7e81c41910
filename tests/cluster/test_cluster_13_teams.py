"""Two teams on a cluster, with KFP in multi-user mode and MLflow with workspaces; all of it is taken out again."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import image_search
import kube
import pytest
import requests
import runs
import table
import trespass
import yaml

from wukong.store import storage
from wukong.tracking.mlflow_rest import Server

ROOT = Path(__file__).parents[2]
COMPONENT = ROOT / "k8s" / "components" / "teams"
MULTI_USER = ROOT / "k8s" / "kubeflow" / "multi-user"
FOLDER = table.FOLDER / "teams"
TEAMS = ("vision", "speech")
PATCHED = ("ml-pipeline", "ml-pipeline-persistenceagent", "ml-pipeline-scheduledworkflow", "workflow-controller")
AUDIENCE = "pipelines.kubeflow.org"
LISTENS = "import http.server as h; h.HTTPServer(('', 8265), h.SimpleHTTPRequestHandler).serve_forever()"
CONNECTS = """
import socket, sys, time
end = time.monotonic() + 60
while True:
    try:
        socket.create_connection((sys.argv[1], 8265), timeout=5).close()
    except OSError as error:
        if time.monotonic() > end:
            sys.exit(print("refused", error))
        time.sleep(2)
    else:
        sys.exit(print("reached"))
"""


def infra_team(*arguments: str) -> None:
    """Run the operator's command."""
    command = [sys.executable, "-m", "infra.team", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr, flush=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def multi_user(services: runs.Services) -> Iterator[None]:
    """KFP in multi-user mode, as the page on teams says it."""
    kube.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "kfp-multi-user", "namespace": "kubeflow"},
            "stringData": {"prefix": f"{os.urandom(24).hex()}:"},
        }
    )
    kube.kubectl("apply", "-f", str(MULTI_USER / "rights.yaml"))
    patched = []
    try:
        for name in PATCHED:
            form = ["--type=json", f"--patch-file={MULTI_USER / name}.json"]
            if name != "workflow-controller":
                form = [f"--patch-file={MULTI_USER / name}.yaml"]
            kube.kubectl("-n", "kubeflow", "patch", "deployment", name, *form)
            patched.append(f"deployment/{name}")
        kube.rollout(*patched, namespace="kubeflow")
        for forward in services.forwards:
            forward.open()
        yield
    finally:
        for name in patched:
            kube.kubectl("-n", "kubeflow", "rollout", "undo", name)
        kube.rollout(*patched, namespace="kubeflow")
        kube.kubectl("delete", "-f", str(MULTI_USER / "rights.yaml"), "--ignore-not-found")
        kube.kubectl("-n", "kubeflow", "delete", "secret", "kfp-multi-user", "--ignore-not-found")
        for forward in services.forwards:
            forward.open()


@pytest.fixture
def workspaces(services: runs.Services, overlay: str) -> Iterator[None]:
    """MLflow with workspaces, by the component for teams."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    content = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(ROOT / overlay, FOLDER)],
        "components": [os.path.relpath(COMPONENT, FOLDER)],
    }
    (FOLDER / "kustomization.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    kube.kubectl("apply", "-k", str(FOLDER))
    try:
        kube.rollout("deployment/mlflow")
        yield
    finally:
        # MLflow does not start without workspaces while one of them has experiments.
        admin = kube.secret("mlflow-admin")
        who = (admin["MLFLOW_TRACKING_USERNAME"], admin["MLFLOW_TRACKING_PASSWORD"])
        for name in TEAMS:
            workspace = f"{services.mlflow}/api/3.0/mlflow/workspaces/{name}"
            gone = requests.delete(workspace, params={"mode": "CASCADE"}, auth=who, timeout=60)
            print(f"workspace {name}: {gone.status_code} {gone.text}", flush=True)
        kube.kubectl("apply", "-k", overlay)
        kube.kubectl("delete", "-f", str(COMPONENT / "network.yaml"), "--ignore-not-found")
        kube.rollout("deployment/mlflow")


@pytest.fixture
def teams(search: None, multi_user: None, workspaces: None, services: runs.Services) -> Iterator[tuple[str, ...]]:
    """Both teams, whose crawlers may reach the test's image search, and the words of each in its inputs."""
    try:
        for name in TEAMS:
            infra_team(name, "--cpu", "64", "--memory", "256Gi")
            theirs = kube.get("networkpolicy", "cluster-test-search")
            assert theirs is not None
            metadata = {"name": "cluster-test-search", "namespace": name}
            kube.apply({**theirs, "metadata": metadata})
        kube.rollout("statefulset/object-store")
        for forward in services.forwards:
            forward.open()
        words = "\n".join(image_search.WORDS) + "\n"
        for name in TEAMS:
            storage.write_bytes(f"s3://wukong/teams/{name}/inputs/queries.txt", words.encode())
        yield TEAMS
    finally:
        for name in TEAMS:
            infra_team(name, "--delete")
            kube.until(f"{name} is gone", partial(_is_gone, name), 300)
        kube.rollout("statefulset/object-store")


def _is_gone(namespace: str) -> bool:
    return kube.get("namespace", namespace) is None


def token_of(name: str, account: str = "submitter") -> str:
    command = ("create", "token", account, "--namespace", name, "--audience", AUDIENCE, "--duration", "6h")
    return kube.kubectl(*command).strip()


@contextmanager
def as_member(services: runs.Services, name: str, folder: Path) -> Iterator[dict[str, str]]:
    """The environment of somebody of a team."""
    file = folder / f"{name}.token"
    file.write_text(token_of(name), encoding="ascii")
    own = {
        "WUKONG_KFP_HOST": services.kfp,
        "WUKONG_KFP_NAMESPACE": name,
        "KF_PIPELINES_SA_TOKEN_PATH": str(file),
        "MLFLOW_TRACKING_URI": services.mlflow,
        "MLFLOW_WORKSPACE": name,
        **kube.secret("wukong-s3", name),
        **kube.secret("wukong-mlflow", name),
    }
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in own.items():
            patch.setenv(variable, value)
        yield own


def submit(name: str, stamp: str) -> dict[str, Any]:
    """Run the training pipeline by the command, and return what it says."""
    place = f"s3://wukong/teams/{name}"
    command = [sys.executable, "-m", "cli.main", "submit", "training", "--json", "--name", f"same-{stamp}"]
    command += ["--config", str(runs.EXPERIMENT), "--set", f"name=same-{stamp}", "--set", f"storage={place}"]
    command += ["--set", f"crawl.queries={place}/inputs/queries.txt"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=runs.A_RUN, check=False)
    print(done.stderr, flush=True)
    assert done.returncode == 0, done.stderr + done.stdout
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def left_by(services: runs.Services, name: str, said: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What a team has after its run: in KFP, in MLflow and in the object store."""
    with as_member(services, name, folder) as own:
        root = f"{services.kfp}/apis/v2beta1"
        headers = {"Authorization": f"Bearer {token_of(name)}"}
        run = requests.get(f"{root}/runs/{said['id']}", headers=headers, timeout=60).json()
        version = run["pipeline_version_reference"]
        schedule = {
            "display_name": "weekly",
            "experiment_id": run["experiment_id"],
            "pipeline_version_reference": version,
            "trigger": {"periodic_schedule": {"interval_second": "604800"}},
            "max_concurrency": "1",
            "mode": "DISABLE",
            "runtime_config": run["runtime_config"],
        }
        recurring = requests.post(f"{root}/recurringruns", json=schedule, headers=headers, timeout=60)
        recurring.raise_for_status()
        server = Server()
        experiment = server.experiment(said["experiment"])
        (pipeline,) = server.search_runs(experiment, f"attributes.run_name = '{said['run']}'")
        server.write_file(pipeline, "secret.txt", f"workspaces/{name}/".encode())
        storage.write_bytes(f"s3://wukong/teams/{name}/{trespass.OBJECT}", own["AWS_ACCESS_KEY_ID"].encode())
        return {
            "kfp": {
                "run": said["id"],
                "experiment": run["experiment_id"],
                "pipeline": version["pipeline_id"],
                "version": version["pipeline_version_id"],
                "recurring": recurring.json()["recurring_run_id"],
            },
            "mlflow": {
                "workspace": name,
                "experiment": experiment,
                "run": pipeline.run_id,
                "name": said["experiment"],
                "artifacts": pipeline.artifacts.removeprefix("mlflow-artifacts:/"),
                "secret": f"workspaces/{name}/",
                "model": f"s3://wukong/teams/{name}/",
            },
        }


def client(key: Mapping[str, str]) -> Any:
    names = {"aws_access_key_id": key["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": key["AWS_SECRET_ACCESS_KEY"]}
    return boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"], region_name="us-east-1", **names)


def keys_of(name: str) -> dict[str, dict[str, str]]:
    named = [each["metadata"]["name"] for each in kube.listed("secrets", namespace=name)]
    keys = {each: kube.secret(each, name) for each in named if each.endswith("-s3")}
    of_kfp = kube.secret("mlpipeline-minio-artifact", name)
    keys["of KFP"] = {"AWS_ACCESS_KEY_ID": of_kfp["accesskey"], "AWS_SECRET_ACCESS_KEY": of_kfp["secretkey"]}
    return keys


def reviewed(account: str) -> Callable[[Mapping[str, str]], bool]:
    """What an account may do, as the API server says it."""
    group = f"system:serviceaccounts:{account.split(':')[2]}"

    def may(attributes: Mapping[str, str]) -> bool:
        spec = {"user": account, "groups": ["system:authenticated", "system:serviceaccounts", group]}
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview"}
        body = {**review, "spec": {**spec, "resourceAttributes": dict(attributes)}}
        answer = json.loads(kube.kubectl("create", "-f", "-", "-o", "json", given=json.dumps(body)))
        return bool(answer["status"]["allowed"])

    return may


def tried(services: runs.Services, own: str, other: str, theirs: Mapping[str, Any]) -> dict[str, dict[str, bool]]:
    """Every credential of one team on the other's things; what came of it, by credential."""
    done = {f"S3 key {name}": trespass.s3(client(key), other, own) for name, key in keys_of(own).items()}
    for secret in ("wukong-mlflow", "runs-mlflow", "search-mlflow"):
        done[f"user of {secret}"] = trespass.mlflow(services.mlflow, kube.secret(secret, own), own, theirs["mlflow"])
    for account in ("submitter", "default-editor"):
        done[f"token of {account}"] = trespass.kfp(services.kfp, token_of(own, account), other, theirs["kfp"])
    for account in ("submitter", "default-editor", "ray"):
        for place in (other, "wukong", "kubeflow"):
            may = reviewed(f"system:serviceaccount:{own}:{account}")
            done[f"account {account} in {place}"] = trespass.kubernetes(may, place)
    return done


@pytest.mark.cluster(
    claim="Two teams, made by `python -m infra.team`, submit the same pipeline with tokens of ServiceAccounts to KFP "
    "in multi-user mode; components and RayJobs run in the team's namespace, and neither reads the other's data, "
    "models, runs or Secrets with any of its S3 keys, users of MLflow, tokens and accounts, nor reaches its Ray pods",
    how="both by `wukong submit --json`, one after the other; then every attempt of the tables in `docs/teams.md` with "
    "each credential of one team on the other's things, both ways, and connections between pods with Ray's labels",
)
def test_two_teams(
    teams: tuple[str, ...], services: runs.Services, found: list[str], stamp: str, tmp_path: Path
) -> None:
    left = {}
    for name in teams:
        with as_member(services, name, tmp_path):
            said = submit(name, stamp)
        assert said["outcome"] == "succeeded"
        jobs = kube.listed("rayjobs", namespace=name)
        stages = {each["metadata"]["labels"]["wukong/stage"] for each in jobs}
        assert {"crawl", "filter", "validate", "pretrain", "finetune", "evaluate"} <= stages
        left[name] = left_by(services, name, said, tmp_path)
        found.append(f"{name}: {len(jobs)} RayJobs")
    assert left["vision"]["mlflow"]["name"] == left["speech"]["mlflow"]["name"]
    refused = 0
    for own, other in (teams, teams[::-1]):
        done = tried(services, own, other, left[other])
        opened = {who: [what for what, done in each.items() if done] for who, each in done.items()}
        assert {who: what for who, what in opened.items() if what} == {}
        refused += sum(len(each) for each in done.values())
    found.append(f"{refused} attempts refused")
    own, other = _reached("speech", ("speech", "vision"))
    assert own == "reached"
    assert other.startswith("refused")


def _reached(target: str, sources: tuple[str, ...]) -> list[str]:
    """What pods with Ray's labels in some namespaces say of the port of one in another."""
    labels = {"app.kubernetes.io/component": "ray"}
    listener = kube.start_pod(LISTENS, namespace=target, labels=labels)

    def address_of() -> str | None:
        found: str | None = (kube.get("pod", listener, target) or {}).get("status", {}).get("podIP")
        return found

    try:
        address = kube.until("its address", address_of, 120)
        return [kube.run_in_pod(CONNECTS, [address], namespace=each, labels=labels).strip() for each in sources]
    finally:
        kube.kubectl("-n", target, "delete", "pod", listener, "--wait=false", "--ignore-not-found")


@pytest.mark.cluster(
    claim="A team that is deleted has no namespace, no key and no user any more; its data stay, and a team of the same "
    "name finds them",
    how="`python -m infra.team vision --delete`; its S3 keys and a user are tried, and an object is read with the "
    "operator's key, and with the team's after it was made anew",
)
def test_a_team_is_deleted(
    teams: tuple[str, ...], services: runs.Services, found: list[str], stamp: str, tmp_path: Path
) -> None:
    keys, user = keys_of("vision"), kube.secret("wukong-mlflow", "vision")
    place = f"s3://wukong/teams/vision/kept-{stamp}"
    storage.write_bytes(place, b"kept")
    infra_team("vision", "--delete")
    began = time.monotonic()
    kube.until("its namespace is gone", partial(_is_gone, "vision"), 300)
    kube.rollout("statefulset/object-store")
    for forward in services.forwards:
        forward.open()
    opened = [name for name, key in keys.items() if trespass.s3(client(key), "vision", "vision")["reads an object"]]
    assert opened == []

    def refuses() -> bool:
        who = (user["MLFLOW_TRACKING_USERNAME"], user["MLFLOW_TRACKING_PASSWORD"])
        asked = {"max_results": 1}
        address = f"{services.mlflow}/api/2.0/mlflow/experiments/search"
        return bool(requests.post(address, json=asked, auth=who, timeout=60).status_code == 401)

    kube.until("MLflow refuses its user", refuses, 120)
    found.append(f"refused everywhere after {time.monotonic() - began:.0f} s")
    assert storage.read_bytes(place) == b"kept"
    infra_team("vision")
    kube.rollout("statefulset/object-store")
    for forward in services.forwards:
        forward.open()
    again = client(kube.secret("wukong-s3", "vision"))
    body = again.get_object(Bucket="wukong", Key=place.removeprefix("s3://wukong/"))["Body"]
    assert body.read() == b"kept"
