"""The user's own images instead of a search engine: a folder, or a list whose rows name files or URLs.

The captions of a folder's images are in the same folder: in ``NAME.txt`` for ``NAME.jpg``, one caption a line, or in a
``metadata.csv`` or ``metadata.jsonl`` with ``file_name`` and ``text``, the format of Hugging Face's ImageFolder. A list
is a CSV, TSV, JSON lines or Parquet file with a column ``path`` (relative to the list's folder), ``file_name`` or
``url``, and a column ``caption`` or ``text``.

A row that cannot be used is not an error. It becomes an image that does not exist, with the reason in its URL, so that
it is counted and reported like all others.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import logging
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from wukong.crawl.engine import clean
from wukong.crawl.found import as_table, found_row
from wukong.crawl.rows import Row, csv_reader, rows_of_json, rows_of_parquet
from wukong.crawl.source import CrawlSettings, Picture
from wukong.crawl.status import FetchError, Status
from wukong.crawl.url import MAX_URL, MEASURED, ROW, identity
from wukong.crawl.url_list import PIECE_ROWS
from wukong.errors import DataError, StorageError, reading
from wukong.store import listing, storage, text_files

_HEIF = (".heic", ".heif")
PICTURES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".avif", ".tif", ".tiff", *_HEIF)
LISTS = (".csv", ".tsv", ".jsonl", ".parquet", ".csv.gz", ".tsv.gz", ".jsonl.gz")

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_PATH_COLUMNS = ("path", "file_name", "filename", "file", "image")
_CAPTION_COLUMNS = ("caption", "text", "title")
_PART = "#bytes="
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_NO_TEXT = re.compile("[\ud800-\udfff]")
_CAPTION_NUMBER = re.compile(r"#caption-\d+$")
_CONVERT = (
    "HEIC, as iPhones save pictures, is not read: convert it to JPEG, on a Mac with `sips -s format jpeg *.heic --out "
    "FOLDER`, elsewhere with `heif-convert`"
)
_BATCH_ROWS = 1_000
_FIELD_BYTES = 1 << 20
_MOST_OF_PATH, _MOST_OF_NAME = 4095, 255  # bytes
_SHOWN = 200

logger = logging.getLogger(__name__)


@dataclass
class _Notes:
    """What is said of a folder's files at the end, each with a count and the first.

    Attributes:
        assumed: text files that are read in an encoding that is assumed.
        unread: text files with captions that cannot be read.
        heif: pictures that no decoder here reads.
    """

    assumed: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    heif: list[str] = field(default_factory=list)

    def log(self) -> None:
        if self.assumed:
            logger.warning("%s", text_files.said(self.assumed))
        if self.unread:
            logger.warning(
                "%d text files hold captions that cannot be read and are left out; the first is %s",
                len(self.unread),
                self.unread[0],
            )
        if self.heif:
            logger.warning("%d pictures are HEIC; the first is %s. %s", len(self.heif), self.heif[0], _CONVERT)


def pictures_of(config: CrawlSettings, named_by: str = "crawl.endpoint", *, quiet: bool = False) -> Iterator[Picture]:
    """Iterate over the images of the folder or list that a config names; the order depends only on its files.

    Args:
        config: where they are, and the columns of lists.
        named_by: the key or the option that named the place, for messages.
        quiet: whether to log nothing about captions, for a look before they are read.

    Raises:
        DataError: there are no images, or a list cannot be read; the message says what was looked for.
    """
    notes = _Notes()
    try:
        yield from _pictures_of(config, notes)
    except DataError as error:
        raise DataError(f"{named_by}: {error}") from error
    if not quiet:
        notes.log()


def _pictures_of(config: CrawlSettings, notes: _Notes) -> Iterator[Picture]:
    uri = config.endpoint.rstrip("/")
    fs, path = storage.filesystem(uri)
    info = fs.get_file_info(path.rstrip("/") or "/")
    if info.type == pafs.FileType.File:
        named = _of_list(uri, fs, info.path, config, notes)
    elif info.type == pafs.FileType.Directory:
        named = _of_folder(fs, info.path, config, notes)
    else:
        raise DataError(f"there is nothing at {uri}; name a folder of pictures, or a list of {', '.join(LISTS)}")
    nothing = True
    for picture in numbered(named):
        nothing = False
        yield picture
    if nothing:
        raise DataError(f"{uri} holds no picture; looked for {', '.join(PICTURES)}")


def numbered(pictures: Iterable[Picture]) -> Iterator[Picture]:
    """Iterate over images with the number of the caption in the URL of those that come again."""
    seen: Counter[str] = Counter()
    for picture in pictures:
        url = identity(picture.url)  # so that two spellings of one URL are two captions of one picture
        seen[url] += 1
        again = seen[url]
        yield picture if again == 1 else Picture(f"{picture.url}#caption-{again}", picture.caption, picture.stamp)


def digest_of(pictures: Iterable[Picture]) -> str:
    """Return the SHA-256 in hex over the images' URLs, captions, file sizes and modification times."""
    sha = hashlib.sha256()
    for picture in pictures:
        sha.update(json.dumps([picture.url, picture.caption, picture.stamp]).encode())
    return sha.hexdigest()


def read_pictures(config: CrawlSettings) -> Iterator[pa.Table]:
    """Iterate over the images of ``pictures_of`` in tables; see ``tables_of``."""
    return tables_of(pictures_of(config))


def tables_of(pictures: Iterable[Picture]) -> Iterator[pa.Table]:
    """Iterate over images in tables of schema ``found.FOUND``, each sorted by key."""
    ordered = enumerate(pictures)
    while piece := list(islice(ordered, PIECE_ROWS)):
        yield as_table([found_row(picture.url, picture.caption, None, order) for order, picture in piece])


def file_of(url: str) -> str:
    """Return the URL of an image's file, which is the same for all of its captions."""
    return _CAPTION_NUMBER.sub("", url)


def read_picture(url: str, max_bytes: int) -> bytearray:
    """Read the file of an image, or its part of a table of images.

    Raises:
        FetchError: there is no such file, it has more than ``max_bytes``, or is HEIC; or the URL is that of a row
            which cannot be used, or of an image that is left out.
    """
    _, is_row, problem = url.partition(ROW)
    if is_row:
        raise FetchError(Status.INVALID_URL, f"row {problem}")
    file = file_of(url)
    _, is_measured, why = file.partition(MEASURED)
    if is_measured:
        raise FetchError(Status.MEASURED, why)
    file, is_part, part = file.partition(_PART)
    offset, length = map(int, part.split("+")) if is_part else (0, max_bytes + 1)
    try:
        with storage.open_input(file) as stream:
            stream.seek(offset)
            body = bytearray(stream.read(length))
    except (StorageError, OSError) as error:
        raise FetchError(Status.MISSING_FILE, "there is no such file, or it cannot be read") from error
    if is_part:
        body = _decoded_part(bytes(body))
    if len(body) > max_bytes:
        raise FetchError(Status.TOO_LARGE, f"more than {max_bytes} bytes")
    if body[4:8] == b"ftyp" and body[8:12] in _HEIF_BRANDS:
        raise FetchError(Status.NOT_IMAGE, _CONVERT)
    return body


def part_of(table: str, offset: int, length: int) -> str:
    """Return the URL of an image that stands in a table as base64: its first byte there, and their number."""
    return f"{table}{_PART}{offset}+{length}"


def length_of(url: str) -> int:
    """Return the number of bytes of an image in its table; 0 if it is a file of its own."""
    return int(url.rpartition("+")[2]) if _PART in url else 0


def _decoded_part(data: bytes) -> bytearray:
    from wukong.evaluate.formats.chinese_clip import from_base64

    try:
        return bytearray(from_base64(data))
    except ValueError as error:
        raise FetchError(Status.CORRUPT, f"its part of the table is damaged ({error})") from error


def _of_folder(fs: pafs.FileSystem, folder: str, config: CrawlSettings, notes: _Notes) -> Iterator[Picture]:
    infos = {
        info.path: info
        for info in sorted(listing.files_below(fs, folder), key=lambda info: info.path)
        if not _is_hidden(info.path[len(folder) :])
    }
    named: set[str] = set()
    for path in infos:
        if PurePosixPath(path).name in METADATA:
            for picture in _of_list(_uri(fs, path), fs, path, config, notes, _Folder(folder, infos)):
                named.add(picture.url)
                yield picture
    for path, info in infos.items():
        url = _uri(fs, path)
        if not path.lower().endswith(PICTURES) or url in named:
            continue
        if path.lower().endswith(_HEIF):
            notes.heif.append(path)
        beside = next((text for suffix in (".txt", ".TXT") if (text := _stem(path) + suffix) in infos), None)
        captions = _captions_in(fs, beside, notes) if beside else []
        for caption in captions or [""]:
            stamp = _stamp(info) + (f" {_stamp(infos[beside])}" if beside else "")
            yield Picture(url, caption, stamp)


@dataclass
class _Folder:
    """A folder and all files below it; a list that lies there names none elsewhere."""

    path: str
    files: Mapping[str, pafs.FileInfo]

    def holds(self, path: str) -> bool:
        return path.startswith(f"{self.path.rstrip('/')}/")


def _of_list(
    uri: str,
    fs: pafs.FileSystem,
    path: str,
    config: CrawlSettings,
    notes: _Notes,
    within: _Folder | None = None,
) -> Iterator[Picture]:
    """Iterate over the images of a list. File information is requested in batches, which is faster on object stores."""
    name = path.lower().removesuffix(".gz")
    if not name.endswith((".csv", ".tsv", ".jsonl", ".parquet")):
        raise DataError(f"{uri} is neither a folder nor a list; a list is a file of {', '.join(LISTS)}")
    rows = iter(_rows(uri, fs, path, config, notes))
    known = within.files if within else {}
    while piece := list(islice(rows, _BATCH_ROWS)):
        read = [_picture_in(number, row, uri, fs, path, config, within) for number, row in piece]
        wanted = [file for _, file, _ in read if file and file not in known]
        infos = {info.path: info for info in fs.get_file_info(wanted)} | dict(known)
        for url, file, caption in read:
            yield Picture(url, caption, _stamp(infos[file]) if file in infos else "")


def _picture_in(
    number: int,
    row: Mapping[str, Any] | str,
    uri: str,
    fs: pafs.FileSystem,
    path: str,
    config: CrawlSettings,
    within: _Folder | None,
) -> tuple[str, str, str]:
    """Return the URL of a row's image, its path if it is on the list's file system (else empty), and its caption."""
    where = f"{uri}{ROW}{number}: "
    if isinstance(row, str):
        return where + row, "", ""
    value, caption = _first(row, _columns(config.url_column, (*_PATH_COLUMNS, "url"))), _first(row, _captions(config))
    if not value:
        return where + "it names no picture", "", clean(caption)
    if len(value) > MAX_URL:
        return where + f"{clean(value)[:_SHOWN]!r}… is longer than {MAX_URL} characters", "", ""
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        return where + f"{clean(value)[:_SHOWN]!r} has a character that no path has", "", ""
    if value.startswith(("http://", "https://")):
        return clean(value), "", clean(caption)
    if "://" in value:
        if value.startswith(("file:///", "s3://")) and within is None:
            return value, "", clean(caption)
        shown = clean(value)[:_SHOWN]
        why = f"{shown} is neither a path nor an address of http, s3 or file"
        if within is not None:
            why = f"{shown} is neither a path in the folder nor an address of http"
        return where + why, "", ""
    if "/" not in value:
        value = value.replace("\\", "/")
    file = value if value.startswith("/") else f"{PurePosixPath(path).parent}/{value}"
    file = re.sub(r"(^|/)\./", r"\1", file)
    if within is not None:
        file = posixpath.normpath(file)
        if not within.holds(file):
            why = f"{clean(value)[:_SHOWN]} is outside of the folder; name a list that lies beside it instead"
            return where + why, "", ""
    encoded = file.encode(errors="replace")
    if len(encoded) > _MOST_OF_PATH or max(map(len, encoded.split(b"/"))) > _MOST_OF_NAME:
        return where + f"{clean(value)[:_SHOWN]!r}… is longer than a path may be", "", ""
    return _uri(fs, file), file, clean(caption)


def _rows(uri: str, fs: pafs.FileSystem, path: str, config: CrawlSettings, notes: _Notes) -> Iterator[Row]:
    name = path.lower()
    with reading(f"{uri} cannot be read", "Fetch or make it again"):
        if name.endswith(".parquet"):
            yield from _rows_of_parquet(fs, path, config, uri)
            return
        with fs.open_input_file(path) as raw:
            source: Any = gzip.GzipFile(fileobj=raw) if name.endswith(".gz") else raw
            data = text_files.utf8(source, uri, notes.assumed)
            lines = io.TextIOWrapper(data, encoding="utf-8", errors="surrogateescape", newline="")
            if name.removesuffix(".gz").endswith(".jsonl"):
                yield from rows_of_json(lines)
            else:
                header, rows = csv_reader(lines, "\t" if name.removesuffix(".gz").endswith(".tsv") else ",")
                _check_columns(header, uri, config)
                yield from rows


def _rows_of_parquet(fs: pafs.FileSystem, path: str, config: CrawlSettings, uri: str) -> Iterator[Row]:
    with pq.ParquetFile(path, filesystem=fs) as file:
        yield from rows_of_parquet(file, _check_columns(file.schema_arrow.names, uri, config))


def _check_columns(names: Iterable[str], uri: str, config: CrawlSettings) -> list[str]:
    """Return the columns of a list to read.

    Raises:
        DataError: the list has no column for images, or none for captions.
    """
    given = {name.strip().lower(): name for name in names}
    pictures, captions = _columns(config.url_column, (*_PATH_COLUMNS, "url")), _captions(config)
    for wanted in (pictures, captions):
        if not given.keys() & set(wanted):
            there = ", ".join(given)
            raise DataError(
                f"{uri} has {f'the columns {there}' if there else 'no column'} and none of "
                f"{', '.join(wanted)}; crawl.url_column and crawl.caption_column name others"
            )
    return [given[name] for name in (*pictures, *captions) if name in given]


def _columns(named: str, usual: tuple[str, ...]) -> list[str]:
    """Return the names to look for: the configured column unless it is the default, then the usual names."""
    own = named.strip().lower()
    return list(dict.fromkeys(([own] if own not in ("url", "caption") else []) + [*usual]))


def _captions(config: CrawlSettings) -> list[str]:
    return _columns(config.caption_column, _CAPTION_COLUMNS)


def _first(row: Mapping[str, Any], columns: Iterable[str]) -> str:
    values = (row.get(name) for name in columns)
    return next((text for value in values if isinstance(value, str) and (text := value.strip())), "")


def _captions_in(fs: pafs.FileSystem, path: str, notes: _Notes) -> list[str]:
    try:
        with fs.open_input_file(path) as stream:
            data = stream.read(_FIELD_BYTES)
    except OSError as error:
        notes.unread.append(f"{path} ({error})")
        return []
    text = text_files.utf8(io.BytesIO(data), path, notes.assumed).read().decode("utf-8", "surrogateescape")
    lines = text.splitlines()
    good = [line for line in lines if not _NO_TEXT.search(line)]
    if len(good) < len(lines) and len(data) < _FIELD_BYTES:
        notes.unread.append(path)
    return [caption for line in good if (caption := clean(line))]


def _stamp(info: pafs.FileInfo) -> str:
    return f"{info.size} {info.mtime_ns}" if info.type == pafs.FileType.File else ""


def _uri(fs: pafs.FileSystem, path: str) -> str:
    """Return the URI of a path; only characters that would change when it is read back are percent-encoded."""
    if not isinstance(fs, pafs.LocalFileSystem):
        return f"s3://{path}"
    shown = "".join(c if c.isprintable() and c not in "%#?" else quote(c, errors="surrogateescape") for c in path)
    return f"file://{shown}"


def _stem(path: str) -> str:
    return path[: -len(Path(path).suffix)]


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.strip("/").split("/"))
