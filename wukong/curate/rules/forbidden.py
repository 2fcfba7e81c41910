"""Pictures on lists that an operator must obey are dropped, and nobody sees them. Off without a list.

Forbidden pictures are found by PDQ, though they are mirrored, turned, resized or encoded anew, and by the MD5 of the
JPEG that the crawl stores. See ``docs/overlap.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from wukong.config.section import Strict
from wukong.curate.rule import Columns, Dropped, FromPictures, Pairs, PictureBatch, Rule

if TYPE_CHECKING:
    import polars as pl

    from wukong.curate.hash_files import HashList
    from wukong.curate.hash_search import HashSearch


class Forbidden(Strict):
    """The section ``filter.forbidden``."""

    lists: tuple[str, ...] = Field(
        (), description="URIs of lists of PDQ or MD5 hashes of pictures that are dropped and never shown"
    )


class _Lists(NamedTuple):
    pdq: HashSearch
    md5: pl.Series


def _pdq_forms(batch: PictureBatch, _settings: Strict) -> pl.Series:
    """The PDQ hash of each picture in eight forms, one after another."""
    import polars as pl

    return pl.Series([each.tobytes() for each in batch.pdq[0]], dtype=pl.Binary)


def _pdq_quality(batch: PictureBatch, _settings: Strict) -> pl.Series:
    """The PDQ quality of each picture, 0 to 100."""
    import polars as pl

    return pl.Series(batch.pdq[1], dtype=pl.UInt8)


def _md5(batch: PictureBatch, _settings: Strict) -> pl.Series:
    import hashlib

    import polars as pl

    return pl.Series([hashlib.md5(data, usedforsecurity=False).digest() for data in batch.pictures], dtype=pl.Binary)


def _known(settings: Forbidden) -> HashList:
    from wukong.curate import hash_files

    return hash_files.together(map(hash_files.read_list, settings.lists))


class ForbiddenRule(Rule):
    place = 1
    title = "picture on no list of forbidden ones"
    unchecked = "No list of forbidden pictures was obeyed."
    decided = "pictures"
    thresholds = ("forbidden.lists",)
    uris = ("forbidden.lists",)
    never_shown = True

    class Settings(Strict):
        forbidden: Forbidden = Forbidden()

    def enabled(self, settings: Settings) -> bool:
        return bool(settings.forbidden.lists)

    def problem(self, key: str, uri: str) -> str:
        from wukong.store import storage

        return "" if storage.exists(uri) else f"{uri} does not exist; name a list of hashes that is there"

    def load(self, settings: Settings) -> _Lists:
        import polars as pl

        from wukong.curate.hash_search import HashSearch

        known = _known(settings.forbidden)
        return _Lists(HashSearch(known.pdq), pl.Series([row.tobytes() for row in known.md5], dtype=pl.Binary))

    def digests(self, settings: Settings) -> Mapping[str, str]:
        return {"forbidden.lists": _known(settings.forbidden).digest}

    def from_pictures(self, settings: Settings) -> tuple[FromPictures, ...]:
        return (
            FromPictures("pdq_forms", _pdq_forms),
            FromPictures("pdq_quality", _pdq_quality),
            FromPictures("md5", _md5),
        )

    def look_up(self, pairs: Pairs, settings: Settings, loaded: _Lists) -> Columns:
        import numpy as np
        import polars as pl

        from wukong.curate.pdq import BYTES, DISTANCE, FORMS, MIN_QUALITY

        listed = pairs["md5"].is_in(loaded.md5.implode()).fill_null(value=False).to_numpy(writable=True)
        told = np.flatnonzero((pairs["pdq_quality"] >= MIN_QUALITY).fill_null(value=False))
        forms = np.frombuffer(b"".join(pairs["pdq_forms"].gather(told)), np.uint8).reshape(-1, BYTES)
        found, _ = loaded.pdq.nearest(forms, DISTANCE)
        listed[told] |= (found >= 0).reshape(-1, FORMS).any(axis=1)
        return {"forbidden": pl.Series(listed)}

    def drops(self, pairs: Pairs, settings: Settings) -> Dropped:
        return pairs["forbidden"]

    def counts(self, pairs: Pairs, settings: Settings) -> Mapping[str, int]:
        """Count the pictures that cannot be compared by PDQ, because one of them may be forbidden."""
        from wukong.curate.pdq import MIN_QUALITY

        return {"unread/forbidden": int((pairs["pdq_quality"] < MIN_QUALITY).sum())}


RULE = ForbiddenRule()
