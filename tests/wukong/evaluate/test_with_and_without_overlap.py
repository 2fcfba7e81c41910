"""Results with and without the pictures that a model was trained on: hand-made answers, and trainings on disk."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from scipy import stats

from wukong.evaluate import answers, interval, overlap, results, retrieval, run, trained_on
from wukong.evaluate.answers import Answers
from wukong.evaluate.protocol import OWN
from wukong.evaluate.results import HOLDOUT, MeasuredModel, Outcome
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage

Rows = Sequence[tuple[str, str, str, str, str]]
"""Of ``overlaps.parquet``: set, picture, key, level and action."""


def classified(right: npt.ArrayLike, labels: npt.ArrayLike | None = None) -> Answers:
    hits = np.asarray(right, float)
    ids = [f"p{number}" for number in range(len(hits))]
    kinds = np.zeros(len(hits), int) if labels is None else np.asarray(labels)
    return answers.of_images(ids, kinds, {"top1": hits, "mean_per_class": hits})


def measured(answered: Answers, *overlapping: str) -> dict[str, dict[str, Any]]:
    shown = answered.pictures
    assert shown is not None
    return overlap.with_and_without(answered, np.array([bool({*each} & {*overlapping}) for each in shown]))


def value(found: Mapping[str, Any], name: str, part: str) -> float:
    return float(found[name][part]["value"])


def test_top_1_of_all_of_the_overlap_and_of_the_others() -> None:
    # Eight of twenty overlap, and are all right; of the other twelve six are.
    found = measured(classified([1] * 8 + [1] * 6 + [0] * 6), *(f"p{number}" for number in range(8)))
    assert value(found, "top1", "overlap") == 1 and value(found, "top1", "clean") == 0.5
    assert value(found, "top1", "difference") == pytest.approx(14 / 20 - 6 / 12)
    assert (found["top1"]["overlap"]["units"], found["top1"]["clean"]["units"]) == (8, 12)
    assert found["top1"]["p"] == pytest.approx(stats.fisher_exact([[8, 0], [6, 6]], "greater").pvalue)
    assert found["mean_per_class"]["p"] is None, "a mean over classes is no number of right answers"
    assert results.significance(found["top1"]) == "The overlap raises the result by more than noise."
    (clean,) = interval.of([1.0] * 6 + [0.0] * 6)
    assert [found["top1"]["clean"][end] for end in ("low", "high")] == [clean.low, clean.high]


def test_overlapping_answers_that_are_worse_raise_nothing() -> None:
    found = measured(classified([0] * 8 + [1] * 6 + [0] * 6), *(f"p{number}" for number in range(8)))
    assert value(found, "top1", "difference") == pytest.approx(6 / 20 - 6 / 12)
    assert found["top1"]["p"] == pytest.approx(1)
    assert results.significance(found["top1"]) == "The overlap raises the result by no more than noise."


def test_the_mean_over_classes_is_that_of_the_classes_that_are_left() -> None:
    found = measured(classified([1, 0, 1, 0, 0, 1, 1], [0, 0, 0, 1, 1, 2, 2]), "p0", "p5", "p6")
    assert value(found, "mean_per_class", "overlap") == 1
    assert value(found, "mean_per_class", "clean") == pytest.approx((1 / 2 + 0) / 2), "no picture of class 2 is left"
    assert value(found, "mean_per_class", "difference") == pytest.approx((2 / 3 + 0 + 1) / 3 - 1 / 4)
    assert results.significance(found["mean_per_class"]) == "Whether the overlap raises the result cannot be said."
    # Of six units and more nothing is unknown: the intervals are those of a mean over classes.
    shares = interval.mean_per_class([0, 1, 0, 0], [0, 0, 1, 1])
    assert found["mean_per_class"]["clean"] == {**vars(shares)}


def test_with_few_overlapping_pictures_the_test_is_the_binomial_one_of_clips_paper() -> None:
    found = measured(classified([1] * 9 + [0] + [1, 1, 1, 0, 0] * 2_000), *(f"p{number}" for number in range(10)))
    of_clip = stats.binomtest(9, 10, 0.6, "greater").pvalue
    assert found["top1"]["p"] == pytest.approx(of_clip, rel=5e-3)


def test_the_difference_has_the_paired_interval() -> None:
    numbers = np.random.default_rng(3)
    inside = np.arange(90) < 40
    values = np.clip(numbers.random(90) + 0.2 * inside, 0, 1)
    found = measured(answers.of_images([f"p{n}" for n in range(90)], [0] * 90, {"text_to_image_r1": values}),
                     *(f"p{n}" for n in range(40)))["text_to_image_r1"]  # fmt: skip

    def difference(value: np.ndarray, clean: np.ndarray, axis: int) -> np.ndarray:
        return np.asarray(value.mean(axis) - (value * clean).sum(axis) / clean.sum(axis))

    rng = np.random.default_rng(1)
    expected = stats.bootstrap(
        (values, 1.0 * ~inside), difference, paired=True, n_resamples=5_000, rng=rng
    ).confidence_interval
    ends = found["difference"]["low"], found["difference"]["high"]
    assert ends == pytest.approx((expected.low, expected.high), abs=0.1 * (expected.high - expected.low))
    assert found["p"] is None, "shares are no right and wrong answers"


def test_of_few_overlapping_pictures_the_interval_says_what_they_may_do() -> None:
    found = measured(classified([1, 0, 1] + [1] * 10 + [0] * 7), "p0", "p1", "p2")["top1"]
    low, value, high = (found["difference"][end] for end in ("low", "value", "high"))
    assert value == pytest.approx(12 / 20 - 10 / 17)
    # If all three were wrong, or right; and what the others show is uncertain too.
    assert -0.15 < low < 10 / 20 - 10 / 17 and 13 / 20 - 10 / 17 < high < 0.15
    assert (found["overlap"]["low"], found["overlap"]["high"]) == (0, 1)


def test_of_few_other_pictures_nothing_is_known() -> None:
    found = measured(classified([1] * 20), *(f"p{number}" for number in range(17)))["top1"]
    assert [found["clean"][end] for end in ("low", "value", "high")] == [0, 1, 1]
    assert found["difference"]["high"] == pytest.approx(17 / 20), "if all others were wrong in truth"
    assert found["difference"]["low"] < found["difference"]["value"] == 0


def test_where_all_pictures_overlap_there_is_no_other_result() -> None:
    found = measured(classified([1, 0, 1, 1]), "p0", "p1", "p2", "p3")["top1"]
    assert found["overlap"]["value"] == 0.75
    assert (found["clean"], found["difference"], found["p"]) == (None, None, None)


def searched() -> Answers:
    """Four pictures with two captions each but the last, which shares the seventh caption with the third."""
    pairs = retrieval.Pairs.of([[0], [0], [1], [1], [2], [2, 3]], 4)
    by_text = torch.tensor([[1], [0], [1], [1], [0], [1]])
    by_image = torch.tensor([[1], [1], [0], [0]])
    found = retrieval.Found(by_text, by_image, (1,))
    return answers.of_retrieval(found, pairs, [f"t{n}" for n in range(6)], list("abcd"), share=False)


def test_the_captions_of_an_overlapping_picture_are_left_out_with_it() -> None:
    answered = searched()
    assert answered.pictures == (("a",), ("a",), ("b",), ("b",), ("c",), ("c", "d"), ("a",), ("b",), ("c",), ("d",))
    found = measured(answered, "b")
    assert value(found, "text_to_image_r1", "overlap") == 1 and value(found, "text_to_image_r1", "clean") == 2 / 4
    assert value(found, "image_to_text_r1", "overlap") == 1
    assert value(found, "image_to_text_r1", "clean") == pytest.approx(1 / 3)
    assert value(found, "mean_recall", "clean") == pytest.approx((2 / 4 + 1 / 3) / 2)
    assert value(found, "mean_recall", "difference") == pytest.approx((4 / 6 + 2 / 4) / 2 - (2 / 4 + 1 / 3) / 2)
    # Of the two pictures that are right for its second caption, one overlaps.
    assert value(measured(answered, "d"), "text_to_image_r1", "overlap") == 1
    assert value(measured(answered, "d"), "image_to_text_r1", "overlap") == 0
    # Captions of one picture are not independent, nor are pictures of one caption.
    assert [each["p"] for each in found.values()] == [None, None, None]


def test_answers_are_stored_with_the_pictures_that_they_show() -> None:
    answered = searched()
    turned = answered.ordered(range(9, -1, -1), answered.queries[::-1])
    assert turned.pictures is not None and turned.pictures[:5] == (("d",), ("c",), ("b",), ("a",), ("c", "d"))
    table = answers.table({"finetuned": turned}, task="x", digest="d", protocol="own")
    assert answers.read(table, "finetuned").pictures == turned.pictures
    untold = answers.table({"finetuned": replace(turned, pictures=None)}, task="x", digest="d", protocol="own")
    assert answers.read(untold, "finetuned").pictures is None


def filtered(
    root: str, train: Mapping[str, str], rows: Rows | None, compared: Sequence[str] = (), urls: str = "http://x/{}"
) -> Manifest:
    """Write a filter stage: training pairs by key with the digests of their pictures, and ``overlaps.parquet``."""
    stage = Stage(root, "filter", {"fingerprints": dict.fromkeys(compared, "0")})
    pairs = [{"key": key, "url": urls.format(key), "sha256": digest} for key, digest in train.items()]
    storage.write_table(stage.path("train/00000.parquet"), pa.Table.from_pylist(pairs))
    storage.write_bytes(stage.path("train/00000.tar"), b"")
    parts = [stage.describe(f"train/00000.{suffix}", len(pairs)) for suffix in ("parquet", "tar")]
    if rows is not None:
        names = ("set", "picture", "key", "level", "action")
        found = [dict(zip(names, row, strict=True)) | {"distance": 0.1} for row in rows]
        schema = pa.schema([*((name, pa.string()) for name in names), ("distance", pa.float32())])
        storage.write_table(stage.path("overlaps.parquet"), pa.Table.from_pylist(found, schema))
        parts.append(stage.describe("overlaps.parquet", len(found)))
    return stage.commit(parts)


def trained(name: str, *parents: Manifest, sources: Sequence[str] = ("*",)) -> Manifest:
    root = parents[0].uri.rsplit("/", 2)[0]
    return Stage(root, name, {"training": {"sources": list(sources)}}, parents).commit([])


def outcome(task: str, answered: Answers, role: str, split: str = "test") -> dict[str, Any]:
    made = Outcome(task, task.title(), "classification", split, "d" * 64, "own", {"images": len(answered.queries)},
                   "top1", answered.intervals(), {})  # fmt: skip
    return made.as_json(role)


def document(
    models: Mapping[str, set[trained_on.Pairs] | str],
    digests: Sequence[str | None],
    answered: Answers | None = None,
    task: str = "stamps",
    split: str = "test",
) -> dict[str, Any]:
    answers_of = answered or classified([1] * 8 + [0] * 8)
    record = {
        "name": task,
        "tasks": {role: [outcome(task, answers_of, role, split)] for role in models},
        "pictures": {},
        "alignments": [],
        "comparisons": [],
        "ids": [f"p{number}" for number in range(len(digests))],
        "digests": list(digests),
        "held_out": split == HOLDOUT,
    }
    about = [MeasuredModel(role, role, role, token_wise=False) for role in models]
    made = run.document(about, [OWN], [record], models, lambda name, _role: answers_of if name == task else None)
    read: dict[str, Any] = json.loads(json.dumps(made))
    return read


def test_pictures_that_were_marked_overlap_and_those_that_were_dropped_do_not(tmp_path: Path) -> None:
    root = storage.from_path(tmp_path)
    rows = [
        ("stamps", "p0", "k0", "hash", "mark"),
        ("stamps", "p0", "k1", "vector", "mark"),  # the same by another pair: it counts once, by its hash
        ("stamps", "p1", "k1", "vector", "mark"),
        ("stamps", "p2", "k1", "hash", "mark"),
        ("stamps", "p3", "gone", "hash", "mark"),  # another rule dropped its pair, or it is held out
        ("cats", "p4", "k2", "hash", "mark"),  # a picture of another set
        ("stamps", "p6", "k3", "hash", "drop"),
        ("stamps", "p7", "k4", "vector", "drop"),
        ("stamps", "p2", "k5", "vector", "drop"),  # another copy of it is trained on
    ]
    train = {f"k{number}": f"{number}" * 64 for number in range(3)}
    model = trained("pretrain", filtered(root, train, rows, ["stamps", "cats"]))
    # The file of p2 is among the training pairs, and that of p5, which the filter was not told of.
    digests = ["a", "b", "1" * 64, "d", "e", "2" * 64, *"ghijklmnop"]
    made = document({"finetuned": trained_on.pairs_of(model)}, digests)
    (entry,) = made["overlaps"]
    assert {key: entry[key] for key in ("task", "model", "pictures", "overlap", "left_out", "compared", "queries")} == {
        "task": "stamps", "model": "finetuned", "pictures": 16, "overlap": 4, "left_out": 2, "compared": True,
        "queries": 4,
    }  # fmt: skip
    assert entry["by"] == {"file": 2, "hash": 1, "vector": 1}
    # p0, p1, p2 and p5 are right, as are p3, p4, p6 and p7; the other eight are wrong.
    assert value(entry["results"], "top1", "clean") == pytest.approx(4 / 12)
    assert made["trained_on"][0]["trained_on"] == 2, "files alone"
    assert results.without_overlap_of(made, "finetuned") == {
        "eval/classification/stamps/top1_without_overlap": pytest.approx(4 / 12)
    }
    assert results.overlap_said(made, made["tasks"][0]) == (
        "4 of 16 pictures overlap with the training data. 2 of 16 pictures were found and left out of training. "
        "top-1: 50.00 % with them, 33.33 % without. The overlap raises the result by more than noise."
    )


def test_all_trainings_of_a_model_count_and_their_sources(tmp_path: Path) -> None:
    root = storage.from_path(tmp_path)
    rows = [("stamps", "p0", "k0", "hash", "mark"), ("stamps", "p1", "k1", "hash", "mark")]
    first = filtered(f"{root}/one", {"k0": "0", "k1": "1"}, rows, ["stamps"])
    second = filtered(f"{root}/two", {"k2": "2"}, None)
    before = trained("pretrain", first, sources=["*/k0"])
    after = trained("finetune", second, before)
    models: dict[str, set[trained_on.Pairs] | str] = {
        "pretrained": trained_on.pairs_of(before),
        "finetuned": trained_on.pairs_of(after),
        "other": "unknown",
    }
    digests = [*"abc", "2", *"efghijklmnop"]
    found = {each["model"]: each for each in document(models, digests)["overlaps"]}
    assert found.keys() == {"pretrained", "finetuned"}
    assert (found["pretrained"]["overlap"], found["finetuned"]["overlap"]) == (1, 2)
    assert found["pretrained"]["compared"] and not found["finetuned"]["compared"], "the second filter did not look"
    assert found["finetuned"]["by"] == {"file": 1, "hash": 1, "vector": 0}


def test_where_nothing_was_looked_for_and_no_file_is_equal_there_is_no_entry(tmp_path: Path) -> None:
    model = trained("pretrain", filtered(storage.from_path(tmp_path), {"k": "another"}, None))
    made = document({"finetuned": trained_on.pairs_of(model)}, list("abcdefghijklmnop"))
    assert made["overlaps"] == [] and results.overlap_said(made, made["tasks"][0]) == ""
    assert results.without_overlap_of(made, "finetuned") == {}


def test_pictures_that_are_no_files_overlap_by_what_the_filter_found(tmp_path: Path) -> None:
    rows = [("stamps", "p9", "k", "vector", "mark")]
    model = trained("pretrain", filtered(storage.from_path(tmp_path), {"k": "k"}, rows, ["stamps"]))
    made = document({"finetuned": trained_on.pairs_of(model)}, [None] * 16)
    assert made["overlaps"][0]["by"] == {"file": 0, "hash": 0, "vector": 1}
    assert made["trained_on"][0]["trained_on"] is None


def test_a_hold_outs_pictures_are_found_in_all_tasks_that_have_them(tmp_path: Path) -> None:
    rows = [("new", "p1", "k", "hash", "mark"), ("other", "p2", "k", "hash", "mark")]
    model = trained("pretrain", filtered(storage.from_path(tmp_path), {"k": "k"}, rows, ["new", "other"]))
    # A task of classes that has the pictures of both hold-outs.
    made = document({"finetuned": trained_on.pairs_of(model)}, ["a"] * 16, task="classes", split=HOLDOUT)
    assert made["overlaps"][0]["overlap"] == 2 and not made["overlaps"][0]["compared"]


@pytest.mark.parametrize(
    ("config", "counts", "split", "compared"),
    [
        ({"fingerprints": {"stamps": "0"}}, {}, "test", True),
        ({"decontaminate": {"sets": ["all"]}}, {}, HOLDOUT, True),
        ({"decontaminate": {"sets": ["stamps"]}}, {}, HOLDOUT, True),
        ({"decontaminate": {"sets": ["all"]}}, {}, "test", False),
        ({"decontaminate": {"hashes": ["file:///stamps"], "sets": []}}, {"overlap/stamps": 2}, "test", True),
        ({"decontaminate": None}, {"overlap_captions/stamps": 2}, "test", False),
    ],
)
def test_a_set_was_looked_for_if_the_filter_was_asked_to(
    config: dict[str, Any], counts: dict[str, int], split: str, compared: bool, tmp_path: Path
) -> None:
    pairs = Stage(storage.from_path(tmp_path), "filter", config).commit([], counts=counts)
    made = document({"finetuned": trained_on.pairs_of(trained("pretrain", pairs))}, ["a"] * 16, split=split)
    assert [each["compared"] for each in made["overlaps"]] == ([True] if compared else [])


def test_training_pairs_that_cannot_be_read_give_no_numbers(tmp_path: Path) -> None:
    rows = [("stamps", "p1", "k", "hash", "mark")]
    pairs = filtered(storage.from_path(tmp_path), {"k": "k"}, rows, ["stamps"])
    known = trained_on.pairs_of(trained("pretrain", pairs))
    storage.delete(storage.join(pairs.uri, "overlaps.parquet"))
    made = document({"finetuned": known}, ["a"] * 16)
    assert made["overlaps"] == [] and "overlaps.parquet" in made["trained_on"][0]["why"]


def test_answers_that_do_not_say_their_pictures_give_a_count_and_no_results(tmp_path: Path) -> None:
    rows = [("stamps", "p1", "k", "hash", "mark")]
    model = trained("pretrain", filtered(storage.from_path(tmp_path), {"k": "k"}, rows, ["stamps"]))
    untold = replace(classified([1] * 8 + [0] * 8), pictures=None)
    made = document({"finetuned": trained_on.pairs_of(model)}, ["a"] * 16, untold)
    assert (made["overlaps"][0]["overlap"], made["overlaps"][0]["results"]) == (1, {})
    assert results.overlap_said(made, made["tasks"][0]) == "1 of 16 pictures overlap with the training data."
