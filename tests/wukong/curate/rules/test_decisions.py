"""What each rule drops, at its limits."""

import polars as pl
import pytest
from rule_samples import judge

from wukong.config.filter import Filter
from wukong.curate import rules
from wukong.curate.caption_counts import CaptionCounts, counted, hashes
from wukong.store import storage

CAT = "一只猫"
LIBRARY = "北京大学的图书馆 library 2024"  # 8 characters, and 3 words by jieba: 北京大学 / 的 / 图书馆


@pytest.mark.parametrize(
    ("caption", "sides", "settings", "reason"),
    [
        (CAT, (201, 201), {}, None),
        (CAT, (200, 201), {}, "size"),
        (CAT, (201, 200), {}, "size"),
        (CAT, (None, 300), {}, "size"),
        (CAT, (0, 0), {}, "size"),
        (CAT, (150, 400), {"min_side": 150}, None),
        (CAT, (149, 400), {"min_side": 150}, "size"),
        (CAT, (603, 201), {}, None),
        (CAT, (604, 201), {}, "aspect_ratio"),
        (CAT, (201, 603), {}, None),
        (CAT, (201, 604), {}, "aspect_ratio"),
        (CAT, (0, 300), {"min_side": 0, "max_aspect_ratio": 1e9}, "aspect_ratio"),
        (CAT, (0, 0), {"min_side": 0, "max_aspect_ratio": 1e9}, "aspect_ratio"),
        (CAT, (None, 300), {"min_side": 0, "max_aspect_ratio": 1e9}, "aspect_ratio"),
        ("a cat", (300, 300), {}, "language"),
        ("ねこ", (300, 300), {}, "language"),
        ("a cat", (300, 300), {"min_length": 0}, None),
        ("ねこ", (300, 300), {"min_length": 0}, None),
        ("猫" + " any English words" * 15, (300, 300), {}, None),
        ("猫" * 31 + " any English words" * 15, (300, 300), {}, None),
        ("猫" * 32, (300, 300), {}, "length"),
        (LIBRARY, (300, 300), {"max_length": 8}, None),
        (LIBRARY, (300, 300), {"max_length": 7}, "length"),
        ("猫" + "a" * 999, (300, 300), {}, None),
        ("猫" + "a" * 1_000, (300, 300), {}, "length"),
        ("猫" + "a" * 200_000, (300, 300), {}, "length"),
        ("免费色情影片", (300, 300), {}, "sensitive"),
        ("红色情侣装", (300, 300), {}, None),
    ],
    ids=lambda value: str(value)[:20],
)
def test_of_captions_and_sides(caption, sides, settings, reason):
    assert judge([caption], *sides, **settings) == [reason]


@pytest.mark.parametrize(
    ("when", "column", "settings", "reasons"),
    [
        ("pictures", pl.Series("similarity", [0.25, 0.24, 0.1, None], pl.Float32),
         {"similarity_model": "file:///model", "min_similarity": 0.25}, [None, "similarity"]),
        ("corpus", pl.Series("repeats_picture", [False, True, True, None]),
         {"duplicate_images": "equal"}, [None, "duplicate_image"]),
        ("corpus", pl.Series("repeats_picture", [False, True, True, None]),
         {"duplicate_images": "similar"}, [None, "duplicate_image"]),
        ("corpus", pl.Series("nearest_cosine", [0.94, 0.95, 0.99, None], pl.Float32),
         {"near_duplicates": {"min_cosine": 0.95}}, [None, "near_duplicate"]),
        ("corpus", pl.Series("nearest_cosine", [0.94, 0.95, 0.99, None], pl.Float32),
         {"near_duplicates": {}}, [None, None]),
    ],
)  # fmt: skip
def test_of_what_was_computed_of_pictures_unless_the_pair_was_dropped_before(when, column, settings, reasons):
    columns = pl.DataFrame([column, pl.Series("dropped_by", [None, None, "length", None])])
    assert rules.decide(columns, Filter.model_validate(settings), when).to_list() == [*reasons, "length", None]
    assert rules.decide(columns, Filter(), when).to_list() == [None, None, "length", None]


def test_a_caption_that_occurs_more_than_ten_times():
    captions = ["展开全文"] * 10 + ["摄影部落"] * 11 + [CAT]
    counts = CaptionCounts.of_rows(counted(hashes(pl.Series(captions))))
    assert judge(captions, counts=counts) == [None] * 10 + ["frequency"] * 11 + [None]


@pytest.mark.parametrize(("added", "expected"), [(False, ["sensitive", None]), (True, ["sensitive", "sensitive"])])
def test_the_operators_words_replace_those_of_the_library_or_are_added_to_them(added, expected, tmp_path):
    (tmp_path / "house.txt").write_text("内部资料\n", encoding="utf-8")
    settings = {"sensitive_words": storage.from_path(tmp_path), "default_words": added}
    assert judge(["公司内部资料", "免费色情影片"], loaded=None, **settings) == expected


SAID = {
    None: None,
    "search=y, train-ai=y": None,
    "unavailable_after=2126-12-31": None,
    "noai": "usage",
    "noimageai": "usage",
    "noindex, search=y": "usage",
    "search=n": "usage",
    "search=y, train-ai=n": "usage",
}


@pytest.mark.parametrize(
    ("refused", "kept"),
    [(None, 3), ([], 8), (["train-ai=n"], 7), (["noindex", "search=n"], 6), (["noai", "noimageai"], 6)],
)
def test_pictures_whose_owners_refuse_what_the_operator_says_that_counts(refused, kept):
    columns = {"usage": pl.Series(list(SAID), dtype=pl.String)}
    found = judge([CAT] * len(SAID), columns=columns, **({} if refused is None else {"refused_usage": refused}))
    assert found.count(None) == kept
    assert refused is not None or found == list(SAID.values())
