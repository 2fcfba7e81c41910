"""Files with one caption a line, ``IMAGE#n text`` or ``IMAGE#kind#n text``: COCO-CN, Flickr8K-CN, Flickr30K-CN."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from wukong.errors import DataError
from wukong.evaluate.formats.folders import lines
from wukong.evaluate.published import Caption

_LINE = re.compile(r"(?P<image>[^\s#]+)(?:#(?P<kind>[^\s#]+))?#(?P<number>[0-9]{1,18})(?:\s(?P<text>.*))?", re.DOTALL)
_PART_OF_SPEECH = re.compile(r":[A-Za-z]+$")


class Line(NamedTuple):
    """One line: the image's id, the kind of caption (``zhb``; empty where there is none), its number, and its text."""

    image: str
    kind: str
    number: int
    text: str


def parse(line: str) -> Line | None:
    """Parse one line. A tab or a space follows the id. The text is as in the file, without white space at its ends.

    Returns:
        None if the line is not of this form.
    """
    match = _LINE.fullmatch(line.strip("\r\n \t\ufeff"))
    if match is None:
        return None
    return Line(match["image"], match["kind"] or "", int(match["number"]), (match["text"] or "").strip())


def joined(text: str, *, parts_of_speech: bool = False) -> str:
    """Join the words of a segmented caption: one space stands between words, two or more stand for a comma.

    Args:
        text: words with spaces between them.
        parts_of_speech: whether each word is followed by ``:POS``, which is taken away.
    """

    def word(token: str) -> str:
        return _PART_OF_SPEECH.sub("", token) if parts_of_speech else token

    clauses = re.split(r"[ \t]{2,}", text.strip(" \t"))
    return "，".join("".join(word(token) for token in re.split(r"[ \t]", clause)) for clause in clauses)


def read(
    path: Path,
    images: Sequence[str],
    *,
    kind: str | None = None,
    id_of: Callable[[str], str] = str,
    text_of: Callable[[str], str] = str,
) -> list[Caption]:
    """Read the captions of some images; each line gives one, in the order of the file.

    Args:
        path: the file of captions; lines for other images are left out.
        images: ids of the images.
        kind: the kind that every line must have; None for any.
        id_of: makes the image's id of that in the line.
        text_of: makes the caption of the text in the line.

    Raises:
        NotThereError: there is no such file.
        DataError: a line is not of this form, or of another kind.
    """
    places = {each: image_number for image_number, each in enumerate(images)}
    captions: list[Caption] = []
    for number, line in enumerate(lines(path), 1):
        if not line.strip():
            continue
        parsed = parse(line)
        if parsed is None or (kind is not None and parsed.kind != kind):
            form = f"IMAGE#{kind}#n text" if kind else "IMAGE#n text"
            raise DataError(f"line {number} of {path} is not {form} but {line[:60]!r}: download the file again")
        image_number = places.get(id_of(parsed.image))
        if image_number is not None:
            captions.append(Caption(text_of(parsed.text), (image_number,)))
    return captions
