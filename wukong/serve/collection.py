"""The pictures and captions that are searched: shards of a stage, a folder of pictures, or a list of them."""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from wukong.config.crawl import Crawl
from wukong.crawl import own_files
from wukong.crawl.status import FetchError
from wukong.crawl.url import key_of
from wukong.data import shards
from wukong.errors import DataError
from wukong.publish import takedown
from wukong.runs import located
from wukong.store import damage, manifest, storage

_MANIFEST = "manifest.json"
_NOT_KEPT = "dropped/"
_COLUMNS = ("key", "caption", "sha256")
_SEVERAL = "captions"
_FOLDER_PIECE = 1_000
_WHOLE_FILE = 0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a picture's file is.

    Attributes:
        file: a tar's path below the collection's URI, or the URI of a file.
        offset: where it begins, in bytes.
        size: its bytes; 0 for a whole file.
    """

    file: str
    offset: int = 0
    size: int = _WHOLE_FILE


ROWS = pa.schema(
    [
        ("key", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("digest", pa.binary(16)),
        ("source", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("date", pa.int32()),
        ("licence", pa.string()),
        ("image_hash", pa.uint64()),
    ]
)
"""What is known of a picture. ``digest`` identifies the content of its file, ``source`` is the host that it came from,
``date`` counts days since 1970, and pictures of one ``image_hash`` are nearly the same; null where nothing is known."""


@dataclass(frozen=True)
class Piece:
    """A part of a collection that is encoded at a time.

    Attributes:
        name: unique in the collection; letters, digits, ``-``.
        digest: SHA-256 of what it holds.
        pictures: how many pictures it has. One that several pairs have is in one piece only, with all their captions.
        rows: reads what is known of them (``ROWS``).
        files: URIs of single files by key; None for a shard.
        tar: path of the shard's tar below the collection's URI; empty for single files.
        tar_digest: SHA-256 of the tar; empty for single files.
    """

    name: str
    digest: str
    pictures: int
    rows: Callable[[], pa.Table]
    files: Mapping[str, str] | None = None
    tar: str = ""
    tar_digest: str = ""

    @property
    def captions(self) -> dict[str, tuple[str, ...]]:
        """The captions of each of its pictures, by the picture's key; they are read each time."""
        table = self.rows()
        return dict(zip(table["key"].to_pylist(), map(tuple, table["captions"].to_pylist()), strict=True))


@dataclass(frozen=True)
class Collection:
    """What is searched.

    Attributes:
        uri: where it is.
        digest: SHA-256 of what it holds: of the stage's manifest; for single files of their names, captions, sizes and
            times of change.
        divide: finds its parts, which an index that is finished does not need.
    """

    uri: str
    digest: str
    divide: Callable[[], tuple[Piece, ...]]

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """Its parts."""
        return self.divide()

    @property
    def pictures(self) -> int:
        """How many distinct pictures it has."""
        return sum(piece.pictures for piece in self.pieces)

    def read_piece(
        self, piece: Piece, keys: Iterable[str] | None = None
    ) -> Iterator[tuple[str, Place, Callable[[], bytes]]]:
        """Iterate over the pictures of a piece in one stream: key, place, and what reads the bytes of the file.

        They are read before the next picture is asked for, or not at all.

        Args:
            piece: the piece.
            keys: the keys of its pictures, if they are known.

        Raises:
            DataError: a shard is damaged or lacks a picture.
        """
        if piece.files is not None:
            for key, url in piece.files.items():
                place = Place(url)
                yield key, place, partial(self.read, place)
            return
        missing = set(piece.captions if keys is None else keys)
        tar = storage.join(self.uri, piece.tar)
        for member in shards.members(tar, sha256=piece.tar_digest):
            if member.suffix == "jpg" and member.key in missing:
                missing.remove(member.key)
                yield member.key, Place(piece.tar, member.offset, member.size), member.read
        if missing:
            raise DataError(
                f"{tar} lacks the pictures of {len(missing)} of its pairs, the first {min(missing)}.jpg: "
                f"{damage.remedy(tar)}"
            )

    def read(self, place: Place) -> bytes:
        """Read the file of one picture.

        Raises:
            DataError: it is too large or cannot be read.
            StorageError: the shard cannot be read.
        """
        if place.size == _WHOLE_FILE:
            try:
                return bytes(own_files.read_picture(place.file, _limits("").max_bytes))
            except FetchError as error:
                raise DataError(f"{place.file}: {error}") from error
        with storage.open_input(storage.join(self.uri, place.file)) as stream:
            stream.seek(place.offset)
            return stream.read(place.size)

    def urls(self, places: Mapping[str, Place]) -> dict[str, str]:
        """Return the URLs of some pictures by key: where the crawl found each, or that of its own file.

        Args:
            places: where each is, by key.

        Raises:
            StorageError: a table cannot be read.
        """
        found = {key: place.file for key, place in places.items() if place.size == _WHOLE_FILE}
        tars = {place.file for key, place in places.items() if key not in found}
        for tar in sorted(tars):
            table = storage.join(self.uri, tar.removesuffix(".tar") + ".parquet")
            rows = located.rows(
                table, sorted(key for key, place in places.items() if place.file == tar), ["key", "url"]
            )
            found.update(rows.select("key", "url").iter_rows())
        return found


def of(uri: str, *, during_takedown: bool = False) -> Collection:
    """Find a collection; what it holds is read when its pieces are asked for.

    Args:
        uri: a stage's output or its manifest (crawl, filter), a folder of pictures with captions beside them, or a list
            of pictures. A path is allowed where the URI has no scheme.
        during_takedown: whether a takedown that changes it and has not ended is no reason to refuse it.

    Raises:
        DataError: there are no pictures; a list or a table cannot be read.
        StorageError: there is nothing at the URI.
    """
    named = uri if "://" in uri else storage.from_path(Path(uri).expanduser())
    if named.endswith(f"/{_MANIFEST}"):
        named = named.removesuffix(f"/{_MANIFEST}")
    if storage.exists(storage.join(named, _MANIFEST)):
        if not during_takedown:
            _refuse_half_taken_down(named)
        return _of_stage(named)
    return _of_files(named)


def _of_stage(uri: str) -> Collection:
    made = manifest.load(uri)
    digests = {part.path: part.sha256 for part in made.parts}
    shards = [
        _Shard(uri, stem, digests[f"{stem}.tar"], part.sha256)
        for part in made.parts
        if (stem := part.path.removesuffix(".parquet")) != part.path
        and not part.path.startswith(_NOT_KEPT)
        and f"{stem}.tar" in digests
        and part.rows
    ]
    if not shards:
        raise DataError(
            f"{uri} is the output of the stage {made.stage}, which holds no shards with pictures: give --data the "
            "output of filter or crawl, or a folder of pictures"
        )
    return Collection(uri, made.digest, partial(_divide, shards))


def _refuse_half_taken_down(uri: str) -> None:
    """Raise DataError if a takedown has begun that changes this stage, and has not ended."""
    for folder in (uri, uri.rsplit("/", 2)[0]):
        if begun := takedown.pending(folder):
            raise DataError(
                f"a takedown at {folder}, begun on {begun.when}, has not ended: run `wukong takedown` again, which "
                "finishes it, and then start the server"
            )


class _Shard(NamedTuple):
    """A shard of a stage: the stage's URI, its path without a suffix, the digests of its tar and of its table."""

    uri: str
    stem: str
    tar_digest: str
    table_digest: str

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Read columns of those rows that have a picture; a column that is not there is left out."""
        uri = storage.join(self.uri, f"{self.stem}.parquet")
        table = storage.read_table(uri, [*_COLUMNS, "status", *columns], self.table_digest, present_only=True)
        lacking = [name for name in _COLUMNS if name not in table.column_names]
        if lacking:
            raise DataError(f"{uri} lacks the columns {', '.join(lacking)}: it is not a table of pairs")
        if "status" in table.column_names:
            table = table.filter(pc.equal(table["status"], "success"))
        return table


def _divide(shards: Sequence[_Shard]) -> tuple[Piece, ...]:
    """Make a piece of each shard. Each distinct picture belongs to its first pair, in the order of the shards.

    Only hashes of all pictures are in memory, and the captions of those that several pairs have.
    """
    hashes = []
    for shard in shards:
        table = shard.read(())
        identity = pl.Series(pc.coalesce(table["sha256"], table["key"]), dtype=pl.String)
        hashes.append(identity.hash().to_numpy())
    values, numbers = np.unique(np.concatenate(hashes), return_counts=True)
    repeated = values[numbers > 1]
    owners: dict[str, tuple[int, int]] = {}
    captions: dict[tuple[int, int], dict[str, None]] = defaultdict(dict)
    gone: list[list[int]] = [[] for _ in shards]
    for number, shard in enumerate(shards):
        rows = np.flatnonzero(np.isin(hashes[number], repeated))
        if len(rows):
            table = shard.read([_SEVERAL]).take(rows)
            keys, digests = table["key"].to_pylist(), table["sha256"].to_pylist()
            for row, key, digest, mine in zip(rows.tolist(), keys, digests, _captions_of(table), strict=True):
                first = owners.setdefault(digest or key, (number, row))
                captions[first].update(dict.fromkeys(mine))
                if first != (number, row):
                    gone[number].append(row)
    shared: list[dict[int, tuple[str, ...]]] = [{} for _ in shards]
    for (number, row), each in captions.items():
        shared[number][row] = tuple(each)
    pieces = []
    for number, shard in enumerate(shards):
        if (count := len(hashes[number]) - len(gone[number])) > 0:
            changes = [gone[number], sorted(shared[number].items())]
            digest = manifest.digest_of([shard.tar_digest, shard.table_digest, *changes])
            rows_of = partial(_rows, shard, gone[number], shared[number])
            name, tar = shard.stem.replace("/", "-"), f"{shard.stem}.tar"
            pieces.append(Piece(name, digest, count, rows_of, tar=tar, tar_digest=shard.tar_digest))
    return tuple(pieces)


def _captions_of(table: pa.Table) -> Iterator[tuple[str, ...]]:
    several = table[_SEVERAL].to_pylist() if _SEVERAL in table.column_names else [None] * len(table)
    for caption, others in zip(table["caption"].to_pylist(), several, strict=True):
        yield tuple(dict.fromkeys([caption, *(each["caption"] for each in others or ())]))


def _rows(shard: _Shard, gone: Sequence[int], shared: Mapping[int, tuple[str, ...]]) -> pa.Table:
    """Read what is known of the pictures of a shard.

    Args:
        shard: the shard.
        gone: rows whose picture belongs to another pair.
        shared: the captions of pictures that several pairs have, by row.
    """
    table = shard.read([_SEVERAL, "url", *ROWS.names[4:]])
    captions = [shared.get(row, mine) for row, mine in enumerate(_captions_of(table))]
    digests = [each and hashlib.sha256(each.encode()).digest()[:16] for each in table["sha256"].to_pylist()]
    urls = table["url"].to_pylist() if "url" in table.column_names else [None] * len(table)
    columns = [table["key"], captions, digests, [url and urlsplit(url).hostname for url in urls]]
    columns += [_column(table, ROWS.field(name)) for name in ROWS.names[4:]]
    known = pa.table(
        [
            pa.array(column, field.type) if isinstance(column, list) else column
            for column, field in zip(columns, ROWS, strict=True)
        ],
        schema=ROWS,
    )
    if not gone:
        return known
    kept = np.ones(len(table), bool)
    kept[list(gone)] = False
    return known.filter(pa.array(kept))


def _column(table: pa.Table, field: pa.Field) -> pa.ChunkedArray:
    """A column as it is stored in an index; null where the table lacks it, or has something else under its name."""
    if field.name in table.column_names:
        column = table[field.name]
        try:
            if field.name == "date" and not pa.types.is_integer(column.type):
                column = column.cast(pa.date32())
            return column.cast(field.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            log.warning("the column %s is left out of the index: %s", field.name, error)
    return pa.chunked_array([pa.nulls(len(table), field.type)])


def _of_files(uri: str) -> Collection:
    settings = _limits(uri)
    captions: dict[str, list[str]] = defaultdict(list)
    stamps: dict[str, str] = {}
    named = list(own_files.pictures_of(settings, "--data"))
    for picture in named:
        file = own_files.file_of(picture.url)
        mine = captions[file]
        stamps.setdefault(file, picture.stamp)
        if picture.caption and picture.caption not in mine:
            mine.append(picture.caption)
    urls = iter(captions)
    pieces: list[Piece] = []
    while some := list(islice(urls, _FOLDER_PIECE)):
        keys = {key_of(url): url for url in some}
        stamped = [[url, stamps[url]] for url in keys.values()]
        digest = manifest.digest_of([stamped, [captions[url] for url in keys.values()]])
        identities = [hashlib.sha256(" ".join(each).encode()).digest()[:16] if each[1] else None for each in stamped]
        known = {"key": list(keys), "captions": [captions[url] for url in keys.values()], "digest": identities}
        columns = [pa.array(known.get(field.name, [None] * len(keys)), field.type) for field in ROWS]
        rows = partial(pa.table, columns, schema=ROWS)
        pieces.append(Piece(f"files-{len(pieces):05d}", digest, len(keys), rows, files=keys))
    return Collection(uri, own_files.digest_of(named), partial(tuple, pieces))


def _limits(endpoint: str) -> Crawl:
    return Crawl(engine="files", endpoint=endpoint)
