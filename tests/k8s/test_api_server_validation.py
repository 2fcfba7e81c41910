"""The installation as a real API server judges it: defaults, strict fields, admission, the restricted standard."""

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import crd
import kube_api_server
import pytest
import yaml
from kube_api_server import NOBODYS_TOKEN, READY_SECONDS, TOKEN, Server
from manifests import BUILDS, FOLDER, Installation, Manifest, installation, named, plain, pods, ray_jobs

from cli import free_resources
from infra import team
from infra.cluster_api import Cluster
from ray_jobs.launch.kuberay import room
from ray_jobs.launch.kuberay.manifest import named as named_job

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running API server with KubeRay's resources, our namespaces and service accounts."""
    with kube_api_server.running(tmp_path_factory.mktemp("api-server")) as running:
        _prepare(running)
        yield running


def _prepare(server: Server) -> None:
    """Make for real what the rest refers to: kinds, namespaces, service accounts."""
    for kind in ("RayJob", "RayCluster"):
        assert server.create(_definition(kind), dry_run=False) == ""
    given = named(plain(), "Namespace")["wukong"]
    for namespace in (
        given,
        team._namespace("vision"),
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kubeflow"}},
    ):
        assert server.create(namespace, dry_run=False) == ""
    # A controller, which is not here, makes each namespace's own account.
    own = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}}
        for namespace in ("wukong", "kubeflow")
    ]
    for account in (*named(plain(), "ServiceAccount").values(), *own):
        assert server.create(account, dry_run=False) == ""
    until = time.monotonic() + READY_SECONDS
    while True:
        try:
            if server.ask("GET", "/apis/ray.io/v1")["resources"]:
                return
        except urllib.error.HTTPError:
            pass
        assert time.monotonic() < until, "the server does not serve ray.io/v1"
        time.sleep(0.2)


def _definition(kind: str) -> Manifest:
    """KubeRay's CustomResourceDefinition, around its schema in this folder."""
    schema = json.loads((crd.FOLDER / f"{kind.lower()}.json").read_text(encoding="utf-8"))
    plural = f"{kind.lower()}s"
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.ray.io"},
        "spec": {
            "group": "ray.io",
            "names": {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()},
            "scope": "Namespaced",
            "versions": [version],
        },
    }


@pytest.fixture(scope="module", params=["plain", *BUILDS])
def manifests(request: pytest.FixtureRequest) -> Installation:
    return installation(request.param)


def test_the_installation_is_accepted(server: Server, manifests: Installation) -> None:
    made = {"Namespace", "ServiceAccount"}
    refused = [server.create(manifest) for manifest in manifests if manifest["kind"] not in made]
    assert [message for message in refused if message] == []


def test_ray_jobs_are_accepted(server: Server, manifests: Installation) -> None:
    assert [message for job in ray_jobs(manifests).values() if (message := server.create(job))] == []


@pytest.fixture(params=["wukong", "vision"])
def guarded(server: Server, request: pytest.FixtureRequest) -> Iterator[Callable[[Manifest], str]]:
    """The server when it has the policy on RayJobs, in our namespace or a team's; it is in force a moment later."""
    made = [
        named(plain(), kind)[name]
        for kind, name in (
            ("ValidatingAdmissionPolicy", "wukong-ray-jobs"),
            ("ValidatingAdmissionPolicyBinding", "wukong-ray-jobs"),
            ("ValidatingAdmissionPolicyBinding", "wukong-ray-jobs-of-teams"),
        )
    ]
    for manifest in made:
        assert server.create(manifest, dry_run=False) == ""
    until = time.monotonic() + READY_SECONDS
    while not server.create(_in(request.param, _stealing("crawl", serviceAccountName="setup"))):
        assert time.monotonic() < until, "the policy is not in force"
        time.sleep(0.2)
    yield lambda job: server.create(_in(request.param, job))
    for manifest in made:
        plural = "validatingadmissionpolicybindings" if "Binding" in manifest["kind"] else "validatingadmissionpolicies"
        server.ask("DELETE", f"/apis/admissionregistration.k8s.io/v1/{plural}/{manifest['metadata']['name']}")


def _in(namespace: str, job: Manifest) -> Manifest:
    return {**job, "metadata": {**job["metadata"], "namespace": namespace}}


def _stealing(stage: str, role: str = "head", **change: Any) -> Manifest:
    """The RayJob of a stage with other pods: in a list, what is added to the first container's or the pod's own."""
    job: Manifest = json.loads(json.dumps(ray_jobs(plain())[stage]))
    cluster = job["spec"]["rayClusterSpec"]
    pod = {
        "head": cluster["headGroupSpec"]["template"]["spec"],
        "worker": cluster["workerGroupSpecs"][0]["template"]["spec"],
        "submitter": job["spec"]["submitterPodTemplate"]["spec"],
    }[role]
    for name, value in change.items():
        owner = pod["containers"][0] if name in ("env", "envFrom") else pod
        owner[name] = [*owner.get(name, []), *value] if isinstance(value, list) else value
    return job


Judge = Callable[[Manifest], str]


@pytest.mark.parametrize("role", ["head", "worker", "submitter"])
def test_a_ray_job_that_takes_what_components_may_not_have_is_refused(guarded: Judge, role: str) -> None:
    """Who has stolen a component's token makes RayJobs, and reads what their pods print."""
    of_setup = {"secretKeyRef": {"name": "setup-s3", "key": "AWS_ACCESS_KEY_ID"}}
    container = {"name": "more", "image": "x", "envFrom": [{"secretRef": {"name": "object-store"}}]}
    thefts: list[dict[str, Any]] = [
        {"serviceAccountName": "setup", "automountServiceAccountToken": True},
        {"envFrom": [{"secretRef": {"name": "mlflow-admin"}}]},
        {"envFrom": [{"secretRef": {"name": "of-the-operator"}}]},
        {"env": [{"name": "MORE", "valueFrom": of_setup}]},
        {"initContainers": [container]},
        {"containers": [container]},
        {"volumes": [{"name": "a", "secret": {"secretName": "postgres"}}]},
        {"volumes": [{"name": "a", "projected": {"sources": [{"secret": {"name": "mlflow-server"}}]}}]},
        {"volumes": [{"name": "a", "persistentVolumeClaim": {"claimName": "backups"}}]},
        {"volumes": [{"name": "a", "csi": {"driver": "x", "nodePublishSecretRef": {"name": "setup-s3"}}}]},
    ]
    for theft in thefts:
        assert "pods of a RayJob" in guarded(_stealing("crawl", role, **theft)), theft
    own = {"envFrom": [{"secretRef": {"name": "job-crawl-s3"}}], "volumes": [{"name": "a", "emptyDir": {}}]}
    assert guarded(_stealing("crawl", role, **own)) == ""


def test_the_launchers_ray_jobs_pass_the_policy(guarded: Judge, manifests: Installation) -> None:
    """Also with a Secret of their own, with as many variables as a large installation sets, and held by Kueue."""
    for stage, job in ray_jobs(manifests).items():
        own = named_job(job, job["metadata"]["name"], "wukong", own_key=True)
        many = json.loads(json.dumps(own))
        for group in (
            many["spec"]["rayClusterSpec"]["headGroupSpec"],
            *many["spec"]["rayClusterSpec"]["workerGroupSpecs"],
        ):
            variables = [{"name": f"MORE_{number}", "value": "x"} for number in range(500)]
            group["template"]["spec"]["containers"][0]["env"] += variables
        held = {**job, "spec": {**job["spec"], "suspend": True, "managedBy": "ray.io/kuberay-operator"}}
        held["spec"] |= {"shutdownAfterJobFinishes": True}
        held["spec"].pop("deletionStrategy")
        for each in (job, own, many, held):
            assert guarded(each) == "", stage


def test_a_name_gives_no_secret_of_another_pods(guarded: Judge) -> None:
    job = named_job(_stealing("crawl"), "setup", "wukong", own_key=True)
    assert "pods of a RayJob hold no Secret" in guarded(job)


NAMING = re.compile("secret|claim|serviceaccount|image|certificate|clustertrustbundle", re.IGNORECASE)
"""What the name of a field, or of one around it, says where its value names what pods may get by it."""
HARMLESS = re.compile(
    r"containers\.(image|resources\.claims\..*)$"  # of the policy on images; of claims that the pod has
    r"|containers\.envFrom\.secretRef\.optional$|volumes\.(secret|persistentVolumeClaim)\.(?!secretName|claimName)"
    r"|(?<!volumes\.)imagePullPolicy$|pullPolicy$|automountServiceAccountToken$"
)


def _named_by(schema: Manifest, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Manifest]]:
    """Each field of a schema that holds one value and can name a Secret, claim, account or image, with its schema."""
    inner = schema.get("items", schema)
    if "properties" in inner:
        for name, each in inner["properties"].items():
            yield from _named_by(each, (*path, name))
    elif any(map(NAMING.search, path)) and not HARMLESS.search(".".join(path)):
        yield path, schema


def _value(schema: Manifest) -> Any:
    """Any value that a schema admits."""
    if schema.get("x-kubernetes-int-or-string") or "anyOf" in schema:
        return 1
    match schema.get("type"):
        case "object":
            return {name: _value(schema["properties"][name]) for name in schema.get("required", [])}
        case "array":
            return [_value(schema["items"])]
        case "boolean":
            return True
        case "integer" | "number":
            return 1
    return schema["enum"][0] if "enum" in schema else "another"


def _with(job: Any, schema: Manifest, path: Sequence[str]) -> Any:
    """An object of a schema with one more field set, in the first pod or container, or in one more entry of a list."""
    if not path:
        return _value(schema)
    if schema.get("type") == "array":
        if job and "template" not in job[0] and "image" not in job[0]:
            return [*job, _with(_value(schema["items"]), schema["items"], path)]
        first = job[0] if job else _value(schema["items"])
        return [_with(first, schema["items"], path), *(job or [])[1:]]
    inner = schema["properties"][path[0]]
    changed = {**(job or _value(schema))}
    changed[path[0]] = _with(changed.get(path[0]), inner, path[1:])
    return changed


def test_every_field_that_names_a_secret_a_claim_an_account_or_an_image_is_refused(guarded: Judge) -> None:
    schema = json.loads((crd.FOLDER / "rayjob.json").read_text(encoding="utf-8"))["properties"]["spec"]
    job = ray_jobs(plain())["crawl"]
    fields = [path for path, _ in _named_by(schema)]
    assert len(fields) > 250
    passed, unasked = [], []
    for path in fields:
        said = guarded({**job, "spec": _with(job["spec"], schema, path)})
        if not said:
            passed.append(".".join(path))
        elif "pods of a RayJob" not in said:
            unasked.append(f"{'.'.join(path)}: {said[:300]}")
    assert passed == []
    assert unasked == [], "the server refuses it for another reason, so this says nothing of the policy"


def test_every_pod_meets_the_standard_of_its_namespace(server: Server, manifests: Installation) -> None:
    """The server warns of a Deployment and refuses its pods, so the pods themselves are asked for."""
    refused = []
    for pod in pods(manifests):
        metadata = {"name": "tried", "namespace": "wukong", "labels": dict(pod.labels)}
        spec = {**pod.spec, "volumes": _without_claims(pod.volumes)}
        refused.append(server.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}))
    assert refused
    assert [message for message in refused if message] == []


def _without_claims(volumes: list[Manifest]) -> list[Manifest]:
    return [{"name": entry["name"], "emptyDir": {}} if "persistentVolumeClaim" in entry else entry for entry in volumes]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hostNetwork": True}, "violates PodSecurity"),
        ({"nodeSelektor": {}}, "unknown field"),
        ({"serviceAccountName": "nobody"}, "not found"),
    ],
)
def test_a_wrong_pod_is_refused(server: Server, change: Manifest, said: str) -> None:
    pod = next(pod for pod in pods(plain()) if pod.owner == "Deployment/mlflow")
    metadata = {"name": "tried", "namespace": "wukong"}
    spec = {**pod.spec, **change}
    assert said in server.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})


def test_an_exception_that_schemas_accept_is_refused(server: Server) -> None:
    """The server reads this block as IPv4, and an exception must lie inside its block."""
    policy = json.loads(json.dumps(named(plain(), "NetworkPolicy")["crawler"]))
    policy["spec"]["egress"][0]["to"][1]["ipBlock"]["except"].append("::ffff:0:0/96")
    assert "subset" in server.create(policy)


@pytest.fixture
def node(server: Server) -> Manifest:
    """A node of eight cores, on which a pod of MLflow runs."""
    allocatable = {"cpu": "8", "memory": "16Gi", "pods": "110"}
    made = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}, "status": {"allocatable": allocatable}}
    assert server.create(made, dry_run=False) == ""
    # The server marks a new node as not ready; its controllers, which are not here, take that back.
    stored = server.ask("GET", "/api/v1/nodes/a")
    stored["spec"].pop("taints", None)
    server.ask("PUT", "/api/v1/nodes/a", stored)
    pod = next(pod for pod in pods(plain()) if pod.owner == "Deployment/mlflow")
    metadata = {"name": "running", "namespace": "wukong"}
    spec = {**pod.spec, "nodeName": "a", "volumes": _without_claims(pod.volumes)}
    assert server.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}, dry_run=False) == ""
    running: Manifest = server.ask("GET", "/api/v1/namespaces/wukong/pods/running")
    return running


def test_what_is_free_is_read_as_the_server_describes_it(
    server: Server, node: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `wukong submit --dry-run` reads, and what a user without rights is told."""

    def seen_by(token: str) -> Cluster:
        path = server.kubeconfig(tmp_path / "kubeconfig", token)
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
        return Cluster()

    asked = room.requests_of(node["spec"])
    (seen,) = free_resources.nodes(seen_by(TOKEN))
    assert asked["cpu"] > 0
    assert seen.free["cpu"] == 8 - asked["cpu"]
    assert seen.free["memory"] == 16 * 2**30 - asked["memory"]
    assert seen.free["pods"] == 109
    pods = [room.Pod("crawl", "worker", {"cpu": Decimal(4)})] * 2
    ((line,), unseen) = free_resources.unfit(seen_by(TOKEN), "wukong", {"crawl": pods})
    assert line.startswith("crawl: 1 of 2 pods (worker) fit on no node now")
    assert unseen == []
    (lines, unseen) = free_resources.unfit(seen_by(NOBODYS_TOKEN), "wukong", {"crawl": pods})
    assert lines == []
    assert [each.partition(";")[0] for each in unseen] == [
        "not looked at: nodes and their pods (Forbidden)",
        "not looked at: the namespace's quotas (Forbidden)",
    ]


DIGEST = "sha256:" + "a" * 64
COMPONENTS = FOLDER / "components"


@pytest.fixture
def listing(server: Server) -> Iterator[Server]:
    """The server when it has the policy on images."""
    with _policy_on_images(server):
        yield server


@contextmanager
def _policy_on_images(server: Server, listed: str = f'{{"{DIGEST}": "signed"}}') -> Iterator[None]:
    """Have the server admit what the policy on images lets through, with a list of the operator's."""
    policy, binding = yaml.safe_load_all((COMPONENTS / "signed-images" / "policy.yaml").read_text(encoding="utf-8"))
    policy["spec"]["variables"][0]["expression"] = listed
    until = time.monotonic() + READY_SECONDS
    for manifest in (policy, binding):
        assert server.create(manifest, dry_run=False) == ""
    while not server.create(_pod("wukong", "x:1")):
        assert time.monotonic() < until, "the policy is not in force"
        time.sleep(0.2)
    try:
        yield
    finally:
        for kind in ("validatingadmissionpolicybindings", "validatingadmissionpolicies"):
            server.ask("DELETE", f"/apis/admissionregistration.k8s.io/v1/{kind}/{policy['metadata']['name']}")
        while server.create(_pod("wukong", "x:1")):
            assert time.monotonic() < until + READY_SECONDS, "the policy is still in force"
            time.sleep(0.2)


def _pod(namespace: str, image: str, secret: str = "", **more: Any) -> Manifest:
    """A pod of MLflow's with another image, and with what components hold if it names a Secret."""
    pod = json.loads(json.dumps(next(pod for pod in pods(plain()) if pod.owner == "Deployment/mlflow").spec))
    (container,) = pod["containers"]
    container |= {"image": image, "envFrom": [{"secretRef": {"name": secret}}] if secret else [], "env": []}
    pod |= {"serviceAccountName": "default", "volumes": _without_claims(pod["volumes"]), "initContainers": [], **more}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "tried", "namespace": namespace}, "spec": pod}


def _refusal(server: Server, manifest: Manifest) -> str:
    """The images that the policy names; the server's words if it refuses for another reason; empty if it accepts."""
    said = server.create(manifest)
    return said.rpartition("not on the list of signed images: ")[2]


def test_only_digests_on_the_list_run_in_wukong(listing: Server) -> None:
    assert _refusal(listing, _pod("wukong", f"registry.example:5000/wukong/data@{DIGEST}")) == ""
    assert _refusal(listing, _pod("wukong", f"registry.example/wukong/data:0.2.0@{DIGEST}")) == ""
    other = f"wukong/data@sha256:{'b' * 64}"
    for image in ("wukong/data:0.2.0", "wukong/data", other, f"wukong/data@{DIGEST}0", f"wukong/data:{'a' * 64}"):
        assert _refusal(listing, _pod("wukong", image)) == image
    more = {
        "name": "more",
        "image": other,
        "securityContext": _pod("wukong", "")["spec"]["containers"][0]["securityContext"],
    }
    assert _refusal(listing, _pod("wukong", f"x@{DIGEST}", initContainers=[more])) == other


@pytest.mark.parametrize("role", ["head", "worker", "submitter"])
def test_a_ray_job_with_an_image_that_is_not_listed_is_refused_whole(listing: Server, role: str) -> None:
    def of(wrong: str) -> Manifest:
        job: Manifest = json.loads(json.dumps(ray_jobs(plain())["crawl"]))
        cluster = job["spec"]["rayClusterSpec"]
        given = {
            "head": cluster["headGroupSpec"]["template"],
            "worker": cluster["workerGroupSpecs"][0]["template"],
            "submitter": job["spec"]["submitterPodTemplate"],
        }
        for name, template in given.items():
            template["spec"]["containers"][0]["image"] = f"x@{DIGEST}" if name != wrong else "x:1"
        return job

    assert _refusal(listing, of(wrong="")) == ""
    assert _refusal(listing, of(wrong=role)) == "x:1"


def test_in_kubeflow_only_pods_with_wukongs_credentials_are_asked(listing: Server) -> None:
    """Other people's pipelines run there, and KFP adds containers of its own to each pod."""
    component = f"wukong/data@{DIGEST}"
    assert _refusal(listing, _pod("kubeflow", "others:1")) == ""
    assert _refusal(listing, _pod("kubeflow", "others:1", "of-others")) == ""
    argo = _pod("kubeflow", "argo:1")["spec"]["containers"][0] | {"name": "wait"}
    with_argo = _pod("kubeflow", component, "component-crawl-s3")
    with_argo["spec"]["containers"].append(argo)
    assert _refusal(listing, with_argo) == ""
    for secret in ("component-crawl-s3", "wukong-s3", "wukong-mlflow", "runs-mlflow", "search-mlflow"):
        assert _refusal(listing, _pod("kubeflow", "others:1", secret)) == "others:1", secret
        held = {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": secret, "key": "a"}}}
        by_name = _pod("kubeflow", "others:1")
        by_name["spec"]["containers"][0]["env"] = [held]
        assert _refusal(listing, by_name) == "others:1", secret
        sources = [{"secret": {"secretName": secret}}, {"projected": {"sources": [{"secret": {"name": secret}}]}}]
        for source in sources:
            assert _refusal(listing, _pod("kubeflow", "others:1", volumes=_volumes(source))) == "others:1", source


def _volumes(source: Manifest) -> list[Manifest]:
    """The volumes of a pod of MLflow's, and one more."""
    return [*_pod("kubeflow", "")["spec"]["volumes"], {"name": "more", **source}]


def test_what_runs_already_stays_changeable_and_takes_no_other_image(server: Server) -> None:
    made = _pod("wukong", "x:1")
    made["metadata"]["name"] = "before"
    assert server.create(made, dry_run=False) == ""
    path = "/api/v1/namespaces/wukong/pods/before"
    with _policy_on_images(server):
        labelled = server.ask("GET", path)
        labelled["metadata"]["labels"] = {"a": "b"}
        assert server.ask("PUT", path, labelled)["metadata"]["labels"] == {"a": "b"}
        changed = server.ask("GET", path)
        changed["spec"]["containers"][0]["image"] = "x:2"
        with pytest.raises(urllib.error.HTTPError, match="422"):
            server.ask("PUT", path, changed)
    server.ask("DELETE", f"{path}?gracePeriodSeconds=0")


def test_without_a_list_nothing_starts(server: Server) -> None:
    given = yaml.safe_load((COMPONENTS / "signed-images" / "policy.yaml").read_text(encoding="utf-8").split("---")[0])
    with _policy_on_images(server, given["spec"]["variables"][0]["expression"]):
        assert _refusal(server, _pod("wukong", f"x@{DIGEST}")) == f"x@{DIGEST}"
