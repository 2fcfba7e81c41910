"""The installation on a cluster: applied twice, restricted, and closed as it should be."""

import json
import os
import subprocess
import urllib.error
from typing import Any

import boto3
import kube
import pytest
import runs
import stolen_keys
import yaml
from manifests import plain, ray_jobs


@pytest.mark.cluster(
    claim="The overlay applies twice without an error, and the second time changes nothing",
    how="`kubectl apply -k` twice, then `kubectl diff -k` is empty",
)
def test_applying_twice_changes_nothing(overlay: str, found: list[str]) -> None:
    kube.kubectl("apply", "-k", overlay)
    kube.until("the setup job", _setup_is_complete, 900, 5)
    kube.rollout("statefulset/object-store", "statefulset/postgres", "deployment/mlflow", seconds=900)
    second = kube.kubectl("apply", "-k", overlay)
    different = subprocess.run(["kubectl", "diff", "-k", overlay], capture_output=True, text=True, check=False)
    found.append(f"{len(second.splitlines())} objects")
    assert different.returncode == 0, f"{different.stdout}{different.stderr}"


def _setup_is_complete() -> bool:
    jobs = kube.listed("jobs", "app.kubernetes.io/component=setup")
    return any(job.get("status", {}).get("succeeded") for job in jobs[-1:])


@pytest.mark.cluster(
    claim="`kubectl apply -f k8s/` is accepted by the API server",
    how="`kubectl apply --dry-run=server -f k8s/`",
)
def test_the_plain_manifests_are_accepted(found: list[str]) -> None:
    # The claims of StatefulSets differ from the overlay's, and cannot be changed once they are there.
    text = kube.kubectl("create", "--dry-run=client", "-f", "k8s/", "-o", "json", "--validate=false")
    values = [json.loads(part) for part in _documents(text)]
    items = [item for value in values for item in value.get("items", [value])]
    others = [item for item in items if item["kind"] not in ("StatefulSet", "PersistentVolumeClaim", "Namespace")]
    assert len(others) > 20
    done = subprocess.run(
        ["kubectl", "apply", "--dry-run=server", "-f", "-"],
        input=yaml.safe_dump_all(others),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found.append(f"{len(others)} objects; StatefulSets and claims are left out, whose sizes cannot be changed")


def _documents(text: str) -> list[str]:
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(text.rstrip()):
        _, end = decoder.raw_decode(text, at)
        found.append(text[at:end])
        at = end
        while at < len(text) and text[at].isspace():
            at += 1
    return found


@pytest.mark.cluster(
    claim="The namespace keeps the restricted Pod Security Standard: a privileged pod is refused, all of ours run",
    how="a privileged pod, `--dry-run=server`; the pods of the installation",
)
def test_a_privileged_pod_is_refused(installed: str, found: list[str]) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "privileged", "namespace": "wukong"},
        "spec": {"containers": [{"name": "a", "image": "a", "securityContext": {"privileged": True}}]},
    }
    with pytest.raises(kube.KubectlError, match="violates PodSecurity"):
        kube.kubectl("apply", "--dry-run=server", "-f", "-", given=yaml.safe_dump(pod))
    pods = _own_pods()
    assert len(pods) >= 3
    assert all(kube.is_ready(pod) for pod in pods)
    found.append(f"{len(pods)} pods run")


def _own_pods() -> list[kube.Object]:
    return kube.listed(
        "pods", "app.kubernetes.io/name=wukong,app.kubernetes.io/component in (object-store,postgres,mlflow)"
    )


MAY = [
    # as, verb, resource, namespace, allowed
    ("kubeflow:pipeline-runner", "create", "rayjobs.ray.io", "wukong", True),
    ("kubeflow:pipeline-runner", "patch", "rayjobs.ray.io", "wukong", True),
    ("kubeflow:pipeline-runner", "delete", "rayjobs.ray.io", "wukong", True),
    ("kubeflow:pipeline-runner", "get", "configmaps/ray-job", "wukong", True),
    ("kubeflow:pipeline-runner", "get", "pods/log", "wukong", True),
    ("kubeflow:pipeline-runner", "get", "secrets", "wukong", False),
    ("kubeflow:pipeline-runner", "get", "secrets/wukong-s3", "wukong", False),
    ("kubeflow:pipeline-runner", "create", "pods", "wukong", False),
    ("kubeflow:pipeline-runner", "delete", "pods", "wukong", False),
    ("kubeflow:pipeline-runner", "create", "pods/exec", "wukong", False),
    ("kubeflow:pipeline-runner", "create", "rayjobs.ray.io", "default", False),
    ("kubeflow:pipeline-runner", "delete", "nodes", "wukong", False),
    ("kubeflow:pipeline-runner", "delete", "persistentvolumeclaims", "wukong", False),
    ("wukong:setup", "create", "secrets", "wukong", True),
    ("wukong:setup", "get", "secrets/wukong-s3", "wukong", True),
    ("wukong:setup", "list", "secrets", "wukong", False),
    ("wukong:setup", "delete", "secrets", "wukong", False),
    ("wukong:setup", "patch", "statefulsets.apps/object-store", "wukong", True),
    ("wukong:setup", "patch", "statefulsets.apps/postgres", "wukong", False),
    ("wukong:setup", "get", "secrets/mysql-secret", "kubeflow", True),
    ("wukong:setup", "list", "secrets", "kubeflow", False),
    ("wukong:setup", "create", "pods", "wukong", False),
    *[
        (f"wukong:{account}", verb, resource, "wukong", False)
        for account in ("ray", "mlflow", "postgres", "object-store", "backup", "default")
        for verb, resource in (("get", "secrets"), ("create", "pods"), ("list", "pods"), ("create", "rayjobs.ray.io"))
    ],
]


@pytest.mark.cluster(
    claim="Service accounts may do what their work needs and nothing else",
    how="`kubectl auth can-i`, a table of accounts, verbs and resources",
)
def test_who_may_do_what(installed: str, found: list[str]) -> None:
    wrong = []
    for account, verb, resource, namespace, allowed in MAY:
        done = subprocess.run(
            ["kubectl", "auth", "can-i", verb, resource, "-n", namespace, f"--as=system:serviceaccount:{account}"],
            capture_output=True,
            text=True,
            check=False,
        )
        answer = done.stdout.strip()
        assert answer in ("yes", "no"), done.stderr
        if (answer == "yes") != allowed:
            wrong.append(f"{account} {verb} {resource} in {namespace}: {answer}")
    found.append(f"{len(MAY)} questions, {sum(entry[-1] for entry in MAY)} of them yes")
    assert not wrong, "\n".join(wrong)


@pytest.mark.cluster(
    claim="A RayJob whose pods would be another account, or hold a Secret or a volume of the platform's servers, is "
    "refused; those of the launcher are accepted",
    how="`kubectl create --dry-run=server` of the crawl's RayJob, as it is and changed",
)
def test_what_a_ray_job_may_not_hold(installed: str, found: list[str]) -> None:
    for job in ray_jobs(plain()).values():
        kube.kubectl("create", "--dry-run=server", "-f", "-", given=yaml.safe_dump(job))
    thefts: list[dict[str, Any]] = [
        {"serviceAccountName": "setup"},
        {"volumes": [{"name": "a", "secret": {"secretName": "mlflow-admin"}}]},
        {"volumes": [{"name": "a", "persistentVolumeClaim": {"claimName": "backups"}}]},
    ]
    for theft in thefts:
        job = json.loads(json.dumps(ray_jobs(plain())["crawl"]))
        job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"] |= theft
        with pytest.raises(kube.KubectlError, match="pods of a RayJob"):
            kube.kubectl("create", "--dry-run=server", "-f", "-", given=yaml.safe_dump(job))
    found.append(f"{len(thefts)} are refused")


RAY = {"app.kubernetes.io/component": "ray"}
STORE, MLFLOW, POSTGRES = (
    ("object-store.wukong.svc", 8333),
    ("mlflow.wukong.svc", 5000),
    ("postgres.wukong.svc", 5432),
)
API, METADATA, MYSQL = (
    ("kubernetes.default.svc", 443),
    ("metadata-grpc-service.kubeflow.svc", 8080),
    ("mysql.kubeflow.svc", 3306),
)
CLOUD = ("169.254.169.254", 80)
TARGETS = {
    "object store": STORE,
    "MLflow": MLFLOW,
    "PostgreSQL": POSTGRES,
    "Kubernetes API": API,
    "ML Metadata": METADATA,
    "KFP's MySQL": MYSQL,
    "cloud metadata": CLOUD,
}
OPEN = {
    # namespace, labels: what opens; everything else of TARGETS must not
    "crawler": ("wukong", RAY | {"wukong/stage": "crawl"}, {"object store", "MLflow", "Ray dashboard", "Ray GCS"}),
    "ray": ("wukong", RAY | {"wukong/stage": "pretrain"}, {"object store", "MLflow", "Ray dashboard", "Ray GCS"}),
    "mlflow": ("wukong", {"app.kubernetes.io/component": "mlflow"}, {"object store", "PostgreSQL"}),
    "postgres": ("wukong", {"app.kubernetes.io/component": "postgres"}, set()),
    "object-store": ("wukong", {"app.kubernetes.io/component": "object-store"}, set()),
    "backup": (
        "wukong",
        {"app.kubernetes.io/component": "backup"},
        {"object store", "PostgreSQL", "KFP's MySQL"},
    ),
    "setup": ("wukong", {"app.kubernetes.io/component": "setup"}, {"object store", "MLflow", "Kubernetes API"}),
    "a pod without labels": ("wukong", {}, set()),
    "component": ("kubeflow", {}, {"object store", "MLflow", "Kubernetes API", "ML Metadata", "KFP's MySQL"}),
    "operator": (
        "kuberay-system",
        {"app.kubernetes.io/component": "kuberay-operator"},
        {"Kubernetes API", "ML Metadata", "KFP's MySQL", "Ray dashboard"},
    ),
    "another's pod with the operator's label": (
        "default",
        {"app.kubernetes.io/component": "kuberay-operator"},
        {"Kubernetes API", "ML Metadata", "KFP's MySQL"},
    ),
    "another namespace": ("default", {}, {"Kubernetes API", "ML Metadata", "KFP's MySQL"}),
}
CONNECT = """
import json, socket, sys, time
targets = json.loads(sys.argv[1])
time.sleep(15)  # until the policies for this pod are in force
def opens(host, port, tries):
    for attempt in range(tries):
        try:
            socket.create_connection((host, port), timeout=4).close()
            return True
        except OSError as error:
            time.sleep(1)
    return False
print(json.dumps({name: opens(host, port, 5 if wanted else 1) for name, (host, port, wanted) in targets.items()}))
"""


@pytest.mark.cluster(
    claim="Network policies let through what must pass and nothing else: the crawler reaches neither the Kubernetes "
    "API nor a metadata service, a pod without labels nothing",
    how="TCP connections from pods with the labels of each component",
)
def test_who_reaches_whom(installed: str, found: list[str]) -> None:
    # A stand-in for a Ray head; without the label of the name no Service and no controller takes a pod for its own.
    code = (
        "import socket, time\n"
        "listeners = [socket.create_server(('0.0.0.0', port), backlog=64) for port in (8265, 6379)]\n"
        "time.sleep(900)\n"
    )
    head = kube.start_pod(code, labels=RAY | {"wukong/stage": "pretrain"})
    started = {}
    try:
        address = kube.until("the stand-in of a Ray head", lambda: _address(head), 180)
        targets = TARGETS | {"Ray dashboard": (address, 8265), "Ray GCS": (address, 6379)}
        for name, (namespace, labels, opens) in OPEN.items():
            wanted = {target: (*place, target in opens) for target, place in targets.items()}
            started[name] = kube.start_pod(CONNECT, [json.dumps(wanted)], namespace=namespace, labels=labels)
        wrong = []
        for name, (namespace, _, opens) in OPEN.items():
            seen = json.loads(kube.pod_output(started.pop(name), namespace, 600))
            for target, opened in seen.items():
                # What other namespaces reach outside of ours is not for our policies to say.
                elsewhere = namespace != "wukong" and target == "cloud metadata"
                if opened != (target in opens) and not elsewhere:
                    wrong.append(f"{name} {'reaches' if opened else 'does not reach'} {target}")
        found.append(f"{len(OPEN)} kinds of pods, {len(OPEN) * len(targets)} connections")
        assert not wrong, "\n".join(wrong)
    finally:
        for name, pod in (*((OPEN[name][0], pod) for name, pod in started.items()), ("wukong", head)):
            kube.kubectl("-n", name, "delete", "pod", pod, "--wait=false", "--ignore-not-found")


def _address(pod: str) -> str | None:
    found = kube.get("pod", pod) or {}
    return found["status"].get("podIP") if kube.is_ready(found) else None


@pytest.mark.cluster(
    claim="A stolen S3 key opens what the page on security says and nothing else: the crawler's reads inputs, "
    "experiments and crawls, and writes crawls and their records",
    how="the key of each Secret: reads, lists, writes and deletions in each folder of an experiment and in the bucket "
    "of MLflow; the copies in the namespace of components are equal",
)
def test_what_a_stolen_key_opens(services: runs.Services, found: list[str]) -> None:
    owners = {"wukong": _client("wukong-s3"), "mlflow": _client("mlflow-s3")}
    wrong, table = [], stolen_keys.rows()
    try:
        for place, key in stolen_keys.PLACES.items():
            owners[stolen_keys.bucket_of(place)].put_object(Bucket=stolen_keys.bucket_of(place), Key=key, Body=b"x")
        for name, (read, written) in table.items():
            seen = stolen_keys.opened_by(_client(name))
            for does, said, did in (("reads", read, seen[0]), ("writes", written, seen[1])):
                wrong += [f"{name} {does} {place}: {place in did}" for place in sorted(said ^ did)]
    finally:
        for place, key in stolen_keys.PLACES.items():
            for each in (key, f"{key}.json"):
                owners[stolen_keys.bucket_of(place)].delete_object(Bucket=stolen_keys.bucket_of(place), Key=each)
    copies = [name for name in table if kube.get("secret", name, "kubeflow")]
    for name in copies:
        assert kube.secret(name, "kubeflow") == kube.secret(name), name
    found.append(f"{len(table)} keys, {len(table) * len(stolen_keys.PLACES)} places; {len(copies)} in kubeflow too")
    assert not wrong, "\n".join(wrong)
    assert copies, "components find no key"


def _client(name: str) -> Any:
    key = kube.secret(name)
    return boto3.client(
        "s3",
        endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"],
        region_name="us-east-1",
        aws_access_key_id=key["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=key["AWS_SECRET_ACCESS_KEY"],
    )


@pytest.mark.cluster(
    claim="MLflow answers under the names that it is reached by, and refuses others",
    how="requests with the Host header of a port-forward, of the service and its address, and of a foreign site",
)
def test_the_names_of_mlflow(services: runs.Services, found: list[str]) -> None:
    service = (kube.get("service", "mlflow") or {})["spec"]["clusterIP"]
    ours = (
        "127.0.0.1:5000",
        "localhost:5000",
        "mlflow.wukong.svc:5000",
        "mlflow.wukong.svc.cluster.local:5000",
        f"{service}:5000",
    )
    answers = {host: _status(services, host) for host in (*ours, "evil.example:5000")}
    found.append(", ".join(f"{host} {status}" for host, status in answers.items()))
    assert answers == {**dict.fromkeys(ours, 200), "evil.example:5000": 403}


def _status(services: runs.Services, host: str) -> int:
    try:
        services.ask_mlflow("experiments/search?max_results=1", host=host)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


@pytest.mark.cluster(
    claim="At rest, without KFP, the overlay asks for at most half a core and 1.5 GiB",
    how="requests of the running pods, added up",
)
def test_what_the_installation_asks_for(installed: str, overlay: str, found: list[str]) -> None:
    if not overlay.rstrip("/").endswith("kind"):
        pytest.skip("this is said of the kind overlay")
    containers = [container for pod in _own_pods() for container in pod["spec"]["containers"]]
    asked = [container.get("resources", {}).get("requests", {}) for container in containers]
    cores = sum(_number(entry.get("cpu", "0")) for entry in asked)
    memory = sum(_number(entry.get("memory", "0")) for entry in asked) / 2**30
    found.append(f"{cores:.2f} cores, {memory:.2f} GiB")
    assert cores <= 0.5
    assert memory <= 1.5


def _number(quantity: str) -> float:
    for suffix, factor in (("Ki", 2**10), ("Mi", 2**20), ("Gi", 2**30), ("m", 1e-3)):
        if quantity.endswith(suffix):
            return float(quantity.removesuffix(suffix)) * factor
    return float(quantity)


@pytest.mark.cluster(
    claim="The compiled pipelines upload, and uploading them again makes no new version",
    how="KFP's API, as `wukong submit` uses it",
)
def test_the_pipelines_upload(services: runs.Services, found: list[str]) -> None:
    for file in sorted(runs.COMPILED.glob("*.yaml")):
        first = services.api.upload(file)
        assert services.api.upload(file) == first
        found.append(file.stem)
    found[:] = [", ".join(found)]
