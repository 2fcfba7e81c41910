"""Finding training pairs that show a picture of a test set, or have a caption of one.

Two pictures are nearly equal if their PDQ hashes differ in few bits, as they are or mirrored (level ``hash``). Those
that were cut, framed, turned or put beside others are found in two steps (level ``vector``): a few test pictures are
nearest by vectors, or by a few coarse points, which a smooth picture keeps; and of those count the ones that agree when
one picture is laid over the other.

Each set is searched by itself. A task holds the sets' hashes, vectors and small pictures.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from wukong.config.decontaminate import Decontaminate
from wukong.curate import alignment, hash_files, pdq
from wukong.curate.hash_files import Fingerprints
from wukong.curate.hash_search import HashSearch
from wukong.curate.picture_vectors import Vectors
from wukong.errors import ConfigError, DataError
from wukong.store import storage

FOUND = {"set": pl.String, "picture": pl.String, "key": pl.String, "level": pl.String, "distance": pl.Float32}
"""A training pair that shows a test picture: ``distance`` is the number of bits at level ``hash``, and what is missing
to full agreement at level ``vector``."""

FOUND_CAPTIONS = {"set": pl.String, "key": pl.String, "caption_original": pl.String}
"""A training caption that is one of the set's."""

COLUMNS = ("key", "pdq", "vector", "halves", "thumbnail")
"""What is compared of training pairs; the last three only where vectors are."""

LEAST_AGREEMENT = 0.83
"""Pictures laid over each other that agree so well, or better, show the same."""

_NEAREST = 5
_LEAST_COARSE = 0.95
_FORMS = 2  # a picture as it is, and mirrored


@dataclass(frozen=True)
class Tests:
    """The pictures and captions of a test set, as far as they are compared.

    Attributes:
        name: of the set.
        pictures: the id of each picture.
        forms: ``(n, m, 32)``, PDQ hashes of the picture, and as the second ones, if there are, of the mirrored one.
        quality: of PDQ.
        vectors: of each picture; None where the set is known by hashes alone.
        thumbnails: small pictures (``wukong.curate.alignment``), with the vectors.
        captions: hashes of the captions, sorted.
    """

    name: str
    pictures: Sequence[str]
    forms: npt.NDArray[np.uint8]
    quality: npt.NDArray[np.uint8]
    vectors: Vectors | None = None
    thumbnails: Sequence[bytes] = ()
    captions: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))

    @classmethod
    def of(cls, made: Fingerprints, thumbnails: Sequence[bytes] = ()) -> "Tests":
        """Those of a set's fingerprints."""
        vectors = made.vectors if len(thumbnails) else None
        return cls(made.name, made.pictures, made.forms, made.quality, vectors, thumbnails, made.captions)

    @classmethod
    def of_pairs(cls, name: str, pairs: pl.DataFrame) -> "Tests":
        """Those of a hold-out's pairs, with ``COLUMNS``."""
        vectors = pairs["vector"].to_numpy() if "vector" in pairs.columns else None
        thumbnails = pairs["thumbnail"].to_list() if "thumbnail" in pairs.columns else []
        hashes, quality = _hashes(pairs)
        return cls(name, pairs["key"].to_list(), hashes[:, None], quality, vectors, thumbnails)


class Search:
    """The pictures and captions of a test set, ready to be looked up.

    Args:
        tests: the set.
        settings: what is compared, and how near is near.
    """

    def __init__(self, tests: Tests, settings: Decontaminate) -> None:
        self._tests, self._settings = tests, settings
        self._told = np.flatnonzero(tests.quality >= pdq.MIN_QUALITY)
        forms = tests.forms[self._told, :_FORMS]
        self._forms = forms.shape[1]
        self._hashes = HashSearch(np.ascontiguousarray(forms).reshape(-1, pdq.BYTES))
        self._readable, self._least = np.empty(0, np.intp), settings.min_cosine or 0.0
        if tests.vectors is not None and settings.min_cosine is not None:
            self._readable = np.flatnonzero(np.isfinite(tests.vectors).all(axis=1))
        if tests.vectors is not None and len(self._readable):
            self._index = _index(tests.vectors[self._readable])
            self._coarse = _index(_coarse(alignment.pixels(tests.thumbnails[row]) for row in self._readable.tolist()))

    def found(self, pairs: pl.DataFrame) -> pl.DataFrame:
        """Find the training pairs that show a picture of the set.

        Args:
            pairs: training pairs, each once, with ``COLUMNS``.

        Returns:
            The columns of ``FOUND``, in the order of the pairs; a pair and a test picture together stand once.
        """
        if pairs.is_empty():
            return pl.DataFrame(schema=FOUND)
        distances = dict(self._by_hash(pairs))
        near = [each for each in self._near(pairs) if each not in distances] if len(self._readable) else []
        rows = [(*each, "hash", float(bits)) for each, bits in distances.items()]
        rows += [(*each, "vector", distance) for each, distance in self._laid_over(pairs, near)]
        keys, pictures = pairs["key"], self._tests.pictures
        return pl.DataFrame(
            [(self._tests.name, pictures[test], keys[row], level, far) for row, test, level, far in sorted(rows)],
            schema=FOUND,
            orient="row",
        )

    def found_captions(self, captions: pl.DataFrame) -> pl.DataFrame:
        """Find the training captions that are a caption of the set: rows of ``key`` and ``caption_original``.

        Returns:
            The columns of ``FOUND_CAPTIONS``.
        """
        told = np.isin(hash_files.caption_hashes(captions["caption_original"]), self._tests.captions)
        named = captions.filter(pl.Series(told)).with_columns(set=pl.lit(self._tests.name))
        return named.select(*FOUND_CAPTIONS).unique(maintain_order=True)

    def _by_hash(self, pairs: pl.DataFrame) -> Iterator[tuple[tuple[int, int], int]]:
        """The row of a pair and that of a test picture, and the bits in which they differ; the nearest come last."""
        hashes, quality = _hashes(pairs)
        told = np.flatnonzero(quality >= pdq.MIN_QUALITY)
        found = zip(*self._hashes.within(hashes[told], pdq.DISTANCE), strict=True)
        for row, test, bits in sorted(found, key=lambda each: -int(each[2])):
            yield (int(told[row]), int(self._told[test // self._forms])), int(bits)

    def _near(self, pairs: pl.DataFrame) -> list[tuple[int, int]]:
        """Pairs and the test pictures that are nearest by a vector of the whole picture, or of its halves."""
        whole = pairs["vector"].to_numpy()
        halves = pairs["halves"].to_numpy().reshape(len(pairs) * 2, -1)
        rows = np.concatenate([np.arange(len(pairs)), np.repeat(np.arange(len(pairs)), 2)])
        queries = np.concatenate([whole, halves]).astype(np.float32)
        known = np.isfinite(queries).all(axis=1)
        near = [self._nearest(self._index, queries[known], rows[known], self._least)]
        told = np.flatnonzero(np.isfinite(whole).all(axis=1))
        shown = [alignment.pixels(pairs["thumbnail"][int(row)]) for row in told]
        for forms in (shown, [each[:, ::-1] for each in shown]):
            near.append(self._nearest(self._coarse, _coarse(forms), told, _LEAST_COARSE))
        return [(int(row), int(test)) for row, test in np.unique(np.concatenate(near), axis=0)]

    def _nearest(
        self, index: Any, queries: npt.NDArray[np.float32], rows: npt.NDArray[np.intp], least: float
    ) -> npt.NDArray[np.intp]:
        """The rows of queries and of the nearest test pictures of an index, from a cosine on."""
        cosines, tests = index.search(queries, min(_NEAREST, len(self._readable)))
        query, place = np.nonzero(cosines >= least)
        return np.stack([rows[query], self._readable[tests[query, place]]], axis=1)

    def _laid_over(
        self, pairs: pl.DataFrame, near: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[tuple[int, int], float]]:
        """Those that agree, and what is missing to full agreement."""
        of_row = defaultdict(list)
        for row, test in near:
            of_row[row].append(test)
        for row, tests in of_row.items():
            shown = alignment.pixels(pairs["thumbnail"][row])
            for test in tests:
                agreement = alignment.agreement(shown, alignment.pixels(self._tests.thumbnails[test]))
                if agreement >= LEAST_AGREEMENT:
                    yield (row, test), 1 - agreement


def _coarse(small: Iterable[alignment.Pixels]) -> npt.NDArray[np.float32]:
    return np.array([alignment.coarse(each) for each in small], np.float32).reshape(-1, alignment.COARSE)


def _index(vectors: npt.NDArray[Any]) -> Any:
    """An index that finds what is nearest by comparing all."""
    import faiss

    index = faiss.IndexScalarQuantizer(vectors.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    index.add(vectors.astype(np.float32, copy=False))
    return index


def read(uri: str) -> Tests:
    """Read a set that is known by its fingerprints alone: vectors without pictures are not compared.

    Raises:
        ConfigError: the file is of another kind or version, or damaged.
    """
    try:
        return Tests.of(hash_files.read(uri))
    except DataError as error:
        raise ConfigError(str(error)) from error


def digests(asked: Decontaminate) -> dict[str, str]:
    """The digest of each file of fingerprints that the settings name."""
    return {
        f"decontaminate.hashes.{number}": hashlib.sha256(storage.read_bytes(uri)).hexdigest()
        for number, uri in enumerate(asked.hashes)
    }


def _hashes(pairs: pl.DataFrame) -> tuple[pdq.Hashes, npt.NDArray[np.uint8]]:
    """The hashes of the column ``pdq``, and their quality."""
    rows = np.frombuffer(b"".join(pairs["pdq"]), np.uint8).reshape(len(pairs), pdq.BYTES + 1)
    return rows[:, : pdq.BYTES], rows[:, pdq.BYTES]
