"""XM3600 (Crossmodal-3600), the Chinese captions: pictures from all over the world, described by native speakers."""

from pathlib import Path

from wukong.errors import DataError
from wukong.evaluate.data_set import Counts, HowToGet, Retrieval
from wukong.evaluate.formats import json_lines
from wukong.evaluate.formats.folders import find, require
from wukong.evaluate.published import Caption, Captioned


def _read(folder: Path, _split: str) -> Captioned:
    source = find(folder, "captions.jsonl")
    ids: list[str] = []
    captions: list[Caption] = []
    for where, row in json_lines.rows(source):
        key, chinese = row.get("image/key"), row.get("zh")
        texts = chinese.get("caption") if isinstance(chinese, dict) else None
        if not isinstance(key, str) or not json_lines.are_texts(texts):
            raise DataError(
                f"{where} has no 'image/key', or no list 'caption' with captions under 'zh': download captions.zip "
                "again"
            )
        captions += [Caption(text.strip(), (len(ids),)) for text in texts or ()]
        ids.append(key)
    return Captioned(ids, captions, require(find(folder, "images"), [f"{key}.jpg" for key in ids], source))


SET = Retrieval(
    name="xm3600-zh",
    title="XM3600-zh",
    splits={"test": Counts(3_600, 7_174)},
    apart=("test",),
    note=(
        "Not in the paper. All captions of an image count, as in MTEB's XM3600T2IRetrieval, whose 7,174 Chinese "
        "queries these are; its main number is nDCG@10, text to image. Most images have two captions, some have one."
    ),
    how_to_get=HowToGet(
        (
            "captions.zip of https://google.github.io/crossmodal-3600/",
            "https://open-images-dataset.s3.amazonaws.com/crossmodal-3600/images.tgz",
        ),
        "captions.jsonl, and images/ with what images.tgz has",
        "CC BY 4.0 (the captions); the images are of their authors, see image_attributions.csv",
    ),
    read_published=_read,
)
