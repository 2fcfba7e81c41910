"""Images of a filtered set for pages: read from its shards by key, made small, and chosen at random."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl
from PIL import Image

from wukong.curate import repack
from wukong.curate.split import TRAIN
from wukong.data.decoding import data_uri, decode
from wukong.data.schema import OVERLAPS
from wukong.errors import DataError
from wukong.store import storage
from wukong.store.manifest import Manifest

Pictures = Callable[[str], bytes]

Box = Mapping[str, float]
"""Where a face is: ``x``, ``y``, ``width`` and ``height`` in shares of the picture's sides."""

_SHARDS = 6
_FACES = "faces"
_MARGIN = 0.2
"""By which a blurred area is larger than the face, on each side, in shares of the face."""

_FACE_PIXELS = 4


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
        faces: areas that are blurred, by key.
    """

    def __init__(self, pictures: Pictures, faces: Mapping[str, Sequence[Box]] | None = None) -> None:
        self._pictures = pictures
        self._faces = faces or {}
        self._made: dict[str, str] = {}

    def __call__(self, key: str) -> str:
        """Returns the image of a pair as a data URI, with sides of at most 144 pixels.

        Raises:
            DataError: the image cannot be decoded.
        """
        if key not in self._made:
            image = decode(self._pictures(key), f"the picture of the pair {key}")
            for box in self._faces.get(key, ()):
                blur(image, box)
            self._made[key] = data_uri(image)
        return self._made[key]


def blur(image: Image.Image, box: Box) -> None:
    """Replace a face in an RGB picture by so few colours that nobody can tell whose it is, nor make it sharp again."""
    left, right = _edges(box["x"], box["width"], image.width)
    top, bottom = _edges(box["y"], box["height"], image.height)
    if left < right and top < bottom:
        face = image.crop((left, top, right, bottom))
        few = face.resize((_FACE_PIXELS, _FACE_PIXELS), Image.Resampling.BOX)
        image.paste(few.resize(face.size, Image.Resampling.BICUBIC), (left, top))


def _edges(start: float, length: float, pixels: int) -> tuple[int, int]:
    """Return the first pixel of a blurred area along one side, and the one after its last."""
    edges = start - _MARGIN * length, start + (1 + _MARGIN) * length
    first, after = (min(max(round(edge * pixels), 0), pixels) for edge in edges)
    return first, after


def contact_sheet(
    filtered: Manifest,
    seed: int,
    pairs: int = 48,
    shown: Callable[[pl.DataFrame], pl.Series] | None = None,
) -> list[dict[str, str]]:
    """Choose training pairs at random. Equal data and an equal seed give the same pairs.

    Where the filter was asked for it (``blur_in_previews``), the faces that it found are blurred.

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
    blurs = _blurs_faces(filtered)
    columns = ["key", "caption", "url", "sha256", *([_FACES] if blurs else [])]
    table = pl.concat([pl.DataFrame(storage.read_table(uri, columns)) for uri in chosen])
    if blurs:
        table = table.drop_nulls(_FACES)  # nobody knows where faces are in pictures that the model could not read
    table = table if shown is None else table.filter(shown(table))
    places = generator.sample(range(len(table)), min(len(table), pairs))
    rows: list[dict[str, Any]] = table[places].to_dicts()
    thumbnail = Thumbnails(pictures_of(filtered, chosen), {row["key"]: row.get(_FACES, ()) for row in rows})
    return [{"key": row["key"], "src": thumbnail(row["key"]), "caption": row["caption"]} for row in rows]


def _blurs_faces(filtered: Manifest) -> bool:
    settings = filtered.config.get(_FACES)
    return isinstance(settings, Mapping) and bool(settings.get("blur_in_previews"))
