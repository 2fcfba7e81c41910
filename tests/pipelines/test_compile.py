"""The compiled pipelines: fresh, the same everywhere, and what the UI and a cluster need of them."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import compiler, components, local
from manifests import named, plain

from components.functions import find_manifest
from pipelines import cluster
from pipelines import compile as compiling
from wukong import stages
from wukong.config import documents, stored
from wukong.runs import run_records
from wukong.store import storage

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
    """The form of KFP's page is valid when it opens only if each parameter has a default, optional or not."""
    parameters = read(name)[0]["root"]["inputDefinitions"]["parameters"]
    for parameter, definition in parameters.items():
        assert definition["description"], parameter
        assert parameter == "of_run" or "defaultValue" in definition, parameter
    types = {parameter: definition["parameterType"] for parameter, definition in parameters.items()}
    assert (types.pop("experiment"), types.pop("overrides")) == ("STRUCT", "LIST"), "the page has an editor for them"
    assert set(types.values()) == {"STRING"}, "nothing else can be left empty"
    written = yaml.safe_load((compiling.FOLDER.parent / "experiment.yaml").read_text(encoding="utf-8"))
    assert documents.parse(parameters["experiment"]["defaultValue"]) == documents.parse(written)


@pytest.mark.parametrize("name", NAMES)
def test_the_pipelines_description_explains_the_form(name: str) -> None:
    """KFP's page shows no parameter's own description."""
    specification = read(name)[0]
    shown = specification["pipelineInfo"]["description"]
    for parameter in specification["root"]["inputDefinitions"]["parameters"]:
        assert f"`{parameter}`" in shown


@pytest.mark.parametrize("name", NAMES)
def test_the_experiment_is_handed_on_by_its_uri(name: str) -> None:
    specification = read(name)[0]
    whole = [
        component
        for component, definition in specification["components"].items()
        if "STRUCT" in {each["parameterType"] for each in definition["inputDefinitions"].get("parameters", {}).values()}
    ]
    assert whole == ["comp-configure", "comp-record-end"]
    for task in run_of(specification).values():
        if "experiment" in task["inputs"].get("parameters", {}):
            source = task["inputs"]["parameters"]["experiment"]["componentInputParameter"]
            assert source == "pipelinechannel--configure-experiment"


@pytest.mark.parametrize("name", NAMES)
def test_whatever_happens_the_end_is_recorded(name: str) -> None:
    specification = read(name)[0]
    ended = specification["root"]["dag"]["tasks"]["record-end"]
    assert ended["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert ended["dependentTasks"] == ["exit-handler-1"], "the first of them says how the run ended"
    others = specification["root"]["dag"]["tasks"].keys() - {"record-end", "exit-handler-1"}
    assert others == {"configure"}, "nothing that must be recorded runs outside the exit handler"
    assert ended["inputs"]["parameters"]["job"]["runtimeValue"]["constant"] == "{{$.pipeline_job_resource_name}}"


@pytest.mark.parametrize("name", NAMES)
def test_every_task_is_named_for_people_and_sized(name: str) -> None:
    specification, _ = read(name)
    for task in (run_of(specification) | specification["root"]["dag"]["tasks"]).values():
        assert " " in task["taskInfo"]["name"] or task["taskInfo"]["name"][0].isupper()
    for executor in specification["deploymentSpec"]["executors"].values():
        resources = executor["container"]["resources"]
        assert {"resourceCpuRequest", "resourceCpuLimit", "resourceMemoryRequest", "resourceMemoryLimit"} <= set(
            resources
        )
        assert executor["container"]["image"] == "localhost/wukong/data:0.2.0"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_installed_when_a_component_starts(name: str) -> None:
    for executor in read(name)[0]["deploymentSpec"]["executors"].values():
        assert "pip install" not in str(executor["container"]["command"])


NEEDED = {
    "configure": {"component-run-s3", "search-mlflow"},
    "record-end": {"component-run-s3", "runs-mlflow"},
    "register": {"component-register-s3", "wukong-mlflow"},
    **{name: {"component-show-s3"} for name in ("data-card", "results", "find-manifest")},
}
"""The Secrets of components that do not hold their stage's key and MLflow's user of runs."""


@pytest.mark.parametrize("name", NAMES)
def test_components_find_settings_and_credentials(name: str) -> None:
    """Under the names and keys that the installation gives them."""
    specification, executors = read(name)
    settings = named(plain(), "ConfigMap")["wukong-settings"]["data"]
    assert executors.keys() == specification["deploymentSpec"]["executors"].keys()
    for key, executor in executors.items():
        of_map, optional = executor["configMapAsEnv"]
        assert of_map["configMapName"] == optional["configMapName"] == "wukong-settings"
        assert (of_map["optional"], optional["optional"]) == (False, True)
        given = {entry["envVar"] for entry in optional["keyToEnv"]}
        assert given == {"AWS_CA_BUNDLE", "MLFLOW_WORKSPACE"}
        (certificates,) = executor["configMapAsVolume"]
        assert (certificates["configMapName"], certificates["optional"]) == ("wukong-store-ca", True)
        assert {entry["configMapKey"] for entry in of_map["keyToEnv"]} <= settings.keys()
        assert {"WUKONG_CLUSTER", "NO_COLOR"} <= {entry["envVar"] for entry in of_map["keyToEnv"]}
        secrets = {entry["secretName"]: entry.get("optional", False) for entry in executor["secretAsEnv"]}
        # Only who registers a model signs it.
        own = {"wukong-signing": True} if key == "exec-register" else {}
        name = re.sub(r"^exec-|-\d+$|-pairs$", "", key)
        needed = NEEDED.get(name, {f"component-{name}-s3", "runs-mlflow"})
        assert secrets == dict.fromkeys(needed, False) | own
        files = {
            entry["secretName"]: (entry["mountPath"], entry["optional"]) for entry in executor.get("secretAsVolume", ())
        }
        assert files == ({"wukong-signing": ("/etc/wukong/signing", True)} if key == "exec-register" else {})
        assert executor["podMetadata"]["annotations"] == {
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
            "karpenter.sh/do-not-disrupt": "true",
        }


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_taken_from_kfps_cache(name: str) -> None:
    """It may name artifacts that are gone, and ends the run then: its driver does not make them anew."""
    specification = read(name)[0]
    tasks = run_of(specification) | specification["root"]["dag"]["tasks"]
    assert [task for task, entry in tasks.items() if entry.get("cachingOptions", {}).get("enableCache")] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_end_is_told_of_all_stages_that_the_pipeline_has(name: str) -> None:
    specification = read(name)[0]
    ended = specification["root"]["dag"]["tasks"]["record-end"]["inputs"]["parameters"]["stages"]
    named = [stages.of(stage).function or stage for stage in ended["runtimeValue"]["constant"]]
    assert {stage.replace("_", "-") for stage in named} == run_of(specification).keys() - {
        "data-card",
        "results",
        "find-manifest",
        "find-manifest-2",
        "find-manifest-3",
    }


def test_stages_are_repeated_and_checks_are_not() -> None:
    specification = read("training")[0]
    retry = run_of(specification)["pretrain"]["retryPolicy"]
    assert retry["maxRetryCount"] == 2
    assert int(retry["backoffMaxDuration"].removesuffix("s")) > 90 * 86_400, "it counts from the stage's beginning"
    assert "retryPolicy" not in specification["root"]["dag"]["tasks"]["configure"], "a wrong experiment stays wrong"


def test_the_ui_gets_something_to_draw() -> None:
    found = set()
    for component in read("training")[0]["components"].values():
        for artifact in component.get("outputDefinitions", {}).get("artifacts", {}).values():
            found.add(artifact["artifactType"]["schemaTitle"])
    assert {"system.HTML", "system.Markdown", "system.Metrics", "system.ClassificationMetrics"} <= found


def test_recurring_runs_go_on_from_the_last() -> None:
    specification = read("recurring")[0]
    begun = specification["root"]["dag"]["tasks"]["configure"]
    assert begun["inputs"]["parameters"]["continue_last_run"]["runtimeValue"]["constant"] is True
    start = run_of(specification)["pretrain"]["inputs"]["parameters"]["start"]
    assert start == {"componentInputParameter": "pipelinechannel--configure-start"}


def test_the_cluster_and_the_local_run_do_the_same_stages() -> None:
    from pipelines.training import training

    local = set(training.pipeline_spec.root.dag.tasks)
    on_cluster = set(run_of(read("training")[0]))
    assert on_cluster - local == {"data-card", "results"}
    assert local <= on_cluster


def tiny(folder: Path) -> dict[str, Any]:
    """An experiment that passes the checks of a run that evaluates."""
    crawl = {"queries": "file:///q.txt", "endpoint": "http://site.invalid"}
    split = {"held_out_captions": 0.1, "holdouts": [{"name": "h", "source": "*", "captions": "unseen"}]}
    return {"name": "demo", "storage": storage.from_path(folder), "crawl": crawl, "filter": {"split": split}}


def as_named(file: Path, name: str) -> Any:
    """A compiled pipeline for KFP's local runner, which knows neither the name's placeholder nor our executor."""
    text = file.read_text(encoding="utf-8").replace("{{$.pipeline_job_resource_name}}", name)
    text = text.replace("python3 -m components.executor", "python3 -m kfp.dsl.executor_main")
    return components.load_component_from_text(text)


def failing_by_kfp(pipeline: Any, arguments: dict[str, Any], folder: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """Run a pipeline that fails by KFP's local runner, a process for each component; return all output."""
    local.init(local.SubprocessRunner(use_venv=False), str(folder), str(folder / "workspace"), raise_on_error=True)
    with pytest.raises(RuntimeError):
        pipeline(**arguments)
    return "".join(capfd.readouterr())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Task .* have no effect in the current local runner")
@pytest.mark.filterwarnings("ignore:You may be attemping to run a task")
def test_a_run_that_fails_is_recorded_by_its_exit_handler(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The pipeline itself, by KFP's local runner: a checked experiment, a stage that fails, the record of the end."""
    experiment = tiny(tmp_path)
    arguments = {"experiment": experiment, "of_run": "gone", "run": "now", "overrides": ["seed=3"]}
    pipeline = as_named(compiling.FOLDER / "evaluate.yaml", "evaluate-7")
    written = failing_by_kfp(pipeline, arguments, tmp_path / "kfp", capfd)
    assert "run gone of experiment demo has no finished" in written
    record = run_records.read(documents.parse(experiment), "now", "run")
    assert record is not None
    assert record.state == "failed"


@cluster.pipeline("checked-alone", "Check a run.", ["epochs", "workers"])
def checked_alone(given: Mapping[str, Any]) -> None:
    """Check a run."""
    with cluster.run(given, names=("evaluate",)) as begun:
        found = find_manifest(experiment=begun.experiment, run=begun.name, stage="filter")
        cluster.prepare(found, "find_manifest", "Find the data", retries=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Task .* have no effect in the current local runner")
@pytest.mark.filterwarnings("ignore:You may be attemping to run a task")
def test_numbers_that_are_left_empty_stay_the_experiments(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """By KFP's local runner: a mapping, one number that is given, one that is not, and a name that is not."""
    experiment = tiny(tmp_path) | {"pretrain": {"epochs": 7, "learning_rate": 0.5}}
    compiler.Compiler().compile(checked_alone, str(tmp_path / "alone.yaml"))
    pipeline = as_named(tmp_path / "alone.yaml", "alone-7")
    written = failing_by_kfp(pipeline, {"experiment": experiment, "workers": "2"}, tmp_path / "kfp", capfd)
    claimed = run_records.claimed(documents.parse(experiment), "alone-7")
    assert claimed is not None and claimed.holder == "alone-7"
    made = documents.parse(claimed.experiment)
    assert made == documents.loads(json.dumps(experiment), ["pretrain.workers=2", "finetune.workers=2"])
    (uri,) = storage.list_files(storage.join(made.root, "experiments"))
    assert stored.load(uri) == made
    assert f'"experiment": "{uri}"' in written, "later components get the URI"
