"""A store of the operator's own in place of SeaweedFS: the overlay external-s3 with a private authority's certificate.

Variables name it: ``WUKONG_EXTERNAL_S3`` the endpoint, an address that pods and this machine reach;
``WUKONG_EXTERNAL_S3_CA`` the file of the authority's certificate; ``WUKONG_EXTERNAL_S3_KEY`` and
``WUKONG_EXTERNAL_S3_SECRET`` a key that may make buckets.
"""

import base64
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import kube
import pytest
import runs
import yaml
from session import State, experiment_of

from infra import s3_keys
from wukong.store import address, s3_requests, storage

ROOT = Path(__file__).parents[2]
VARIABLES = tuple(f"WUKONG_EXTERNAL_S3{ending}" for ending in ("", "_CA", "_KEY", "_SECRET"))
CERTIFICATES = "wukong-store-ca"
SIZED = ("ray-job", "mlflow", "postgres", "backups")
"""Names of objects that say the same of the store in every overlay, and have sizes: the installed ones stay."""


def _objects(folder: Path, endpoint: str, stamp: str) -> list[kube.Object]:
    """The overlay external-s3 with the component store-ca, for an endpoint, without what has sizes."""
    relative = os.path.relpath(ROOT / "k8s", folder)
    content = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"{relative}/overlays/external-s3"],
        "components": [f"{relative}/components/store-ca"],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    where = urlsplit(endpoint)
    made = []
    for one in yaml.safe_load_all(kube.kubectl("kustomize", str(folder))):
        name = one["metadata"]["name"]
        if name in SIZED and one["kind"] in ("ConfigMap", "Deployment", "StatefulSet", "PersistentVolumeClaim"):
            continue
        if one["kind"] == "Job":
            one["metadata"]["name"] += f"-{stamp}"
        if name == "wukong-settings":
            one["data"]["AWS_ENDPOINT_URL_S3"] = endpoint
        if name == "to-object-store":
            ports = [{"protocol": "TCP", "port": where.port or 443}]
            one["spec"]["egress"] = [{"to": [{"ipBlock": {"cidr": f"{where.hostname}/32"}}], "ports": ports}]
        made.append(one)
    return made


def _put_secret(name: str, values: dict[str, str], namespace: str = "wukong") -> None:
    """Make a Secret what the operator would make it; its labels stay."""
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    patch = yaml.safe_dump({"data": data})
    kube.kubectl("-n", namespace, "patch", "secret", name, "--type=merge", "-p", patch)


@contextmanager
def _installed(overlay: str, objects: list[kube.Object], authority: str, key: dict[str, str]) -> Iterator[None]:
    """Have the platform use another store while the block lasts, and SeaweedFS away."""
    # The setup job writes the keys into SeaweedFS's own list too.
    before = {name: kube.secret(name) for name in (*s3_keys.NAMES, "object-store")}
    job = next(one["metadata"]["name"] for one in objects if one["kind"] == "Job")
    servers = ("deployment/mlflow", "statefulset/postgres")
    try:
        for namespace in ("wukong", "kubeflow"):
            kube.apply(
                {
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": {"name": CERTIFICATES, "namespace": namespace},
                    "data": {"ca.crt": authority},
                }
            )
        for name in s3_keys.NAMES:
            _put_secret(name, key)
        kube.apply(*objects)
        kube.kubectl("-n", "wukong", "scale", "statefulset/object-store", "--replicas=0")
        kube.kubectl(*("-n", "wukong", "wait", "--for=condition=complete", "--timeout=600s", f"job/{job}"), timeout=630)
        kube.kubectl("-n", "wukong", "rollout", "restart", "deployment/mlflow")
        kube.rollout(*servers)
        yield
    finally:
        for name, values in before.items():
            _put_secret(name, values)
            if name != "object-store" and kube.get("secret", name, "kubeflow") is not None:
                _put_secret(name, values, "kubeflow")
        kube.kubectl("-n", "wukong", "delete", "job", job, "--ignore-not-found")
        kube.kubectl("apply", "-k", overlay)
        kube.kubectl("-n", "wukong", "scale", "statefulset/object-store", "--replicas=1")
        for namespace in ("wukong", "kubeflow"):
            kube.kubectl("-n", namespace, "delete", "configmap", CERTIFICATES, "--ignore-not-found")
        kube.kubectl("-n", "wukong", "rollout", "restart", "deployment/mlflow")
        kube.rollout("statefulset/object-store", *servers)


def _unnamed(digests: dict[str, str]) -> dict[str, str]:
    """The digests of outputs that do not hold the experiment's name, as the pages of validate and evaluate do."""
    return {stage: digest for stage, digest in digests.items() if stage not in ("validate", "evaluate")}


@pytest.mark.cluster(
    claim="With an S3 server of the operator's own, whose certificate a private authority has signed, and without "
    "SeaweedFS, the workflow ends; crawl, filter and both models have the digests of the first run, and MLflow keeps "
    "its files there too",
    how="the overlay `external-s3` with the component `store-ca` and a key for both buckets; the object store of the "
    "cluster scaled to zero; the overlay that was there before afterwards",
)
def test_a_store_of_the_operators_own(
    first: runs.Run,
    services: runs.Services,
    session_state: State,
    overlay: str,
    found: list[str],
    tmp_path: Path,
    stamp: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if missing := [name for name in VARIABLES if not os.environ.get(name)]:
        pytest.skip(f"{', '.join(missing)} name no S3 server")
    endpoint, authority, access, secret = (os.environ[name] for name in VARIABLES)
    key = {"AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret}
    expected = _unnamed(runs.digests(experiment_of(session_state), first))
    queries = storage.read_bytes(runs.QUERIES)
    made = runs.experiment(f"external-{stamp}")
    for name, value in {"AWS_ENDPOINT_URL_S3": endpoint, address.CERTIFICATES: authority, **key}.items():
        monkeypatch.setenv(name, value)
    objects = _objects(tmp_path, endpoint, stamp)
    with _installed(overlay, objects, Path(authority).read_text(encoding="utf-8"), key):
        storage.write_bytes(runs.QUERIES, queries)
        run = runs.complete(services, made, f"external-{stamp}")
        digests = _unnamed(runs.digests(made, run))
        listed = s3_requests.client(address.of_environment()).list_objects_v2(Bucket="mlflow")
        found += [
            f"{endpoint}: {len(storage.list_files(made.root))} objects of the run, {listed['KeyCount']} of MLflow",
            f"{len(digests)} digests, as of the first run",
        ]
        assert digests == expected and {"crawl", "filter", "pretrain", "finetune"} <= set(digests)
        assert listed["KeyCount"] > 0
