"""Fitting: the same bytes from the same seed, a loss that falls, names that were taken out."""

import logging
import random

import numpy as np
import pytest
from safetensors.numpy import load
from small_tagger import small_tagger

from tools.name_tagger import captions, fit
from tools.name_tagger.fit import FitSettings
from wukong.curate.names import tagger, word_lists
from wukong.errors import DataError

LINES = [
    "演员[海清]出席发布会",
    "[王宝强]剧照",
    "白色连衣裙",
    "[C罗]倒钩",
    "安静的午后时光",
    "李宁跑鞋",
    "图为[汤姆·克鲁斯]",
]
CAPTIONS = [captions.parse(line) for line in LINES * 6]
TINY = FitSettings(hidden=(4,), epochs=2, batch_size=16)


@pytest.mark.long
def test_the_same_captions_and_settings_give_the_same_bytes():
    # In processes of their own the second time, as the shipped weights are fitted.
    apart = {
        f"{number}.{name}": value
        for number, hidden in enumerate(TINY.hidden)
        for name, value in fit.fit_tagger(CAPTIONS, TINY, hidden, number).items()
    }
    together = fit.shipped_bytes(fit.fit(CAPTIONS, TINY))
    assert fit.shipped_bytes(apart) == together
    other = fit.fit_tagger(CAPTIONS, TINY, 4, seed=1)
    assert any((other[name] != apart[f"0.{name}"]).any() for name in other)
    # They are what the library reads.
    weights = load(together)
    assert {value.dtype for value in weights.values()} == {np.dtype(np.float16)}
    assert len(tagger.committee(weights).read(["演员海清出席发布会", ""])) == 2


def test_the_shipped_weights_have_the_shapes_of_the_settings():
    shipped = load(tagger.WEIGHTS.read_bytes())
    assert tuple(shipped[f"{number}.2.gates"].shape[1] for number in range(3)) == FitSettings().hidden


def test_the_loss_falls(caplog):
    with caplog.at_level(logging.INFO, fit.__name__):
        fit.fit_tagger(CAPTIONS, FitSettings(epochs=14, batch_size=8, dropout=0.0), 8, seed=0)
    losses = [float(record.getMessage().rsplit(" ", 1)[1]) for record in caplog.records]
    assert len(losses) == 14
    assert losses[-1] < losses[0] / 2


def test_features_are_left_out_by_kind_and_one_by_one():
    _, _, encoder = small_tagger()
    some = [captions.parse("[刘亦菲]在")]

    def kinds(**changed):
        settings = FitSettings(**{"missing": (), "missing_one": 0.0, **changed})
        _, marks, _, _ = encoder.batch(some, settings, random.Random(0))
        features = [word_lists.MARKS[number] for number in marks[0].any(0).nonzero()[:, 0]]
        return {feature.split(" of a ")[1] for feature in features}

    assert kinds() == {"person", "dictionary name", "place", "japanese surname"}
    assert kinds(missing=((("person", "place"), 1.0),)) == {"dictionary name", "japanese surname"}
    assert kinds(missing_one=1.0) == set()


def test_tags_are_those_of_the_labels():
    _, _, encoder = small_tagger()
    some = [captions.parse("[刘亦菲]在[菲]"), captions.parse("在")]
    *_, inside, tags = encoder.batch(some, FitSettings(), random.Random(0))
    named = [[tagger.TAGS[tag] for tag in row] for row in tags]
    assert named == [["begins", "inside", "ends", "outside", "single"], ["outside"] * 5]
    assert inside.tolist() == [[1] * 5, [1, 0, 0, 0, 0]]


@pytest.mark.parametrize("name", ["海清", "刘亦菲"])
def test_nothing_is_fitted_with_a_name_that_was_taken_out(monkeypatch, name):
    read = word_lists.read_list
    taken_out = {"removed.txt": [word_lists.digest(name)]}
    monkeypatch.setattr(word_lists, "read_list", lambda file: taken_out.get(file) or read(file))
    with pytest.raises(DataError, match=f"{name}: taken out"):
        fit.fit(CAPTIONS, TINY)


def test_a_folder_without_captions_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["fit", str(tmp_path), "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="no labelled captions in"):
        fit.main()
    assert not (tmp_path / "out").exists()


def test_the_command_writes_the_weights(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("\n".join(LINES), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["fit", str(tmp_path), "--output", str(tmp_path / "out")])
    monkeypatch.setattr(fit, "fit", lambda some: {"0.tags": np.full(len(some), 0.5, np.float32)})
    fit.main()
    assert load((tmp_path / "out").read_bytes())["0.tags"].tolist() == [0.5] * len(LINES)
