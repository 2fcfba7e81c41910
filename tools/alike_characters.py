"""Write the table of Chinese characters that look alike, from the glyphs of a font.

    python -m tools.alike_characters NotoSansCJK-Regular.ttc --index 2

The table, ``wukong/curate/sensitive_words/disguises/alike.txt``, was made with Noto Sans CJK SC 2.004 (SIL Open Font
License; Debian's package ``fonts-noto-cjk``). It holds, for each of the 6,763 characters of GB 2312, those whose
glyphs are nearest. Glyphs are compared as grey pictures, blurred by a pixel, by the cosine of what is left when the
mean glyph was taken off.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from wukong.curate.sensitive_words.disguised import common_characters

TABLE = Path(__file__).parents[1] / "wukong" / "curate" / "sensitive_words" / "disguises" / "alike.txt"
SIDE = 40
MOST, LEAST_COSINE = 24, 0.42


def glyphs(font: ImageFont.FreeTypeFont, shown: list[str]) -> NDArray[np.float32]:
    """One row a character, of length 1."""
    pictures = np.empty((len(shown), SIDE * SIDE), np.float32)
    for row, character in enumerate(shown):
        picture = Image.new("L", (SIDE, SIDE))
        ImageDraw.Draw(picture).text((SIDE / 2, SIDE / 2), character, 255, font, anchor="mm")
        pictures[row] = np.asarray(picture.filter(ImageFilter.GaussianBlur(1)), np.float32).ravel()
    pictures -= pictures.mean(axis=0)
    pictures /= np.linalg.norm(pictures, axis=1, keepdims=True)
    return pictures


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("font", type=Path)
    parser.add_argument("--index", type=int, default=0, help="of the font in a collection")
    options = parser.parse_args()
    font = ImageFont.truetype(options.font, SIDE - 4, options.index)
    shown = common_characters()
    drawn = glyphs(font, shown)
    cosines = drawn @ drawn.T
    lines = []
    for row, character in enumerate(shown):
        nearest = np.argsort(-cosines[row])[1 : MOST + 1]
        alike = [shown[column] for column in nearest if cosines[row, column] >= LEAST_COSINE]
        if alike:
            lines.append(f"{character} {''.join(alike)}\n")
    head = "# Characters that look alike: one, and those that may stand for it, the nearest first. "
    TABLE.write_text(f"{head}Made by tools/alike_characters.py.\n{''.join(lines)}", encoding="utf-8")


if __name__ == "__main__":
    main()
