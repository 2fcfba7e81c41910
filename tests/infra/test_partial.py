import fnmatch
from itertools import combinations
from pathlib import Path

import pytest

from infra import corpus
from wukong.config import documents
from wukong.config.experiment import Experiment

SOURCES = {
    "tuxpaint": ["animals/frog.png", "food/pear.png", "vehicles/bus.png", "symbols/money/coin.png"],
    "fluent": ["1f600.webp", "1f431.webp", "1f355.webp", "1f697.webp", "2764.webp"],
    "noto": ["1f600.png", "1f431.png"],
    "iconpark": ["base/home.png", "base/user.png"],
}
DEMO = documents.load(Path("configs/demo.yaml"))


def corpus_without(*missing: str) -> corpus.Corpus:
    entries = tuple(
        corpus.Entry(source, f"/{source}/{path}", "f", "名", ("词",), "MIT", 300, 300, "image/png")
        for source, paths in SOURCES.items()
        if source not in missing
        for path in paths
    )
    problems = tuple(f"{name} is left out: no network" for name in missing)
    return corpus.Corpus(Path("catalogue.parquet"), entries, problems, missing)


def adapted(*missing: str) -> tuple[Experiment, list[str]]:
    return corpus.without_missing(DEMO, corpus_without(*missing), corpus.HOST)


def test_the_whole_corpus_changes_nothing() -> None:
    assert adapted() == (DEMO, [])


def test_captions_that_cannot_be_read_change_nothing() -> None:
    made = corpus_without()
    noted = corpus.Corpus(made.catalogue, made.entries, ("tuxpaint: 2 pictures left out",))
    assert corpus.without_missing(DEMO, noted, corpus.HOST) == (DEMO, [])


def test_a_missing_collection_removes_what_only_it_has() -> None:
    experiment, notes = adapted("tuxpaint")
    assert [holdout.name for holdout in experiment.filter.split.holdouts] == ["fluent-concept", "fluent-style"]
    assert [task.name for task in experiment.evaluate.classification] == ["emoji-groups"]
    assert experiment.finetune.sources == ("*/noto/*",)
    assert experiment.pretrain == DEMO.pretrain
    said = " ".join(notes)
    for part in ("lacks tuxpaint", "hold-out tuxpaint-captions", "stamp-groups", "*/tuxpaint/* in finetune.sources"):
        assert part in said
    assert "can be compared" in said
    assert said in experiment.about, "the report says it too"


@pytest.mark.parametrize("missing", [m for n in (1, 2, 3) for m in combinations(SOURCES, n)], ids="-".join)
def test_any_rest_of_the_corpus_can_be_trained_on_and_measured(missing: tuple[str, ...]) -> None:
    experiment, notes = adapted(*missing)
    urls = [f"http://{corpus.HOST}{entry.path}" for entry in corpus_without(*missing).entries]
    holdouts = experiment.filter.split.holdouts
    assert holdouts
    assert all(fnmatch.filter(urls, holdout.source) for holdout in holdouts)
    wholly = [holdout.source for holdout in holdouts if holdout.captions != "unseen"]
    assert [url for url in urls if not any(fnmatch.fnmatchcase(url, pattern) for pattern in wholly)]
    assert experiment.filter.split.held_out_captions > 0
    for training in (experiment.pretrain, experiment.finetune):
        assert [url for url in urls if any(fnmatch.fnmatchcase(url, pattern) for pattern in training.sources)]
    for task in experiment.evaluate.classification:
        assert len([name for name, pattern in task.classes.items() if fnmatch.filter(urls, pattern)]) >= 2
    assert documents.loads(experiment.model_dump_json()) == experiment, "it is an experiment that validates"
    assert " and ".join(missing) in notes[0]
