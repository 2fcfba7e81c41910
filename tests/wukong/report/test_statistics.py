"""Statistics against Python's own, and the card that shows them."""

import itertools
import json
import statistics as stdlib

import numpy as np
import polars as pl
import pytest
from english import english
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wukong.curate.text.word_pieces import token_ids
from wukong.errors import DataError
from wukong.report import card, statistics
from wukong.report.funnel import Step

pytest.importorskip("torch")
CAPTION = st.text(st.sampled_from("猫狗 鸟abc，1图书馆"), max_size=30)


def pairs(captions, width=300, height=200):
    return pl.DataFrame({"caption": captions}, schema={"caption": pl.String}).with_columns(
        width=pl.lit(width, pl.Int32), height=pl.lit(height, pl.Int32), length=pl.col("caption").str.len_chars()
    )


def numbers_of(counted):
    histograms = [getattr(counted, name).tolist() for name in statistics.HISTOGRAMS]
    return counted.pairs, dict(counted.words), histograms


@given(st.lists(CAPTION, min_size=1, max_size=30), st.integers(1, 29))
@settings(deadline=None, max_examples=50)
def test_batches_add_up_to_the_whole(captions, cut):
    whole = statistics.measure(pairs(captions))
    parts = [statistics.measure(pairs(some)) for some in (captions[:cut], captions[cut:])]
    joined = statistics.merge(parts)
    numbers = [len(ids) for ids in token_ids(pl.Series(captions))]
    for found in (whole, joined):
        assert found.pairs == len(captions)
        assert found.token_mean == pytest.approx(stdlib.mean(numbers))
        assert found.token_sd == pytest.approx(stdlib.pstdev(numbers), abs=1e-6)
        assert found.token_median == stdlib.median_low(numbers)
        assert found.unique_tokens == len({token for ids in token_ids(pl.Series(captions)) for token in ids})
    assert joined.words == whole.words
    assert numbers_of(whole.without(parts[0])) == numbers_of(parts[1])
    assert numbers_of(statistics.Statistics.from_json(json.loads(json.dumps(whole.as_json())))) == numbers_of(whole)


@pytest.mark.parametrize(
    ("width", "height", "side", "ratio"), [(300, 200, 2, 5), (201, 201, 2, 0), (600, 200, 2, 20), (9000, 5000, 20, 8)]
)
def test_sizes_fall_into_their_bins(width, height, side, ratio):
    found = statistics.measure(pairs(["猫"], width, height))
    assert np.flatnonzero(found.sides).tolist() == [side]
    assert np.flatnonzero(found.ratios).tolist() == [ratio]


def test_what_lies_beyond_a_histogram_is_in_its_last_bin():
    found = statistics.measure(pairs(["猫" * 600]))
    assert found.tokens[-1] == 1
    assert found.lengths[-1] == 1


@given(st.dictionaries(st.text("月日做一个图片高清", min_size=1, max_size=12), st.integers(1, 10_000), max_size=60))
@example({"一一": 4589, "一一一一": 5873, "一一一一一一": 910, "一一一一一一一": 306})
@settings(deadline=None, max_examples=50)
def test_words_of_the_cloud_do_not_overlap(words):
    placed = card.cloud(words)
    boxes = [
        (w.x - w.size * len(w.text) / 2, w.y - w.size / 2, w.x + w.size * len(w.text) / 2, w.y + w.size / 2)
        for w in placed
    ]
    for one, other in itertools.combinations(boxes, 2):
        assert (
            one[2] <= other[0] + 0.2 or other[2] <= one[0] + 0.2 or one[3] <= other[1] + 0.2 or other[3] <= one[1] + 0.2
        )
    assert all(box[0] >= -0.2 and box[2] <= 1000.2 and box[1] >= -0.2 and box[3] <= 420.2 for box in boxes)
    assert len({w.text for w in placed}) == len(placed)


def test_the_card_shows_the_papers_numbers_beside_ours_and_escapes_captions():
    counted = statistics.measure(pairs(["图书馆里的猫", "图书馆"]))
    contacts = [{"key": "0" * 20, "src": "data:image/jpeg;base64,AA==", "caption": "<script>"}]
    steps = [Step("results", "a", 9, 0), Step("urls", "b", 8, 1), Step("train", "c", 2, 6)]
    html = english(card.render(card.make("set", counted, steps, contacts, {"licence": "MIT & more"}, "Names.")))
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    for text in ("101,483,885", "20,442", "MIT &amp; more", ">图书馆<", "−6"):
        assert text in html
    assert "http" not in html.replace("http-equiv", "")


def test_an_empty_set_has_a_card():
    steps = [Step("a", "a", 0, 0), Step("b", "b", 0, 0)]
    html = card.render(card.make("set", statistics.merge([statistics.Statistics()]), steps, [], {}))
    assert "Words" not in html


@pytest.mark.parametrize(
    "value", [{}, [], {"pairs": "x"}, {"pairs": 1, **{name: {"x": 1} for name in statistics.HISTOGRAMS}}]
)
def test_other_json_is_no_statistics(value):
    with pytest.raises(DataError, match="not the statistics"):
        statistics.Statistics.from_json(value)
