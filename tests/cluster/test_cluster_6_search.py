"""The search page on a cluster: a RayService, by the overlay of docs/serving.md, of a run's model and pictures."""

import asyncio
import json
import os
import re
import shutil
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import image_search
import kube
import pytest
import runs
import table
from prometheus import NAMESPACE as MONITORING
from prometheus import Prometheus
from session import State, experiment_of

from wukong.store import manifest, storage

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "serving.md"
FOLDER = table.FOLDER / "search"
HEAD = "app.kubernetes.io/component=search,ray.io/node-type=head"
WORKERS = "app.kubernetes.io/component=search,ray.io/node-type=worker"
INDEXES = "s3://wukong/indexes"
ADDRESS = "http://search-serve-svc.wukong:8000"
VISITORS, STRANGERS = "wukong-cluster-visitors", "wukong-cluster-strangers"
LABELS = {VISITORS: {"wukong/search": "true"}, STRANGERS: {}, MONITORING: {}}
"""Namespaces that ask the page, with their labels."""
QUERY = "紅色的小貓"  # the titles of the pictures are in Simplified characters
ASK = """
import json, sys, time, urllib.error, urllib.parse, urllib.request
time.sleep(15)  # until the policies for this pod are in force
for url in sys.argv[1:]:
    try:
        with urllib.request.urlopen(urllib.parse.quote(url, safe=":/?&="), timeout=60) as answer:
            said = answer.read().decode()
    except urllib.error.HTTPError as error:
        said = error.read().decode()
    except OSError as error:
        said = f"unreachable: {error}"
    print(json.dumps(said))
"""


@dataclass
class Served:
    """What the page is made of.

    Attributes:
        trained: URI of the model that the run has registered.
        other: URI of another model, that of the run's pre-training.
        data: URI of the filter's output.
        seconds: from `kubectl apply` until the page was ready.
    """

    trained: str
    other: str
    data: str
    seconds: float


def _write_overlay(overlay: str, model: str, data: str, more: Mapping[str, str] | None = None) -> Path:
    """The overlay of docs/serving.md, with a cluster's own overlay and a run's URIs, and more that is replaced."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.search(r"```text\n# k8s/overlays/mine/kustomization.yaml\n(.*?)```", text, re.DOTALL)
    assert found, "docs/serving.md has no overlay"
    replaced = {
        "../../components/serve": os.path.relpath(ROOT / "k8s" / "components" / "serve", FOLDER),
        "../kind": os.path.relpath(ROOT / overlay, FOLDER),
        "models:/demo@champion": model,
        "s3://wukong/demo/filter/KEY": data,
        **(more or {}),
    }
    written = found[1]
    for before, after in replaced.items():
        assert before in written, f"the overlay of docs/serving.md has no {before}"
        written = written.replace(before, after)
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "kustomization.yaml").write_text(written, encoding="utf-8")
    return FOLDER


def _ask(namespace: str, *paths: str) -> list[str]:
    """What a pod of a namespace is answered."""
    output = kube.run_in_pod(ASK, [ADDRESS + path for path in paths], namespace=namespace, seconds=400)
    answers = [json.loads(line) for line in output.splitlines()]
    assert len(answers) == len(paths), output
    return answers


def _ready() -> bool:
    conditions = (kube.get("rayservice", "search") or {}).get("status", {}).get("conditions", [])
    return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in conditions)


@pytest.fixture(scope="module")
def page(first: runs.Run, services: runs.Services, session_state: State, overlay: str) -> Iterator[Served]:
    """The page of the first run's model and pictures, and namespaces that may ask it and that may not."""
    made = experiment_of(session_state)
    records = runs.records(made, first)
    outputs = {stage: manifest.load(record.manifest).uri for stage, record in records.items() if record.manifest}
    trained, other = (storage.join(outputs[stage], "model") for stage in ("finetune", "pretrain"))
    ours = [name for name in LABELS if name != MONITORING or kube.get("namespace", name) is None]
    for name in ours:
        kube.make_namespace(name, LABELS[name])
    folder = _write_overlay(overlay, f"models:/{made.registry.model_name}@{made.registry.alias}", outputs["filter"])
    # One of an earlier session would answer until the new one is ready.
    kube.kubectl("-n", "wukong", "delete", "rayservice", "search", "--ignore-not-found")
    began = time.monotonic()
    kube.kubectl("apply", "-k", str(folder))
    try:
        kube.until("the search page", _ready, 900)
        yield Served(trained, other, outputs["filter"], time.monotonic() - began)
    finally:
        if not os.environ.get("KEEP"):
            kube.kubectl("-n", "wukong", "delete", "rayservice", "search", "--ignore-not-found")
            kube.kubectl("-n", "wukong", "delete", "networkpolicy", "search", "from-search", "--ignore-not-found")
            for name in ours:
                kube.kubectl("delete", "namespace", name, "--ignore-not-found", "--wait=false")


@pytest.fixture(scope="module")
def expected(page: Served, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the same application answers in this process, with an index of its own, by path."""
    from fastapi.testclient import TestClient

    from wukong.serve import start
    from wukong.serve.app import create_app

    made = start.service(page.trained, page.data, str(tmp_path_factory.mktemp("indexes")))
    key = asyncio.run(made.spread(1))[0].picture
    questions = (
        f"/api/search?q={QUERY}",
        f"/api/captions?picture={key}",
        f"/api/align?picture={key}&text={QUERY}",
        f"/api/classify?picture={key}&label=小猫&label=小狗",
        "/api/search?q=",
    )
    with TestClient(create_app(made)) as client:
        return {path: client.get(path).text for path in questions}


@pytest.mark.cluster(
    claim="The search page runs as a RayService: pods of a namespace with its label are answered as by `wukong serve`, "
    "others not",
    how="the overlay of docs/serving.md with the run's champion and pictures; requests from pods; the same application "
    "in the test's process with an index of its own",
)
def test_the_page_answers(page: Served, expected: dict[str, str], found: list[str]) -> None:
    found.append(f"ready {page.seconds:.0f} s after `kubectl apply`")
    about = json.loads(_ask(VISITORS, "/api/about")[0])
    found.append(f"{about['pictures']} pictures, {about['captions']} captions")
    assert about["pictures"] > len(image_search.WORDS)
    answers = dict(zip(expected, _ask(VISITORS, *expected), strict=True))
    assert answers == expected
    found.append(f"{len(expected)} answers")
    refused = _ask(STRANGERS, "/healthz")[0]
    assert refused.startswith("unreachable"), refused
    (metrics,) = _ask(MONITORING, "/metrics")
    assert f"wukong_serve_index_pictures {about['pictures']}.0" in metrics.splitlines()


@pytest.mark.cluster(
    claim="In a browser the page on the cluster shows pictures for a text, and the alignment of one that is clicked",
    how="Chromium, through a forwarded port",
)
def test_the_page_in_a_browser(page: Served, found: list[str]) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on this machine")
    forward = kube.Forward("wukong", "svc/search-serve-svc", 8000).open()
    try:
        with playwright.sync_playwright() as driver:
            started = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
            opened = started.new_page(base_url=f"http://127.0.0.1:{forward.port}")
            opened.set_default_timeout(120_000)
            opened.goto("/")
            opened.fill("input[name=q]", QUERY)
            opened.keyboard.press("Enter")
            opened.wait_for_selector(".grid img")
            # The page's policy lets no script evaluate text, which Playwright's own waiting does.
            shown = "[...document.querySelectorAll('.grid img')].filter(each => each.naturalWidth).length"
            pictures = kube.until("pictures that are loaded", lambda: opened.evaluate(shown), 60, 0.5)
            opened.screenshot(path=str(FOLDER / "search.png"))
            opened.locator(".grid a").first.click()
            opened.wait_for_selector(".patches")
            opened.screenshot(path=str(FOLDER / "picture.png"), full_page=True)
            started.close()
    finally:
        forward.close()
    found.append(f"{pictures} pictures of the first page are loaded")


@pytest.fixture
def address(page: Served) -> Iterator[str]:
    """The page on this machine."""
    forward = kube.Forward("wukong", "svc/search-serve-svc", 8000).open()
    try:
        yield f"http://127.0.0.1:{forward.port}"
    finally:
        forward.close()


def _about(address: str) -> dict[str, object] | None:
    try:
        with urllib.request.urlopen(f"{address}/api/about", timeout=30) as answer:
            found: dict[str, object] = json.loads(answer.read())
            return found
    except OSError:  # no pod, or one without the application
        return None


def _head() -> str | None:
    """The uid of the page's pod; None while there is none, or while another one takes its place."""
    uids = [
        str(pod["metadata"]["uid"]) for pod in kube.listed("pods", HEAD) if "deletionTimestamp" not in pod["metadata"]
    ]
    return uids[0] if len(uids) == 1 else None


@pytest.mark.cluster(
    claim="When its pod is deleted the page comes back with the same answers",
    how="the Ray head deleted; the seconds until `/api/about` answers; the requests from a pod as before",
)
def test_the_page_comes_back(page: Served, expected: dict[str, str], address: str, found: list[str]) -> None:
    before, uid = _about(address), _head()
    assert before is not None
    assert uid is not None
    began = time.monotonic()
    kube.kubectl("-n", "wukong", "delete", "pod", "-l", HEAD)
    kube.until("another pod", lambda: _head() not in (None, uid), 300)
    kube.until("the page", lambda: _about(address) == before, 900)
    found.append(f"{time.monotonic() - began:.0f} s after `kubectl delete`")
    assert dict(zip(expected, _ask(VISITORS, *expected), strict=True)) == expected


@pytest.mark.cluster(
    claim="Another model in the overlay replaces the served one, in the same pod",
    how="the overlay with the model of the run's pre-training; `/api/about` before and after",
)
def test_another_model(page: Served, overlay: str, address: str, found: list[str]) -> None:
    before, uid = _about(address), _head()
    assert before is not None
    assert uid is not None
    folder = _write_overlay(overlay, page.other, page.data)
    kube.kubectl("apply", "-k", str(folder))
    began = time.monotonic()
    after = kube.until("the other model", lambda: _other(_about(address), before), 900)
    found.append(f"after {time.monotonic() - began:.0f} s")
    assert after["model"] == page.other
    assert after["pictures"] == before["pictures"]
    assert _head() == uid


def _other(about: dict[str, object] | None, before: dict[str, object]) -> dict[str, object] | None:
    return about if about and about["model_digest"] != before["model_digest"] else None


@pytest.mark.cluster(
    claim="A Prometheus of the Prometheus operator reads the page's metrics",
    how="the component `pod-monitors` beside the page; Prometheus's own API: targets and `wukong_serve_index_pictures`",
)
def test_prometheus_reads_the_page(page: Served, prometheus: Prometheus, address: str, found: list[str]) -> None:
    read = kube.until("the page's metrics", lambda: prometheus.value("wukong_serve_index_pictures"), 300)
    about = _about(address)
    assert about is not None
    assert read == about["pictures"]
    everything = {"ray": {"up"}, "search": {"up"}, "object-store": {"up"}}
    kube.until("the targets", lambda: prometheus.health() == everything, 120)
    found.append(f"{read:.0f} pictures")


@pytest.mark.cluster(
    claim="The index of the page is made by Ray tasks too, under the same key and with the same counts; a second job "
    "finds it",
    how="`python -m ray_jobs.index` in the page's pod, on its Ray cluster, below another prefix; the manifests of both",
)
def test_the_index_by_ray(page: Served, found: list[str]) -> None:
    elsewhere = "s3://wukong/indexes/by-ray"
    pod = kube.listed("pods", HEAD)[0]["metadata"]["name"]
    command = ["python", "-m", "ray_jobs.index", "--model", page.trained, "--data", page.data, "--index", elsewhere]
    try:
        for _ in range(2):
            began = time.monotonic()
            kube.kubectl("-n", "wukong", "exec", pod, "--", "env", "RAY_ADDRESS=auto", *command, timeout=900)
            found.append(f"{time.monotonic() - began:.0f} s")
        (made,) = (manifest.load(uri) for uri in storage.list_files(f"{elsewhere}/index", "/manifest.json"))
        theirs = manifest.load(f"s3://wukong/indexes/index/{made.uri.rsplit('/', 1)[1]}")
        assert (made.config, made.counts) == (theirs.config, theirs.counts)
        found.append(f"{made.counts['pictures']} pictures, {made.counts['captions']} captions")
    finally:
        storage.delete(elsewhere)


@pytest.mark.cluster(
    claim="Another `user_config` of the page replaces the served data without a gap: every request is answered",
    how="the overlay with `deployments: [{name: search, user_config: {data: …}}]` of the run's crawl; requests each "
    "half second until `/api/about` names it",
)
def test_other_data_without_a_gap(page: Served, overlay: str, address: str, found: list[str]) -> None:
    crawled = next(each.uri for each in manifest.load(page.data).parents if each.stage == "crawl")
    model = str((_about(address) or {})["model"])
    pod = kube.listed("pods", HEAD)[0]["metadata"]["name"]
    command = ["python", "-m", "ray_jobs.index", "--model", model, "--data", crawled, "--index", INDEXES]
    kube.kubectl("-n", "wukong", "exec", pod, "--", "env", "RAY_ADDRESS=auto", *command, timeout=900)
    # Not as another argument: that would end the replica.
    config = f"cpus: 2\n              deployments: [{{name: search, user_config: {{data: '{crawled}'}}}}]"
    kube.kubectl("apply", "-k", str(_write_overlay(overlay, model, page.data, {"cpus: 2": config})))
    began, asked = time.monotonic(), 0
    while (about := _about(address)) is not None and about["data"] != crawled:
        assert time.monotonic() - began < 600, about
        asked += 1
        time.sleep(0.5)
    assert about is not None, "a request was not answered"
    found.append(f"{asked} requests in {time.monotonic() - began:.0f} s")


IN_SHARDS = f"{INDEXES}/in-shards"
MAKE = """
import sys
import wukong
from wukong.evaluate.model import OwnModel
from wukong.serve import collection, encode, index
encode.SHARD_PICTURES = 1  # a shard for each piece
model, data, root = sys.argv[1:]
made = encode.build(collection.of(data), OwnModel(wukong.load(model), model), root)
print(index.shards(made))
"""


@pytest.mark.cluster(
    claim="In two shards on pods of their own the page answers as in one process; without one of the pods it names the "
    "shards that are missing, and they come back",
    how="an index of one shard for each piece; the overlay with `shards: 2` and two pods of the group `shards`; the "
    "answers before and after, and while one of these pods is deleted",
)
def test_shards(page: Served, overlay: str, address: str, found: list[str]) -> None:
    pod = kube.listed("pods", HEAD)[0]["metadata"]["name"]
    made = ["python", "-c", MAKE, page.trained, page.data, IN_SHARDS]
    shards = int(kube.kubectl("-n", "wukong", "exec", pod, "--", *made, timeout=900).split()[-1])
    if shards < 2:
        pytest.skip("the run's filter has one shard of pictures")
    kube.kubectl("apply", "-k", str(_write_overlay(overlay, page.trained, page.data)))
    wanted = {"model": page.trained, "data": page.data}
    kube.until("the page in one process", lambda: wanted.items() <= (_about(address) or {}).items(), 900)
    whole = _searched(address)
    assert whole is not None and whole["missing"] == []
    small = "{requests: {cpu: 100m, memory: 2Gi}, limits: {cpu: '2', memory: 2Gi}}"
    group = "/spec/rayClusterConfig/workerGroupSpecs/0"
    more = {
        "index: s3://wukong/indexes": f"index: {IN_SHARDS}\n                shards: 2\n                shard_cpus: 2",
        "      # A node of two cores": f"      - {{op: replace, path: {group}/replicas, value: 2}}\n"
        f"      - {{op: replace, path: {group}/template/spec/containers/0/resources, value: {small}}}\n"
        "      # A node of two cores",
    }
    try:
        began = time.monotonic()
        kube.kubectl("apply", "-k", str(_write_overlay(overlay, page.trained, page.data, more)))
        # The cluster before answers until this one can, and then it goes.
        kube.until("the shards", lambda: _pods_ready() == (1, 2) and _searched(address) == whole, 1200)
        found.append(f"{shards} shards, the same answer after {time.monotonic() - began:.0f} s")
        kube.kubectl(
            "-n", "wukong", "delete", "pod", kube.listed("pods", WORKERS)[0]["metadata"]["name"], "--wait=false"
        )
        began = time.monotonic()
        lost = kube.until("an answer without a shard", lambda: _with_missing(_searched(address)), 300, 0.5)
        found.append(f"{', '.join(lost['missing'])} missing after {time.monotonic() - began:.0f} s")
        kube.until("all shards", lambda: _searched(address) == whole, 1200)
        found.append(f"whole again after {time.monotonic() - began:.0f} s")
    finally:
        storage.delete(IN_SHARDS)


def _pods_ready() -> tuple[int, ...]:
    """How many pods of heads and of workers are ready."""
    return tuple(sum(map(kube.is_ready, kube.listed("pods", each))) for each in (HEAD, WORKERS))


def _searched(address: str) -> dict[str, Any] | None:
    """The answer to the query, but for how it stands out, which shards round each for itself; None if there is none."""
    try:
        with urllib.request.urlopen(f"{address}/api/search?q={quote(QUERY)}", timeout=30) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return {**found, "stands_out": None}
    except OSError:
        return None


def _with_missing(answer: dict[str, Any] | None) -> dict[str, Any] | None:
    return answer if answer and answer["missing"] else None
