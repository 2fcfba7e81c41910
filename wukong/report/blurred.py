"""Pictures that were dropped, blurred so far that they cannot be made sharp again, for the operator's dataset card.

The pairs stand in the filter's tables of dropped pairs, the pictures in the tars of the crawl.
"""

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import polars as pl
from PIL import Image

from wukong.curate import repack
from wukong.data.decoding import decode
from wukong.errors import DataError
from wukong.runs import located
from wukong.store import storage
from wukong.store.manifest import Manifest

_PIXELS = 12


@dataclass(frozen=True)
class Dropped:
    """A dropped picture.

    Attributes:
        key: the pair's key.
        rule: name of the rule that dropped it.
        src: the blurred picture as a data URI, of 12 x 12 pixels: no more of it is stored anywhere on the page.
    """

    key: str
    rule: str
    src: str


def blurred(image: Image.Image) -> str:
    """Return an RGB picture as a data URI of 12 x 12 pixels, each the mean of a part of it."""
    target = io.BytesIO()
    image.resize((_PIXELS, _PIXELS), Image.Resampling.BOX).save(target, "PNG")
    return "data:image/png;base64," + base64.b64encode(target.getvalue()).decode()


def examples(crawl: Manifest, chosen: Sequence[tuple[str, str]]) -> list[Dropped]:
    """Read dropped pictures and blur them. One that cannot be decoded is left out.

    Args:
        crawl: the crawl stage's manifest.
        chosen: rules and keys, as ``wukong.report.removed.Removed.chosen`` returns them.
    """
    made = dict(_blurred(crawl, sorted(key for _, key in chosen)))
    return [Dropped(key, rule, made[key]) for rule, key in chosen if key in made]


def _blurred(crawl: Manifest, keys: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the keys whose pictures can be decoded, with the pictures blurred; each tar is looked through once."""
    for path in located.tables(crawl, keys) if keys else ():
        uri = storage.join(crawl.uri, path)
        if not path.startswith("parts/") or not (held := located.rows(uri, keys, ["key"])["key"].to_list()):
            continue
        tar = uri.removesuffix(".parquet") + ".tar"
        places = repack.picture_places(tar).filter(pl.col("key").is_in(held))
        with storage.open_input(tar) as stream:
            for key, offset, size in places.iter_rows():
                stream.seek(offset)
                with suppress(DataError):
                    yield key, blurred(decode(stream.read(size), key))
