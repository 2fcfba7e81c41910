"""How a sensitive word may be written otherwise than it is listed."""

from typing import Literal

Disguise = Literal["signs", "letters", "pinyin", "shapes", "homophones"]
"""With signs between its characters also beside other words; with letters and digits that look like letters; in pinyin;
with characters that look alike or parts of characters; with characters that sound alike."""
