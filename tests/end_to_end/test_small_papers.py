"""Small versions of the paper's experiments: one crawl, filter and gate, and one Ray; they end in the paper's tables.

Two versions on a sample of the demo: a ResNet and a ViT, one with each similarity. ``make paper-small`` runs
all nine on a larger sample and keeps the tables. The sets have their published format and size; their pictures are of
one colour.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from english import english

from infra import corpus, stack
from infra.stack.state import Stack
from wukong.config import documents, stored
from wukong.config.experiment import Experiment
from wukong.evaluate import class_names, paper, results
from wukong.runs import run_records
from wukong.store import manifest, storage

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "configs" / "paper"
ALL = "WUKONG_PAPER_SMALL" in os.environ
EVERY = sorted(path.stem for path in (PAPER / "small").glob("*.yaml") if path.stem != "base")
NAMES = EVERY if ALL else ["rn50", "vit-l"]
PICTURES = 2_000 if ALL else 400
SMALL = [
    *("validation.min_pairs=50", "crawl.part_size=150", "evaluate.tasks=[dtd, coco-cn]"),
    *("pretrain.batch_size=64", "pretrain.validation.every_steps=4"),
    *(() if ALL else ("pretrain.workers=1",)),  # other tests use the cores too
]

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where everything lies, with the published sets that the tables need."""
    folder, published = tmp_path_factory.mktemp("paper-small"), _published_sets()
    published.dtd(folder / "sets" / "dtd", [each.id for each in class_names.of("dtd")], 1_880, published.distinct)
    published.coco_cn(folder / "sets" / "coco-cn", 1_000, 53, published.distinct)
    return folder


def _published_sets() -> ModuleType:
    path = ROOT / "tests" / "wukong" / "evaluate" / "sets" / "published_sets.py"
    spec = importlib.util.spec_from_file_location("published_sets", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def runs(folder: Path) -> Iterator[Mapping[str, Experiment]]:
    """The small versions by their runs' names, all evaluated."""
    import ray

    demo = corpus.prepare(limit=PICTURES, progress=False)
    uris = {key: storage.from_path(folder / name) for key, name in (("storage", "store"), ("evaluate.sets", "sets"))}
    uris["crawl.queries"] = storage.from_path(folder / "queries.txt")
    corpus.upload_queries(demo, uris["crawl.queries"])
    given = [*SMALL, *(f"{key}={uri}" for key, uri in uris.items())]
    configs = {name: PAPER / "small" / f"{name}.yaml" for name in NAMES}
    endpoint = corpus.of_sample(documents.load(configs[NAMES[0]]), demo).crawl.endpoint
    made = {name: documents.load(path, [*given, f"crawl.endpoint={endpoint}"]) for name, path in configs.items()}
    ray.init("local", num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False)
    with pytest.MonkeyPatch.context() as variables, (folder / "log.txt").open("w", encoding="utf-8") as log:
        variables.delenv("MLFLOW_TRACKING_URI", raising=False)
        variables.setenv("WUKONG_HOME", str(folder / "home"))
        variables.setenv("PYTHONPATH", str(ROOT))
        variables.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
        with stack.sample_site(Stack(folder / "home", "a", "b", "c", {}), demo.catalogue) as site:
            variables.setenv("WUKONG_CONNECT_TO", site)
            filtered = _data(made[NAMES[0]])
        for name, experiment in made.items():
            run_records.claim(experiment, name)
        asked = "".join(f"{name} {stored.store(experiment)}\n" for name, experiment in made.items())
        command = [sys.executable, "-m", "ray_jobs.trials", "--data", filtered]
        ended = subprocess.run(
            command, input=asked, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, text=True, check=False
        )
        ray.shutdown()
    answers = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith('{"run"')]
    assert [(each["run"], each["error"]) for each in answers] == [(name, "") for name in NAMES], log.name
    yield made


def _data(experiment: Experiment) -> str:
    """Crawl, filter and validate; return the manifest of the pairs."""
    from ray_jobs.launch import launch

    crawled = launch("crawl", experiment, "data", [])
    filtered = launch("filter", experiment, "data", [crawled.uri])
    launch("validate", experiment, "data", [filtered.uri])
    return storage.join(filtered.uri, "manifest.json")


def test_all_are_trained_on_the_pairs_of_one_filter(runs: Mapping[str, Experiment]) -> None:
    root = next(iter(runs.values())).root
    made = {stage: storage.list_files(storage.join(root, stage), "/manifest.json") for stage in ("crawl", "filter")}
    assert {stage: len(found) for stage, found in made.items()} == {"crawl": 1, "filter": 1}
    digest = manifest.load(made["filter"][0]).digest
    for name, experiment in runs.items():
        record = run_records.read(experiment, name, "pretrain")
        assert record is not None and record.manifest is not None
        trained = manifest.load(record.manifest)
        assert [parent.digest for parent in trained.parents if parent.stage == "filter"] == [digest]
        assert trained.config["model"]["similarity"] == _original(name).model.similarity
        assert trained.config["training"]["validation"]["keep"] == "best"


@pytest.mark.parametrize(("number", "task"), [("5", "dtd"), ("6", "coco-cn")])
def test_the_runs_stand_in_the_table(runs: Mapping[str, Experiment], folder: Path, number: str, task: str) -> None:
    experiment = next(iter(runs.values()))
    columns = {name: _column(name) for name in runs}
    where = ["--storage", experiment.storage, "--output", str(folder / "tables")]
    named = [part for column in columns.values() for part in ("--column", column)]
    arguments = ["paper", f"table{number}", *runs, *named, *where]
    command = [str(Path(sys.executable).with_name("wukong")), *arguments]
    print(f"\n{subprocess.list2cmdline(['wukong', *arguments])}")
    ended = subprocess.run(command, env={**os.environ, "COLUMNS": "200"}, capture_output=True, text=True, check=False)
    print(ended.stdout)
    assert ended.returncode == 0, ended.stderr
    page = english((folder / "tables" / f"table{number}.html").read_text(encoding="utf-8"))
    assert f"<h1>Table {number}" in page
    table = json.loads((folder / "tables" / f"table{number}.json").read_text(encoding="utf-8"))
    assert {model["label"]: model["column"] for model in table["models"]} == columns
    (row,) = [row for row in table["rows"] if row["set"] == task]
    for name in runs:
        entry, measured = row["ours"][name], _measured(runs[name], name, task)
        value = entry if number == "5" else entry["mean_recall"]
        assert value["value"] == pytest.approx(100 * measured["top1" if number == "5" else "mean_recall"]["value"])
        assert entry["protocol"] == "paper"


def _original(name: str) -> Experiment:
    return documents.load(PAPER / f"{name}.yaml")


def _column(name: str) -> str:
    """The model of the paper that a small version stands for: its original's."""
    original = _original(name)
    column = paper.column_of(original.model.image.name, original.model.similarity, original.validation.min_pairs)
    assert column is not None
    return column


def _measured(experiment: Experiment, run: str, task: str) -> Mapping[str, Any]:
    """What a run's evaluation says of a set, on which it has measured one model."""
    record = run_records.read(experiment, run, "evaluate")
    assert record is not None and record.manifest is not None
    document = storage.read_json(storage.join(manifest.load(record.manifest).uri, results.DOCUMENT))
    (entry,) = [each for each in document["tasks"] if each["task"] == task]
    measured: Mapping[str, Any] = entry["results"]
    return measured
