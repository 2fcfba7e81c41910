"""Find what looks like a picture that somebody shows, in all that an experiment stored, so that it can be taken down.

A stored picture is near an example if its file is equal (SHA-256 of what was downloaded), or if their PDQ hashes
(``wukong.curate.pdq``) differ in few bits, also where one of them is mirrored or turned. Hashes that the filter has
computed (stage ``look``) are used; of other pictures, also of pairs that the filter dropped and of crawls that were
killed, the tars are read, part by part. ``wukong.publish.alike_vectors`` compares vectors as well. An example may be a
list of hashes too, of pictures that nobody may see (``wukong.curate.hash_files``).
"""

import asyncio
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from PIL import Image

from wukong.crawl import uploads
from wukong.crawl.status import Status
from wukong.crawl.uploads import RefusedError, UploadDecoder
from wukong.crawl.url import key_of
from wukong.curate import hash_files, pdq
from wukong.curate.hash_search import HashSearch
from wukong.data import shards
from wukong.data.decoding import decode
from wukong.errors import ConfigError, DataError, StorageError
from wukong.publish import release, superseded
from wukong.publish.parallel import for_each
from wukong.publish.takedown_plan import finished, stages_at, unfinished_crawls
from wukong.runs import located
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest

Level = Literal["equal", "hash", "vector"]

_LEVELS: tuple[Level, ...] = ("equal", "hash", "vector")
_PICTURES_AT_ONCE = 64
_MANY_PICTURES = 20_000
"""Processes are worth their start: threads wait for each other while they hash."""

_LIMITS = uploads.Limits(upload_bytes=32 * 2**20)
_OF_LOOK = ("key", "pdq_forms", "pdq_quality", "md5")
"""Columns of the stage ``look`` where the filter's rule ``forbidden`` is on."""

_OF_URLS = ("plan", "search")
"""Folders of a crawl's tables that have no pictures."""


@dataclass(frozen=True)
class Example:
    """A picture that somebody shows, or a list of hashes of pictures.

    Attributes:
        name: how messages call it.
        hashes: PDQ, uint8 [hashes, 32]; none of a picture with too little in it to be hashed.
        sha256: of the picture's file; empty for a list.
        picture: what a crawl would have stored of it, a JPEG; empty for a list.
        md5: of JPEGs as they are stored, for a list.
    """

    name: str
    hashes: pdq.Hashes
    sha256: str = ""
    picture: bytes = b""
    md5: frozenset[bytes] = frozenset()

    def open(self) -> Image.Image:
        """Return the picture, RGB."""
        return decode(self.picture, self.name)


@dataclass(frozen=True)
class Hit:
    """A stored picture that is near an example.

    Attributes:
        key: of its pair.
        level: by what it is near.
        distance: 0 for an equal file, the bits in which hashes differ, or 1 minus the cosine of the vectors.
        example: name of the example.
    """

    key: str
    level: Level
    distance: float
    example: str

    @property
    def rank(self) -> tuple[int, float, str]:
        """What hits are sorted by, the nearest first."""
        return _LEVELS.index(self.level), self.distance, self.key

    @property
    def says(self) -> str:
        """By what it is near, and how near."""
        if self.level == "equal":
            return "equal file"
        return f"hash, {self.distance:.0f} bits" if self.level == "hash" else f"vector, cosine {1 - self.distance:.3f}"


@dataclass(frozen=True)
class Match:
    """What is known of a hit.

    Attributes:
        hit: the hit.
        url: the URL of its pair; empty if only a tar of a crawl that was killed has it.
        caption: the pair's caption.
        sha256: of the downloaded file; empty if that is not known.
        where: the tables that hold it, stage and path.
    """

    hit: Hit
    url: str
    caption: str
    sha256: str
    where: tuple[str, ...]


class _Sought:
    """Examples, and an index of their hashes, which each process makes for itself."""

    def __init__(self, examples: Sequence[Example], distance: int) -> None:
        self.examples, self.distance = tuple(examples), distance
        self._names = [example.name for example in examples for _ in example.hashes]

    @cached_property
    def _search(self) -> HashSearch:
        return HashSearch(np.concatenate([example.hashes for example in self.examples]))

    @property
    def has_hashes(self) -> bool:
        """Whether there is any PDQ or MD5 to compare with."""
        return bool(self._names) or any(example.md5 for example in self.examples)

    def by_pdq(self, keys: Sequence[str], forms: npt.NDArray[np.uint8]) -> list[Hit]:
        """Return what is near of some pictures, by the hashes of their eight forms, uint8 [keys, 8, 32]."""
        rows, distances = self._search.nearest(forms.reshape(-1, pdq.BYTES), self.distance)
        near = np.flatnonzero(rows >= 0).tolist()
        return [Hit(keys[n // pdq.FORMS], "hash", int(distances[n]), self._names[rows[n]]) for n in near]

    def by_md5(self, keys: Sequence[str], digests: Sequence[bytes]) -> list[Hit]:
        """Return what is equal of some pictures, by the MD5 of the JPEGs as they are stored."""
        named = zip(keys, digests, strict=True)
        return [
            Hit(key, "equal", 0, each.name) for key, digest in named for each in self.examples if digest in each.md5
        ]


class _Piece(NamedTuple):
    """A tar of pictures, the table beside it (empty if there is none), and tables with hashes of its pictures."""

    tar: str
    table: str = ""
    hashed: tuple[str, ...] = ()


def read_examples(places: Sequence[str]) -> list[Example]:
    """Read the pictures that somebody shows, as the crawl reads its own: in a process with limits on memory and time.

    Args:
        places: URIs of their files.

    Raises:
        ConfigError: there is no such file, it is no picture, or it is too large.
    """

    async def decoded(files: Sequence[bytes]) -> list[bytes]:
        with UploadDecoder(_LIMITS) as decoder:
            return [await _decoded(decoder, place, data) for place, data in zip(places, files, strict=True)]

    files = [_read(place) for place in places]
    pictures = asyncio.run(decoded(files))
    hashes, quality = pdq.hashes([decode(picture) for picture in pictures])
    return [
        Example(place, hashed[quality[row : row + 1] >= pdq.MIN_QUALITY], hashlib.sha256(data).hexdigest(), picture)
        for row, (place, data, picture, hashed) in enumerate(zip(places, files, pictures, hashes[:, None], strict=True))
    ]


def read_lists(places: Iterable[str]) -> list[Example]:
    """Read lists of PDQ or MD5 hashes.

    Args:
        places: URIs of their files.

    Raises:
        DataError: one of them is no such list.
        StorageError: a file cannot be read.
    """
    lists = {place: hash_files.read_list(place) for place in places}
    return [Example(place, each.pdq, md5=frozenset(map(bytes, each.md5))) for place, each in lists.items()]


def _read(place: str) -> bytes:
    most = _LIMITS.upload_bytes
    try:
        with storage.open_input(place) as stream:
            data = bytes(stream.read(most + 1))
    except (StorageError, OSError) as error:
        raise ConfigError(f"--like: {place} cannot be read ({error}): give a picture's path or URI") from error
    if len(data) > most:
        raise ConfigError(f"--like: {place} has more than {most >> 20} MiB: give a smaller picture")
    return data


async def _decoded(decoder: UploadDecoder, place: str, data: bytes) -> bytes:
    try:
        return await decoder.decode(data)
    except RefusedError as error:
        raise ConfigError(f"--like: {place}: {error}") from error


def outputs_at(place: str) -> list[Manifest]:
    """Return the manifests of all stages at a place that hold pairs, also of crawls that failed or were killed.

    Raises:
        DataError: none of them holds pictures.
    """
    outputs = [*(crawl for crawl, _ in unfinished_crawls(place)), *stages_at(place)]
    if not any(stage.stage in ("crawl", "filter") for stage in outputs):
        raise DataError(
            f"{place} has no pictures to compare with: name the experiment, which has the crawl or the shards; a copy "
            "of a release then loses the pairs by `wukong takedown LIST --at FOLDER` with a list of URLs"
        )
    return outputs


def by_pictures(
    place: str, outputs: Sequence[Manifest], examples: Sequence[Example], distance: int
) -> tuple[list[Hit], int]:
    """Find the stored pictures whose file is equal to an example's, or whose hash is near.

    Args:
        place: URI of the experiment, or of one stage's output.
        outputs: what ``outputs_at`` returned.
        examples: what is looked for.
        distance: the most bits of 256 in which hashes may differ.

    Returns:
        The nearest hit of each pair, and how many pictures could not be decoded.

    Raises:
        DataError: a tar is damaged.
        StorageError: a file cannot be read.
    """
    pieces = list(_pieces(place, outputs))
    pictures = sum(stage.counts.get("success", stage.counts.get("kept", 0)) for stage in outputs)
    work = partial(_near, sought=_Sought(examples, distance))
    best: dict[str, Hit] = {}
    unread = 0
    for hits, failed in for_each("compare pictures", pieces, work, many=pictures > _MANY_PICTURES):
        unread += failed
        for hit in hits:
            if hit.key not in best or hit.rank < best[hit.key].rank:
                best[hit.key] = hit
    return sorted(best.values(), key=lambda hit: hit.rank), unread


def _pieces(place: str, outputs: Iterable[Manifest]) -> Iterator[_Piece]:
    """Iterate over the tars that hold each picture at least once; a filter's shards hold pictures of its crawl."""
    # An attempt that failed may have handed its files on.
    there = [stage for stage in outputs if stage.stage != "crawl" or "parts" in storage.list_names(stage.uri)]
    crawls = {stage.digest for stage in there if stage.stage == "crawl" and stage.parts}
    looks = [manifest.load(uri) for uri in finished(place, ["look"])]
    for stage in there:
        if stage.stage == "crawl" and stage.parts:
            mine = [look for look in looks if stage.digest in {parent.digest for parent in look.parents}]
            for number, table in enumerate(stage.part_uris("parts/", ".parquet")):
                hashed = (path for look in mine for path in look.part_uris(f"parts/{number:05d}.", ".parquet"))
                yield _Piece(f"{table.removesuffix('.parquet')}.tar", table, tuple(hashed))
        elif stage.stage == "crawl":
            files = storage.list_files(storage.join(stage.uri, "parts"))
            tables = {uri for uri in files if uri.endswith(".parquet")}
            for tar in (uri for uri in files if uri.endswith(".tar")):
                table = f"{tar.removesuffix('.tar')}.parquet"
                yield _Piece(tar, table if table in tables else "")
        elif stage.stage == "filter" and not crawls & {parent.digest for parent in stage.parents}:
            tars = stage.part_uris(suffix=".tar")
            yield from (_Piece(tar, f"{tar.removesuffix('.tar')}.parquet") for tar in tars)


def _near(piece: _Piece, sought: _Sought) -> tuple[list[Hit], int]:
    """Return what of a tar is near, and how many of its pictures cannot be decoded."""
    hits: list[Hit] = []
    unknown: set[str] | None = None
    if piece.table:
        rows = pl.DataFrame(storage.read_table(piece.table, ("key", "sha256", "status"), present_only=True))
        if "status" in rows.columns:
            rows = rows.filter(pl.col("status") == Status.SUCCESS)
        for example in sought.examples:
            equal = rows.filter(pl.col("sha256") == example.sha256)["key"]
            hits += [Hit(key, "equal", 0, example.name) for key in equal]
        unknown = set(rows["key"])
    if not sought.has_hashes:
        return hits, 0
    for uri in piece.hashed:
        looked = pl.DataFrame(storage.read_table(uri, _OF_LOOK, present_only=True))
        if set(looked.columns) == set(_OF_LOOK):
            looked = looked.unique("key", maintain_order=True)
            unknown = None if unknown is None else unknown.difference(looked["key"])
            hits += sought.by_md5(looked["key"].to_list(), looked["md5"].to_list())
            good = looked.filter(pl.col("pdq_quality") >= pdq.MIN_QUALITY)
            forms = np.frombuffer(b"".join(good["pdq_forms"]), np.uint8).reshape(-1, pdq.FORMS, pdq.BYTES)
            hits += sought.by_pdq(good["key"].to_list(), forms)
    failed = 0
    if unknown is None or unknown:
        pictures = (each for each in shards.pictures(piece.tar) if unknown is None or each[0] in unknown)
        while some := list(islice(pictures, _PICTURES_AT_ONCE)):
            hits += sought.by_md5(
                [key for key, _ in some], [hashlib.md5(data, usedforsecurity=False).digest() for _, data in some]
            )
            shown = {key: picture for key, data in some if (picture := _opened(key, data))}
            forms, quality = pdq.dihedral(list(shown.values()))
            good_keys = [key for key, each in zip(shown, quality, strict=True) if each >= pdq.MIN_QUALITY]
            hits += sought.by_pdq(good_keys, forms[quality >= pdq.MIN_QUALITY])
            failed += len(some) - len(shown)
    return hits, failed


def _opened(key: str, data: bytes) -> Image.Image | None:
    try:
        return decode(data, key)
    except DataError:
        return None


def has_vectors(place: str, outputs: Sequence[Manifest], roots: Iterable[str]) -> bool:
    """Return whether features are stored at a place, or indexes of what is there: only then a tower must be loaded."""
    uris = {stage.uri for stage in outputs}
    named = (uri for root in roots for uri, _ in superseded.made_of(root).values())
    return bool(finished(place, ["features"])) or any(uri in uris for uri in named)


def described(outputs: Sequence[Manifest], hits: Sequence[Hit]) -> list[Match]:
    """Say of hits what their pairs are and where they lie; only the tables are read that may hold them.

    Args:
        outputs: what ``outputs_at`` returned.
        hits: the hits.

    Raises:
        StorageError: a table cannot be read.
    """
    keys = sorted({hit.key for hit in hits})
    tables = [(stage, path) for stage in outputs for path in located.tables(stage, keys)]
    facts = {key: {"url": "", "caption": "", "sha256": ""} for key in keys}
    where: dict[str, dict[str, None]] = {key: {} for key in keys}
    rows_of = for_each("say where they lie", tables, partial(_rows, keys=keys))
    for (stage, path), rows in zip(tables, rows_of, strict=True):
        for row in rows.iter_rows(named=True):
            known = facts[row["key"]]
            known |= {name: row[name] for name in known if row.get(name) and not known[name]}
            if path.partition("/")[0] not in _OF_URLS and row.get("status") in (None, Status.SUCCESS):
                where[row["key"]][f"{stage.stage} {path}"] = None
    ranked = sorted(hits, key=lambda hit: hit.rank)
    return [Match(hit, **facts[hit.key], where=tuple(where[hit.key])) for hit in ranked]


def _rows(table: tuple[Manifest, str], keys: Sequence[str]) -> pl.DataFrame:
    stage, path = table
    uri = storage.join(stage.uri, path)
    if not path.endswith(".csv"):
        return located.rows(uri, keys, ["key", "url", "caption", "sha256", "status", "dropped_by"])
    rows = release.read_csv(uri)
    named = rows.with_columns(key=pl.Series([key_of(url) for url in rows["url"]], dtype=pl.String))
    return named.filter(pl.col("key").is_in(keys))


def as_list(matches: Iterable[Match]) -> str:
    """Return matches as a list that a takedown takes: the digest of each picture, below a line that tells of it.

    What is near by vectors alone is a comment. A crawl that was killed may have no digest: then the URL is the entry.
    """
    lines = ["# Delete what is to stay. Take the # away before an entry that is near by its vector and is to go."]
    for match in matches:
        facts = (match.hit.key, match.hit.says, match.caption, match.url, ", ".join(match.where))
        entry = match.sha256 or match.url
        lines += [f"# {' · '.join(filter(None, facts))}", f"# {entry}" if match.hit.level == "vector" else entry]
    # A caption or a URL of many lines would be entries of its own.
    return "".join(f"{' '.join(line.split())}\n" for line in lines)
