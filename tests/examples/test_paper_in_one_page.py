"""The page of the paper: one screen, the values of ``configs/paper/vit-l.yaml``, a run on a sample of the demo."""

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest
import ray

from infra import corpus, stack
from infra.stack.state import Stack
from wukong.config import documents
from wukong.runs import run_records
from wukong.store import manifest, storage

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "examples" / "paper_in_one_page.py"
SMALL = (
    *("name=small", "model.similarity=token", "validation.min_pairs=50", "crawl.part_size=150"),
    *("model.text.layers=1", "model.text.width=32", "model.text.heads=2", "model.image.image_size=96"),
    *("pretrain.epochs=2", "pretrain.batch_size=64", "pretrain.workers=1"),
    *("finetune.epochs=1", "finetune.batch_size=64", "finetune.workers=1"),
)


def test_the_paper_is_one_screen() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 100
    steps = [match[1] for line in lines if (match := re.match(r"    # (\d.*|the gate): ", line))]
    assert steps == ["3", "3.1, 3.2", "the gate", "4", "4.4, 5.1", "5.2, 5.3", "5.4"]


def test_its_values_are_those_of_the_papers_experiment() -> None:
    described = runpy.run_path(str(PAGE))["PAPER"]
    assert described == documents.load(ROOT / "configs" / "paper" / "vit-l.yaml")


@pytest.mark.long
def test_it_goes_from_words_to_an_evaluated_model(tmp_path: Path) -> None:
    demo = corpus.prepare(limit=400, progress=False)
    experiment = corpus.of_sample(documents.load(ROOT / "configs" / "demo.yaml"), demo)
    vocabulary, news = corpus.queries(demo), [" ".join((entry.title, *entry.keywords)) for entry in demo.entries]
    (tmp_path / "vocabulary.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    (tmp_path / "news.txt").write_text("\n".join(news), encoding="utf-8")
    small = [*SMALL, f"storage={storage.from_path(tmp_path / 'store')}"]
    small += [
        f"crawl.queries={storage.from_path(tmp_path / 'queries.txt')}",
        f"crawl.endpoint={experiment.crawl.endpoint}",
    ]
    # One Ray for all stages: without an address each starts its own.
    started = ray.init("local", num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False)
    with started, stack.sample_site(Stack(tmp_path / "home", "a", "b", "c", {}), demo.catalogue) as site:
        variables = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "WUKONG_CONNECT_TO": site}
        lines = _run(tmp_path, "configs/demo.yaml", *small, variables=variables)
    printed = {name: float(value) for name, _, value in (line.partition(": ") for line in lines) if value[-1].isdigit()}

    queries = (tmp_path / "queries.txt").read_text(encoding="utf-8").split()
    assert set(queries) <= set(vocabulary) and "动物" in queries
    alone = [word for word in queries[:50] if not any(word in other and word != other for other in vocabulary)]
    counts = ["\n".join(news).count(word) for word in alone]
    assert len(alone) > 10 and all(more >= less for more, less in pairwise(counts)), "the most frequent word is first"

    used = documents.load(ROOT / "configs" / "demo.yaml", small)
    records = {record.stage: record for record in run_records.read_all(used, "paper-in-one-page")}
    made = {stage: manifest.load(record.manifest) for stage, record in records.items()}
    assert [*made] == ["crawl", "filter", "validate", "pretrain", "finetune", "evaluate"]
    assert printed["search results"] == made["crawl"].counts["results"] > 400
    assert printed["pictures downloaded"] == made["filter"].counts["pairs"]
    assert printed["trained on; the others are test sets"] == made["pretrain"].counts["pairs"]
    assert printed["weights"] > printed["weights of the locked image tower"] > 0
    measured = {name: value for name, value in printed.items() if name.startswith(("eval/", "pretrained/"))}
    assert measured == pytest.approx(storage.read_json(f"{made['evaluate'].uri}/metrics.json"), abs=5e-5)
    assert {name.split("/")[1] for name in measured} == {"classification", "retrieval"}
    patches = [int(value.split()[0]) for _, _, value in (line.partition(": ") for line in lines) if "patches" in value]
    assert lines[-len(patches)].startswith("[CLS]: ") and sum(patches) == 3 * 3, "of 96 pixels, each a tile of 32"


def _run(folder: Path, *given: str, variables: Mapping[str, str]) -> list[str]:
    """What the page prints for the words and the news in a folder."""
    texts = [storage.from_path(folder / name) for name in ("vocabulary.txt", "news.txt")]
    done = subprocess.run(
        [sys.executable, str(PAGE), *texts, *given],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
