"""What jobs tell Prometheus, read by a real Prometheus from a real Ray; every query of the dashboard is asked."""

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from crawled import corpus, experiment
from free_ports import free_port
from test_alerts import RULES, program

from ray_jobs import metrics
from wukong.config.crawl import Crawl
from wukong.crawl.downloaded import Downloaded
from wukong.crawl.status import Status
from wukong.store.manifest import Manifest

ROOT = Path(__file__).parents[2]
SERVES = importlib.util.find_spec("wukong.serve") is not None
SOURCES = {"Jobs", "Ray"} | ({"Search server"} if SERVES else set())
"""Rows of the dashboard whose metrics are there."""

_JOB = """
import sys, time, ray
from types import SimpleNamespace
from ray_jobs import metrics

@ray.remote
def train():  # a worker that waits for data most of the time
    for step in range(1, 120):
        look = SimpleNamespace(step=step, loss=5 - 0.01 * step, samples_per_second=250.0, waiting_share=0.8,
                               checkpoint_seconds=0.1 * step, gradient_norm=1.5)
        metrics.show_look("pretrain", look, workers=1, wanted=2)
        time.sleep(0.5)

ray.init(address=sys.argv[1], configure_logging=False, log_to_driver=False)
training = train.remote()
for count in range(120):
    metrics.show("wukong_crawl_queue", 1000 - count)
    metrics.add("wukong_crawl_urls", 9, status="success")
    metrics.add("wukong_crawl_urls", 1, status="timeout")
    metrics.add("wukong_crawl_bytes", 3e5)
    metrics.add("wukong_filter_rows", 10)
    metrics.add("wukong_filter_dropped", 2, rule="language")
    metrics.show("wukong_evaluate_tasks", 5, state="all")
    metrics.show("wukong_evaluate_tasks", 1, state="done")
    time.sleep(0.5)
"""


_SERVER = """
import asyncio, http.server, sys
from wukong.serve.metrics import Metrics

class Answers(http.server.BaseHTTPRequestHandler):
    metrics = Metrics()

    def do_GET(self):
        self.metrics.observe("/api/search", 200, 0.02)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(asyncio.run(self.metrics.text()))

http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answers).serve_forever()
"""


def panels() -> list[tuple[str, str, str]]:
    """Row, title and query of every panel of the dashboard."""
    manifest = yaml.safe_load((ROOT / "k8s" / "base" / "dashboards.yaml").read_text(encoding="utf-8"))
    found, row = [], ""
    for panel in json.loads(manifest["data"]["wukong.json"])["panels"]:
        row = panel["title"] if panel["type"] == "row" else row
        found += [(row, panel["title"], target["expr"]) for target in panel.get("targets", ())]
    return found


def test_the_dashboard_shows_every_metric_and_the_page_explains_it() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    jobs = " ".join(query for row, _, query in panels() if row == "Jobs")
    for name, metric in metrics.METRICS.items():
        told = f"ray_{name}_total" if metric.kind == "counter" else f"ray_{name}"
        assert re.search(rf"\b{told}\b", jobs), told
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        assert f"| `{name}` | {metric.kind} | {labels}{' ' if labels else ''}| {metric.about} |" in page


def test_no_query_names_a_metric_that_no_job_has() -> None:
    known = {f"ray_{name}{'_total' * (metric.kind == 'counter')}" for name, metric in metrics.METRICS.items()}
    rules = RULES.read_text(encoding="utf-8")
    for text in (rules, *(query for _, _, query in panels())):
        assert set(re.findall(r"\bray_wukong_\w+", text)) <= known


def test_each_metric_is_told_by_a_job() -> None:
    jobs = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "ray_jobs").glob("*.py")}
    module = jobs.pop("metrics.py")
    assert "metrics.show_look(" in jobs["training_worker.py"]
    for name in metrics.METRICS:
        of_look = name.removeprefix("wukong_training_") in metrics._OF_LOOK or f'show("{name}"' in module
        assert of_look or any(f'("{name}"' in text for text in jobs.values()), name


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_filter_tells_what_its_manifest_says(
    make_crawl: Callable[..., Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray_jobs import filter as job

    told: Counter[tuple[str, ...]] = Counter()
    monkeypatch.setattr(metrics, "add", lambda name, amount, **labels: told.update({(name, *labels.values()): amount}))
    filtered = job.run(experiment(tmp_path), {"crawl": make_crawl([row for row in corpus() if "status" not in row])})
    assert told.pop(("wukong_filter_rows",)) == filtered.counts["pairs"]
    dropped = {("wukong_filter_dropped", rule): rows for rule, rows in filtered.dropped.items() if rows}
    assert +told == dropped


def test_a_training_tells_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    from wukong.train.looks import Look

    measured = {field.name: float(number) for number, field in enumerate(fields(Look))}
    told: dict[str, float] = {}
    monkeypatch.setattr(metrics, "show", lambda name, value, **labels: told.update({name: value}))
    metrics.show_look("pretrain", Look(**measured), workers=4, wanted=8)
    names = {name for name in metrics.METRICS if name.startswith("wukong_training_")}
    looked = {f"wukong_training_{name}": value for name, value in measured.items()}
    looked |= {"wukong_training_workers": 4, "wukong_training_workers_wanted": 8}
    assert told == {name: looked[name] for name in names}


def test_a_crawl_tells_what_its_tasks_did(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray_jobs import crawl

    told: list[tuple[object, ...]] = []
    monkeypatch.setattr(metrics, "add", lambda name, amount, **labels: told.append((name, amount, *labels.values())))
    monkeypatch.setattr(metrics, "show", lambda name, value: told.append((name, value)))
    described = [{"rows": 3, "bytes": size, "sha256": "00" * 32} for size in (700, 50)]
    record = {"urls": 3, "statuses": {Status.SUCCESS: 2, "timeout": 1}, "described": described}
    record |= {"requested": 3, "transient": 1, "examples": {}, "slow_hosts": {}}
    job = object.__new__(crawl._Job)
    job._config = Crawl.model_validate({"queries": "file:///none", "endpoint": "http://127.0.0.1:1"})
    job._cores, job._earlier, job._ledger = 1, None, None
    job._stage, job._connect_to, job._run = None, None, ""
    monkeypatch.setattr(job, "_as_finished", lambda begin: iter([(None, [(1, None), (0, record)])]))
    planned = Downloaded([("plan/0.parquet", 0, 3, "a", "z"), ("plan/0.parquet", 1, 4, "z", "zz")])
    job._download(planned, several=False)
    assert planned.statuses == record["statuses"]
    assert told == [
        ("wukong_crawl_queue", 7),
        ("wukong_crawl_bytes", 750),
        ("wukong_crawl_urls", 2, "success"),
        ("wukong_crawl_urls", 1, "timeout"),
        ("wukong_crawl_queue", 4),
    ]


def test_without_a_ray_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics.ray, "is_initialized", lambda: False)
    metrics.add("wukong_crawl_urls", 1, status="success")
    metrics.show("wukong_crawl_queue", 1)
    with pytest.raises(KeyError):
        metrics.show("wukong_crawl_nothing", 1)


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus that reads a running Ray."""

    address: str

    def ask(self, path: str, **query: str) -> Any:
        with urllib.request.urlopen(
            f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=30
        ) as answer:
            return json.load(answer)["data"]


def until(true: Callable[[], bool], seconds: float = 120.0) -> bool:
    """Whether something becomes true in time."""
    end = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < end:
        time.sleep(0.5)
    return found


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    server = program("prometheus")
    folder = tmp_path_factory.mktemp("metrics")
    told, asked, client, agent, head, answered = (free_port() for _ in range(6))
    # Alerts without their waiting time, so that a fault raises one at once.
    rules = yaml.safe_load(RULES.read_text(encoding="utf-8"))["spec"]
    for group in rules["groups"]:
        group["rules"] = [{**rule, "for": "0s"} for rule in group["rules"]]
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    targets = [f"127.0.0.1:{told}", *([f"127.0.0.1:{answered}"] if SERVES else [])]
    settings = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [{"job_name": "here", "static_configs": [{"targets": targets}]}],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(settings))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "disabled",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else Ray takes another address than loopback
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_metrics_report_interval_ms": "1000",
        "RAY_memory_monitor_refresh_ms": "0",
    }
    start = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--node-ip-address=127.0.0.1"]
    start += [f"--port={head}", f"--metrics-export-port={told}", f"--ray-client-server-port={client}"]
    start += [f"--dashboard-agent-listen-port={agent}", "--include-dashboard=false", "--num-cpus=2"]
    start += ["--object-store-memory=100000000", "--disable-usage-stats"]
    commands = [
        start,
        [server, f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data",
         f"--web.listen-address=127.0.0.1:{asked}"],
        [sys.executable, "-c", _JOB, f"127.0.0.1:{head}"],
        *([[sys.executable, "-c", _SERVER, str(answered)]] if SERVES else []),
    ]  # fmt: skip
    running = []
    try:
        for number, command in enumerate(commands):
            with (folder / f"{number}.log").open("wb") as log:
                running.append(
                    subprocess.Popen(
                        command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True
                    )
                )
            if number == 0:
                assert until(lambda: answers(head)), (folder / "0.log").read_text()
        found = Prometheus(f"http://127.0.0.1:{asked}")
        assert until(lambda: answers(asked)), (folder / "1.log").read_text()
        # Two readings of a counter, so that it has a rate.
        rate = "rate(ray_wukong_filter_rows_total[5m])"
        came = until(lambda: bool(found.ask("query", query=rate)["result"]))
        assert came, "\n".join(path.read_text() for path in sorted(folder.glob("*.log")))
        yield found
    finally:
        for process in reversed(running):
            process.terminate()
        for process in reversed(running):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.mark.slow
def test_every_query_of_the_dashboard_returns_something(prometheus: Prometheus) -> None:
    asked = [(title, query) for row, title, query in panels() if row in SOURCES]
    assert len(asked) > 15

    def empty() -> list[str]:
        return [title for title, query in asked if not prometheus.ask("query", query=query)["result"]]

    until(lambda: not empty(), 30)
    assert empty() == []


@pytest.mark.slow
def test_a_training_that_waits_for_data_raises_its_alert(prometheus: Prometheus) -> None:
    def raised() -> set[str]:
        return {
            alert["labels"]["alertname"] for alert in prometheus.ask("alerts")["alerts"] if alert["state"] == "firing"
        }

    assert until(lambda: {"WukongTrainingWaits", "WukongTrainingLacksWorkers"} <= raised(), 30)
    assert "WukongCrawlFails" not in raised(), "nine of ten URLs succeed"
