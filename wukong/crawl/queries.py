"""The query list: words of a vocabulary, sorted by their frequency in a text corpus (section 3).

The paper takes the words of a set of word vectors and keeps the most frequent ones in news text. Chinese is written
without spaces, so words are found by longest match: at each position the longest word of the vocabulary that begins
there is counted, and the search continues after it. So a word is not counted inside a longer word.
"""

import gzip
import io
import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import IO, Any

import ahocorasick_rs
import numpy as np
import numpy.typing as npt

from wukong.curate.text.characters import has_han
from wukong.errors import ConfigError, DataError, reading
from wukong.store import storage, text_files

logger = logging.getLogger(__name__)

CHUNK_BYTES = 2**20
"""Bytes of text processed at a time; the matches take about twenty times as much memory."""

_MEND = "Fetch or make it again"
_WORD = re.compile(r"\w(?:[\w·・\-'.&+]*\w)?")
_NO_UTF8 = re.compile("[\ud800-\udfff]")
_VECTORS_HEADER = re.compile(r"\d+ \d+\s*")


def read_queries(uri: str, limit: int) -> list[str]:
    """Read the first ``limit`` distinct queries of a list: one a line; a tab and the text after it are ignored.

    A line that is not UTF-8 is left out, and the number of them logged.

    Raises:
        ConfigError: half of the lines or more are not UTF-8, or the list holds no query.
    """
    data = text_files.utf8(io.BytesIO(storage.read_bytes(uri)), uri).read()
    lines = data.decode("utf-8", "surrogateescape").splitlines()
    good = [line for line in lines if line.isprintable() or not _NO_UTF8.search(line)]
    if len(good) < len(lines):
        number, line = next((number, line) for number, line in enumerate(lines, 1) if _NO_UTF8.search(line))
        if 2 * len(good) <= len(lines):
            raise ConfigError(
                f"crawl.queries: {uri} is not UTF-8 (line {number}: {line!r}); convert it, one word a line"
            )
        logger.warning("%s: %d lines are not UTF-8 and left out; the first is %d", uri, len(lines) - len(good), number)
    queries = dict.fromkeys(filter(None, (line.partition("\t")[0].strip() for line in good)))
    if not queries:
        raise ConfigError(f"crawl.queries: {uri} holds no query; write one word a line, most frequent first")
    return list(queries)[:limit]


def build(
    vocabulary: str,
    corpus: Sequence[str],
    *,
    limit: int = 200_000,
    min_length: int = 2,
    max_length: int = 16,
    stop_words: str | None = None,
    text_field: str = "text",
) -> list[tuple[str, int]]:
    """Sort the words of a vocabulary by their frequency in a corpus.

    Args:
        vocabulary: URI of a file with one word a line, or of word vectors in text format (a line ``COUNT DIMENSIONS``,
            then lines with a word and its numbers); it may be gzipped.
        corpus: URIs of text files or of folders: plain text or JSON lines (``.jsonl``), which may be gzipped.
        limit: maximum number of words in the result.
        min_length: minimum number of characters of a word.
        max_length: maximum number of characters of a word.
        stop_words: URI of a file with words that are left out, one a line.
        text_field: the field of a JSON line that holds the text.

    Returns:
        (word, occurrences), the most frequent first; equally frequent words in the order of their characters. Words
        that do not occur are left out.

    Raises:
        ConfigError: the vocabulary or the corpus is empty.
        DataError: a JSON line cannot be parsed or lacks the field.
    """
    stopped = frozenset(_lines(stop_words)) if stop_words else frozenset()
    words = _words(_vocabulary(vocabulary), min_length, max_length)
    if not words:
        raise ConfigError(
            f"{vocabulary} holds no Chinese word of {min_length} to {max_length} characters; write one word a line"
        )
    logger.info("%d words in the vocabulary", len(words))
    counts = count_words(words, _texts(corpus, text_field))
    ranked: list[tuple[str, int]] = []
    # Stop words are counted and left out only here, so that they do not change how other words are found.
    order = np.argsort(-counts, kind="stable")  # words are sorted, so equally frequent words stay in their order
    for index in order:
        if counts[index] == 0 or len(ranked) == limit:
            break
        word = words[index].decode()
        if word not in stopped:
            ranked.append((word, int(counts[index])))
    return ranked


def _words(vocabulary: Iterable[str], min_length: int, max_length: int) -> list[bytes]:
    """Select words that can be queries, as sorted UTF-8: Chinese, without punctuation at the ends, of allowed length.

    UTF-8 has the same order as the characters, and takes less memory than strings.
    """
    kept = {
        word.encode()
        for word in vocabulary
        if min_length <= len(word) <= max_length and has_han(word) and _WORD.fullmatch(word)
    }
    return sorted(kept)


def count_words(words: Sequence[bytes], texts: Iterable[bytes]) -> npt.NDArray[np.int64]:
    """Count the occurrences of each word by longest match from left to right.

    Args:
        words: distinct words in UTF-8.
        texts: pieces of text in UTF-8; a word that is divided between two pieces is not found.

    Returns:
        The number of occurrences of each word, int64 [words].
    """
    automaton = ahocorasick_rs.BytesAhoCorasick(
        words,
        matchkind=ahocorasick_rs.MATCHKIND_LEFTMOST_LONGEST,
        implementation=ahocorasick_rs.Implementation.ContiguousNFA,
    )
    counts = np.zeros(len(words), dtype=np.int64)
    for text in texts:
        matches = automaton.find_matches_as_indexes(text)
        indices = np.fromiter((match[0] for match in matches), dtype=np.int64, count=len(matches))
        np.add.at(counts, indices, 1)
    return counts


def _vocabulary(uri: str) -> Iterator[str]:
    lines = _lines(uri)
    first = next(lines, "")
    vectors = _VECTORS_HEADER.fullmatch(first) is not None
    for word in lines if vectors else chain((first,), lines):
        yield word.split(" ", 1)[0] if vectors else word


def _lines(uri: str) -> Iterator[str]:
    with _opened(uri) as stream, io.TextIOWrapper(stream, encoding="utf-8", errors="replace") as text:
        for line in text:
            yield line.strip()


def _texts(corpus: Sequence[str], text_field: str) -> Iterator[bytes]:
    """Iterate over the corpus in pieces of about ``CHUNK_BYTES``; a piece ends after a line, or in a longer line after
    a character.
    """
    files = [file for uri in corpus for file in ([uri] if storage.exists(uri) else storage.list_files(uri))]
    if not files:
        raise ConfigError(f"the corpus is empty: there are no files at {', '.join(corpus) or 'no address'}")
    for number, uri in enumerate(files, start=1):
        logger.info("file %d of %d: %s", number, len(files), uri)
        with _opened(uri) as stream:
            if uri.removesuffix(".gz").endswith((".jsonl", ".ndjson")):
                yield from _json_texts(uri, stream, text_field)
            else:
                yield from _plain_texts(stream)


def _plain_texts(stream: IO[bytes]) -> Iterator[bytes]:
    rest = b""
    while piece := stream.read(CHUNK_BYTES):
        piece = rest + piece
        end = piece.rfind(b"\n") + 1
        if end == 0 and len(piece) >= CHUNK_BYTES:  # one long line: its last character may be incomplete
            end = len(piece) - 1
            while end > 0 and piece[end] & 0xC0 == 0x80:
                end -= 1
        yield piece[:end]
        rest = piece[end:]
    yield rest


def _json_texts(uri: str, stream: IO[bytes], field: str) -> Iterator[bytes]:
    held: list[bytes] = []
    size = 0
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        with reading(f"{uri} line {number} is not a JSON object with the field {field!r}", _MEND):
            text = json.loads(line)[field]
        if not isinstance(text, str):
            raise DataError(f"{uri} line {number}: the field {field!r} is not a string")
        held.append(text.encode("utf-8", errors="replace"))
        size += len(held[-1])
        if size >= CHUNK_BYTES:
            yield b"\n".join(held)
            held, size = [], 0
    yield b"\n".join(held)


@contextmanager
def _opened(uri: str) -> Iterator[IO[bytes]]:
    with reading(f"{uri} cannot be read as text", _MEND), storage.open_input(uri) as raw:
        assumed: list[str] = []
        source: Any = gzip.GzipFile(fileobj=raw) if uri.endswith(".gz") else raw
        with text_files.utf8(source, uri, assumed) as stream:
            yield stream
    if assumed:
        logger.warning("%s", text_files.said(assumed))
