"""Small versions of the paper's experiments: one crawl, filter and gate, and one Ray; they end in the paper's tables.

Two versions on a sample of the demo: a ResNet and a ViT, one with each similarity. The page of the paper makes the data
and trains the ViT. ``make test-apart NAME=papers`` runs all nine on a larger sample and keeps the tables. The sets
have their published format and size; their pictures are of one colour.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
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
from wukong.runs.run import Run
from wukong.store import manifest, storage

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "configs" / "paper"
ALL = os.environ.get("WUKONG_APART") == "papers"
EVERY = sorted(path.stem for path in (PAPER / "small").glob("*.yaml") if path.stem != "base")
NAMES = EVERY if ALL else ["rn50", "vit-l"]
OF_PAGE = "vit-l"
PICTURES, SIDE = (2_000, 64) if ALL else (400, 32)
SMALL = [
    *("validation.min_pairs=50", "crawl.part_size=150", "evaluate.tasks=[dtd, coco-cn]"),
    *("pretrain.batch_size=64", "pretrain.validation.every_steps=4"),
    *(() if ALL else ("pretrain.workers=1", f"model.image.image_size={SIDE}")),  # other tests use the cores too
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


@dataclass(frozen=True)
class Page:
    """What ``examples/paper_in_one_page.py`` was given and has printed, and the small versions by their runs' names."""

    vocabulary: list[str]
    news: list[str]
    printed: list[str]
    versions: Mapping[str, Experiment]


@pytest.fixture(scope="module")
def page(folder: Path) -> Iterator[Page]:
    """The page, done for the small ViT-L/14 on a Ray that stays: without an address each stage starts its own."""
    import ray

    demo = corpus.prepare(limit=PICTURES, progress=False)
    texts = {
        "vocabulary": corpus.queries(demo),
        "news": [" ".join((entry.title, *entry.keywords)) for entry in demo.entries],
    }
    for name, lines in texts.items():
        (folder / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    uris = {key: storage.from_path(folder / name) for key, name in (("storage", "store"), ("evaluate.sets", "sets"))}
    uris["crawl.queries"] = storage.from_path(folder / "queries.txt")
    given = [*SMALL, *(f"{key}={uri}" for key, uri in uris.items())]
    configs = {name: PAPER / "small" / f"{name}.yaml" for name in NAMES}
    given.append(f"crawl.endpoint={corpus.of_sample(documents.load(configs[OF_PAGE]), demo).crawl.endpoint}")
    command = [sys.executable, str(ROOT / "examples" / "paper_in_one_page.py")]
    command += [*(storage.from_path(folder / f"{name}.txt") for name in texts), str(configs[OF_PAGE]), *given]
    ray.init("local", num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False)
    with pytest.MonkeyPatch.context() as variables:
        variables.delenv("MLFLOW_TRACKING_URI", raising=False)
        variables.setenv("WUKONG_HOME", str(folder / "home"))
        variables.setenv("PYTHONPATH", str(ROOT))
        variables.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
        with stack.sample_site(Stack(folder / "home", "a", "b", "c", {}), demo.catalogue) as site:
            variables.setenv("WUKONG_CONNECT_TO", site)
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        versions = {name: documents.load(path, given) for name, path in configs.items()}
        yield Page(*texts.values(), done.stdout.splitlines(), versions)
    ray.shutdown()


@pytest.fixture(scope="module")
def runs(folder: Path, page: Page) -> Mapping[str, Experiment]:
    """The small versions by their runs' names, all evaluated."""
    for name, experiment in page.versions.items():
        run_records.claim(experiment, name)
    asked = "".join(f"{name} {stored.store(experiment)}\n" for name, experiment in page.versions.items())
    command = [sys.executable, "-m", "ray_jobs.trials", "--data", _of_page(page)["filter"].manifest]
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        ended = subprocess.run(
            command, input=asked, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, text=True, check=False
        )
    answers = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith('{"run"')]
    assert [(each["run"], each["error"]) for each in answers] == [(name, "") for name in NAMES], log.name
    return page.versions


def _of_page(page: Page) -> dict[str, run_records.Record]:
    return Run.of(page.versions[OF_PAGE], "paper-in-one-page").records


def test_the_page_goes_from_words_to_an_evaluated_model(folder: Path, page: Page) -> None:
    split = [line.partition(": ") for line in page.printed]
    printed = {name: float(value) for name, _, value in split if value[-1].isdigit()}
    queries = (folder / "queries.txt").read_text(encoding="utf-8").split()
    assert set(queries) <= set(page.vocabulary) and "动物" in queries
    alone = [word for word in queries[:50] if not any(word in other and word != other for other in page.vocabulary)]
    counts = ["\n".join(page.news).count(word) for word in alone]
    assert len(alone) > 10 and all(more >= less for more, less in pairwise(counts)), "the most frequent word is first"

    made = {stage: manifest.load(record.manifest) for stage, record in _of_page(page).items()}
    assert [*made] == ["crawl", "filter", "validate", "pretrain", "finetune", "evaluate"]
    assert printed["search results"] == made["crawl"].counts["results"] > 400
    assert printed["pictures downloaded"] == made["filter"].counts["pairs"]
    assert printed["trained on; the others are test sets"] == made["pretrain"].counts["pairs"]
    assert printed["weights"] > printed["weights of the locked image tower"] > 0
    measured = {name: value for name, value in printed.items() if name.startswith(("eval/", "pretrained/"))}
    assert measured == pytest.approx(storage.read_json(f"{made['evaluate'].uri}/metrics.json"), abs=5e-5)
    assert {name.split("/")[1] for name in measured} == {"classification", "retrieval"}
    patches = [int(value.split()[0]) for _, _, value in split if "patches" in value]
    assert page.printed[-len(patches)].startswith("[CLS]: ")
    assert sum(patches) == (SIDE // 16) ** 2, "each a tile of 16 pixels"


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
