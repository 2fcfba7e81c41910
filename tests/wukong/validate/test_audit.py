"""The facts of a set by ranges of hashes, against all of them in one place."""

import hashlib
from collections import Counter
from itertools import pairwise

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from wukong.config.split import Holdout, Split
from wukong.curate.caption_counts import hashes
from wukong.curate.split import TRAIN, picture_digests
from wukong.validate import audit

SPLIT = Split(
    held_out_captions=0.1,
    holdouts=(
        Holdout(name="seen", source="*a*", captions="seen"),
        Holdout(name="unseen", source="*b*", captions="unseen"),
        Holdout(name="unseen-too", source="*c*", captions="unseen"),
        Holdout(name="any", source="*d*", captions="any"),
    ),
)
ROW = st.tuples(
    st.sampled_from([TRAIN, "seen", "unseen", "unseen-too", "any", "elsewhere"]),
    st.integers(0, 30),
    st.sampled_from(["猫", "狗", "Cat", "cat", "鸟"]),
    st.sampled_from(["猫", "狗", "<人名>"]),
    st.integers(0, 9),
)
BATCH = st.lists(ROW, max_size=12)


def table(rows):
    names = ("split", "key", "caption_original", "caption", "sha256")
    frame = pl.DataFrame(
        rows, schema=dict.fromkeys(names, pl.String) | {"key": pl.Int64, "sha256": pl.Int64}, orient="row"
    )
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in frame["sha256"]]
    return frame.with_columns(pl.col("key").cast(pl.String), sha256=pl.Series(digests, dtype=pl.String))


def in_one_place(batches):
    """All pairs in one table: the numbers, and the first five pairs that break each expectation."""
    pairs = pl.concat(batches)
    places = [(number, row) for number, batch in enumerate(batches) for row in range(len(batch))]
    train = pairs.filter(split=TRAIN)
    captions, pictures = hashes(pairs["caption"]), picture_digests(pairs)
    original, keys = hashes(pairs["caption_original"]), hashes(pairs["key"])

    def captions_of(*names):
        return hashes(pairs.filter(pl.col("split").is_in(names))["caption"])

    def occurring(values, least):
        found, counts = np.unique(values, return_counts=True)
        return found[counts >= least]

    most = max(np.unique(original, return_counts=True)[1], default=0)
    offenders = {
        "duplicate_keys": (keys, occurring(keys, 2)),
        "most_frequent_caption": (original, occurring(original, max(most, 1))),
        "unseen_captions_in_train": (captions, np.intersect1d(captions_of(TRAIN), captions_of("unseen", "unseen-too"))),
        "seen_captions_not_in_train": (captions, np.setdiff1d(captions_of("seen"), captions_of(TRAIN))),
        "holdout_pictures_in_train": (
            pictures, np.intersect1d(picture_digests(train), picture_digests(pairs.filter(pl.col("split") != TRAIN)))
        ),
    }  # fmt: skip
    row = {name: len(found) for name, (_, found) in offenders.items()} | {"most_frequent_caption": most}
    seen = Counter(zip(pictures.tolist(), original.tolist(), strict=True))
    row["repeated_pairs"] = sum(count - 1 for count in seen.values())
    samples = {
        name: [places[n] for n in np.flatnonzero(np.isin(values, found))[:5]]
        for name, (values, found) in offenders.items()
    }
    return row, samples


@given(st.lists(BATCH, min_size=1, max_size=6), st.sampled_from([1, 3, 17]))
@settings(max_examples=150, deadline=None)
def test_ranges_of_hashes_find_what_one_place_finds(drawn, ranges) -> None:
    batches = [table(rows) for rows in drawn]
    facts = pl.concat(
        [audit.facts_of(b, SPLIT).with_columns(batch=pl.lit(n, pl.UInt32)) for n, b in enumerate(batches)]
    ).sample(fraction=1, shuffle=True, seed=0)
    edges = [2**64 * number // ranges for number in range(ranges)]
    found = [
        audit.summarize(facts.filter(pl.col("hash") >= low, pl.lit(high is None) | (pl.col("hash") < (high or 0))))
        for low, high in pairwise([*edges, None])
    ]
    dataset = audit.join(found)
    assert (dataset.row, dataset.samples) == in_one_place(batches)


def test_other_captions_of_training_pairs_count_where_training_may_read_them() -> None:
    def pair(split, number, *texts):
        entries = [{"caption": text, "caption_original": text, "count": 1, "query": None} for text in texts]
        row = {"split": split, "key": str(number), "caption_original": texts[0], "caption": texts[0]}
        return row | {"sha256": f"{number:016x}" * 4, "captions": entries if len(texts) > 1 else None}

    pairs = pl.DataFrame(
        [
            pair(TRAIN, 1, "猫", "狗", "Cat", "cat"),
            pair(TRAIN, 2, "猫", "鸟"),
            pair(TRAIN, 3, "鱼"),
            pair("unseen", 4, "狗"),
            pair("seen", 5, "鸟"),
            pair("seen", 6, "鱼"),
        ]
    )
    facts = audit.facts_of(pairs, SPLIT).with_columns(batch=pl.lit(0, pl.UInt32))
    dataset = audit.summarize(facts)
    assert dataset.row == {
        "duplicate_keys": 0,
        "most_frequent_caption": 2,  # 猫, 狗, 鸟 and 鱼 are of two pairs each; Cat and cat are one caption of one pair
        "unseen_captions_in_train": 1,  # 狗, which a training that draws among captions reads
        "seen_captions_not_in_train": 1,  # 鸟, which a training on first captions does not read
        "holdout_pictures_in_train": 0,
        "repeated_pairs": 0,
    }
    assert dataset.samples["unseen_captions_in_train"] == [(0, 0), (0, 3)]
