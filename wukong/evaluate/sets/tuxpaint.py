"""Tux Paint's stamps by the folder of their category, as Debian's package tuxpaint-stamps-default installs them."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from wukong.data.decoding import decode
from wukong.evaluate.data_set import Classification, HowToGet
from wukong.evaluate.formats.folders import find
from wukong.evaluate.formats.pictures import Files
from wukong.evaluate.published import Labelled


class _Stamps(Files):
    @staticmethod
    def decode(data: bytes, name: str) -> Image.Image:
        """Decode a stamp, which is cut out, to RGB; what is transparent becomes white."""
        return decode(data, name)


def _read(folder: Path, split: str, classes: Sequence[str]) -> Labelled:
    root = find(folder, "stamps", "usr/share/tuxpaint/stamps", "share/tuxpaint/stamps")
    paths: list[str] = []
    labels: list[int] = []
    for label, category in enumerate(classes):
        stamps = sorted(
            path.relative_to(root).as_posix()
            for path in find(root, category).rglob("*.png")
            if not path.name.startswith(".")
        )
        paths += stamps
        labels += [label] * len(stamps)
    return Labelled(paths, labels, _Stamps(root, paths))


SET = Classification(
    name="tuxpaint",
    title="Tux Paint categories",
    splits={"test": 615},
    note="Not in the paper. The PNG files of nine categories, on white; a stamp's folder is its class. The demo trains "
    "on most of these stamps, so its number here is not zero-shot.",
    how_to_get=HowToGet(
        ("Debian's package tuxpaint-stamps-default, version 2025.03.31, which installs to /usr/share/tuxpaint",),
        "stamps/animals/ and the folders beside it",
        "GPL-2",
    ),
    read_published=_read,
    names=(
        ("animals", "animals", "动物"),
        ("food", "food", "食物"),
        ("plants", "plants", "植物"),
        ("vehicles", "vehicles", "交通工具"),
        ("clothes", "clothes", "衣服"),
        ("town/houses", "houses", "房屋"),
        ("symbols/alphabets", "letters", "字母"),
        ("symbols/money", "coins", "硬币"),
        ("hobbies/music", "musical instruments", "乐器"),
    ),
)
