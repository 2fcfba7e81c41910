"""AIC-ICC (AI Challenger image captions): five Chinese captions an image, in one JSON list."""

from itertools import islice
from pathlib import Path

from wukong.errors import DataError
from wukong.evaluate.data_set import Counts, HowToGet, Retrieval
from wukong.evaluate.formats import json_list
from wukong.evaluate.formats.folders import find, require
from wukong.evaluate.published import Caption, Captioned

_TRAIN, _VALIDATION = ("train", "20170902"), ("validation", "20170910")
_NAMES = {"train": _TRAIN, "val": _VALIDATION, "val-10k": _VALIDATION, "val-20k": _VALIDATION}
_ROWS = {"val-10k": (None, 10_000), "val-20k": (10_000, None)}


def _read(folder: Path, split: str) -> Captioned:
    part, date = _NAMES[split]
    name = f"caption_{part}_annotations_{date}.json"
    source = find(folder, name, f"ai_challenger_caption_{part}_{date}/{name}")
    ids: list[str] = []
    captions: list[Caption] = []
    for number, entry in enumerate(islice(json_list.elements(source), *_ROWS.get(split, (None, None)))):
        if not isinstance(entry, dict) or not isinstance(entry.get("image_id"), str):
            raise DataError(f"entry {number} of {source} has no image_id: download it again")
        texts = entry.get("caption")
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise DataError(f"entry {number} of {source}, {entry['image_id']}, has no captions: download it again")
        ids.append(entry["image_id"])
        captions += [Caption(text.strip(), (number,)) for text in texts]
    return Captioned(ids, captions, require(source.parent / f"caption_{part}_images_{date}", ids, source))


SET = Retrieval(
    name="aic-icc",
    title="AIC-ICC",
    splits={
        "train": Counts(210_000, 1_050_000),
        "val": Counts(30_000, 150_000),
        "val-10k": Counts(10_000, 50_000),
        "val-20k": Counts(20_000, 100_000),
    },
    split="val-10k",
    apart=("val",),
    note=(
        "val-10k has the first 10,000 images of the validation part in the order of the file and their captions, which "
        "the paper and WenLan 2.0 measure; val-20k has the others. The captions of test-1 and test-2 were never "
        "published."
    ),
    how_to_get=HowToGet(
        ("ai_challenger_caption_validation_20170910.zip (AI Challenger 2017, image Chinese captioning)",),
        "ai_challenger_caption_validation_20170910/ with caption_validation_annotations_20170910.json and "
        "caption_validation_images_20170910/",
        "the terms of AI Challenger",
    ),
    read_published=_read,
)
