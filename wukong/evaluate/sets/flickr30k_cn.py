"""Flickr30K-CN: Flickr30K's captions, translated by a machine for training and validation, by people for the test."""

from functools import partial
from pathlib import Path

from wukong.evaluate.data_set import Counts, HowToGet, Retrieval
from wukong.evaluate.formats import caption_lines
from wukong.evaluate.formats.folders import find, listed, require
from wukong.evaluate.published import Captioned

_FOLDERS = {"train": "flickr30kzhbbosontrain", "val": "flickr30kzhbbosonval", "test": "flickr30kzhmbosontest"}


def _read(folder: Path, split: str) -> Captioned:
    name = _FOLDERS[split]
    root = find(folder, name, f"flickr30k-cn/{name}")
    source = root / "ImageSets" / f"{name}.txt"
    ids = [line.removesuffix(".jpg") for line in listed(source)]
    by_people = split == "test"  # segmented by BosonNLP, with parts of speech in this part only
    captions = caption_lines.read(
        root / "TextData" / f"seg.{name}.caption.txt",
        ids,
        kind="zhm" if by_people else "zhb",
        id_of=lambda image: image.removesuffix(".jpg"),
        text_of=partial(caption_lines.joined, parts_of_speech=by_people),
    )
    images = find(folder, "flickr30k-images", "flickr30k_images", "images")
    return Captioned(ids, captions, require(images, [f"{each}.jpg" for each in ids], source))


SET = Retrieval(
    name="flickr30k-cn",
    title="Flickr30K-CN",
    splits={"train": Counts(29_783, 148_915), "val": Counts(1_000, 5_000), "test": Counts(1_000, 5_000)},
    note=(
        "Captions are published as words; they are joined, and two spaces become a comma. The words of the test part "
        "have their part of speech, which is taken away."
    ),
    how_to_get=HowToGet(
        (
            "flickr30k-cn.tar.gz of https://github.com/li-xirong/cross-lingual-cap",
            "flickr30k-images.tar.gz, asked for at https://forms.illinois.edu/sec/229675",
        ),
        "flickr30kzhmbosontest/ with ImageSets/ and TextData/, and flickr30k-images/",
        "research only; the images are of their authors",
    ),
    read_published=_read,
)
