"""BoxClass-CN (FG-CLIP 2): objects in boxes of pictures, of 566 classes with Chinese names, in COCO's form."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wukong.errors import DataError
from wukong.evaluate.data_set import Classification, HowToGet
from wukong.evaluate.formats.folders import find, require
from wukong.evaluate.formats.pictures import Crops
from wukong.evaluate.published import Labelled, reading_file

_LABELS = "valid_category_data_total_zh.json"


def _read(folder: Path, _split: str, _classes: Sequence[str]) -> Labelled:
    source = find(folder, _LABELS, f"jsonfile/{_LABELS}")
    lists = "'categories', 'images' and 'annotations'"
    with reading_file(source, f"{source} has not the lists {lists} of COCO's form"):
        content: Any = json.loads(source.read_bytes())
        names = [str(each["name"]) for each in content["categories"]]
        numbers = [int(each["id"]) for each in content["categories"]]
        files = {each["id"]: str(each["file_name"]) for each in content["images"]}
        found = [(each["image_id"], int(each["category_id"]), each["bbox"]) for each in content["annotations"]]
    if numbers != list(range(1, len(names) + 1)):
        raise DataError(f"the categories of {source} are not numbered 1, 2, 3 and so on: it is another version")
    for number, (image, category, box) in enumerate(found):
        if image not in files or not 1 <= category <= len(names) or not _is_box(box):
            raise DataError(
                f"annotation {number} of {source} ({image!r}, {category}, {box!r}) names no image or category of the "
                "file, or its box is not x, y, width and height: download it again"
            )
    paths = [files[image] for image, _, _ in found]
    return Labelled(
        [f"{path}#{number}" for number, path in enumerate(paths)],
        [category - 1 for _, category, _ in found],
        Crops(require(find(folder, "images"), paths, source), [_cut(box) for _, _, box in found]),
        names,
    )


def _is_box(box: object) -> bool:
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(each, int | float) for each in box)
    return numbers and box[2] > 0 and box[3] > 0  # type: ignore[index]


def _cut(box: Sequence[float]) -> tuple[int, int, int, int]:
    """Left, upper, right and lower edge as the owner's code rounds them (``--crop_resize``); one pixel at least."""
    x, y, width, height = map(int, box)
    return x, y, x + max(width, 1), y + max(height, 1)


SET = Classification(
    name="boxclass-cn",
    title="BoxClass-CN",
    splits={"test": 66_258},
    note=(
        "Not in the paper. 66,258 boxes of 24,221 pictures; each box is an image here: it is cut out of its picture "
        "and encoded. FG-CLIP 2 pools the features of the whole picture in the box (RoIAlign) and has class names "
        "without prompts, so its numbers cannot be compared with these. Boxes and classes were found by models."
    ),
    how_to_get=HowToGet(
        ("valid_category_data_total_zh.json and images.zip of https://huggingface.co/datasets/qihoo360/BoxClass-CN",),
        "valid_category_data_total_zh.json and images/000010.jpg",
        "Apache 2.0 (FG-CLIP 2); the images are of their authors (LAION-2B)",
    ),
    read_published=_read,
    named_in_files=566,
)
