"""The pictures and captions that are searched: shards of a stage, a folder of pictures, or a list of them."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import pyarrow as pa

from wukong.config.crawl import Crawl
from wukong.crawl import own_files
from wukong.crawl.status import FetchError
from wukong.crawl.url import key_of
from wukong.data import shards
from wukong.errors import DataError
from wukong.publish import takedown
from wukong.runs import located
from wukong.store import manifest, storage

_MANIFEST = "manifest.json"
_NOT_KEPT = "dropped/"
_COLUMNS = ("key", "caption", "sha256")
_SEVERAL = "captions"
_FOLDER_PIECE = 1_000
_WHOLE_FILE = 0


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


@dataclass(frozen=True)
class Piece:
    """A part of a collection that is encoded at a time.

    Attributes:
        name: unique in the collection; letters, digits, ``-``.
        captions: the captions of each of its pictures, by the picture's key. A picture that several pairs have is in
            one piece only, with the captions of all of them.
        files: URIs of single files by key; None for a shard.
        tar: path of the shard's tar below the collection's URI; empty for single files.
    """

    name: str
    captions: Mapping[str, tuple[str, ...]]
    files: Mapping[str, str] | None = None
    tar: str = ""


@dataclass(frozen=True)
class Collection:
    """What is searched.

    Attributes:
        uri: where it is.
        digest: SHA-256 of what it holds: of the stage's manifest; for single files of their names, captions, sizes and
            times of change.
        pieces: its parts.
    """

    uri: str
    digest: str
    pieces: tuple[Piece, ...]

    @property
    def pictures(self) -> int:
        """How many distinct pictures it has."""
        return sum(len(piece.captions) for piece in self.pieces)

    def read_piece(self, piece: Piece) -> Iterator[tuple[str, Place, Callable[[], bytes]]]:
        """Iterate over the pictures of a piece in one stream: key, place, and what reads the bytes of the file.

        They are read before the next picture is asked for, or not at all.

        Raises:
            DataError: a shard is damaged or lacks a picture.
        """
        if piece.files is not None:
            for key, url in piece.files.items():
                place = Place(url)
                yield key, place, partial(self.read, place)
            return
        missing = set(piece.captions)
        tar = storage.join(self.uri, piece.tar)
        for member in shards.members(tar):
            if member.suffix == "jpg" and member.key in missing:
                missing.remove(member.key)
                yield member.key, Place(piece.tar, member.offset, member.size), member.read
        if missing:
            raise DataError(
                f"{tar} lacks the pictures of {len(missing)} of its pairs, the first {min(missing)}.jpg: delete the "
                "stage's output and run it again"
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


def of(uri: str) -> Collection:
    """Read what a collection holds: keys and captions, no pictures.

    Args:
        uri: a stage's output or its manifest (crawl, filter), a folder of pictures with captions beside them, or a list
            of pictures. A path is allowed where the URI has no scheme.

    Raises:
        DataError: there are no pictures; a list or a table cannot be read.
        StorageError: there is nothing at the URI.
    """
    named = uri if "://" in uri else storage.from_path(Path(uri).expanduser())
    if named.endswith(f"/{_MANIFEST}"):
        named = named.removesuffix(f"/{_MANIFEST}")
    if storage.exists(storage.join(named, _MANIFEST)):
        return _of_stage(named)
    return _of_files(named)


def _of_stage(uri: str) -> Collection:
    """Each distinct picture belongs to its first pair, in the order of the manifest."""
    made = manifest.load(uri)
    _refuse_half_taken_down(uri)
    parts = set(made.parts.paths)
    owner: dict[str, str] = {}
    captions: dict[str, dict[str, None]] = defaultdict(dict)
    of_piece: dict[str, list[str]] = {}
    for part in made.parts:
        stem = part.path.removesuffix(".parquet")
        if stem == part.path or part.path.startswith(_NOT_KEPT) or f"{stem}.tar" not in parts or not part.rows:
            continue
        table = _rows(storage.join(uri, part.path))
        mine = of_piece.setdefault(stem, [])
        several = table[_SEVERAL].to_pylist() if _SEVERAL in table.column_names else [None] * len(table)
        for key, caption, digest, others in zip(*(table[name].to_pylist() for name in _COLUMNS), several, strict=True):
            first = owner.setdefault(digest or key, key)
            captions[first].update({caption: None} | {each["caption"]: None for each in others or ()})
            if first == key:
                mine.append(key)
    pieces = tuple(
        Piece(stem.replace("/", "-"), {key: tuple(captions[key]) for key in keys}, tar=f"{stem}.tar")
        for stem, keys in of_piece.items()
        if keys
    )
    if not pieces:
        raise DataError(
            f"{uri} is the output of the stage {made.stage}, which holds no shards with pictures: give --data the "
            "output of filter or crawl, or a folder of pictures"
        )
    return Collection(uri, made.digest, pieces)


def _refuse_half_taken_down(uri: str) -> None:
    """Raise DataError if a takedown has begun that changes this stage, and has not ended."""
    for folder in (uri, uri.rsplit("/", 2)[0]):
        if begun := takedown.pending(folder):
            raise DataError(
                f"a takedown at {folder}, begun on {begun.when}, has not ended: run `wukong takedown` again, which "
                "finishes it, and then start the server"
            )


def _rows(uri: str) -> pa.Table:
    """Read the rows of a shard's table that have a picture."""
    table = storage.read_table(uri)
    lacking = [name for name in _COLUMNS if name not in table.column_names]
    if lacking:
        raise DataError(f"{uri} lacks the columns {', '.join(lacking)}: it is not a table of pairs")
    if "status" in table.column_names:
        import pyarrow.compute as pc

        table = table.filter(pc.equal(table["status"], "success"))
    return table.select([name for name in table.column_names if name in (*_COLUMNS, _SEVERAL)])


def _of_files(uri: str) -> Collection:
    settings = _limits(uri)
    captions: dict[str, list[str]] = defaultdict(list)
    named = list(own_files.pictures_of(settings))
    for picture in named:
        mine = captions[own_files.file_of(picture.url)]
        if picture.caption and picture.caption not in mine:
            mine.append(picture.caption)
    urls = iter(captions)
    pieces: list[Piece] = []
    while some := list(islice(urls, _FOLDER_PIECE)):
        keys = {key_of(url): url for url in some}
        pieces.append(
            Piece(f"files-{len(pieces):05d}", {key: tuple(captions[url]) for key, url in keys.items()}, files=keys)
        )
    return Collection(uri, own_files.digest_of(named), tuple(pieces))


def _limits(endpoint: str) -> Crawl:
    return Crawl(engine="files", endpoint=endpoint)
