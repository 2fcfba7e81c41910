"""An S3 key for each RayJob on a cluster: with the component `stage-keys`, which is taken out again."""

import os
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import kube
import pytest
import runs
import table
import yaml
from session import State, experiment_of
from stolen_keys import allowed

from wukong.stages import access

ROOT = Path(__file__).parents[2]
COMPONENT = ROOT / "k8s" / "components" / "stage-keys"
FOLDER = table.FOLDER / "stage-keys"


@pytest.fixture
def own_keys(services: runs.Services, overlay: str) -> Iterator[None]:
    """The installation with the component, for one test."""
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
        kube.rollout("statefulset/object-store", "deployment/stage-keys")
        yield
    finally:
        kube.kubectl("apply", "-k", overlay)
        files = [argument for name in ("stage-keys", "network") for argument in ("-f", str(COMPONENT / f"{name}.yaml"))]
        kube.kubectl("delete", *files, "--ignore-not-found")
        kube.rollout("statefulset/object-store")


@pytest.mark.cluster(
    claim="With `stage-keys`, the pods of each RayJob have an S3 key of their own: it writes its stage's folder of its "
    "own experiment while the job runs, and is refused when the job has ended",
    how="the data pipeline with another crawl; writes with the crawl's key while it runs, and with the keys of all "
    "jobs afterwards",
)
def test_a_key_ends_with_its_ray_job(
    own_keys: None, search: None, services: runs.Services, session_state: State, found: list[str], stamp: str
) -> None:
    quality = 60 + int(time.time()) % 35
    made = experiment_of(session_state, f"crawl.jpeg_quality={quality}", "release.files=1")
    run = runs.start(services, made, f"keys-{stamp}", pipeline="data")
    began = time.monotonic()
    job = kube.until("the crawl's RayJob", lambda: next(iter(runs.ray_jobs(run, "crawl")), None), 600)
    name = job["metadata"]["name"]
    kube.until("its Secret", lambda: kube.get("secret", access.key_of_ray_job(name)), 60, 0.5)
    key = kube.secret(access.key_of_ray_job(name))
    places = {"own": "crawl/_tried/a", "stage": "filter/_tried/a", "experiment": f"../{stamp}/crawl/_tried/a"}
    root = made.root.removeprefix(f"s3://{access.BUCKET}/")
    opened = {what: _opens(key, os.path.normpath(f"{root}/{place}")) for what, place in places.items()}
    found.append(f"the crawl's key after {time.monotonic() - began:.0f} s")
    assert opened == {"own": True, "stage": False, "experiment": False}
    runs.succeed(services, run)
    ended = {each["metadata"]["name"]: each["metadata"]["labels"]["wukong/stage"] for each in runs.ray_jobs(run)}
    assert {"crawl", "filter", "validate"} <= set(ended.values())
    keys = {stage: kube.secret(access.key_of_ray_job(each)) for each, stage in ended.items()}
    assert len({each["AWS_ACCESS_KEY_ID"] for each in keys.values()}) == len(keys)
    left = partial(_accepted, keys, root)
    kube.until("the store refuses all of them", lambda: not left(), 30, 1)
    found.append(f"{len(keys)} keys are refused")


def _accepted(keys: Mapping[str, Mapping[str, str]], root: str) -> list[str]:
    return [stage for stage, key in keys.items() if _opens(key, f"{root}/{stage}/_tried/b")]


def _opens(key: Mapping[str, str], place: str) -> bool:
    """Whether a key writes an object, which is deleted again with a key of people."""

    def client(of: Mapping[str, str]) -> Any:
        names = {name.lower(): value for name, value in of.items()}
        return boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"], region_name="us-east-1", **names)

    where = {"Bucket": access.BUCKET, "Key": place}
    opens: bool = allowed(partial(client(key).put_object, **where, Body=b"x"))
    if opens:
        client(kube.secret("wukong-s3")).delete_object(**where)
    return opens
