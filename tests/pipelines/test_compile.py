"""The compiled pipelines: fresh, the same everywhere, and what the UI and a cluster need of them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import named, plain

from pipelines import compile as compiling
from wukong import config

NAMES = ("training", "data", "evaluate", "recurring")


def read(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A compiled pipeline, and its part for Kubernetes."""
    specification, platform = yaml.safe_load_all((compiling.FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return specification, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def run_of(specification: dict[str, Any]) -> dict[str, Any]:
    """The tasks inside the exit handler, by name."""
    (handler,) = [name for name in specification["root"]["dag"]["tasks"] if name.startswith("exit-handler")]
    component = specification["root"]["dag"]["tasks"][handler]["componentRef"]["name"]
    return dict(specification["components"][component]["dag"]["tasks"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["0", "4711"])
def test_the_committed_files_are_what_the_code_compiles_to(seed: str, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "WUKONG_DATA_IMAGE"}
    command = [sys.executable, "-m", "pipelines.compile", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, env=environment | {"PYTHONHASHSEED": seed})
    made = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    committed = {file.name: file.read_bytes() for file in compiling.FOLDER.iterdir()}
    assert made.keys() == committed.keys() == {f"{name}.yaml" for name in NAMES}
    stale = [name for name in made if made[name] != committed[name]]
    assert not stale, "run: python -m pipelines.compile"


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_typed_and_explained(name: str) -> None:
    parameters = read(name)[0]["root"]["inputDefinitions"]["parameters"]
    for parameter, definition in parameters.items():
        assert definition["description"], parameter
        assert parameter == "of_run" or "defaultValue" in definition, parameter
    assert config.loads(parameters["experiment"]["defaultValue"]).name == "wukong"


@pytest.mark.parametrize("name", NAMES)
def test_whatever_happens_the_end_is_recorded(name: str) -> None:
    specification = read(name)[0]
    ended = specification["root"]["dag"]["tasks"]["record-end"]
    assert ended["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert len(specification["root"]["dag"]["tasks"]) == 2, "nothing runs outside the exit handler"
    assert ended["inputs"]["parameters"]["job"]["runtimeValue"]["constant"] == "{{$.pipeline_job_resource_name}}"


@pytest.mark.parametrize("name", NAMES)
def test_every_task_is_named_for_people_and_sized(name: str) -> None:
    specification, _ = read(name)
    for task in run_of(specification).values():
        assert " " in task["taskInfo"]["name"] or task["taskInfo"]["name"][0].isupper()
    for executor in specification["deploymentSpec"]["executors"].values():
        resources = executor["container"]["resources"]
        assert {"resourceCpuRequest", "resourceCpuLimit", "resourceMemoryRequest", "resourceMemoryLimit"} <= set(
            resources
        )
        assert executor["container"]["image"] == "localhost/wukong/data:0.1.0"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_installed_when_a_component_starts(name: str) -> None:
    for executor in read(name)[0]["deploymentSpec"]["executors"].values():
        assert "pip install" not in str(executor["container"]["command"])


@pytest.mark.parametrize("name", NAMES)
def test_components_find_settings_and_credentials(name: str) -> None:
    """Under the names and keys that the installation gives them."""
    specification, executors = read(name)
    settings = named(plain(), "ConfigMap")["wukong-settings"]["data"]
    assert executors.keys() == specification["deploymentSpec"]["executors"].keys()
    for executor in executors.values():
        (of_map,) = executor["configMapAsEnv"]
        assert of_map["configMapName"] == "wukong-settings"
        assert {entry["configMapKey"] for entry in of_map["keyToEnv"]} <= settings.keys()
        assert "WUKONG_CLUSTER" in {entry["envVar"] for entry in of_map["keyToEnv"]}
        assert {entry["secretName"] for entry in executor["secretAsEnv"]} == {"wukong-s3", "wukong-mlflow"}


def test_only_pages_are_cached() -> None:
    tasks = run_of(read("training")[0])
    cached = {name for name, task in tasks.items() if task["cachingOptions"].get("enableCache")}
    assert cached == {"data-card", "results"}


def test_stages_are_repeated_and_checks_are_not() -> None:
    tasks = run_of(read("training")[0])
    assert tasks["pretrain"]["retryPolicy"]["maxRetryCount"] == 2
    assert "retryPolicy" not in tasks["configure"], "a wrong experiment stays wrong"


def test_the_ui_gets_something_to_draw() -> None:
    found = set()
    for component in read("training")[0]["components"].values():
        for artifact in component.get("outputDefinitions", {}).get("artifacts", {}).values():
            found.add(artifact["artifactType"]["schemaTitle"])
    assert {"system.HTML", "system.Markdown", "system.Metrics", "system.ClassificationMetrics"} <= found


def test_recurring_runs_go_on_from_the_last() -> None:
    tasks = run_of(read("recurring")[0])
    assert tasks["configure"]["inputs"]["parameters"]["continue_last_run"]["runtimeValue"]["constant"] is True
    start = tasks["pretrain"]["inputs"]["parameters"]["start"]["taskOutputParameter"]
    assert start == {"outputParameterKey": "start", "producerTask": "configure"}


def test_the_cluster_and_the_local_run_do_the_same_stages() -> None:
    from pipelines.training import training

    local = set(training.pipeline_spec.root.dag.tasks)
    on_cluster = set(run_of(read("training")[0]))
    assert on_cluster - local == {"configure", "data-card", "results"}
    assert local <= on_cluster


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Task .* have no effect in the current local runner")
def test_a_run_that_fails_is_recorded_by_its_exit_handler(tmp_path: Path) -> None:
    """The pipeline itself, by KFP's local runner: a checked experiment, a stage that fails, the record of the end."""
    import json

    from kfp import components

    from pipelines import local
    from wukong import run_records, storage

    crawl = {"queries": "file:///q.txt", "endpoint": "http://site.invalid"}
    split = {"held_out_captions": 0.1, "holdouts": [{"name": "h", "source": "*", "captions": "unseen"}]}
    experiment = {"name": "demo", "storage": storage.from_path(tmp_path), "crawl": crawl, "filter": {"split": split}}
    arguments = {"experiment": json.dumps(experiment), "of_run": "gone", "run": "now", "overrides": ["seed=3"]}
    lines: list[str] = []
    # Unlike KFP's backend, its local runner does not know the placeholder of the run's resource name.
    text = (compiling.FOLDER / "evaluate.yaml").read_text(encoding="utf-8")
    pipeline = components.load_component_from_text(text.replace("{{$.pipeline_job_resource_name}}", "evaluate-7"))
    with pytest.raises(local.PipelineError):
        local.run(pipeline, arguments, tmp_path / "kfp", lines.append)
    assert any("run gone of experiment demo has no finished" in line for line in lines)
    record = run_records.read(config.parse(experiment), "now", "run")
    assert record is not None
    assert record.state == "failed"
