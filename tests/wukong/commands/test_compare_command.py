"""``wukong compare`` with a real MLflow server: 50 runs, as the pipeline leaves them."""

import json
import math
import subprocess
import sys
import uuid
from pathlib import Path

import measured
import numpy as np
import pytest
from mlflow_server import MlflowServer
from typer.testing import CliRunner

from cli.main import app
from wukong.config import documents, section
from wukong.errors import ConfigError
from wukong.registry import comparison
from wukong.runs import run_records
from wukong.runs.run_records import Record
from wukong.store import storage
from wukong.tracking.mlflow_rest import Server

pytestmark = pytest.mark.slow
RUNS = 50
TARGET = 2.0
"""Seconds of a core for all runs, where a comparison of two takes one."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, mlflow_of_all: MlflowServer) -> tuple[str, list[str]]:
    """Fifty runs with three hold-outs and two classification sets each; return MLflow's address and the runs' names."""
    address = mlflow_of_all.address
    folder, rng, tag = tmp_path_factory.mktemp("runs"), np.random.default_rng(0), uuid.uuid4().hex[:6]
    hard = rng.random(600)
    names = [f"run-{tag}-{number}" for number in range(RUNS)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", address)
        server = Server()
        group = server.experiment(f"compare-{tag}")
        for number, name in enumerate(names):
            crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
            value = {"name": f"compare-{tag}", "storage": storage.from_path(folder), "crawl": crawl}
            experiment = documents.parse(value | {"pretrain": {"epochs": 3 + number}})
            share = 0.3 if number < RUNS // 2 else 0.4
            outcomes = [measured.searched(task, np.roll(hard, number % 2)[:300] < share) for task in "abc"]
            outcomes += [measured.classified(task, hard < share) for task in ("d", "e")]
            made = measured.evaluation(experiment.root, outcomes, key=name)
            record = Record(stage="evaluate", state="succeeded", manifest=f"{made.uri}/manifest.json")
            run_records.write(experiment, name, record)
            run = server.create_run(group, name, {"wukong.run": name})
            params = {key: str(entry) for key, entry in section.flatten(experiment.model_dump(mode="json")).items()}
            server.log(run.run_id, params=params)
    return address, names


def seconds_of(*names: str) -> tuple[float, "subprocess.CompletedProcess[str]"]:
    """The least processor time of three comparisons, and the last: caches may be cold at first."""
    program = "import resource, sys; from cli.main import app; app(sys.argv[1:], standalone_mode=False); " \
              "print(resource.getrusage(resource.RUSAGE_SELF).ru_utime, file=sys.stderr)"  # fmt: skip
    command = [sys.executable, "-c", program, "compare", *names, "--json"]
    seconds = math.inf
    for _ in range(3):
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        seconds = min(seconds, float(ended.stderr.split()[-1]))
    return seconds, ended


@pytest.mark.long
def test_fifty_runs_are_compared_in_two_seconds(runs: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a core where a comparison of two takes one, most of it its start: a slow core stretches both."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", runs[0])
    (two, _), (seconds, ended) = seconds_of(*runs[1][:2]), seconds_of(*runs[1])
    print(f"{RUNS} runs: {seconds:.2f} s of a core; 2 runs: {two:.2f}")
    assert ended.stderr.count("Logged as comparison.html") == 1
    document = json.loads(ended.stdout)
    assert len(document["runs"]) == RUNS and list(document["parameters"]) == ["pretrain.epochs"]
    (first,) = (each for each in document["sets"] if each["task"] == "d")
    verdicts = [entry["verdict"] for entry in first["results"]["top1"]]
    assert verdicts == ["baseline"] + ["noise"] * (RUNS // 2 - 1) + ["better"] * (RUNS // 2)
    assert all(entry["difference"]["paired"] for entry in first["results"]["top1"][1:])
    assert seconds <= 1.25 * TARGET * two, "beside other work the measured times scatter"


def test_the_page_is_logged_to_the_newest_run_or_to_a_named_one(
    runs: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    address, names = runs
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    client = MlflowClient(address)
    found = comparison.find(Server(), names[:3])
    printed = CliRunner().invoke(app, ["compare", names[2], names[0], found[1].run_id, "--html", f"{tmp_path}/c.html"])
    assert printed.exit_code == 0, (printed.output, printed.exception)
    for word in (f"Baseline: {names[2]}", "pretrain.epochs", "≈", "within the noise", names[1]):
        assert word in printed.output
    files = {run.name: {file.path for file in client.list_artifacts(run.run_id)} for run in found}
    assert files[names[2]] >= {"comparison.html", "comparison.json"} and not files[names[0]]
    page = Path(client.download_artifacts(found[2].run_id, "comparison.html", str(tmp_path))).read_text("utf-8")
    assert page == (tmp_path / "c.html").read_text("utf-8") and names[1] in page
    CliRunner().invoke(app, ["compare", *names[1:3], "--to", names[0]])
    assert "comparison.json" in {file.path for file in client.list_artifacts(found[0].run_id)}


def test_what_cannot_be_compared_is_named(runs: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    address, names = runs
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    server = Server()
    for given, words in (
        ([names[0], "none"], "no run 'none'"),
        ([names[0], "f" * 32], "no run with the ID ffff"),
        ([names[0], names[0]], "named twice"),
        (["it's", names[0]], "has no quotes"),
    ):
        with pytest.raises(ConfigError, match=words):
            comparison.find(server, given)
    experiment = server.experiment(f"other-{uuid.uuid4().hex[:6]}")
    server.create_run(experiment, names[0], {})
    with pytest.raises(ConfigError, match=f"2 runs are named '{names[0]}'.*by its ID"):
        comparison.find(server, names[:2])
