"""COCO-CN: one or two Chinese captions for images of COCO 2014, written by people."""

from pathlib import Path

from wukong.errors import DataError
from wukong.evaluate.data_set import Counts, HowToGet, Retrieval
from wukong.evaluate.formats import caption_lines
from wukong.evaluate.formats.folders import find, listed, require
from wukong.evaluate.published import Captioned

_FOLDER = "coco-cn-version1805v1.1"
_PLACES = {"COCO_train2014": "train2014", "COCO_val2014": "val2014"}


def _read(folder: Path, split: str) -> Captioned:
    name = f"coco-cn_{split}.txt"
    source = find(folder, f"{_FOLDER}/{name}", name)
    ids = listed(source)
    captions = caption_lines.read(source.parent / "imageid.human-written-caption.txt", ids)
    paths = []
    for each in ids:
        subfolder = _PLACES.get(each.rpartition("_")[0])
        if subfolder is None:
            raise DataError(f"{source} has the image {each!r}, which is none of COCO 2014: download it again")
        paths.append(f"{subfolder}/{each}.jpg")
    images = find(folder, *dict.fromkeys(path.partition("/")[0] for path in paths), "images")
    root = images if images.name == "images" else images.parent
    return Captioned(ids, captions, require(root, paths, source))


SET = Retrieval(
    name="coco-cn",
    title="COCO-CN",
    splits={"train": Counts(18_341, 20_065), "val": Counts(1_000, 1_100), "test": Counts(1_000, 1_053)},
    note="All captions of an image count; an evaluation that takes only those numbered #0 has 1,000 in the test part.",
    how_to_get=HowToGet(
        (
            "coco-cn-version1805v1.1.tar.gz, asked for at https://github.com/li-xirong/coco-cn",
            "train2014.zip and val2014.zip of https://cocodataset.org/#download",
        ),
        "coco-cn-version1805v1.1/coco-cn_test.txt, train2014/ and val2014/",
        "research only; the images are of their authors",
    ),
    read_published=_read,
)
