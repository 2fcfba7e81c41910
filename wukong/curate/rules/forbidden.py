"""Pictures on lists that an operator must obey are dropped, and nobody sees them. Off without a list.

Forbidden pictures are found by PDQ, though they are mirrored, turned, resized or encoded anew, and by the MD5 of the
JPEG that the crawl stores. See ``docs/overlap.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from wukong.config.section import Strict
from wukong.curate.rule import FromPictures, PictureBatch, Rule
from wukong.runtime.language import message

if TYPE_CHECKING:
    import polars as pl

    from wukong.curate.hash_search import HashSearch


class Forbidden(Strict):
    """The section ``filter.forbidden``."""

    lists: tuple[str, ...] = Field(
        (), description="URIs of lists of PDQ or MD5 hashes of pictures that are dropped and never shown"
    )
    distance: int = Field(
        31, ge=0, le=63, description="bits of 256 in which the PDQ hash of a forbidden picture may differ"
    )
    min_quality: int = Field(
        50, ge=0, le=100, description="pictures of a lower PDQ quality have too little in them to be compared by PDQ"
    )


class ForbiddenSettings(Strict):
    """Keys of ``filter``."""

    forbidden: Forbidden = Forbidden()


class _Lists(NamedTuple):
    pdq: HashSearch
    md5: pl.Series


def _on(settings: ForbiddenSettings) -> bool:
    return bool(settings.forbidden.lists)


def pdq_forms(batch: PictureBatch, _settings: Strict) -> pl.Series:
    """The PDQ hash of each picture in eight forms, one after another."""
    import polars as pl

    return pl.Series([each.tobytes() for each in batch.pdq[0]], dtype=pl.Binary)


def pdq_quality(batch: PictureBatch, _settings: Strict) -> pl.Series:
    """The PDQ quality of each picture, 0 to 100."""
    import polars as pl

    return pl.Series(batch.pdq[1], dtype=pl.UInt8)


def _md5(batch: PictureBatch, _settings: ForbiddenSettings) -> pl.Series:
    import hashlib

    import polars as pl

    return pl.Series([hashlib.md5(data, usedforsecurity=False).digest() for data in batch.pictures], dtype=pl.Binary)


def load(settings: ForbiddenSettings) -> _Lists:
    """Read the lists.

    Raises:
        ConfigError: one cannot be used.
    """
    import polars as pl

    from wukong.curate import hash_files
    from wukong.curate.hash_search import HashSearch

    known = hash_files.together([hash_files.read_list(uri) for uri in settings.forbidden.lists])
    return _Lists(HashSearch(known.pdq), pl.Series([row.tobytes() for row in known.md5], dtype=pl.Binary))


def _digests(settings: ForbiddenSettings) -> dict[str, str]:
    from wukong.curate import hash_files

    known = hash_files.together([hash_files.read_list(uri) for uri in settings.forbidden.lists])
    return {"forbidden.lists": known.digest}


def _look_up(pairs: pl.DataFrame, settings: ForbiddenSettings, lists: _Lists) -> dict[str, pl.Series]:
    import numpy as np
    import polars as pl

    from wukong.curate.pdq import BYTES, FORMS

    listed = pairs["md5"].is_in(lists.md5.implode()).fill_null(value=False).to_numpy(writable=True)
    told = np.flatnonzero((pairs["pdq_quality"] >= settings.forbidden.min_quality).fill_null(value=False))
    forms = np.frombuffer(b"".join(pairs["pdq_forms"].gather(told)), np.uint8).reshape(-1, BYTES)
    found, _ = lists.pdq.nearest(forms, settings.forbidden.distance)
    listed[told] |= (found >= 0).reshape(-1, FORMS).any(axis=1)
    return {"forbidden": pl.Series(listed)}


def _drops(_settings: ForbiddenSettings) -> pl.Expr:
    import polars as pl

    return pl.col("forbidden")


def _counts(pairs: pl.DataFrame, settings: ForbiddenSettings) -> dict[str, int]:
    """Pictures that cannot be compared by PDQ are counted, because one of them may be forbidden."""
    import polars as pl

    return {"unread/forbidden": len(pairs.filter(pl.col("pdq_quality") < settings.forbidden.min_quality))}


def _list_problem(uri: str) -> str:
    from wukong.store import storage

    return "" if storage.exists(uri) else message(f"{uri} does not exist; name a list of hashes that is there")


_THRESHOLDS = ("forbidden.lists", "forbidden.distance", "forbidden.min_quality")

RULE = Rule(
    name="forbidden",
    place=1,
    title="picture on no list of forbidden ones",
    unchecked=message("No list of forbidden pictures was obeyed."),
    version=1,
    settings=ForbiddenSettings,
    enabled=_on,
    load=load,
    digests=_digests,
    from_pictures=tuple(
        FromPictures(column=column, compute=compute, thresholds=_THRESHOLDS)
        for column, compute in (("pdq_forms", pdq_forms), ("pdq_quality", pdq_quality), ("md5", _md5))
    ),
    look_up=_look_up,
    drops=_drops,
    counts=_counts,
    uris={"forbidden.lists": _list_problem},
    never_shown=True,
)
