"""Images of a filtered set for pages: read from its shards by key, made small, and chosen at random."""

import random
from collections.abc import Callable, Sequence

import polars as pl

from wukong.curate import repack
from wukong.curate.split import TRAIN
from wukong.data.decoding import data_uri, decode
from wukong.data.schema import OVERLAPS
from wukong.errors import DataError
from wukong.store import storage
from wukong.store.manifest import Manifest

Pictures = Callable[[str], bytes]

_SHARDS = 6


def pictures_of(filtered: Manifest, shards: Sequence[str] | None = None) -> Pictures:
    """Returns a function that reads an image by its pair's key from the shards of a filter stage.

    A shard is indexed when it is first needed. The function raises DataError for a key that no shard has.

    Args:
        filtered: the filter stage's manifest.
        shards: tables of the shards that are looked through; by default all, and keys of all that come first are held.
    """
    tars: dict[str, str] = {}
    places: dict[str, dict[str, tuple[int, int]]] = {}
    tables = iter(shard_tables(filtered) if shards is None else shards)

    def read(key: str) -> bytes:
        while key not in tars:
            uri = next(tables, None)
            if uri is None:
                raise DataError(
                    f"no shard of {filtered.uri} has the pair {key}: run the filter and evaluate stages again"
                )
            tar = uri.removesuffix(".parquet") + ".tar"
            tars.update(dict.fromkeys(storage.read_table(uri, ["key"])["key"].to_pylist(), tar))
        tar = tars[key]
        if tar not in places:
            index = repack.picture_places(tar)
            places[tar] = {row["key"]: (row["offset"], row["size"]) for row in index.to_dicts()}
        offset, size = places[tar][key]
        with storage.open_input(tar) as stream:
            stream.seek(offset)
            return bytes(stream.read(size))

    return read


def shard_tables(filtered: Manifest) -> list[str]:
    """Returns the URIs of the tables of all shards, test sets first: they are few, and most images come from them."""
    tables = filtered.parts.below(suffix=".parquet").paths
    paths = [path for path in tables if path != OVERLAPS and not path.startswith("dropped/")]
    paths.sort(key=lambda path: (path.startswith(f"{TRAIN}/"), path))
    return [storage.join(filtered.uri, path) for path in paths]


class Thumbnails:
    """Small images as data URIs. Each is made once.

    Args:
        pictures: returns an image's bytes by its pair's key.
    """

    def __init__(self, pictures: Pictures) -> None:
        self._pictures = pictures
        self._made: dict[str, str] = {}

    def __call__(self, key: str) -> str:
        """Returns the image of a pair as a data URI, with sides of at most 144 pixels.

        Raises:
            DataError: the image cannot be decoded.
        """
        if key not in self._made:
            self._made[key] = data_uri(decode(self._pictures(key), f"the picture of the pair {key}"))
        return self._made[key]


def contact_sheet(
    filtered: Manifest,
    seed: int,
    pairs: int = 48,
    shown: Callable[[pl.DataFrame], pl.Series] | None = None,
) -> list[dict[str, str]]:
    """Choose training pairs at random. Equal data and an equal seed give the same pairs.

    Args:
        filtered: the filter stage's manifest.
        seed: decides which pairs are chosen.
        pairs: how many are chosen.
        shown: tells which rows may be shown; by default all.

    Returns:
        ``key``, ``src`` (data URI) and ``caption`` of each pair.
    """
    generator = random.Random(seed)
    uris = filtered.part_uris(f"{TRAIN}/", ".parquet")
    if not uris:
        return []
    chosen = sorted(generator.sample(uris, min(len(uris), _SHARDS)))
    columns = ["key", "caption", "url", "sha256"]
    table = pl.concat([pl.DataFrame(storage.read_table(uri, columns)) for uri in chosen])
    table = table if shown is None else table.filter(shown(table))
    thumbnail = Thumbnails(pictures_of(filtered, chosen))
    places = generator.sample(range(len(table)), min(len(table), pairs))
    return [{"key": key, "src": thumbnail(key), "caption": caption} for key, caption, _, _ in table[places].iter_rows()]
