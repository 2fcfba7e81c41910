"""The plan of a run: what is finished is reused, what depends on a change is not."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cli.main import app
from ray_jobs import plan
from wukong import stages
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.crawl import attempt
from wukong.crawl.status import Status
from wukong.model.cost import Shape, Size
from wukong.runs import run_records
from wukong.runs.run_records import Record
from wukong.stages import places
from wukong.store import contents, storage
from wukong.store.manifest import Manifest, Stage

SIZE = Size(10_000_000, 5_000_000, 1e9, Shape(1, 1280))


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    (tmp_path / "list.csv").write_text("url,caption\nhttp://a.test/1.jpg,猫\n")
    return parsed(tmp_path)


def parsed(tmp_path: Path, **changes: object) -> Experiment:
    value = {
        "name": "x",
        "storage": storage.from_path(tmp_path / "data"),
        "crawl": {"engine": "urls", "endpoint": storage.from_path(tmp_path / "list.csv")},
        "filter": {
            "split": {"held_out_captions": 0.1, "holdouts": [{"name": "h", "source": "*", "captions": "unseen"}]}
        },
    }
    return documents.parse({**value, **changes})


def finished(experiment: Experiment) -> dict[str, Manifest]:
    """Crawl, filter and validate as their jobs leave them, without their work."""
    stage = places.crawl(experiment).stage
    nothing = dict.fromkeys(("urls", "queries", "queries_failed", "transient", *Status), 0)
    crawled = stage.commit([], counts=nothing | {"urls": 1, Status.SUCCESS: 1})
    kept = places.filtering(experiment, crawled).commit([])
    shown = experiment.model_dump(mode="json", include={"name", "about", "sources", "validation", "filter"})
    version = stages.of("validate").version
    gate = Stage(experiment.root, "validate", {**shown, "reference_digest": None}, [kept], version=version)
    return {"crawl": crawled, "filter": kept, "validate": gate.commit([])}


def states(experiment: Experiment) -> dict[str, bool]:
    return {entry.stage: entry.finished is not None for entry in plan.of_run(experiment, 100, SIZE, 2)}


def test_before_a_first_run_all_is_to_do(experiment: Experiment) -> None:
    planned = plan.of_run(experiment, 100, SIZE, 2)
    assert [entry.stage for entry in planned] == list(stages.WHOLE_RUN)
    assert not any(entry.finished or entry.begun for entry in planned)
    assert planned[0].reads == (experiment.crawl.endpoint,)
    assert all(entry.estimate.bytes > 0 and entry.estimate.seconds > 0 for entry in planned)
    assert not storage.list_files(experiment.root), "planning writes nothing"


def test_what_is_finished_is_reused(experiment: Experiment) -> None:
    done = finished(experiment)
    planned = {entry.stage: entry for entry in plan.of_run(experiment, 100, SIZE, 2)}
    assert {name for name, entry in planned.items() if entry.finished} == set(done)
    assert planned["crawl"].writes == done["crawl"].uri
    assert planned["pretrain"].reads == (done["filter"].uri, done["validate"].uri)
    assert planned["filter"].estimate.seconds == 0


@pytest.mark.parametrize(
    ("changes", "reused"),
    [
        ({"seed": 1}, {"crawl", "filter", "validate"}),
        ({"filter": {"seed": 1}}, {"crawl"}),
        ({"filter": {"max_length": 20}}, {"crawl"}),
        ({"validation": {"min_pairs": 5}}, {"crawl", "filter"}),
        ({"pretrain": {"epochs": 3}}, {"crawl", "filter", "validate"}),
        ({"about": "other"}, {"crawl", "filter"}),
    ],
)
def test_a_change_runs_what_depends_on_it(
    experiment: Experiment, tmp_path: Path, changes: dict[str, object], reused: set[str]
) -> None:
    finished(experiment)
    assert {name for name, done in states(parsed(tmp_path, **changes)).items() if done} == reused


def test_another_list_runs_everything(experiment: Experiment, tmp_path: Path) -> None:
    finished(experiment)
    (tmp_path / "list.csv").write_text("url,caption\nhttp://a.test/2.jpg,狗\n")
    assert not any(states(experiment).values())


def test_a_newer_code_runs_again(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(experiment)
    newer = replace(stages.of("filter"), version=stages.of("filter").version + 1)
    monkeypatch.setitem(stages._BY_NAME, "filter", newer)
    assert {name for name, done in states(experiment).items() if done} == {"crawl"}


def test_a_crawl_that_was_killed_goes_on(experiment: Experiment) -> None:
    stage = places.crawl(experiment).stage
    stage.commit_task("search-00000", {})
    first = plan.of_run(experiment, 100, SIZE, 2)[0]
    assert first.begun and first.finished is None and first.writes == stage.uri


def test_an_earlier_run_is_the_better_estimate(experiment: Experiment, tmp_path: Path) -> None:
    run_records.claim(experiment, "first")
    for name, manifest in finished(experiment).items():
        record = Record(stage=name, state="succeeded", manifest=f"{manifest.uri}/manifest.json")
        run_records.write(experiment, "first", record)
    changed = parsed(tmp_path, filter={"max_length": 20})
    measured = {entry.stage: entry.measured for entry in plan.of_run(changed, 100, SIZE, 2)}
    assert {name for name, known in measured.items() if known} == {"filter", "validate"}


def test_a_crawl_that_failed_goes_on(experiment: Experiment) -> None:
    """Its first attempt left what it has; the plan is of the next one, in another place."""
    digests = [contents.sha256(experiment.crawl.endpoint)]
    first = attempt.of(experiment, {}, None, lambda _: digests, stages.of("crawl").version).stage
    counts = dict.fromkeys(("urls", "queries", "queries_failed", "transient", *Status), 0)
    stage = Stage(experiment.root, "other", {})
    left = stage.commit([], counts=counts | {"urls": 9, "transient": 9, Status.DNS_ERROR: 9})
    storage.write_json(first.path("failed.json"), left.model_dump(mode="json"))
    planned = plan.of_run(experiment, 100, SIZE, 2)[0]
    assert (planned.finished, planned.begun) == (None, True)
    assert planned.writes != first.uri


@pytest.mark.slow
def test_the_plan_of_a_run_and_wukong_plan_agree(experiment: Experiment, tmp_path: Path) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(experiment.model_dump(mode="json")))
    given = ["plan", "--config", str(file), "--urls", "30000", "--cores", "2", "--json"]
    said = json.loads(CliRunner().invoke(app, given, catch_exceptions=False).output)["stages"]
    planned = plan.of_run(experiment, 30_000, Size.of(experiment.model), 2)
    assert {entry.stage: (entry.estimate.seconds, entry.estimate.bytes) for entry in planned} == {
        name: (each["seconds"], each["bytes"]) for name, each in said.items()
    }
