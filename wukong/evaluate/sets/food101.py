"""Food-101: one folder a class, splits in JSON files."""

import json
from collections.abc import Sequence
from pathlib import Path

from wukong.evaluate.data_set import Classification, HowToGet
from wukong.evaluate.formats.folders import find, labels_of, require
from wukong.evaluate.published import Labelled, reading_file


def _read(folder: Path, split: str, classes: Sequence[str]) -> Labelled:
    source = find(folder, f"meta/{split}.json", f"food-101/meta/{split}.json")
    with reading_file(source, f"{source} is no JSON object of lists"):
        listed = json.loads(source.read_text("utf-8"))
        images = [(name, f"{path}.jpg") for name, paths in listed.items() for path in paths]
    labels = labels_of(listed, classes, source)
    root = source.parent.parent / "images"
    return Labelled(
        [path for _, path in images],
        [labels[name] for name, _ in images],
        require(root, [path for _, path in images], source),
    )


SET = Classification(
    name="food101",
    title="Food101",
    picture_bytes=50_000,
    splits={"train": 75_750, "test": 25_250},
    note="The owner's test part, which all others measure too.",
    how_to_get=HowToGet(
        ("food-101.tar.gz of https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",),
        "food-101/meta/test.json and food-101/images/apple_pie/",
        "none stated; the images are of foodspotting.com",
    ),
    read_published=_read,
)
