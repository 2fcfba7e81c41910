"""The two ends of a run: the experiment made of parameters, and the record of how it ended."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from components import run_ends as ends
from components.parameters import Parameters
from wukong.config import documents, stored
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError, DataError
from wukong.runs import origin, run_records
from wukong.runs.origin import Source
from wukong.runs.run import Run
from wukong.runs.run_records import Record
from wukong.store import storage
from wukong.store.manifest import Stage


def text(root: Path) -> str:
    return f"""
name: demo
storage: {storage.from_path(root)}
crawl: {{queries: "file:///q.txt", endpoint: "http://site.invalid"}}
pretrain: {{epochs: 4}}
"""


def mapping(root: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(text(root)))


def asked(root: Path, overrides: list[str] | None = None, **numbers: str) -> Parameters:
    return Parameters(experiment=mapping(root), overrides=overrides or [], **numbers)


def test_parameters_change_the_experiment_and_empty_ones_do_not(tmp_path: Path) -> None:
    numbers = {"epochs": " 7", "batch_size": "", "learning_rate": "1e-4", "workers": "4"}
    made = asked(tmp_path, ["pretrain.epochs=5", "crawl.max_queries=3"], **numbers).changed_experiment()
    given = documents.loads(text(tmp_path))
    assert (made.pretrain.epochs, made.crawl.max_queries) == (7, 3)
    assert made.pretrain.batch_size == given.pretrain.batch_size
    assert made.pretrain.learning_rate == 0.0001
    assert (made.pretrain.workers, made.finetune.workers) == (4, 4)


def test_zero_gpus_are_zero_gpus(tmp_path: Path) -> None:
    made = asked(tmp_path, ["pretrain.gpus_per_worker=1"], gpus_per_worker="0").changed_experiment()
    assert made.pretrain.gpus_per_worker == 0


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("epochs", "0", r"pretrain\.epochs"),
        ("epochs", "three", "epochs: 'three' is not a whole number; leave it empty"),
        ("workers", "1.5", "workers: '1.5' is not a whole number"),
        ("learning_rate", "fast", "learning_rate: 'fast' is not a number"),
        ("learning_rate", "nan", r"pretrain\.learning_rate"),
    ],
)
def test_a_mistake_names_its_key(name: str, text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        asked(tmp_path, **{name: text}).changed_experiment()


def test_a_mapping_from_kfp_makes_the_experiment_of_the_file(tmp_path: Path) -> None:
    """KFP hands on every number of a mapping as a floating-point number."""
    given = mapping(tmp_path) | {"seed": 3.0, "pretrain": {"epochs": 4.0}}
    assert Parameters(experiment=given).changed_experiment() == documents.loads(text(tmp_path), ["seed=3"])


def test_a_run_that_takes_a_model_has_its_model_section(tmp_path: Path) -> None:
    """Another model needs no other experiment, by KFP's parameter ``model`` or by ``overrides``."""
    folder = storage.from_path(tmp_path / "before" / "model")
    own = {"embedding": 32, "similarity": "token"}
    storage.write_json(f"{folder}/config.json", {"format": 1, "model": own})
    for name in ("model.safetensors", "vocab.txt"):
        storage.write_bytes(f"{folder}/{name}", b"x")
    given = mapping(tmp_path) | {"model": {"embedding": 64}}
    of_job = {"experiment": given, "job": "job", "stages": ["pretrain", "finetune"]}
    with pytest.raises(ConfigError, match=r"model\.embedding is 64, and the model's is 32"):
        ends.configured(Parameters(**of_job, overrides=[f"pretrain.from_model={folder}"], run="a"))
    uri, *_ = ends.configured(Parameters(**of_job, overrides=[f"pretrain.from_model={folder}", "model={}"], run="a"))
    made = stored.load(uri)
    assert (made.model.embedding, made.model.similarity, made.pretrain.from_model) == (32, "token", folder)
    again, *_ = ends.configured(Parameters(**of_job, run="b", model=f" {folder}"))
    assert stored.load(again) == made


def test_a_run_stores_where_it_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(origin, "code_revision", lambda: "b2")
    experiment = documents.loads(text(tmp_path))
    source = '{"repository": "https://git.example/runs", "revision": "f00", "dirty": false, "code": "a1"}'
    ends.note_origin(experiment, "r", source, "")
    stored_origin = Run.of(experiment, "r").origin
    assert stored_origin is not None
    assert (stored_origin.revision, stored_origin.code, stored_origin.image_revision) == ("f00", "a1", "b2")
    assert "submitted by revision a1 of Wukong, and the image of its components has revision b2" in caplog.text
    ends.note_origin(experiment, "by-hand", "", "")
    by_hand = Run.of(experiment, "by-hand").origin
    assert by_hand is not None and (by_hand.revision, by_hand.image_revision) == ("", "b2")
    with pytest.raises(ConfigError, match="source: leave it empty"):
        ends.note_origin(experiment, "r", "main", "")


def test_a_run_on_a_cluster_writes_down_with_which_images_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr("ray_jobs.launch.kuberay.keep_images", lambda made, *where: asked.append((made.name, *where)))
    experiment = documents.loads(text(tmp_path))
    ends.note_origin(experiment, "here", "", "")
    monkeypatch.setenv("WUKONG_CLUSTER", "team-a")
    ends.note_origin(experiment, "there", "", "")
    assert asked == [(experiment.name, "there", "team-a")]


def test_a_clone_that_was_changed_is_not_the_config_of_its_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """KFP's page clones a run with the parameter ``source``, and lets one edit the others."""
    monkeypatch.setattr("wukong.stages.preflight.check_world", lambda *_: None)
    digest = origin.digest_of_experiment(documents.loads(text(tmp_path), ["pretrain.epochs=5"]))
    source = Source(revision="f00", dirty=False, digest=digest).model_dump_json(exclude_defaults=True)
    # KFP hands on every number as a floating-point number.
    as_submitted = Parameters(
        experiment=mapping(tmp_path) | {"pretrain": {"epochs": 4.0}},
        epochs="5",
        source=source,
        job="job",
        stages=["validate"],
    )
    ends.configured(as_submitted.model_copy(update={"run": "same"}))
    ends.configured(as_submitted.model_copy(update={"run": "changed", "overrides": ["seed=7"]}))
    found = {}
    for run, overrides in (("same", []), ("changed", ["seed=7"])):
        stored_origin = Run.of(documents.loads(text(tmp_path), ["pretrain.epochs=5", *overrides]), run).origin
        assert stored_origin is not None
        found[run] = (stored_origin.dirty, stored_origin.digest == digest)
    assert found == {"same": (False, True), "changed": (True, False)}
    assert caplog.text.count("this is not the experiment that was submitted") == 1


def finished_stage(experiment: Experiment, name: str, run_name: str, **settings: Any) -> str:
    made = Stage(experiment.root, name, settings).commit([])
    uri = storage.join(made.uri, "manifest.json")
    run_records.claim(experiment, run_name)
    run_records.write(experiment, run_name, Record(stage=name, state="succeeded", manifest=uri))
    return uri


def test_a_first_run_has_nothing_to_go_on_from(tmp_path: Path) -> None:
    experiment = documents.loads(text(tmp_path))
    assert ends.continue_experiment(experiment) == (experiment, "")


def test_a_run_goes_on_from_the_newest_crawl_and_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = documents.loads(text(tmp_path))
    moments = iter(["2026-01-03T00:00:00+00:00", "2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"])
    monkeypatch.setattr("wukong.store.manifest.provenance", lambda: {"created": next(moments)})
    newest = finished_stage(experiment, "crawl", "b", number=1)
    finished_stage(experiment, "crawl", "c", number=2)
    model = finished_stage(experiment, "pretrain", "a")
    run_records.write(experiment, "d", Record(stage="crawl", state="failed", error="no"))
    made, start = ends.continue_experiment(experiment)
    assert (made.crawl.previous, start) == (newest, model)


def test_the_manifest_of_a_run_or_why_there_is_none(tmp_path: Path) -> None:
    experiment = documents.loads(text(tmp_path))
    uri = finished_stage(experiment, "filter", "good")
    run_records.write(experiment, "bad", Record(stage="filter", state="failed", error="part 7 is truncated"))
    assert ends.manifest_of(experiment, "good", "filter") == uri
    with pytest.raises(DataError, match="part 7 is truncated"):
        ends.manifest_of(experiment, "bad", "filter")
    with pytest.raises(DataError, match="there is no record"):
        ends.manifest_of(experiment, "none", "filter")


@pytest.mark.parametrize(
    ("state", "message", "expected", "error"),
    [
        ("SUCCEEDED", "", "succeeded", ""),
        ("FAILED", "", "failed", "filter: part 7 is truncated"),
        ("FAILED", "node lost", "failed", "node lost"),
        ("CANCELLED", "", "failed", "terminated; filter: part 7 is truncated"),
        ("COMPLETE", "", "succeeded", ""),
        ("RUNNING", "", "failed", "terminated; filter: part 7 is truncated"),
    ],
)
def test_the_end_of_a_run_is_recorded(tmp_path: Path, state: str, message: str, expected: str, error: str) -> None:
    experiment = documents.loads(text(tmp_path))
    run_records.write(experiment, "r", Record(stage="filter", state="failed", error="part 7 is truncated"))
    ends.record_end_of(text(tmp_path), [], "r", "job", ["filter"], state, message)
    record = run_records.read(experiment, "r", "run")
    assert record is not None
    assert (record.state, record.error) == (expected, error)


@pytest.mark.parametrize(
    ("done", "state", "expected"),
    [
        (("crawl", "filter"), "FAILED", ("succeeded", "")),
        (("crawl",), "FAILED", ("failed", "no artifact")),
        (("crawl", "filter"), "RUNNING", ("failed", "terminated; no artifact")),
    ],
)
def test_a_run_whose_stages_are_done_has_succeeded_whatever_became_of_its_pages(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, done: tuple[str, ...], state: str, expected: tuple[str, str]
) -> None:
    experiment = documents.loads(text(tmp_path))
    for stage in done:
        run_records.write(experiment, "r", Record(stage=stage, state="succeeded"))
    ends.record_end_of(text(tmp_path), [], "r", "job", ["crawl", "filter"], state, "no artifact")
    record = run_records.read(experiment, "r", "run")
    assert record is not None
    assert (record.state, record.error) == expected
    assert ("something beside them has not: no artifact" in caplog.text) == (record.state == "succeeded")


def test_a_run_that_never_had_an_experiment_leaves_nothing(tmp_path: Path) -> None:
    ends.record_end_of("name: [", [], "r", "job", ["filter"], "FAILED", "")
    assert storage.list_files(storage.from_path(tmp_path)) == []


def test_a_terminated_run_says_so(tmp_path: Path) -> None:
    ends.record_end_of(text(tmp_path), [], "r", "job", ["filter"], "RUNNING", "")
    record = run_records.read(documents.loads(text(tmp_path)), "r", "run")
    assert record is not None and record.error == "terminated"


def test_a_run_that_kfp_calls_failed_was_terminated_when_its_workflow_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_jobs.launch.kuberay.end_run", lambda *_: [])
    monkeypatch.setattr("ray_jobs.launch.kuberay.was_terminated", lambda: True)
    monkeypatch.setenv("WUKONG_CLUSTER", "wukong")
    ends.record_end_of(text(tmp_path), [], "r", "job", ["filter"], "FAILED", "")
    record = run_records.read(documents.loads(text(tmp_path)), "r", "run")
    assert record is not None and (record.state, record.error) == ("failed", "terminated")


def test_a_name_that_no_run_can_have_ends_nothing(tmp_path: Path) -> None:
    ends.record_end_of(text(tmp_path), [], "Run of training (8f1e9)", "job", ["filter"], "FAILED", "")
    assert storage.list_files(storage.from_path(tmp_path)) == []


def test_jobs_that_cannot_be_ended_do_not_hide_how_the_run_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from ray_jobs.launch import kuberay

    def end_run(*_: object) -> list[str]:
        raise kuberay.RayJobError("the API server has not answered for 60 s")

    monkeypatch.setattr("ray_jobs.launch.kuberay.end_run", end_run)
    monkeypatch.setenv("WUKONG_CLUSTER", "wukong")
    ends.record_end_of(text(tmp_path), [], "r", "job", ["filter"], "COMPLETE", "")
    record = run_records.read(documents.loads(text(tmp_path)), "r", "run")
    assert record is not None and record.state == "succeeded"
    assert "may be left: the API server has not answered" in caplog.text


def test_the_jobs_of_a_run_on_a_cluster_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[tuple[str, ...]] = []

    def end_run(experiment: Experiment, run_name: str, namespace: str) -> list[str]:
        ended.append((experiment.name, run_name, namespace))
        return ["left-behind"]

    monkeypatch.setattr("ray_jobs.launch.kuberay.end_run", end_run)
    monkeypatch.setenv("WUKONG_CLUSTER", "wukong")
    ends.record_end_of(text(tmp_path), [], "r", "job", ["filter"], "CANCELLED", "")
    assert ended == [("demo", "r", "wukong")]


def test_a_run_that_was_refused_its_name_touches_nothing_of_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_jobs.launch.kuberay.end_run", lambda *_: pytest.fail("the other's jobs are ended"))
    monkeypatch.setenv("WUKONG_CLUSTER", "wukong")
    run_records.claim(documents.loads(text(tmp_path)), "r", "first")
    ends.record_end_of(text(tmp_path), ["pretrain.epochs=9"], "r", "second", ["filter"], "FAILED", "configure failed")
    assert run_records.read(documents.loads(text(tmp_path)), "r", "run") is None
    monkeypatch.setattr("ray_jobs.launch.kuberay.end_run", lambda *_: [])
    ends.record_end_of(text(tmp_path), [], "r", "first", ["filter"], "SUCCEEDED", "")
    assert run_records.read(documents.loads(text(tmp_path)), "r", "run") is not None


def test_a_run_on_a_cluster_takes_its_name_first(tmp_path: Path) -> None:
    from components.functions import configure

    def begin(job: str, *overrides: str) -> Any:
        given = {"experiment": mapping(tmp_path), "overrides": list(overrides), "job": job, "stages": []}
        return configure.python_func(**given, run="nightly")

    assert begin("one")[1] == "nightly"
    begin("two")  # the same experiment
    with pytest.raises(SystemExit, match=r"'nightly' belongs to another experiment(.|\n)*pretrain\.epochs: 4 there, 9"):
        begin("three", "pretrain.epochs=9")
    found = run_records.claimed(documents.loads(text(tmp_path)), "nightly")
    assert found is not None and found.holder == "two"


@pytest.mark.slow
def test_a_failed_run_ends_in_mlflow_too(tmp_path: Path, mlflow_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    from wukong.tracking import mlflow_runs

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_address)
    experiment = documents.loads(text(tmp_path))
    with mlflow_runs.stage_run(experiment, "r", "filter") as nested:
        ends.record_end_of(text(tmp_path), [], "r", "job", ["filter"], "RUNNING", "")
        assert nested is not None
        client = MlflowClient()
        killed = client.get_run(nested)
        parent = client.get_run(killed.data.tags["mlflow.parentRunId"])
        assert {killed.info.status, parent.info.status} == {"KILLED"}
