"""Ordinary Chinese prose from Debian: manual pages and LibreOffice's help, as lines without markup."""

import gzip
import re
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from wukong.curate.text.characters import has_han

PACKAGES = ("manpages-zh", "libreoffice-help-zh-cn")
_ESCAPE = re.compile(r"\\(?:f(?:\[\w*\]|\(..|.)|s[-+]?\d|\*?\(..|\*?\[[^]]*\]|[&|/,^:%]|.)")
_SHOWN = {"p", "li", "td", "th", "dt", "dd", "h1", "h2", "h3", "h4", "h5", "h6", "title"}
_HIDDEN = {"script", "style"}


def unpacked(package: str, work: Path) -> Path:
    """The files of a Debian package, which apt-get fetches.

    Returns:
        The folder; beside it lies the archive, whose name has the version.
    """
    folder = work / package
    if not (folder / ".complete").exists():
        subprocess.run(["apt-get", "download", package], cwd=work, check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["dpkg-deb", "-x", archive(package, work), folder], check=True)
        (folder / ".complete").touch()
    return folder


def archive(package: str, work: Path) -> Path:
    """The archive of a package that ``unpacked`` has fetched."""
    return max(work.glob(f"{package}_*.deb"))


def lines(package: str, work: Path) -> list[str]:
    """The distinct lines of a package with a Chinese character, as people read them."""
    folder = unpacked(package, work)
    pages = folder.glob("usr/share/man/**/*.gz") if package == "manpages-zh" else folder.glob("usr/share/**/*.html")
    read = _of_manual if package == "manpages-zh" else _of_help
    found = (" ".join(line.split()) for page in sorted(pages) for line in read(page))
    return list(dict.fromkeys(line for line in found if has_han(line)))


def _of_manual(page: Path) -> Iterator[str]:
    for line in gzip.decompress(page.read_bytes()).decode("utf-8", "replace").splitlines():
        if line.startswith(('.\\"', "'\\\"")):
            continue
        text = re.sub(r"^[.']\s*\w+", "", line)  # a request of roff, whose arguments are text
        yield _ESCAPE.sub("", text.replace("\\-", "-")).replace('"', "")


def _of_help(page: Path) -> Iterator[str]:
    reader = _Blocks()
    reader.feed(page.read_text(encoding="utf-8"))
    yield from reader.blocks


class _Blocks(HTMLParser):
    """The texts of paragraphs, headings and cells."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = [""]
        self._hidden = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden = tag in _HIDDEN
        if tag in _SHOWN:
            self.blocks.append("")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False
        if tag in _SHOWN:
            self.blocks.append("")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.blocks[-1] += data
