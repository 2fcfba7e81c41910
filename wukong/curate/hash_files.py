"""Files of hashes: lists of forbidden pictures, and the fingerprints of evaluation sets.

A list is a text file as such lists are exchanged, perhaps compressed by gzip: a hash a line in hexadecimal, all of one
kind, PDQ (64 digits) or MD5 (32); or CSV, with a header that names a column ``hash`` (and perhaps ``type``), ``pdq`` or
``md5``, or with the hash in the first column. Lines that begin with ``#`` are passed over.

The fingerprints of a set are a Parquet file, a row a picture, which tells nothing of a picture but whether another one
looks like it.
"""

import csv
import gzip
import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from wukong.curate import pdq
from wukong.curate.text.normalize import normal_forms
from wukong.errors import ConfigError, DataError, reading
from wukong.store import storage

MD5_BYTES = 16

KIND = "wukong-fingerprints"
VERSION = "1"
"""Of the files of fingerprints, with the hashes in them; a file of another version is refused."""

_MOST_HASHES = 20_000_000
_MOST_IN_LINE = 4096
_SHOWN = 80
_HEXADECIMAL = re.compile("[0-9a-fA-F]+").fullmatch
_GZIP = b"\x1f\x8b"
_DIGITS = {2 * pdq.BYTES: "pdq", 2 * MD5_BYTES: "md5"}
_NAMES = {"pdq": "pdq", "hash_pdq": "pdq", "md5": "md5", "hash_md5": "md5"}
_OTHERS = 0.1
"""Share of the hashes that may have more than half of their bits set: no PDQ has, and nearly half of all SHA-256."""


@dataclass(frozen=True)
class HashList:
    """A list of pictures by their hashes.

    Attributes:
        pdq: ``(n, 32)``.
        md5: ``(m, 16)``.
    """

    pdq: pdq.Hashes
    md5: npt.NDArray[np.uint8]

    @property
    def digest(self) -> str:
        """SHA-256 over both kinds; equal for two files of the same hashes, in whatever order and form."""
        return hashlib.sha256(
            b"\0".join(np.unique(each, axis=0).tobytes() for each in (self.pdq, self.md5))
        ).hexdigest()


@dataclass(frozen=True)
class Fingerprints:
    """What is known of the pictures and captions of a split of a set, without the set.

    Attributes:
        name: of the set.
        split: of the set.
        digest: of the split, as the set's data has it.
        pictures: the id of each picture; the other attributes are in this order.
        forms: ``(n, 8, 32)``: PDQ of the picture, and of it mirrored and turned (``wukong.curate.pdq.dihedral``).
        quality: of PDQ, 0 to 100.
        vectors: float16 ``(n, d)``; none without ``made_by``.
        made_by: digest of the model that made the vectors; empty where there are none.
        captions: hashes of the captions (``caption_hashes``), sorted, each once.
        unread: pictures of the split that could not be decoded, and are missing.
    """

    name: str
    split: str
    digest: str
    pictures: Sequence[str]
    forms: npt.NDArray[np.uint8]
    quality: npt.NDArray[np.uint8]
    vectors: npt.NDArray[np.float16] | None = None
    made_by: str = ""
    captions: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    unread: int = 0

    @property
    def hashes(self) -> pdq.Hashes:
        """PDQ of the pictures as they are."""
        return self.forms[:, 0]


def caption_hashes(captions: pl.Series) -> npt.NDArray[np.uint64]:
    """The first 64 bits of SHA-256 of each caption in normal form; unlike Polars' hashes, the same everywhere."""
    digests = (hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in normal_forms(captions))
    return np.frombuffer(b"".join(digest[:8] for digest in digests), dtype=">u8").astype(np.uint64)


def write(uri: str, fingerprints: Fingerprints) -> None:
    """Store the fingerprints of a set; equal ones give equal bytes."""
    made = fingerprints
    vectors = pa.nulls(len(made.pictures), pa.list_(pa.float16()))
    if made.vectors is not None:
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(made.vectors.ravel()), made.vectors.shape[1])
    columns = {
        "picture": pa.array(made.pictures, pa.string()),
        "pdq": _binary(made.hashes),
        "forms": _binary(made.forms.reshape(len(made.pictures), -1)),
        "quality": pa.array(made.quality),
        "vector": vectors,
    }
    said = {"kind": KIND, "version": VERSION, "set": made.name, "split": made.split, "set_digest": made.digest}
    said |= {"hash": "pdq", "vectors": made.made_by, "unread": str(made.unread)}
    # Captions belong to several pictures or to none, so they are no column.
    metadata = {key.encode(): value.encode() for key, value in said.items()}
    metadata[b"captions"] = np.unique(made.captions).astype("<u8").tobytes().hex().encode()
    storage.write_table(uri, pa.table(columns).replace_schema_metadata(metadata))


def read(uri: str, sha256: str = "") -> Fingerprints:
    """Read what ``write`` has stored; for ``sha256`` see ``storage.read_bytes``.

    Raises:
        DataError: it is no file of fingerprints, of another version, or with other hashes.
        StorageError: it cannot be read, or was altered.
    """
    table = storage.read_table(uri, sha256=sha256)
    with reading(f"{uri} is a damaged file of fingerprints", "Make it again with `wukong hashes SET`"):
        return _fingerprints(uri, table)


def _fingerprints(uri: str, table: pa.Table) -> Fingerprints:
    said = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    found = (said.get("kind"), said.get("version"), said.get("hash"))
    if found != (KIND, VERSION, "pdq"):
        raise DataError(
            f"{uri} holds no fingerprints that can be compared: kind, version and hash are {found}, and must be "
            f"{(KIND, VERSION, 'pdq')}. Make the file with `wukong hashes SET` of this version"
        )
    forms = _bytes(table["forms"], pdq.FORMS * pdq.BYTES).reshape(-1, pdq.FORMS, pdq.BYTES)
    vectors = _vectors(table["vector"]) if said["vectors"] else None
    return Fingerprints(
        said["set"],
        said["split"],
        said["set_digest"],
        table["picture"].to_pylist(),
        forms,
        table["quality"].to_numpy(),
        vectors,
        said["vectors"],
        np.frombuffer(bytes.fromhex(said["captions"]), dtype="<u8"),
        int(said["unread"]),
    )


def together(lists: Iterable[HashList]) -> HashList:
    """One list of what several hold, in order, each hash once."""
    held = [HashList(np.empty((0, pdq.BYTES), np.uint8), np.empty((0, MD5_BYTES), np.uint8)), *lists]
    kinds = ([each.pdq for each in held], [each.md5 for each in held])
    return HashList(*(np.unique(np.concatenate(each), axis=0) for each in kinds))


def read_list(uri: str) -> HashList:
    """Read a list of forbidden pictures.

    Raises:
        ConfigError: a line is too long or holds no hash, hashes are of another kind, or there are none or too many.
        StorageError: it cannot be read.
    """
    found: dict[str, bytearray] = {"pdq": bytearray(), "md5": bytearray()}
    damaged = f"{uri} is a damaged gzip file, or no list of hashes"
    with reading(damaged, "Fetch it again", ConfigError), storage.open_input(uri) as stream:
        compressed = stream.read(2) == _GZIP
        stream.seek(0)
        raw: Any = gzip.GzipFile(fileobj=stream) if compressed else stream
        for kind, value in _values(uri, io.BufferedReader(raw)):
            found[kind] += value
    hashes = np.frombuffer(bytes(found["pdq"]), np.uint8).reshape(-1, pdq.BYTES)
    set_bits = np.bitwise_count(hashes).sum(axis=1, dtype=np.int64)
    if len(hashes) and (set_bits > pdq.BITS // 2).mean() > _OTHERS:
        raise ConfigError(
            f"{uri}: these are no PDQ hashes, of which none has more than half of its bits set. SHA-256 has 64 digits "
            "too: name a list of PDQ or MD5 hashes"
        )
    return HashList(hashes, np.frombuffer(bytes(found["md5"]), np.uint8).reshape(-1, MD5_BYTES))


def _values(uri: str, stream: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """The kind and the bytes of each hash of a list."""
    columns: Sequence[str] | None = None
    only = ""
    hashes = 0
    for number, line in _lines(uri, stream):
        cells = [cell.strip() for cell in next(csv.reader([line]))]
        if columns is None:
            columns = [cell.lower() for cell in cells]
            if not {"hash", *_NAMES}.isdisjoint(columns):
                continue
            columns = ("hash",)
        row = dict(zip(columns, cells, strict=False))
        for name in ("hash", *_NAMES):
            if not (cell := row.get(name, "")):
                continue
            declared = row["type"].lower() if name == "hash" and "type" in row else name
            kind = _DIGITS.get(len(cell), "") if declared == "hash" else _NAMES.get(declared, "")
            if not kind or _DIGITS.get(len(cell)) != kind or not _HEXADECIMAL(cell):
                raise ConfigError(
                    f"{uri}, line {number}: {_shown(cell)} is no hash that can be compared: PDQ has 64 hexadecimal "
                    "digits and MD5 has 32. Leave hashes of other kinds out of the list"
                )
            if declared == "hash":
                only = only or kind
                if kind != only:
                    raise ConfigError(
                        f"{uri}, line {number}: {_shown(cell)} is {kind.upper()}, and the lines before it hold "
                        f"{only.upper()}. Keep each kind in a file of its own, or name the kinds in a column 'type'"
                    )
            hashes += 1
            if hashes > _MOST_HASHES:
                raise ConfigError(f"{uri} holds more than {_MOST_HASHES:,} hashes; split it into several lists")
            yield kind, bytes.fromhex(cell)
    if not hashes:
        raise ConfigError(f"{uri} holds no hash; name a list with at least one, or none at all")


def _lines(uri: str, stream: IO[bytes]) -> Iterator[tuple[int, str]]:
    """The lines that are neither empty nor a remark, with their numbers."""
    number = 0
    while line := stream.readline(_MOST_IN_LINE + 1):
        number += 1
        if len(line) > _MOST_IN_LINE:
            raise ConfigError(
                f"{uri}, line {number} has more than {_MOST_IN_LINE} bytes: this is no list of hashes, one a line"
            )
        try:
            text = line.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{uri}, line {number} is no text in UTF-8 ({error}); name a list of hashes") from error
        if text and not text.startswith("#"):
            yield number, text


def _shown(cell: str) -> str:
    return repr(cell if len(cell) <= _SHOWN else f"{cell[:_SHOWN]}…")


def _binary(rows: npt.NDArray[np.uint8]) -> pa.Array:
    size = rows.shape[1]
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), len(rows), [None, pa.py_buffer(rows.tobytes())])


def _bytes(column: pa.ChunkedArray, size: int) -> npt.NDArray[np.uint8]:
    if column.type != pa.binary(size) or column.null_count:
        raise ValueError(f"a column of {column.type} with {column.null_count} nulls, not of {size} bytes")
    return np.frombuffer(b"".join(column.to_pylist()), np.uint8).reshape(-1, size)


def _vectors(column: pa.ChunkedArray) -> npt.NDArray[np.float16]:
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, np.float16).reshape(len(column), -1)
