"""What `wukong submit --json` and ``cli.submit.submit`` say of a run, against a Kubeflow Pipelines API on loopback."""

import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from played_kfp import Kfp

from cli import main, submit
from cli.run_result import FORMAT, Outcome, Result, RunError
from cli.submit import Submission
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError
from wukong.runs import origin, run_records, verdict
from wukong.runs.origin import Source
from wukong.runs.run_records import Record
from wukong.runs.verdict import Verdict
from wukong.store import storage
from wukong.store.manifest import Stage

BEGAN = datetime(2026, 11, 30, 9, tzinfo=UTC)
DATA, RAY = (f"registry.example/{name}:1@sha256:{digit * 64}" for name, digit in (("data", "a"), ("ray", "b")))


def task(name: str, state: str, seconds: float | None = None) -> dict[str, str]:
    """A task as KFP 2.17 tells it: a task that goes on ends in the year 1 (``workflow.go``, ``NodeStatuses``)."""
    end = "0001-01-01T00:00:00Z" if seconds is None else (BEGAN + timedelta(seconds=seconds)).isoformat()
    return {"display_name": name, "state": state, "start_time": BEGAN.isoformat(), "end_time": end}


@dataclass
class Said:
    """What a command left: its status, its JSON, and what it wrote for people."""

    status: int
    value: dict[str, Any]
    people: str


@pytest.fixture
def said(kfp: Kfp, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str) -> Said:
        words = ["wukong", "submit", *arguments, "--host", kfp.url, "--json"]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            main.main()
        out, err = capfd.readouterr()
        return Said(int(ended.value.code or 0), json.loads(out), err)

    return run


@pytest.fixture
def experiment(file: Path, tmp_path: Path) -> Experiment:
    """The file's experiment, in a storage that can be read from here."""
    file.write_text(file.read_text() + f"storage: {storage.from_path(tmp_path / 'data')}\n")
    return documents.load(file)


OUTCOMES = [
    (["PENDING", "RUNNING", "SUCCEEDED"], [], "succeeded", 0),
    (["RUNNING", "FAILED"], [task("configure", "SUCCEEDED", 3), task("crawl", "FAILED", 9)], "failed", 3),
    (["RUNNING", "FAILED"], [task("configure", "FAILED", 3)], "refused", 1),
    (["RUNNING", "SKIPPED"], [], "failed", 3),
    # A run that is terminated is CANCELING until its workflow has ended, and then FAILED.
    (["RUNNING", "CANCELING", "FAILED"], [task("crawl", "FAILED", 9)], "terminated", 4),
    (["RUNNING", "CANCELING", "FAILED"], [task("configure", "FAILED", 9)], "terminated", 4),
    (["CANCELED"], [], "terminated", 4),
]


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(("script", "tasks", "outcome", "status"), OUTCOMES)
def test_each_outcome_has_its_status(
    script: list[str],
    tasks: list[dict[str, str]],
    outcome: str,
    status: int,
    kfp: Kfp,
    file: Path,
    experiment: Experiment,
    said: Any,
) -> None:
    kfp.script, kfp.tasks = script, tasks
    ended = said("--config", str(file), "--name", "first")
    assert (ended.status, ended.value["outcome"]) == (status, outcome)
    assert (ended.value["run"], ended.value["id"], ended.value["state"]) == ("first", "runs-0", script[-1])
    assert ended.value["url"] == f"{kfp.url}/#/runs/details/runs-0"
    assert (ended.value["experiment"], ended.value["group"]) == ("demo", "demo")
    assert (ended.value["error"] is None) == (status == 0)
    if status:
        assert ended.value["error"].partition("\n")[0] in ended.people.replace("\n", " ")


@pytest.mark.usefixtures("fast")
def test_a_termination_that_nobody_saw_is_in_the_history(
    kfp: Kfp, file: Path, experiment: Experiment, said: Any
) -> None:
    kfp.script, kfp.states = ["FAILED"], ["RUNNING", "CANCELING"]
    assert said("--config", str(file)).value["outcome"] == "terminated"


def test_a_run_that_is_lost_sight_of_goes_on(
    kfp: Kfp, file: Path, experiment: Experiment, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.kfp_api.time.sleep", lambda _: setattr(kfp, "refuse", 401))
    kfp.script, kfp.tasks = ["RUNNING"], [task("crawl", "RUNNING")]
    ended = said("--config", str(file))
    assert (ended.status, ended.value["outcome"], ended.value["state"]) == (5, "lost", "RUNNING")
    assert "refuses (401)" in ended.value["error"] and "may go on" in ended.value["error"]
    assert [(each["stage"], each["state"], each["seconds"]) for each in ended.value["stages"]] == [
        ("crawl", "running", None)
    ]


@pytest.mark.usefixtures("fast")
def test_time_that_is_up_is_no_failure(kfp: Kfp, file: Path, experiment: Experiment) -> None:
    kfp.script = ["RUNNING"]
    result = submit.submit(Submission("training", file, host=kfp.url, timeout=0.01 / 3600))
    assert (result.outcome, result.outcome.exit_status) == (Outcome.LOST, 5)
    assert "it goes on" in str(result.error)
    with pytest.raises(RunError, match="it goes on") as raised:
        result.check()
    assert raised.value.exit_status == 5


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--set", "pretrain.epochs=0"], "pretrain.epochs"),
        (["--config", "none.yaml"], "none.yaml"),
        (["--param", "epoch=1"], "has the parameters"),
        (["--param", 'source={"revision": "f00"}'], "has the parameters"),
        (["--name", "../x"], "run name"),
    ],
)
def test_what_is_refused_is_said_in_json_too(arguments: list[str], named: str, kfp: Kfp, file: Path, said: Any) -> None:
    ended = said("--config", str(file), *arguments)
    assert (ended.status, ended.value["outcome"], ended.value["id"]) == (1, "refused", None)
    assert named in ended.value["error"] and named in ended.people
    assert kfp.runs == []


def test_kfp_that_refuses_begins_no_run(kfp: Kfp, file: Path, said: Any) -> None:
    kfp.refuse = 403
    ended = said("--config", str(file))
    assert (ended.status, ended.value["outcome"], ended.value["experiment"]) == (1, "refused", "demo")
    assert "WUKONG_KFP_TOKEN" in ended.value["error"]


@pytest.mark.parametrize("further", [(), ("--every", "7d")])
def test_a_run_whose_begin_was_not_answered_may_have_begun(
    further: tuple[str, ...], kfp: Kfp, file: Path, said: Any
) -> None:
    kfp.unanswered = True
    ended = said("--config", str(file), "--name", "first", *further)
    assert (ended.status, ended.value["outcome"], ended.value["run"]) == (5, "lost", "first")
    assert "may have begun" in ended.value["error"]
    assert len(kfp.runs) + len(kfp.recurring) == 1


def test_who_does_not_wait_gets_the_run(kfp: Kfp, file: Path, said: Any) -> None:
    begun = said("--config", str(file), "--no-wait")
    assert (begun.status, begun.value["outcome"], begun.value["id"]) == (0, "submitted", "runs-0")
    weekly = said("recurring", "--config", str(file), "--every", "7d")
    assert (weekly.status, weekly.value["outcome"], weekly.value["id"]) == (0, "scheduled", "recurring-0")
    assert weekly.value["url"].startswith(f"{kfp.url}/#/recurringrun/details/")


def write_records(experiment: Experiment, run: str) -> str:
    """What a run leaves that found its crawl, and whose model took the alias; the URI of its evaluation."""
    record = Record(stage="crawl", state="succeeded", manifest="s3://b/crawl/manifest.json", reused=True, seconds=0.25)
    run_records.write(experiment, run, record)
    evaluated = Stage(experiment.root, "evaluate", {}).commit([], metrics={"eval/retrieval/holdouts/mean_recall": 0.5})
    uri = storage.join(evaluated.uri, "manifest.json")
    run_records.write(experiment, run, Record(stage="evaluate", state="succeeded", manifest=uri, seconds=48.0))
    origin.store(experiment, run, Source(code="a1"))
    origin.store_images(experiment, run, origin.COMPONENTS, "configure", [DATA])
    origin.store_images(experiment, run, "evaluate", "pods", [RAY])
    decided = Verdict(model="demo", alias="champion", version="7", promoted=True, says="It is better.", holder="6")
    verdict.store(experiment, run, decided, None)
    storage.write_bytes(f"{experiment.root}/runs/{run}/report.html", b"<html>")
    return uri


@pytest.mark.usefixtures("fast")
def test_the_result_has_what_the_run_left(
    kfp: Kfp, file: Path, experiment: Experiment, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(origin, "code_revision", lambda: "b2")
    kfp.tasks = [
        task("wukong-training-x7k2p", "SUCCEEDED", 90),
        task("configure", "SUCCEEDED", 3),
        task("crawl-driver", "SUCCEEDED", 1),
        task("crawl", "SUCCEEDED", 8.5),
        task("evaluate", "SUCCEEDED", 70),
        task("filter-pairs", "SUCCEEDED", 20),
        task("executor", "SUCCEEDED", 4),
    ]
    evaluation = write_records(experiment, "first")
    value = said("--config", str(file), "--name", "first").value
    nothing = {"reused": None, "work_seconds": None, "manifest": None, "images": [], "error": None}
    crawl, filtered, evaluate = value["stages"]
    assert crawl == {
        "stage": "crawl",
        "state": "succeeded",
        "reused": True,
        "seconds": 8.5,
        "work_seconds": 0.25,
        "manifest": "s3://b/crawl/manifest.json",
        "images": [],
        "error": None,
    }
    assert (evaluate["manifest"], evaluate["images"], evaluate["seconds"]) == (evaluation, [RAY], 70.0)
    assert filtered == {"stage": "filter", "state": "succeeded", "seconds": 20.0, **nothing}
    assert value["metrics"] == {"eval/retrieval/holdouts/mean_recall": 0.5}
    assert value["gate"] == {
        "model": "demo",
        "version": "7",
        "alias": "champion",
        "promoted": True,
        "says": "It is better.",
    }
    assert value["report"] == f"{experiment.root}/runs/first/report.html"
    assert value["images"] == [DATA, RAY, "localhost/wukong/data:0.2.0"], "the last was only named"
    assert value["image_revision"] == "b2"
    (note,) = value["notes"]
    assert "submitted by revision a1 of Wukong, and the image of its components has revision b2" in note


@pytest.mark.usefixtures("fast")
def test_records_that_cannot_be_read_are_a_note(
    kfp: Kfp, file: Path, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CI may reach KFP and no object store."""
    variables = {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    for name, value in {**variables, "AWS_REGION": "us-east-1", "WUKONG_STORE_PATIENCE": "0"}.items():
        monkeypatch.setenv(name, value)
    ended = said("--config", str(file))
    assert ended.status == 0, "that the run has succeeded is known all the same"
    assert "The records of the run were not read" in ended.value["notes"][0]


def test_the_fields_are_those_of_the_page() -> None:
    """Programs depend on them: a field that goes or changes its meaning needs another ``format``."""
    page = (Path(__file__).parents[2] / "docs" / "ci.md").read_text(encoding="utf-8")
    assert FORMAT == 1
    for model in ("Result", "RunStage", "Gate", "Source"):
        fields = Result.model_json_schema()["$defs"].get(model, Result.model_json_schema())["properties"]
        missing = [name for name in fields if f"`{name}`" not in page]
        assert not missing, f"{model}: {missing}"
    for outcome in Outcome:
        assert f"`{outcome.value}`" in page


# --- bound to a revision


def commit(folder: Path) -> str:
    for words in (("init", "--quiet"), ("add", "experiment.yaml"), ("commit", "--quiet", "-m", "first")):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.invalid")
        subprocess.run(["git", "-C", str(folder), *identity, *words], check=True)
    done = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_run_is_told_which_revision_it_is_of(kfp: Kfp, file: Path, said: Any) -> None:
    revision = commit(file.parent)
    arguments = ["--config", str(file), "--set", "seed=3", "--param", "epochs=2", "--no-wait"]
    source = said(*arguments).value["source"]
    handed = json.loads(kfp.runs[0]["runtime_config"]["parameters"]["source"])
    assert handed["revision"] == source["revision"] == revision
    assert (handed.get("dirty", False), source["dirty"], source["file"]) == (False, False, "experiment.yaml")
    assert (source["overrides"], source["params"]) == (["seed=3"], ["epochs=2"])
    asked = documents.load(file, ["seed=3", "pretrain.epochs=2"])
    assert source["digest"] == origin.digest_of_experiment(asked)
    assert (source["pipeline"], source["version"]) == ("training", kfp.versions[0]["display_name"])
    assert Source.model_validate(handed) == Source.model_validate(source)


def test_what_is_not_pinned_is_refused(kfp: Kfp, file: Path, tmp_path: Path) -> None:
    pinned = tmp_path / "data.yaml"
    compiled = (Path(submit.__file__).parents[1] / "pipelines" / "compiled" / "data.yaml").read_text()
    pinned.write_text(compiled.replace("wukong/data:0.2.0", f"wukong/data:0.2.0@sha256:{'a' * 64}"))
    with pytest.raises(ConfigError) as refused:
        submit.submit(Submission("data", file, host=kfp.url, pinned=True))
    assert "the config is in no revision" in str(refused.value)
    assert "image localhost/wukong/data:0.2.0 without a digest" in str(refused.value)
    commit(file.parent)
    result = submit.submit(Submission(str(pinned), file, host=kfp.url, pinned=True, wait=False))
    assert result.images == (f"localhost/wukong/data:0.2.0@sha256:{'a' * 64}",)
    file.write_text(file.read_text() + "seed: 4\n")
    with pytest.raises(ConfigError, match="has changes, or lacks the config"):
        submit.submit(Submission(str(pinned), file, host=kfp.url, pinned=True))
    assert len(kfp.runs) == 1


# --- from Python


@pytest.mark.usefixtures("fast")
def test_a_run_is_submitted_from_python(
    kfp: Kfp, file: Path, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WUKONG_KFP_HOST", kfp.url)
    lines: list[str] = []
    names: list[str] = []
    result = submit.submit(
        Submission("training", file, overrides=["seed=3"], params=["epochs=2", "learning_rate=0.5"], name="first"),
        on_start=lambda begun: names.append(begun.name),
        on_change=lines.append,
    )
    result.check()
    assert (result.outcome, result.run, names) == (Outcome.SUCCEEDED, "first", ["first"])
    given = kfp.runs[0]["runtime_config"]["parameters"]
    assert (given["epochs"], given["learning_rate"], given["experiment"]["seed"]) == ("2", "0.5", 3)
    assert lines == ["first: pending", "first: running", "first: succeeded"]


def test_an_experiment_that_was_made_in_python_has_no_revision(kfp: Kfp, experiment: Experiment) -> None:
    result = submit.submit(Submission("data", host=kfp.url, wait=False), experiment)
    assert (result.outcome, result.source.revision, result.source.pipeline) == (Outcome.SUBMITTED, "", "data")
    given = kfp.runs[0]["runtime_config"]["parameters"]["experiment"]
    assert documents.parse(given) == experiment
