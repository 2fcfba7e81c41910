"""MUGE's tables and Chinese-CLIP's: images as base64 in a TSV, queries as JSON lines.

Images are ``ID<TAB>BASE64``, one a line; a line may have megabytes, so only where each begins and ends is kept. The
alphabet of base64 is the standard or the URL-safe one.
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wukong.errors import DataError
from wukong.evaluate.formats import archives, json_lines
from wukong.evaluate.formats.pictures import Parts, decode, name_in, unpacked
from wukong.evaluate.published import Caption, Captioned, NotThereError

_OTHER_NAMES = {"val": "valid"}


def is_here(folder: Path, split: str) -> bool:
    """Whether a folder has a split in Chinese-CLIP's form."""
    return (folder / f"{_OTHER_NAMES.get(split, split)}_imgs.tsv").exists()


def read(folder: Path, split: str) -> Captioned:
    """Read ``SPLIT_imgs.tsv`` and ``SPLIT_texts.jsonl`` (``text_id``, ``text``, ``image_ids``).

    Raises:
        NotThereError: a file is not there.
        DataError: a file is damaged, or a text names an image that is not there.
    """
    name = _OTHER_NAMES.get(split, split)
    ids, images = read_images(folder / f"{name}_imgs.tsv")
    return Captioned(ids, read_texts(folder / f"{name}_texts.jsonl", ids, text="text", images="image_ids"), images)


def read_images(path: Path) -> tuple[list[str], Parts]:
    """Index a table of images; the last one is decoded, because a truncated download lacks its end.

    Raises:
        NotThereError: there is no such file.
        DataError: a line has not two fields, or the last image cannot be decoded.
    """
    if not path.exists():
        raise NotThereError(f"{path} is not there")
    ids: list[str] = []
    parts: list[tuple[int, int, int]] = []
    offset, content, name = 0, b"", ""
    with archives.opened(path) as (file, take):
        for number, line in enumerate(file, 1):
            label, tab, rest = line.partition(b"\t")
            if tab:
                content, start = rest.rstrip(b"\r\n "), offset + len(label) + 1
                name = name_in(path, start, len(ids))
                ids.append(label.decode("utf-8", "replace").strip("\ufeff "))
                parts.append((0, start, len(content)))
                if take is not None:
                    take(start, unpacked(content, from_base64, name))
            elif line.strip():
                raise DataError(f"line {number} of {path} is not ID<TAB>BASE64 but {line[:60]!r}: download it again")
            offset += len(line)
    if ids:
        decode(unpacked(content, from_base64, name), name)
    return ids, Parts([path], np.array(parts, np.int64).reshape(-1, 3), from_base64)


def read_texts(path: Path, image_ids: list[str], *, text: str, images: str) -> list[Caption]:
    """Read queries, one JSON object a line.

    Args:
        path: the file.
        image_ids: ids of the images that there are.
        text: the key of the query's text.
        images: the key of the list of images that are right; where it is missing, the owner keeps the answers.

    Raises:
        NotThereError: there is no such file.
        DataError: a line is no such object, or names an image that is not there.
    """
    places = {each: image_number for image_number, each in enumerate(image_ids)}
    captions: list[Caption] = []
    for where, row in json_lines.rows(path):
        captions.append(_caption(row, places, text, images, where))
    return captions


def _caption(row: Mapping[str, Any], places: Mapping[str, int], text: str, images: str, where: str) -> Caption:
    named = row.get(images) or []
    if not isinstance(named, list) or not isinstance(row.get(text), str):
        raise DataError(f"{where} has not {text!r} and a list {images!r}: download the file again")
    absent = [each for each in named if str(each) not in places]
    if absent:
        raise DataError(
            f"{where} names the image {absent[0]}, which is not in the table of images: download both again"
        )
    return Caption(row[text].strip(), tuple(dict.fromkeys(places[str(each)] for each in named)))


def from_base64(data: bytes) -> bytes:
    """Decode the bytes of an image in a table.

    Raises:
        ValueError: they are no base64.
    """
    standard = data.translate(_STANDARD).rstrip(b"=")
    return base64.b64decode(standard + b"=" * (-len(standard) % 4), validate=True)


_STANDARD = bytes.maketrans(b"-_", b"+/")
