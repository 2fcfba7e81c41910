"""The four image sources of the demo corpus: read their packages into drafts of catalogue entries.

| source | images | titles written by people | licence |
|---|---|---|---|
| Tux Paint stamps | photographs and drawings, PNG and SVG | the stamp's zh_CN description | GPL-2.0-only |
| Fluent emoji 3D | rendered emoji, 256 px WebP | Unicode CLDR short names | MIT; names Unicode-3.0 |
| Noto emoji | drawn emoji, SVG | Unicode CLDR short names | Apache-2.0; names Unicode-3.0 |
| IconPark | four-colour icons, SVG | the icon's Chinese title | Apache-2.0 |

These are names and short descriptions written by people, not captions found on web pages.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from infra.corpus import packages
from infra.corpus.packages import Package, PackageError
from wukong.data.decoding import FORMATS

log = logging.getLogger(__name__)

MIN_STAMP_SIDE = 64
"""Minimum side of a stamp, in pixels, to be drawn on a larger canvas. A smaller stamp is not changed, and the size rule
drops it, like thumbnails on real sites."""

_LARGE_SIDE = 201
_SKIN_TONE = re.compile(r"1f3f[b-f]")
_VARIATION_SELECTOR = "\ufe0f"
_FOLDER_WORDS = Path(__file__).with_name("stamp_folders.json")
"""Chinese words for Tux Paint's stamp folders; they are the only keywords of a stamp."""
_HAN = re.compile(r"[\u3400-\u9fff]")


@dataclass(frozen=True)
class Draft:
    """An image to publish.

    Attributes:
        path: its path on the site, without the extension if the image is not drawn yet.
        how: ``copy`` to serve the package's own file; ``stamp`` and ``svg`` to draw one, see ``infra.corpus.pictures``.
        origin: the package's file, for ``copy`` and ``stamp``.
        svg: the drawing, for ``svg``.
    """

    source: str
    path: str
    title: str
    keywords: tuple[str, ...]
    licence: str
    how: Literal["copy", "stamp", "svg"]
    origin: Path | None = None
    svg: str | None = None


@dataclass
class Reading:
    """The result of reading a source: the drafts, and the number of files left out for each reason."""

    drafts: list[Draft] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    def leave_out(self, reason: str, what: object) -> None:
        """Count and log a file that gives no image."""
        self.left_out[reason] = self.left_out.get(reason, 0) + 1
        log.debug("left out (%s): %s", reason, what)


@dataclass(frozen=True)
class Source:
    """An image source: its packages, the number of images in them, and the function that reads them."""

    name: str
    packages: tuple[Package, ...]
    pictures: int
    read: Callable[[Mapping[str, Path]], Reading]


def read_stamps(folders: Mapping[str, Path]) -> Reading:
    """Read Tux Paint: every PNG or SVG with a ``.txt`` file that has a ``zh_CN`` line; the folders are the keywords.

    A stamp whose caption file is not UTF-8 is left out and reported.
    """
    root = folders[packages.STAMPS.name] / "usr/share/tuxpaint/stamps"
    folder_words = json.loads(_FOLDER_WORDS.read_text(encoding="utf-8"))
    reading = Reading()
    for picture in sorted(path for path in root.rglob("*") if path.suffix in {".png", ".svg"}):
        caption_file = picture.with_suffix(".txt")
        if not caption_file.exists():
            reading.leave_out("no caption file", picture)
            continue
        try:
            title = stamp_title(caption_file.read_bytes())
        except UnicodeDecodeError as error:
            reading.leave_out("caption file not UTF-8", caption_file)
            log.warning("%s is not UTF-8 (%s): its stamp is left out", caption_file, error.reason)
            continue
        if title is None:
            reading.leave_out("no Chinese caption", picture)
            continue
        relative = picture.relative_to(root)
        words = tuple(dict.fromkeys(folder_words[part] for part in relative.parent.parts if part in folder_words))
        stem = relative.with_suffix("").as_posix()
        draft = partial(Draft, "tuxpaint", title=title, keywords=words, licence=packages.STAMPS.licence, origin=picture)
        if picture.suffix == ".svg":
            if b"<text" in picture.read_bytes():
                # The drawing would depend on the machine's fonts.
                reading.leave_out("SVG with text", picture)
                continue
            # Nearly every SVG has a PNG of the same name, which is another image on the site.
            reading.drafts.append(draft(f"/tuxpaint/{stem}_vector", how="stamp"))
            continue
        with Image.open(picture, formats=FORMATS) as image:
            smaller = min(image.size)
        if MIN_STAMP_SIDE <= smaller < _LARGE_SIDE:
            reading.drafts.append(draft(f"/tuxpaint/{stem}", how="stamp"))
        else:
            reading.drafts.append(draft(f"/tuxpaint/{relative}", how="copy"))
    return reading


def stamp_title(data: bytes) -> str | None:
    """Return the ``zh_CN`` description in a stamp's caption file, or None.

    Raises:
        UnicodeDecodeError: the file is not UTF-8.
    """
    for line in data.decode("utf-8-sig").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "zh_CN.utf8" and value.strip():
            return value.strip()
    return None


def read_fluent(folders: Mapping[str, Path]) -> Reading:
    """Read Fluent emoji 3D: WebP files named by their code points, without variants of skin tone."""
    names = _emoji_names(folders)
    reading = Reading()
    for picture in sorted((folders[packages.FLUENT.name] / "package/assets").glob("*.webp")):
        if _SKIN_TONE.search(picture.stem):
            reading.leave_out("skin tone variant", picture)
        elif (name := names.get(_characters(picture.stem))) is None:
            reading.leave_out("no CLDR name", picture)
        else:
            reading.drafts.append(
                Draft("fluent", f"/fluent/{picture.name}", *name, packages.FLUENT.licence, "copy", origin=picture)
            )
    return reading


def read_noto(folders: Mapping[str, Path]) -> Reading:
    """Read Noto emoji: SVG bodies in Iconify's JSON and a table of code points, without variants of skin tone."""
    folder = folders[packages.NOTO.name] / "package"
    icons: Any = packages.read_json(folder / "icons.json")
    characters: Any = packages.read_json(folder / "chars.json")
    names = _emoji_names(folders)
    reading = Reading()
    for code, icon in sorted(characters.items()):
        if _SKIN_TONE.search(code):
            reading.leave_out("skin tone variant", code)
        elif (name := names.get(_characters(code))) is None or icon not in icons["icons"]:
            reading.leave_out("no CLDR name", code)
        else:
            svg = iconify_svg(icons, icon)
            reading.drafts.append(Draft("noto", f"/noto/{code}", *name, packages.NOTO.licence, "svg", svg=svg))
    return reading


def iconify_svg(icons: Mapping[str, Any], name: str) -> str:
    """Return one icon of an Iconify set as an SVG document; the set has defaults for the view box."""
    icon = icons["icons"][name]
    left, top, width, height = (
        icon.get(key, icons.get(key, default))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    box = f"{left} {top} {width} {height}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{icon["body"]}</svg>'


def read_iconpark(folders: Mapping[str, Path]) -> Reading:
    """Read IconPark: multi-colour icons with a Chinese character in the title; keywords are tags and category."""
    folder = folders[packages.ICONPARK.name] / "package"
    icons: Any = packages.read_json(folder / "icons.json")
    drawings = {}
    for module in (folder / "es/icons").glob("*.js"):
        if (drawing := iconpark_svg(module.read_text(encoding="utf-8"))) is not None:
            drawings[drawing[0]] = drawing[1]
    reading = Reading()
    for icon in sorted(icons, key=lambda icon: icon["name"]):
        title = icon["title"].strip()
        if not _HAN.search(title):
            reading.leave_out("no Chinese title", icon["name"])
        elif icon["name"] not in drawings:
            reading.leave_out("no drawing", icon["name"])
        else:
            keywords = tuple(dict.fromkeys(word.strip() for word in [*icon["tag"], icon["categoryCN"]] if word.strip()))
            path = f"/iconpark/{icon['category'].lower().replace(' ', '-')}/{icon['name']}"
            svg = drawings[icon["name"]]
            reading.drafts.append(Draft("iconpark", path, title, keywords, packages.ICONPARK.licence, "svg", svg=svg))
    return reading


_ICONPARK_NAME = re.compile(r"IconWrapper\('([^']+)'")
_ICONPARK_PIECE = re.compile(r"'([^']*)'|props\.colors\[(\d)\]|props\.(\w+)")
_ICONPARK_COLOURS = ("#333", "#2F88FF", "#FFF", "#43CCF8")
_ICONPARK_VALUES = {"size": "48", "strokeWidth": "4", "strokeLinecap": "round", "strokeLinejoin": "round"}


def iconpark_svg(module: str) -> tuple[str, str] | None:
    """Return the name and SVG of an IconPark module, in the default colours of the multi-colour theme.

    A module returns one expression: string literals and properties joined by ``+``.

    Returns:
        None if the module draws nothing.
    """
    name = _ICONPARK_NAME.search(module)
    if name is None:
        return None
    values = _ICONPARK_VALUES | {"id": name[1]}
    expression = module[module.index("return", name.end()) :].partition(";\n")[0]
    pieces = (
        _ICONPARK_COLOURS[int(colour)] if colour else values[value] if value else literal
        for literal, colour, value in _ICONPARK_PIECE.findall(expression)
    )
    return name[1], "".join(pieces)


def _characters(code: str) -> str:
    """Convert a code such as ``1f1e8-1f1f3`` to characters, without variation selectors; empty if it is invalid."""
    try:
        return "".join(chr(int(part, 16)) for part in code.split("-")).replace(_VARIATION_SELECTOR, "")
    except (ValueError, OverflowError):
        return ""


def _emoji_names(folders: Mapping[str, Path]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return the Chinese CLDR short name and keywords of every emoji."""
    derived: Any = packages.read_json(
        folders[packages.CLDR_DERIVED.name] / "package/annotationsDerived/zh/annotations.json"
    )
    direct: Any = packages.read_json(folders[packages.CLDR.name] / "package/annotations/zh/annotations.json")
    return cldr_names(derived["annotationsDerived"]["annotations"]) | cldr_names(direct["annotations"]["annotations"])


def cldr_names(annotations: Mapping[str, Mapping[str, list[str]]]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return short name (``tts``) and keywords (``default``) of each emoji that has a short name."""
    return {
        characters.replace(_VARIATION_SELECTOR, ""): (entry["tts"][0].strip(), tuple(entry.get("default", ())))
        for characters, entry in annotations.items()
        if entry.get("tts") and entry["tts"][0].strip()
    }


SOURCES: tuple[Source, ...] = (
    Source("tuxpaint", (packages.STAMPS,), 1173, read_stamps),
    Source("fluent", (packages.FLUENT, packages.CLDR, packages.CLDR_DERIVED), 1868, read_fluent),
    Source("noto", (packages.NOTO, packages.CLDR, packages.CLDR_DERIVED), 1652, read_noto),
    Source("iconpark", (packages.ICONPARK,), 2614, read_iconpark),
)


def read(source: Source, cache: Path) -> Reading:
    """Download a source's packages if they are missing, and read them.

    Raises:
        PackageError: a package cannot be downloaded, or does not contain the expected number of images.
    """
    reading = source.read({package.name: packages.fetch(package, cache) for package in source.packages})
    unreadable = reading.left_out.get("caption file not UTF-8", 0)
    if len(reading.drafts) + unreadable != source.pictures:
        folders = " and ".join(str(cache / package.folder) for package in source.packages)
        raise PackageError(
            f"{source.name}: {len(reading.drafts)} pictures read instead of {source.pictures}; "
            f"the cache is damaged: delete {folders} and run again"
        )
    return reading


def spread(text: str, salt: str, count: int) -> int:
    """Hash a text to a number in ``[0, count)``: evenly distributed, and the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{salt}\n{text}".encode()).digest()[:8]) % count


def concepts(drafts: list[Draft]) -> Iterator[list[Draft]]:
    """Group drafts by title; the order of the groups depends only on the hashes of the titles."""
    groups: dict[str, list[Draft]] = {}
    for draft in drafts:
        groups.setdefault(draft.title, []).append(draft)
    for title in sorted(groups, key=lambda title: (spread(title, "slice", 2**32), title)):
        yield groups[title]
