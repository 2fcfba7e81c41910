"""Candidates by FAISS among vectors of clusters, against the products of all."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("faiss")

from wukong.serve import approximate, recall
from wukong.serve.approximate import Before, Candidates
from wukong.serve.vectors import Vectors

VECTORS, QUERIES, BEST = 6_000, 50, 10


def drawn(width: int, count: int, seed: int) -> Tensor:
    """Unit vectors around 40 centres, float32 [count, width]."""
    centres = np.random.default_rng(0).normal(size=(40, width))
    numbers = np.random.default_rng(seed)
    vectors = centres[numbers.integers(0, 40, count)] + 0.4 * numbers.normal(size=(count, width))
    return torch.from_numpy((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32))


def stored(folder: Path, vectors: Tensor) -> Vectors:
    """The vectors in a file, as those of a shard."""
    file = folder / f"{len(vectors)}.f16"
    file.write_bytes(vectors.half().numpy().tobytes())
    return Vectors(file, *vectors.shape)


def built(vectors: Vectors, before: Before | None = None) -> bytes:
    content = bytearray()
    approximate.build(vectors, content.extend, before)
    return bytes(content)


@pytest.mark.parametrize("width", [32, 33])
def test_the_best_are_among_the_candidates(tmp_path: Path, width: int) -> None:
    vectors, queries = stored(tmp_path, drawn(width, VECTORS, 1)), drawn(width, QUERIES, 2)
    content = built(vectors)
    assert content == built(vectors), "the same vectors and seed give the same bytes"
    file = tmp_path / "pictures.faiss"
    file.write_bytes(content)
    candidates = Candidates(file, VECTORS)
    candidates.probes, candidates.count = candidates.lists // 2, 20 * BEST
    exact = (queries @ vectors.read().T).topk(BEST).indices.tolist()
    found = candidates.search(queries, BEST)
    shares = [len(set(best) & set(rows.tolist())) / BEST for best, rows in zip(exact, found, strict=True)]
    assert np.mean(shares) > 0.98
    everything = candidates.search(queries, candidates.count)
    for query, some, rows in zip(queries, found, everything, strict=True):
        assert len(rows) == candidates.count and BEST <= len(some) < candidates.count / 2
        best = rows[(vectors[rows] @ query).topk(BEST).indices]
        assert set(best.tolist()) <= set(some.tolist()), "eight bits take none of the best candidates away"
    # Four bits a code, an id of eight bytes and eight bits a number; lists are filled up to 32 codes and have a centre.
    codes = width // 2
    filled = candidates.lists * (16 * codes + 4 * width)
    assert len(content) < VECTORS * (codes / 2 + 8 + width) + filled + 20_000


def test_an_index_that_grows_keeps_its_clusters(tmp_path: Path) -> None:
    everything = drawn(32, VECTORS, 1)
    first = tmp_path / "first.faiss"
    first.write_bytes(built(stored(tmp_path, everything[1_000:])))
    rows = np.concatenate([np.full(1_000, -1), np.arange(VECTORS - 1_000)])
    before = Candidates(first, VECTORS - 1_000)
    grown = tmp_path / "grown.faiss"
    grown.write_bytes(built(stored(tmp_path, everything), Before(before, rows)))
    after = Candidates(grown, VECTORS)
    assert after.lists == before.lists
    after.probes, after.count = after.lists, 100
    for row, found in zip((0, 999, 1_000, VECTORS - 1), after.search(everything[[0, 999, 1_000, -1]], 1), strict=True):
        assert found.tolist() == [row]


def test_what_is_not_allowed_is_not_found(tmp_path: Path) -> None:
    vectors = drawn(32, VECTORS, 1)
    file = tmp_path / "pictures.faiss"
    file.write_bytes(built(stored(tmp_path, vectors)))
    allowed = np.zeros(VECTORS, np.bool_)
    allowed[::700] = True
    (found,) = Candidates(file, VECTORS).search(vectors[:1], BEST, allowed)
    assert found.tolist() == np.flatnonzero(allowed).tolist()


def test_a_search_gets_the_lists_and_candidates_that_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, queries = stored(tmp_path, drawn(32, VECTORS, 1)), drawn(32, QUERIES, 2)
    file = tmp_path / "pictures.faiss"
    file.write_bytes(built(vectors))
    exact = (queries @ vectors.read().T).topk(BEST).indices.numpy()

    candidates = Candidates(file, VECTORS, count=BEST)
    share = recall.calibrate(vectors, candidates, queries, exact)
    assert share > 0.97 and candidates.count > BEST, "ten candidates by four bits are not the ten best"

    monkeypatch.setattr(recall, "MOST_CANDIDATES", BEST)
    candidates = Candidates(file, VECTORS, count=BEST)
    assert recall.calibrate(vectors, candidates, queries, exact) < 0.97
    assert candidates.count == BEST and candidates.probes < candidates.lists, "more lists would find no more"
