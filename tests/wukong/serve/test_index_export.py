"""Exported indexes; ``tests/wukong/export`` opens them with the libraries in environments of their own."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import drawn
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from wukong.commands.app import app
from wukong.errors import ConfigError, DataError
from wukong.evaluate.model import OwnModel
from wukong.serve import collection, encode, index_export
from wukong.serve.collection import Collection
from wukong.serve.index import Index, open_index, shards
from wukong.serve.query import search_forms
from wukong.serve.search import DIGITS, Searcher
from wukong.store import storage
from wukong.store.manifest import Manifest

Indexed = tuple[Collection, OwnModel, Manifest]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return drawn.pictures(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def indexed(stage: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Indexed:
    found, model = collection.of(stage.uri), drawn.model()
    return found, model, encode.build(found, model, storage.from_path(tmp_path_factory.mktemp("indexes")))


def best(scores: np.ndarray, keys: list[str]) -> list[list[str]]:
    """The first ten of each query, ordered as a search does: equal scores, rounded, in the order of rows."""
    return [
        [keys[row] for row in sorted(range(len(keys)), key=lambda row: (-round(float(each[row]), DIGITS), row))[:10]]
        for each in scores
    ]


def searched(indexed: Indexed) -> list[list[str]]:
    _, model, found = indexed
    index = open_index(found, model)
    results = Searcher(index, model).pictures_of_texts(drawn.QUERIES, 10)
    return [[index.keys[hit.row] for hit in each.hits] for each in results]


def test_the_matrix_ranks_as_the_search_does(indexed: Indexed, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    assert index_export.export(*indexed, "numpy", folder) == 150
    items = pq.read_table(folder / "items.parquet")
    assert search_forms(drawn.QUERIES) == drawn.QUERIES and len(drawn.QUERIES) == 50
    queries = indexed[1].saved.encode_text(drawn.QUERIES).vectors.numpy()
    scores = queries @ np.load(folder / "vectors.npy").T
    assert best(scores, items["key"].to_pylist()) == searched(indexed)
    assert items.to_pylist()[7] == {
        "key": f"{7:020d}",
        "captions": ["第7张图片"],
        "url": f"http://site.test/{7:020d}.jpg",
    }


def test_faiss_ranks_as_the_search_does(indexed: Indexed, tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    index_export.export(*indexed, "faiss", tmp_path / "faiss")
    index = faiss.read_index(str(tmp_path / "faiss" / "index.faiss"))
    keys = pq.read_table(tmp_path / "faiss" / "items.parquet")["key"].to_pylist()
    queries = indexed[1].saved.encode_text(drawn.QUERIES).vectors.numpy()
    scores, rows = index.search(queries, index.ntotal)
    by_row = np.take_along_axis(scores, np.argsort(rows, 1), 1)
    assert best(by_row, keys) == searched(indexed)


def test_shards_are_exported_one_after_the_other(
    indexed: Indexed, stage: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(encode, "SHARD_PICTURES", 75)
    found, model, whole = indexed
    made = encode.build(found, model, storage.from_path(tmp_path / "indexes"))
    assert (shards(made), shards(whole)) == (2, 1)
    for form, file in (("numpy", "vectors.npy"), ("faiss", "index.faiss")):
        for each, folder in ((made, "shards"), (whole, "whole")):
            index_export.export(found, model, each, form, tmp_path / form / folder)
        one, other = (tmp_path / form / folder for folder in ("shards", "whole"))
        assert (one / file).read_bytes() == (other / file).read_bytes()
        assert pq.read_table(one / "items.parquet").equals(pq.read_table(other / "items.parquet"))


def test_what_it_was_made_of_is_recorded(indexed: Indexed, stage: Manifest, tmp_path: Path) -> None:
    index_export.export(*indexed, "numpy", tmp_path / "x")
    record = json.loads((tmp_path / "x" / index_export.RECORD).read_text())
    assert (record["data"], record["data_digest"]) == (stage.uri, stage.digest)
    assert (record["model"], record["model_digest"]) == ("drawn, global", indexed[1].digest)
    assert (record["pictures"], record["dimensions"], record["token_wise"]) == (150, drawn.WIDTH, False)


def test_a_part_of_a_folder_is_never_left(indexed: Indexed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_shards: Sequence[Index], _items: pa.Table, folder: Path) -> None:
        (folder / "vectors.npy").write_bytes(b"a part")
        raise KeyboardInterrupt

    whole = index_export.FORMS
    monkeypatch.setattr(index_export, "FORMS", {"numpy": replace(whole["numpy"], write=fail)})
    with pytest.raises(KeyboardInterrupt):
        index_export.export(*indexed, "numpy", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(index_export, "FORMS", whole)
    index_export.export(*indexed, "numpy", tmp_path / "x")
    (tmp_path / "x" / "mine.txt").write_text("of an earlier export")
    index_export.export(*indexed, "numpy", tmp_path / "x")
    assert sorted(file.name for file in (tmp_path / "x").iterdir()) == [
        "items.parquet",
        "vectors.npy",
        index_export.RECORD,
    ]
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "mine.txt").write_text("of somebody")
    with pytest.raises(ConfigError, match="holds files of something else"):
        index_export.export(*indexed, "numpy", tmp_path / "y")


def test_what_cannot_be_written_is_refused(
    indexed: Indexed, stage: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"no form 'milvus'; allowed are faiss, lancedb, numpy"):
        index_export.export(*indexed, "milvus", tmp_path / "x")
    monkeypatch.setattr(index_export, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"run `pip install faiss-cpu`"):
        index_export.export(*indexed, "faiss", tmp_path / "x")
    found, model = collection.of(stage.uri), drawn.model("token")
    made = encode.build(found, model, storage.from_path(tmp_path / "indexes"))
    with pytest.raises(ConfigError, match=r"numpy holds one for each picture: export to lancedb"):
        index_export.export(found, model, made, "numpy", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_the_command_exports_what_is_searched(stage: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wukong.load", lambda *_, **__: drawn.model().saved)
    folder, indexes = tmp_path / "exported", str(tmp_path / "indexes")
    common = ["--model", "any", "--data", stage.uri, "--index", indexes]
    command = ["index", "export", str(folder), "--to", "numpy", *common]
    refused = CliRunner().invoke(app, command)
    assert isinstance(refused.exception, DataError) and "have no index by any" in str(refused.exception)
    done = CliRunner().invoke(app, [*command, "--encode"], catch_exceptions=False)
    assert done.stdout.startswith(f"{folder}: 150 pictures, ")
    query = drawn.QUERIES[3]
    searched = CliRunner().invoke(app, ["search", query, *common, "--json"], catch_exceptions=False)
    scores = np.load(folder / "vectors.npy") @ drawn.model().saved.encode_text([query]).vectors[0].numpy()
    keys = pq.read_table(folder / "items.parquet")["key"].to_pylist()
    assert best(scores[None], keys)[0] == [hit["key"] for hit in json.loads(searched.stdout)["results"]]
