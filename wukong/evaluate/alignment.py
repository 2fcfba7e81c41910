"""Word-patch alignment (section 5.4, Figure 4): which token of a text each patch of a picture matches best.

``align`` computes it, ``draw`` makes a picture of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from wukong.data import images
from wukong.errors import ConfigError, DataError
from wukong.model.pooling import square_side
from wukong.model.saved_model import SavedModel

_FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts",
                 "/System/Library/Fonts", "/Library/Fonts", "C:/Windows/Fonts")  # fmt: skip
_FONTS = ("NotoSansCJK-Regular*", "NotoSansSC*", "SourceHanSans*", "wqy-*", "DroidSansFallback*", "PingFang*",
          "Hiragino Sans GB*", "msyh*", "simhei*", "NotoSerifCJK-Regular*")  # fmt: skip
_RED, _GREY, _BLACK, _WHITE = (200, 16, 16), (90, 90, 90), (0, 0, 0), (255, 255, 255)
_SIDE, _LEGEND, _MARGIN = 640, 300, 20


@dataclass(frozen=True)
class Alignment:
    """The best token of each patch.

    Attributes:
        tokens: the text's tokens with [CLS] and [SEP]; a token's index is its place here, as in Figure 4.
        highlighted: indices of the tokens of the class name, or of all words.
        best: int64 [rows, columns], index of each patch's best token.
        similarity: float32 [rows, columns], similarity of each patch to its best token.
        shown: the square that the image encoder saw.
    """

    tokens: tuple[str, ...]
    highlighted: frozenset[int]
    best: Tensor
    similarity: Tensor
    shown: Image.Image


@torch.inference_mode()
def align(saved: SavedModel, picture: Image.Image, text: str, word: str | None = None) -> Alignment:
    """Find the best token of each patch, among all tokens of the text, [CLS] and [SEP] too.

    Args:
        saved: a token-wise model with its image tower.
        picture: an RGB image.
        text: the caption or class name.
        word: the part of the text to highlight; None for all of it but [CLS] and [SEP].

    Raises:
        DataError: the model is not token-wise, its patches are not a square grid, the text is empty or too long, or
            the word is not in the text.
    """
    side = _side(saved)
    ids, vectors = _text(saved, text)
    patches = saved.encode_image([picture], pool=False)[0]
    best = (patches @ vectors.T).max(1)
    entries = saved.tokenizer.vocabulary.split("\n")
    tower = saved.model.settings.image
    return Alignment(
        tuple(entries[number] for number in ids),
        _places(saved, ids, text, word),
        best.indices.view(side, side),
        best.values.view(side, side),
        images.evaluation_view(picture, tower.image_size, tower.view),
    )


def _side(saved: SavedModel) -> int:
    """Return the number of patches of a side."""
    if not saved.model.token_wise:
        raise DataError(
            "the model has one vector for a picture, so no patch can be compared: train with model.similarity=token"
        )
    count = saved.model.image.token_count if saved.model.image is not None else 0
    side = square_side(count)
    if side is None or side < 2:
        raise DataError(f"the image encoder has {count} patches, which are no square grid: they have no place to show")
    return side


def _text(saved: SavedModel, text: str) -> tuple[list[int], Tensor]:
    """Encode one text: its token ids, and a unit vector for each token."""
    vectors, _ = saved.encode_text([text])
    (ids,) = saved.tokenizer.encode([text])
    return ids, vectors[0, : len(ids)]


def _places(saved: SavedModel, ids: Sequence[int], text: str, word: str | None) -> frozenset[int]:
    if word is None:
        return frozenset(range(1, len(ids) - 1))
    (found,) = saved.tokenizer.encode([word])
    wanted = found[1:-1]
    for start in range(1, len(ids) - len(wanted)):
        if wanted and list(ids[start : start + len(wanted)]) == wanted:
            return frozenset(range(start, start + len(wanted)))
    raise DataError(f"{word!r} is not in {text!r}: highlight a part of the text")


def font(size: int, file: Path | None = None) -> ImageFont.FreeTypeFont:
    """Find a font with Chinese characters.

    Args:
        size: height in pixels.
        file: a font's file; None to look where systems keep them.

    Raises:
        ConfigError: there is none, or the file is none.
    """
    if file is not None:
        try:
            given = ImageFont.truetype(str(file), size)
        except OSError as error:
            raise ConfigError(f"--font: {file} cannot be read as a font ({error})") from error
        if not _has_chinese(given):
            raise ConfigError(f"--font: {file} has no Chinese characters; give another font")
        return given
    for pattern in _FONTS:
        for folder in _FONT_FOLDERS:
            for place in sorted(Path(folder).expanduser().rglob(pattern)):
                if place.suffix.lower() in {".ttf", ".ttc", ".otf"}:
                    found = ImageFont.truetype(str(place), size)
                    if _has_chinese(found):
                        return found
    raise ConfigError(
        "there is no font with Chinese characters here: install one, on Debian and Ubuntu with "
        "`apt-get install fonts-noto-cjk`, on Fedora with `dnf install google-noto-sans-cjk-fonts`, or give --font FILE"
    )


def _has_chinese(found: ImageFont.FreeTypeFont) -> bool:
    """Whether the font draws 猫 and 悟 differently: a font without them draws one box for both."""
    return bytes(found.getmask("猫")) != bytes(found.getmask("悟"))


def draw(found: Alignment, file: Path | None = None) -> Image.Image:
    """Draw the patches with the index of their best token, and the tokens beside the picture.

    Indices of highlighted tokens stand on red, the others are small and grey.

    Args:
        found: what ``align`` returned.
        file: a font's file; None to look for one.

    Raises:
        ConfigError: there is no font with Chinese characters.
    """
    side = found.best.shape[0]
    words = font(24, file)
    numbers, small = (words.font_variant(size=max(9, int(_SIDE / side * part))) for part in (0.42, 0.26))
    lines = len(found.tokens)
    height = max(_SIDE, 34 * lines + 8) + 2 * _MARGIN
    page = Image.new("RGB", (_SIDE + _LEGEND + 3 * _MARGIN, height), _WHITE)
    square = found.shown.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    page.paste(square, (_MARGIN, _MARGIN))
    shade = Image.new("RGBA", page.size, (0, 0, 0, 0))
    over, pen = ImageDraw.Draw(shade), ImageDraw.Draw(page)
    edges = [_MARGIN + round(_SIDE * n / side) for n in range(side + 1)]
    for row in range(side):
        for column in range(side):
            if int(found.best[row, column]) in found.highlighted:
                over.rectangle((edges[column], edges[row], edges[column + 1], edges[row + 1]), (*_RED, 110))
    page = Image.alpha_composite(page.convert("RGBA"), shade).convert("RGB")
    pen = ImageDraw.Draw(page)
    for edge in edges:
        pen.line((edge, edges[0], edge, edges[-1]), (255, 255, 255), 1)
        pen.line((edges[0], edge, edges[-1], edge), (255, 255, 255), 1)
    for row in range(side):
        for column in range(side):
            number = int(found.best[row, column])
            mine = number in found.highlighted
            middle = ((edges[column] + edges[column + 1]) / 2, (edges[row] + edges[row + 1]) / 2)
            pen.text(middle, str(number), _WHITE if mine else _GREY, numbers if mine else small, "mm",
                     stroke_width=1, stroke_fill=_RED if mine else _WHITE)  # fmt: skip
    counts = torch.bincount(found.best.flatten(), minlength=lines).tolist()
    left = _SIDE + 2 * _MARGIN
    for number, token in enumerate(found.tokens):
        colour = _RED if number in found.highlighted else _BLACK
        top = _MARGIN + 34 * number
        pen.text((left, top), f"{number}", colour, words)
        pen.text((left + 50, top), token, colour, words)
        pen.text((left + _LEGEND, top), f"{counts[number]}", _GREY, words, "ra")
    return page
