"""The table that these tests write, and what they share: the services of the cluster, an image search, a first run.

They change the cluster that ``KUBECONFIG`` names, so they are collected only for ``make cluster-test``.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import image_search
import kube
import pytest
import runs
import table
from prometheus import NAMESPACE, Prometheus, install, service
from session import State, first_run

from infra.laptop_cluster import WORKFLOW_DEFAULTS

collect_ignore_glob = [] if os.environ.get("WUKONG_CLUSTER_TEST") else ["test_*.py"]

SEARCH = "wukong-cluster-test"
"""The namespace of the image search."""

_rows: dict[str, table.Row] = {}
_took: dict[str, float] = {}  # seconds of each test, with its fixtures
_found: dict[str, list[str]] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Make a row of each test's result."""
    report = yield
    marker = item.get_closest_marker("cluster")
    if marker is None or "claim" not in marker.kwargs:
        return report
    _took[item.nodeid] = _took.get(item.nodeid, 0.0) + call.duration
    done = report.when == "call" or (report.when == "setup" and not report.passed)
    if done or (report.when == "teardown" and report.failed):
        result = "yes" if report.passed else "not tried" if report.skipped else "no"
        found = list(_found.get(item.nodeid, []))
        if report.failed and call.excinfo is not None:
            found.append(str(call.excinfo.value)[:1500])
        if report.skipped and call.excinfo is not None:
            found.append(str(call.excinfo.value))
        name = f"{item.path.stem}::{item.name}"
        _rows[name] = table.Row(
            test=name,
            line=item.location[1] or 0,
            claim=marker.kwargs["claim"],
            how=marker.kwargs["how"],
            result=result,
            found="\n".join(found),
            seconds=round(_took[item.nodeid], 1),
            versions=dict(_VERSIONS),
        )
        table.write(table.merge([row for row in table.read() if _same_cluster(row)], list(_rows.values())))
    return report


_VERSIONS: dict[str, str] = {}


def _same_cluster(row: table.Row) -> bool:
    return row.versions.get("cluster") == _VERSIONS.get("cluster")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table."""
    if _rows:
        terminalreporter.section("what was seen")
        terminalreporter.write_line(table.as_text(list(_rows.values())))
        terminalreporter.write_line(f"\n{table.FILE}; docs/verified.md: python tests/cluster/verified.py")


@pytest.fixture
def found(request: pytest.FixtureRequest) -> list[str]:
    """Lines for the row's last column: figures, names."""
    lines: list[str] = []
    _found[request.node.nodeid] = lines
    return lines


@pytest.fixture(scope="session", autouse=True)
def versions() -> dict[str, str]:
    """What runs on the cluster; without a cluster every test is an error that says so."""
    try:
        server = json.loads(kube.kubectl("version", "-o", "json"))["serverVersion"]["gitVersion"]
    except (FileNotFoundError, AssertionError, KeyError) as error:
        pytest.exit(f"no cluster: set KUBECONFIG, with kubectl on PATH ({error})", returncode=2)
    cluster = json.loads(kube.kubectl("get", "namespace", "kube-system", "-o", "json"))["metadata"]["uid"]
    _VERSIONS.update(cluster=cluster, Kubernetes=server)
    for product, namespace, selector in (
        ("KFP", "kubeflow", "app=ml-pipeline"),
        ("Argo", "kubeflow", "app=workflow-controller"),
        ("KubeRay", "*", "app.kubernetes.io/component=kuberay-operator"),
    ):
        if pods := kube.listed("pods", selector, namespace):
            _VERSIONS[product] = pods[0]["spec"]["containers"][0]["image"].rpartition(":")[2].removeprefix("v")
    return _VERSIONS


@pytest.fixture(scope="session")
def overlay() -> str:
    """The folder that is installed: ``OVERLAY`` of `make cluster-test`."""
    return os.environ.get("OVERLAY") or "k8s/overlays/kind"


@pytest.fixture(scope="session")
def installed(overlay: str) -> str:
    """The platform, which was installed by the first phase or by an earlier session."""
    if kube.get("configmap", "wukong-settings") is None:
        kube.kubectl("apply", "-k", overlay)
    kube.kubectl(*WORKFLOW_DEFAULTS)
    kube.rollout("statefulset/object-store", "statefulset/postgres", "deployment/mlflow")
    return overlay


@pytest.fixture(scope="session")
def services(installed: str) -> Iterator[runs.Services]:
    """KFP, MLflow and the object store, which ``wukong.store.storage`` opens."""
    forwards = {
        name: kube.Forward(namespace, f"svc/{name}", port)
        for name, namespace, port in (
            ("ml-pipeline", "kubeflow", 8888),
            ("mlflow", "wukong", 5000),
            ("object-store", "wukong", 8333),
        )
    }
    where = {name: f"http://127.0.0.1:{forward.open().port}" for name, forward in forwards.items()}
    keys = kube.secret("wukong-s3")
    before = dict(os.environ)
    os.environ.update(keys, AWS_ENDPOINT_URL_S3=where["object-store"], AWS_REGION="us-east-1")
    try:
        yield runs.Services(
            where["ml-pipeline"], where["mlflow"], kube.secret("wukong-mlflow"), list(forwards.values())
        )
    finally:
        for name in (*keys, "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
            os.environ.pop(name)
            if name in before:
                os.environ[name] = before[name]
        for forward in forwards.values():
            forward.close()


@pytest.fixture(autouse=True)
def ports_are_open(request: pytest.FixtureRequest) -> None:
    """A test that takes pods away may leave a forwarded port that leads nowhere; the next begins with open ones."""
    if "services" in request.fixturenames:
        for forward in request.getfixturevalue("services").forwards:
            forward.open()


@pytest.fixture(scope="session")
def prometheus(installed: str) -> Iterator[Prometheus]:
    """A Prometheus of the Prometheus operator in the namespace ``monitoring``, which reads what the components name."""
    name = service()
    if name is None:
        pytest.skip("no Prometheus of the Prometheus operator in the namespace monitoring")
    install(installed)
    forward = kube.Forward(NAMESPACE, f"svc/{name}", 9090).open()
    try:
        yield Prometheus(f"http://127.0.0.1:{forward.port}")
    finally:
        forward.close()


@pytest.fixture(scope="session")
def search(services: runs.Services, versions: dict[str, str]) -> Iterator[None]:
    """An image search in a namespace of its own, to which a policy of the test's own lets the crawler."""
    from wukong.store import storage

    storage.write_bytes(runs.QUERIES, ("\n".join(image_search.WORDS) + "\n").encode())
    labels = {"app": "image-search"}
    container = {
        "name": "search",
        "image": kube.data_image(),
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "/search/image_search.py", "8080"],
        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 2},
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}},
        "securityContext": kube.RESTRICTED,
        "volumeMounts": [{"name": "code", "mountPath": "/search"}],
    }
    # Beside a server of the platform, so that no test loses it with a node.
    beside = {
        "topologyKey": "kubernetes.io/hostname",
        "namespaces": ["wukong"],
        "labelSelector": {"matchLabels": {"app.kubernetes.io/component": "postgres"}},
    }
    affinity = {
        "podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": beside}]}
    }
    code = Path(image_search.__file__).read_text(encoding="utf-8")
    own = {"namespace": SEARCH}
    crawler = {"matchLabels": {"app.kubernetes.io/component": "ray", "wukong/stage": "crawl"}}
    kube.make_namespace(SEARCH)
    # A pod of an earlier session may have an older image.
    kube.kubectl("-n", SEARCH, "delete", "pod", "image-search", "--ignore-not-found")
    kube.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "image-search", **own},
            "data": {"image_search.py": code},
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "image-search", "labels": labels, **own},
            "spec": {
                "automountServiceAccountToken": False,
                "terminationGracePeriodSeconds": 0,
                "securityContext": kube.POD,
                "affinity": affinity,
                "containers": [container],
                "volumes": [{"name": "code", "configMap": {"name": "image-search"}}],
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "image-search", **own},
            "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 8080}]},
        },
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": "cluster-test-search", "namespace": "wukong"},
            "spec": {
                "podSelector": crawler,
                "policyTypes": ["Egress"],
                "egress": [
                    {
                        "to": [
                            {
                                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": SEARCH}},
                                "podSelector": {"matchLabels": labels},
                            }
                        ],
                        "ports": [{"protocol": "TCP", "port": 8080}],
                    }
                ],
            },
        },
    )
    kube.kubectl("-n", SEARCH, "wait", "--for=condition=Ready", "--timeout=180s", "pod/image-search", timeout=200)
    address = (kube.get("service", "image-search", SEARCH) or {})["spec"]["clusterIP"]
    _connect_to(f"{image_search.HOST}={address}:80")
    revision = kube.kubectl("-n", SEARCH, "exec", "image-search", "--", "printenv", "WUKONG_REVISION").strip()
    versions["images"] = revision
    yield
    if not os.environ.get("KEEP"):
        _connect_to(None)
        kube.kubectl("-n", "wukong", "delete", "networkpolicy", "cluster-test-search", "--ignore-not-found")
        kube.kubectl("delete", "namespace", SEARCH, "--ignore-not-found", "--wait=false")


def _connect_to(entry: str | None) -> None:
    patch = json.dumps({"data": {"WUKONG_CONNECT_TO": entry}})
    kube.kubectl("-n", "wukong", "patch", "configmap", "wukong-settings", "--type=merge", "-p", patch)


@pytest.fixture(scope="session")
def session_state(versions: dict[str, str]) -> State:
    return State(versions["cluster"])


@pytest.fixture(scope="session")
def first(services: runs.Services, search: None, session_state: State) -> runs.Run:
    """A run that went from the search to the report: of an earlier phase, or made now."""
    if stored := session_state.values.get("first"):
        return runs.Run(**stored)
    return first_run(services, session_state)


@pytest.fixture
def stamp() -> str:
    """Ends the names of runs, so that a session can be repeated."""
    return time.strftime("%H%M%S")
