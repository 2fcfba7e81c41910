"""The encoding of text files that people give: captions, lists of URLs, of words and of what is left out.

A byte order mark says it. Without one a file is UTF-8, or else GB 18030, which spreadsheets on Windows write for
Chinese. GB 18030 is an assumption, so whoever allows it gets the names of these files, and says how many there are.
"""

import codecs
import io
from typing import IO

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_PIECE = 1 << 20


def utf8(stream: IO[bytes], name: str, assumed: list[str] | None = None) -> io.BufferedReader:
    """Return a text file as UTF-8 without a byte order mark; bytes that are no text stay as they are.

    The first mebibyte with a byte beyond ASCII decides, by the most of its lines, so one damaged line changes nothing.

    Args:
        stream: the file, which is read a mebibyte at a time.
        name: its name.
        assumed: gets the name if the file is read as GB 18030; without it no encoding is assumed.
    """
    return io.BufferedReader(_Utf8(stream, name, assumed), _PIECE)


def said(assumed: list[str]) -> str:
    """Return how many files were read as GB 18030, for one line of a log."""
    return (
        f"Read as GB 18030, because not UTF-8: {len(assumed):,} of the text files; the first is {assumed[0]}. If their "
        "text is wrong, save them as UTF-8"
    )


class _Utf8(io.RawIOBase):
    def __init__(self, stream: IO[bytes], name: str, assumed: list[str] | None) -> None:
        self._stream, self._name, self._assumed = stream, name, assumed
        self._encoding: str | None = None
        self._decoder: codecs.IncrementalDecoder | None = None
        self._ready = memoryview(b"")
        self._begun = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        while not self._ready:
            piece = self._stream.read(_PIECE)
            self._ready = memoryview(self._converted(piece))
            if not piece:
                break
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def _converted(self, piece: bytes) -> bytes:
        if not self._begun:
            self._begun = True
            mark, self._encoding = next((each for each in _MARKS if piece.startswith(each[0])), (b"", None))
            if self._encoding == "utf-8":
                piece = piece[len(mark) :]
            elif self._encoding is not None:
                self._decoder = codecs.getincrementaldecoder(self._encoding)("replace")
        if self._encoding is None and not piece.isascii():
            self._encoding = "utf-8"
            if self._assumed is not None and _is_gb18030(piece):
                self._encoding = "gb18030"
                self._decoder = codecs.getincrementaldecoder(self._encoding)("surrogateescape")
                self._assumed.append(self._name)
        if self._decoder is None:
            return piece
        return self._decoder.decode(piece, final=not piece).encode("utf-8", "surrogateescape")


def _is_gb18030(piece: bytes) -> bool:
    """Whether half of the lines or more are no UTF-8, and most are GB 18030, mostly with the characters that are usual.

    Text of another encoding often passes for GB 18030, but with rare characters.
    """
    lines = [line for line in piece.splitlines() if not line.isascii()]
    if 2 * sum(_decoded(line, "utf-8") is not None for line in lines) > len(lines):
        return False
    texts = [text for line in lines if (text := _decoded(line, "gb18030")) is not None and "\0" not in text]
    beyond = [character for text in texts for character in text if not character.isascii()]
    usual = sum(len(character.encode("gb2312", "ignore")) == 2 for character in beyond)
    return 2 * len(texts) > len(lines) and 2 * usual > len(beyond)


def _decoded(line: bytes, encoding: str) -> str | None:
    try:  # the last line may be cut
        return codecs.getincrementaldecoder(encoding)().decode(line)
    except UnicodeDecodeError:
        return None
