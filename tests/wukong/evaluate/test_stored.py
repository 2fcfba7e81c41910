"""Answers that an earlier version stored are scored anew; where that cannot be done, they are not used."""

from pathlib import Path
from typing import Any

import measured
import numpy as np
import pyarrow as pa
import pytest

from wukong.evaluate import answers, interval, results, stored
from wukong.evaluate.answers import Answers
from wukong.evaluate.results import HOLDOUT, MeasuredModel
from wukong.evaluate.stored import Evaluation
from wukong.registry import comparison, promotion
from wukong.registry.comparison import Measured
from wukong.registry.promotion import Rules
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage
from wukong.tracking.mlflow_rest import Run

WORDS, EACH, CUTOFFS = 40, 8, (1, 5, 10)
RECALL = "eval/retrieval/holdouts/mean_recall"
HARD = np.random.default_rng(3).random((WORDS, 1))


def filtered(root: str) -> Manifest:
    """A hold-out of some pictures of each word, and of one picture that two words have."""
    stage = Stage(root, "filter", {})
    names = [f"{word}-{n}" for word in range(WORDS) for n in range(EACH)]
    rows = [(name, f"词{name.partition('-')[0]}", f"digest of {name}") for name in names]
    rows.append(("0-0-again", "词1", "digest of 0-0"))
    keys, captions, digests = zip(*rows, strict=True)
    table = pa.table({"key": keys, "url": keys, "caption": captions, "sha256": digests})
    storage.write_table(stage.path("words/00000.parquet"), table)
    storage.write_bytes(stage.path("words/00000.tar"), b"")
    return stage.commit([stage.describe(f"words/00000.{end}", len(rows)) for end in ("tar", "parquet")])


def old_evaluation(root: str, pairs: Manifest, share: float, *, with_config: bool = True) -> Manifest:
    """What the evaluate stage left before: each caption and each picture a unit, and narrow intervals."""
    right = np.broadcast_to(share > HARD, (WORDS, EACH)).astype(float)
    captions, pictures = WORDS, WORDS * EACH
    values: dict[str, Any] = {}
    for k in CUTOFFS:
        values[f"text_to_image_r{k}"] = np.concatenate([right[:, 0], np.full(pictures, np.nan)])
        values[f"image_to_text_r{k}"] = np.concatenate([np.full(captions, np.nan), right.ravel()])
    ids = [f"{word}-{n}" for word in range(WORDS) for n in range(EACH)]
    queries = (*map(str, range(captions)), *ids)
    whole = Answers(queries, np.arange(len(queries)), np.full(len(queries), -1), values)
    sums = [right[:, :1].repeat(3, 1), right.reshape(-1, 1).repeat(3, 1)]
    each = [one for part in sums for one in interval.of(part)]
    shown = dict(zip(values, each, strict=True)) | {"mean_recall": interval.of(sums[1])[0]}
    outcome = results.Outcome("words", "Words", "retrieval", HOLDOUT, "d" * 64, "own",
                              {"images": pictures, "captions": captions}, "mean_recall", shown, {})  # fmt: skip
    config = {
        "evaluate": {"captions": "distinct", "classification": []},
        "holdouts": [{"name": "words", "source": "*", "captions": "any"}],
    }
    stage = Stage(root, "evaluate", (config if with_config else {}) | {"share": share}, [pairs])
    model = MeasuredModel("finetuned", "x", f"{share}".ljust(64, "0"), False)
    document = results.document([model], {}, [outcome.as_json("finetuned")], {}) | {"format": 2}
    storage.write_json(stage.path("evaluation.json"), document)
    table = answers.table({"finetuned": whole}, task="words", digest="d" * 64, protocol="own")
    old = table.drop_columns(["identity"]).replace_schema_metadata(
        {key: value for key, value in (table.schema.metadata or {}).items() if key != b"units"}
    )
    storage.write_table(stage.path("answers/words.parquet"), old)
    names = ["evaluation.json", "answers/words.parquet"]
    return stage.commit([stage.describe(name) for name in names])


def result_of(found: Evaluation) -> dict[str, Any]:
    return dict(found.tasks()["words"]["results"]["mean_recall"])


def test_stored_answers_are_scored_anew_by_words(tmp_path: Path) -> None:
    root = storage.from_path(tmp_path)
    made = old_evaluation(root, filtered(root), 0.5)
    before = storage.read_json(storage.join(made.uri, "evaluation.json"))["tasks"][0]["results"]["mean_recall"]
    found = stored.read(made.uri)
    scores = found.scores(found.tasks()["words"])
    assert scores is not None and not found.outdated
    # Words 0 and 1 have a picture in common.
    assert len(scores.sums) == WORDS - 1
    assert sorted(scores.weights[:, 1].tolist())[-2:] == [EACH, 2 * EACH]
    after = result_of(found)
    assert after["value"] == pytest.approx(before["value"]) and after["units"] == WORDS - 1
    share = float((HARD < 0.5).mean())
    width = 2 * 1.96 * np.sqrt(share * (1 - share) / WORDS)  # of as many right and wrong words
    assert before["high"] - before["low"] < 0.75 * width < after["high"] - after["low"] < 1.4 * width


def measured_run(name: str, made: Manifest) -> Measured:
    return Measured(Run(name * 32, "1", name, "FINISHED", {}, {}, {}), stored.read(made.uri))


def test_old_runs_are_compared_and_decided_by_words(tmp_path: Path) -> None:
    root = storage.from_path(tmp_path)
    pairs = filtered(root)
    made = [old_evaluation(root, pairs, share) for share in (0.5, 0.55)]
    runs = [measured_run(name, each) for name, each in zip("ab", made, strict=True)]
    (found,) = (each for each in comparison.compare(runs)["sets"] if each["task"] == "words")
    gained = found["results"]["mean_recall"][1]
    assert gained["difference"]["paired"] and gained["difference"]["units"] == WORDS - 1
    holder, candidate = (run.evaluation for run in runs)
    rules = Rules(RECALL, 0.04, {})
    assert promotion.unpaired(rules, candidate, holder) == ""
    decided = promotion.decide(rules, candidate, holder, model="m", alias="a", version="2", held_by="1")
    more = int(((HARD < 0.55) & (HARD >= 0.5)).sum())
    assert more and decided.checks[0].p == pytest.approx(0.5**more), "a word is right or wrong as a whole"


def test_what_cannot_be_scored_anew_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = storage.from_path(tmp_path)
    pairs = filtered(root)
    first, second = (old_evaluation(root, pairs, share, with_config=False) for share in (0.3, 0.7))
    found = stored.read(first.uri)
    assert found.outdated == {"words"} and not found.tables
    assert "words was measured by an earlier version" in caplog.text
    (shown,) = comparison.compare([measured_run("a", first), measured_run("b", second)])["sets"]
    row = shown["results"]["mean_recall"]
    assert [each["verdict"] for each in row] == ["baseline", "incomparable"]
    assert all(each["difference"] is None and each["low"] is None for each in row)
    assert "too narrow" in row[1]["note"]
    new = measured.evaluation(root, [measured.searched("words", HARD[:, 0] < 0.5, digest="d" * 64)], key="new")
    reason = promotion.unpaired(Rules(RECALL, 0.04, {}), stored.read(new.uri), found)
    assert "units of an earlier version" in reason
    # The pairs are gone.
    made = old_evaluation(root, pairs, 0.4)
    storage.delete(pairs.uri)
    assert stored.read(made.uri).outdated == {"words"}


def test_answers_of_this_version_stay_as_they_are(tmp_path: Path) -> None:
    outcomes = [measured.searched("a", HARD[:, 0] < 0.5), measured.classified("b", HARD[:, 0] < 0.5)]
    made = measured.evaluation(storage.from_path(tmp_path), outcomes)
    found = stored.read(made.uri)
    assert not found.outdated and found.tables.keys() == {"a", "b"}
    assert found.document == storage.read_json(storage.join(made.uri, "evaluation.json"))
