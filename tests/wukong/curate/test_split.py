"""The split: what training may never see."""

import hashlib
import itertools

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from wukong.config.split import Holdout, Split
from wukong.curate import split as splitting
from wukong.curate.rule import HELD_BACK
from wukong.curate.text.normalize import salted_fraction

SOURCES = ("fluent", "stamps", "noto")
HOLDOUTS = (
    Holdout(name="new-style", source="*/fluent/*", captions="seen"),
    Holdout(name="new-style-new-word", source="*/fluent/*", captions="unseen"),
    Holdout(name="new-word", source="*/stamps/*", captions="unseen"),
)
ANY = (Holdout(name="all-fluent", source="*/fluent/*", captions="any"), HOLDOUTS[2])


@st.composite
def corpora(draw):
    """Pairs whose captions and pictures repeat across sources, in forms that normalise to the same."""
    rows = draw(
        st.lists(
            st.tuples(
                st.sampled_from(SOURCES),
                st.sampled_from([f"{c}猫" for c in "红黄蓝白黑"] + ["ABC", "abc", " abc ", "ＡＢＣ"]),
                st.integers(0, 12),
            ),
            max_size=60,
        )
    )
    return pl.DataFrame(
        {
            "url": [f"http://x/{source}/{n}" for n, (source, _, _) in enumerate(rows)],
            "caption": [caption for _, caption, _ in rows],
            "sha256": [hashlib.sha256(str(picture).encode()).hexdigest() for _, _, picture in rows],
        },
        schema={"url": pl.String, "caption": pl.String, "sha256": pl.String},
    )


def folded(caption):
    return caption.strip().lower().replace("ａｂｃ", "abc")


def divide(pairs, split):
    """The split of a corpus that is one part."""
    held_out = splitting.held_out_pictures(pairs, split)
    return splitting.assign(pairs, split, held_out, splitting.trained_captions(pairs, split, held_out))


@given(corpora(), st.sampled_from([0.0, 0.3, 0.6, 1.0]), st.sampled_from([HOLDOUTS, ANY, ()]))
@settings(deadline=None, max_examples=300)
def test_training_never_sees_what_a_test_set_holds(pairs, fraction, holdouts):
    split = Split(held_out_captions=fraction, holdouts=holdouts)
    rows = pairs.with_columns(split=divide(pairs, split)).to_dicts()
    train = [row for row in rows if row["split"] == "train"]
    tested = [row for row in rows if row["split"] not in ("train", HELD_BACK)]
    train_captions = {folded(row["caption"]) for row in train}
    train_pictures = {row["sha256"] for row in train}
    kinds = {holdout.name: holdout for holdout in holdouts}
    assert not train_pictures & {row["sha256"] for row in tested}
    for row in tested:
        holdout = kinds[row["split"]]
        assert holdout.source.strip("*") in row["url"]
        if holdout.captions == "unseen":
            assert folded(row["caption"]) not in train_captions
        if holdout.captions == "seen":
            assert folded(row["caption"]) in train_captions
    for row in train:
        assert salted_fraction(folded(row["caption"]), "wukong") >= fraction
        assert not holdouts or "/fluent/" not in row["url"]
    # Nothing is held back without a reason.
    held = lambda caption: salted_fraction(folded(caption), "wukong") < fraction  # noqa: E731
    held_out = {row["sha256"] for row in rows if held(row["caption"]) or (holdouts and "/fluent/" in row["url"])}
    for row in rows:
        if row["split"] == HELD_BACK:
            assert row["sha256"] in held_out


@given(corpora(), st.lists(st.integers(1, 59), max_size=4), st.randoms())
@settings(deadline=None)
def test_parts_and_their_order_do_not_change_the_split(pairs, cuts, random):
    split = Split(held_out_captions=0.4, holdouts=HOLDOUTS)
    expected = dict(zip(pairs["url"], divide(pairs, split), strict=True))
    edges = [0, *sorted({min(cut, len(pairs)) for cut in cuts}), len(pairs)]
    parts = [pairs.slice(low, high - low) for low, high in itertools.pairwise(edges)]
    random.shuffle(parts)

    def answered(questions):
        asked = [question.with_columns(part=pl.lit(number)) for number, question in enumerate(questions)]
        known = splitting.known(pl.concat(asked))
        return [known.filter(part=number)["hash"].to_numpy() for number in range(len(parts))]

    held_out = answered(
        [
            splitting.question(splitting.held_out_pictures(part, split), splitting.picture_digests(part))
            for part in parts
        ]
    )
    trained = answered(
        [
            splitting.question(splitting.trained_captions(part, split, held), splitting.asked_captions(part, split))
            for part, held in zip(parts, held_out, strict=True)
        ]
    )
    for part, held, seen in zip(parts, held_out, trained, strict=True):
        assert [expected[url] for url in part["url"]] == splitting.assign(part, split, held, seen).to_list()


def test_the_fraction_is_kept_and_depends_on_the_salt():
    captions = [f"第{n}只猫" for n in range(20_000)]
    first = {c for c in captions if salted_fraction(c, "a") < 0.1}
    second = {c for c in captions if salted_fraction(c, "b") < 0.1}
    assert abs(len(first) / 20_000 - 0.1) < 0.01
    assert abs(len(first & second) / 20_000 - 0.01) < 0.004


def test_the_hash_of_a_caption_is_the_same_for_ever():
    # SHA-256 of "wukong NUL 猫", by `printf 'wukong\0猫' | sha256sum`: the first 16 hex digits over 2^64.
    digits = hashlib.sha256(b"wukong\x00\xe7\x8c\xab").hexdigest()[:16]
    assert salted_fraction("猫", "wukong") == int(digits, 16) / 2**64
