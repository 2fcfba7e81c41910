"""Word order: two pictures and two captions with the same characters in another order, in a form of ours."""

import unicodedata
from collections import Counter
from pathlib import Path

from wukong.errors import DataError
from wukong.evaluate.data_set import HowToGet, WordOrder
from wukong.evaluate.formats import json_lines
from wukong.evaluate.formats.folders import find, require
from wukong.evaluate.published import Caption, Paired

_IMAGES, _CAPTIONS = ("image_0", "image_1"), ("caption_0", "caption_1")


def _read(folder: Path, _split: str) -> Paired:
    source = find(folder, "pairs.jsonl")
    places: dict[str, int] = {}
    pairs: dict[str, str] = {}
    captions: list[Caption] = []
    for where, row in json_lines.rows(source):
        fields = [row.get(name) for name in (*_IMAGES, *_CAPTIONS)]
        if "id" not in row or not all(isinstance(each, str) and each.strip() for each in fields):
            raise DataError(f"{where} lacks one of id, {', '.join((*_IMAGES, *_CAPTIONS))}: give each pair all of them")
        pair, (*images, first, second) = str(row["id"]), [str(each).strip() for each in fields]
        if pair in pairs:
            raise DataError(f"{where} has the id {pair!r} of {pairs[pair]}: give each pair an id of its own")
        if images[0] == images[1]:
            raise DataError(f"{where} has one picture twice, {images[0]}: give each caption a picture of its own")
        _refuse_other_words(first, second, where)
        pairs[pair] = where
        captions += [
            Caption(text, (places.setdefault(image, len(places)),))
            for text, image in zip((first, second), images, strict=True)
        ]
    if not pairs:
        raise DataError(f"{source} has no pair of captions")
    return Paired(list(pairs), list(places), captions, require(find(folder, "images"), list(places), source))


def _refuse_other_words(first: str, second: str, where: str) -> None:
    """Refuse a pair that is not about the order alone: a model could tell the captions apart by their words."""
    one, other = _characters(first), _characters(second)
    if one == other:
        raise DataError(f"{where} has one caption twice, {first!r}: the order of its characters is the same in both")
    if Counter(one) != Counter(other):
        only = "".join(((Counter(one) - Counter(other)) + (Counter(other) - Counter(one))).elements())
        raise DataError(
            f"{where} has captions of different characters: {only!r} is in one of {first!r} and {second!r}. Write them "
            "with the same characters in another order, or leave the pair out"
        )


def _characters(text: str) -> str:
    """The letters, digits and marks of a caption; white space and punctuation are no words."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return "".join(each for each in plain if unicodedata.category(each)[0] in "LNM")


SET = WordOrder(
    name="word-order",
    title="Word order",
    note=(
        "Not in the paper. The scores are Winoground's. text: each picture is more like its own caption; image: each "
        "caption is more like its own picture; group: both. Equal scores are wrong. By chance a quarter, a quarter and "
        "a sixth of the pairs are right."
    ),
    how_to_get=HowToGet(
        (
            "Winoground of https://huggingface.co/datasets/facebook/winoground (research only, access on request) and "
            "translate its captions so that both of a pair have the same characters, or write pairs of your own",
        ),
        "pairs.jsonl and images/",
        "that of your pictures",
    ),
    read_published=_read,
)
