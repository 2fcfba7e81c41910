"""FGVC Aircraft: numbered images, the variant of each in text files."""

from collections.abc import Sequence
from pathlib import Path

from wukong.evaluate.data_set import Classification, HowToGet
from wukong.evaluate.formats import byte_rows
from wukong.evaluate.formats.folders import find, labels_of, listed, require
from wukong.evaluate.published import Labelled


def _read(folder: Path, split: str, classes: Sequence[str]) -> Labelled:
    names = find(folder, "fgvc-aircraft-2013b/data/variants.txt", "data/variants.txt")
    source = names.parent / f"images_variant_{split}.txt"
    order = listed(names)
    labels = labels_of(order, classes, names)
    byte_rows.require_order(labels, order, names)
    rows = [line.partition(" ") for line in listed(source)]
    labels_of((variant for _, _, variant in rows), classes, source)
    paths = [f"{image}.jpg" for image, _, _ in rows]
    return Labelled(paths, [labels[variant] for _, _, variant in rows], require(names.parent / "images", paths, source))


SET = Classification(
    name="aircraft",
    title="Aircraft",
    picture_bytes=275_000,
    splits={"train": 3_334, "val": 3_333, "trainval": 6_667, "test": 3_333},
    note="The owner's test part and the 100 variants, which all others measure too.",
    how_to_get=HowToGet(
        ("fgvc-aircraft-2013b.tar.gz of https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",),
        "fgvc-aircraft-2013b/data/variants.txt and images/",
        "research only",
    ),
    read_published=_read,
)
