"""Flickr8K-CN: five Chinese captions for each image of Flickr8K, written by people."""

from pathlib import Path

from wukong.evaluate.data_set import Counts, HowToGet, Retrieval
from wukong.evaluate.formats import caption_lines
from wukong.evaluate.formats.folders import find, listed, require
from wukong.evaluate.published import Captioned

_PARTS = ("train", "val", "test")
_IMAGES = ("Flicker8k_Dataset", "Flickr8k_Dataset", "images")


def _id(name: str) -> str:
    return name.removesuffix(".jpg")


def _read(folder: Path, split: str) -> Captioned:
    translated = split == "test-translated"
    name = "flickr8kzhmtest.captions.txt" if translated else "flickr8kzhc.caption.txt"
    source = find(folder, name, f"data/{name}", f"flickr8kcn/data/{name}")
    parts = _PARTS if split == "all" else ("test",) if translated else (split,)
    lists = [source.parent / f"flickr8k{part}.txt" for part in parts]
    ids = [_id(line) for each in lists for line in listed(each)]
    captions = caption_lines.read(source, ids, kind="zhm" if translated else "zhc", id_of=_id)
    return Captioned(ids, captions, require(find(folder, *_IMAGES), [f"{each}.jpg" for each in ids], lists[-1]))


SET = Retrieval(
    name="flickr8k-cn",
    title="Flickr8K-CN",
    splits={
        "train": Counts(6_000, 30_000),
        "val": Counts(1_000, 5_000),
        "test": Counts(1_000, 5_000),
        "all": Counts(8_000, 40_000),
        "test-translated": Counts(1_000, 5_000),
    },
    note=(
        "test has captions that people wrote in Chinese (zhc), which the paper means; test-translated has the English "
        "ones translated by people (zhm). Some evaluations take all 8,000 images."
    ),
    how_to_get=HowToGet(
        (
            "the folder data of https://github.com/li-xirong/flickr8kcn",
            "Flickr8k_Dataset.zip, asked for at https://forms.illinois.edu/sec/1713398",
        ),
        "data/flickr8kzhc.caption.txt, data/flickr8ktest.txt and Flicker8k_Dataset/",
        "research only; the images are of their authors",
    ),
    read_published=_read,
)
