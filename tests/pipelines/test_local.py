"""Components in one process: some of our own under stages' names, then the real ones of a run that has finished."""

import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import pytest
from kfp import dsl

from cli.logs import of_stages
from pipelines import local
from ray_jobs import plan
from ray_jobs.launch.local import run_job
from wukong import stages
from wukong.config import documents, stored
from wukong.config.experiment import Experiment
from wukong.crawl.status import Status
from wukong.errors import DataError
from wukong.runs.run import Run
from wukong.stages import places, run_paths
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage

NAMES = ("crawl", "filter", "validate")


def crawl(experiment: str, run: str, manifest: dsl.Output[dsl.Artifact]) -> None:
    logging.getLogger("wukong.test").info("crawling for %s", run)
    print("printed")
    assert run_job(["--help"], dict(os.environ)) == 0
    Path(manifest.path).write_text(f"{experiment} {run}", encoding="utf-8")


def filter_pairs(
    experiment: str, run: str, crawl_manifest: dsl.Input[dsl.Artifact], manifest: dsl.Output[dsl.Artifact]
) -> None:
    Path(manifest.path).write_text(Path(crawl_manifest.path).read_text(encoding="utf-8") + " filtered", "utf-8")
    manifest.metadata["digest"] = "d"


def check(
    experiment: str, run: str, filter_manifest: dsl.Input[dsl.Artifact], metrics: dsl.Output[dsl.Metrics]
) -> None:
    metrics.log_metric("length", len(Path(filter_manifest.path).read_text(encoding="utf-8")))
    metrics.log_metric("digest", filter_manifest.metadata["digest"])
    seen.update(metrics.metadata)


seen: dict[str, Any] = {}


@pytest.fixture
def log(tmp_path: Path) -> Iterator[TextIO]:
    with (tmp_path / "log.txt").open("a", encoding="utf-8", buffering=1) as file:
        yield file


@pytest.fixture
def components(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[..., None]]:
    functions: dict[str, Callable[..., None]] = {"crawl": crawl, "filter": filter_pairs, "validate": check}
    monkeypatch.setattr(local, "component_of", lambda name: SimpleNamespace(python_func=functions[name]))
    return functions


@pytest.mark.usefixtures("components")
def test_each_component_gets_what_the_ones_before_it_have_made(tmp_path: Path, log: TextIO) -> None:
    before = list(logging.getLogger().handlers)
    local.run(NAMES, "s3://e", "悟空", tmp_path / "kfp", log)
    assert seen == {"length": len("s3://e 悟空 filtered"), "digest": "d"}
    assert logging.getLogger().handlers == before
    with (tmp_path / "log.txt").open(encoding="utf-8") as written:
        (stage, logged), *others = of_stages(written)
    assert stage == "crawl" and logged.endswith("| INFO | crawling for 悟空")
    assert [name for name, _ in others] == ["crawl"] * len(others)
    assert "printed" in [text for _, text in others]
    assert any("usage: python -m ray_jobs" in text for _, text in others), "what the job has written"


@pytest.mark.parametrize(
    ("error", "said"), [(DataError("mend it"), "^filter failed: mend it$"), (KeyError("x"), "filter failed: Key")]
)
def test_a_component_that_fails_ends_the_run(
    tmp_path: Path, log: TextIO, components: dict[str, Callable[..., None]], error: Exception, said: str
) -> None:
    def fail(experiment: str, run: str, crawl_manifest: object) -> None:
        raise error

    components["filter"] = fail
    components["validate"] = lambda **_: pytest.fail("it went on")
    with pytest.raises(local.PipelineError, match=said):
        local.run(NAMES, "s3://e", "first", tmp_path / "kfp", log)


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """An experiment whose jobs have all finished: each place holds the least that the next components read."""
    for name in ("MLFLOW_TRACKING_URI", "WUKONG_CLUSTER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WUKONG_REVISION", "r")
    (tmp_path / "queries.txt").write_text("猫\n", encoding="utf-8")
    crawl = {"queries": storage.from_path(tmp_path / "queries.txt"), "endpoint": "http://site.test"}
    made = documents.parse({"name": "x", "storage": storage.from_path(tmp_path / "data"), "crawl": crawl})
    nothing = [*Status, "queries_failed", "queries_unexpected", "transient"]
    counts = dict.fromkeys(nothing, 0) | dict.fromkeys(("queries", "results", "urls", "success", "pairs", "train"), 3)

    def commit(stage: Stage, *files: str) -> Manifest:
        for file in files:
            value: Any = {"tasks": []} if file == "evaluation.json" else {"expectations": [], "history": []}
            storage.write_json(stage.path(file), value)
        return stage.commit([stage.describe(file) for file in files], counts=counts)

    crawled = commit(places.crawl(made).stage)
    filtered = commit(places.filtering(made, crawled))
    commit(places.validation(made, filtered), "results.json")
    features = commit(places.features(made, filtered))
    pretrained = commit(places.training("pretrain", made, filtered, features, None), "history.json")
    finetuned = commit(places.training("finetune", made, filtered, features, pretrained), "history.json")
    held = commit(places.features(made, filtered, pretrained, "holdouts"))
    parents = {"filter": filtered, "pretrain": pretrained, "finetune": finetuned}
    commit(places.evaluation(made, parents, [held]), "evaluation.json", "evaluation.html")
    return made


def test_a_run_in_which_all_is_reused_starts_no_process(
    tmp_path: Path, log: TextIO, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = plan.finished_jobs(experiment)
    assert found is not None and list(found) == list(stages.JOBS)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    local.run(stages.WHOLE_RUN, stored.store(experiment), "again", tmp_path / "kfp", log)
    records = [*Run.of(experiment, "again").records.values()]
    assert {record.stage: record.state for record in records} == dict.fromkeys(stages.WHOLE_RUN, "succeeded")
    assert [record.stage for record in records if record.reused] == list(stages.JOBS)
    assert storage.exists(run_paths.uri_of(experiment, "again", "report.html"))
    assert "x" in (tmp_path / "kfp" / "report" / "page").read_text(encoding="utf-8")


def test_a_stage_with_work_to_do_is_seen(experiment: Experiment) -> None:
    changed = experiment.model_copy(update={"evaluate": experiment.evaluate.model_copy(update={"captions": "all"})})
    assert plan.finished_jobs(changed) is None
    assert plan.finished_jobs(experiment.model_copy(update={"name": "another"})) is None
