"""Exported indexes are searched by FAISS and LanceDB, each in an environment without this project."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import consumers
import drawn
import numpy as np
import pytest
import torch

from wukong.evaluate.model import OwnModel
from wukong.model import saved_model
from wukong.model.saved_model import SavedModel
from wukong.serve import collection, encode
from wukong.serve.index import Index, open_index
from wukong.serve.search import Searcher
from wukong.store import storage

pytestmark = [consumers.only_by_hand, pytest.mark.slow]
PACKAGES = ("faiss-cpu==1.15.1", "lancedb==0.40.0")
EXPORT = """
import sys
from pathlib import Path
from typing import Any
import drawn
from wukong.serve import collection, encode, index_export
similarity, data, indexes, to, folder = sys.argv[1:]
found, model = collection.of(data), drawn.model(similarity)
print(index_export.export(found, model, encode.build(found, model, indexes), to, Path(folder)))
"""
FAISS = """
import json, sys
from pathlib import Path
from typing import Any
import faiss, numpy, pyarrow.parquet
folder, queries = Path(sys.argv[1]), numpy.load(sys.argv[2])
keys = pyarrow.parquet.read_table(folder / "items.parquet")["key"].to_pylist()
scores, rows = faiss.read_index(str(folder / "index.faiss")).search(queries["all"], 10)
print(json.dumps([[keys[row] for row in each] for each in rows.tolist()]))
"""
LANCEDB = """
import json, sys
import lancedb, numpy
table = lancedb.connect(sys.argv[1]).open_table("pictures")
queries, metric = numpy.load(sys.argv[2]), sys.argv[3]
each = queries["all"] if "all" in queries else [queries[str(row)] for row in range(len(queries.files))]
found = [table.search(query, vector_column_name="vector").distance_type(metric).limit(10).to_list() for query in each]
assert found[0][0]["captions"] and found[0][0]["url"].startswith("http://site.test/")
print(json.dumps([[hit["key"] for hit in hits] for hits in found]))
"""


def exported(root: Path, similarity: str, to: str) -> tuple[OwnModel, Index]:
    """Export an index in the environment that has the packages, and move the folder to ``elsewhere``."""
    data, indexes = drawn.pictures(root / "data").uri, storage.from_path(root / "indexes")
    found, model = collection.of(data), drawn.model(similarity)
    made = encode.build(found, model, indexes)
    path = os.pathsep.join(map(str, (consumers.ROOT, Path(drawn.__file__).parent)))
    python = consumers.environment("indexes", PACKAGES)
    command = [str(python), "-c", EXPORT, similarity, data, indexes, to, str(root / "made")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.stdout == "150\n", done.stderr
    (root / "made").rename(root / "elsewhere")
    return model, open_index(made, model)


def check_ranking(answer: str, model: OwnModel, index: Index, images: torch.Tensor, tolerance: float) -> None:
    """Each rank has the picture that the search has there, or one whose score is the same up to a tolerance."""
    texts = model.saved.encode_text(drawn.QUERIES)
    scores = model.similarity(images, texts).text_to_image.T
    row_of = {key: row for row, key in enumerate(index.keys)}
    searched = Searcher(index, model).pictures_of_texts(drawn.QUERIES, 10)
    wanted = [[hit.row for hit in each.hits] for each in searched]
    found = [[row_of[key] for key in keys] for keys in json.loads(answer)]
    assert len(found) == len(wanted) == 50 and {len(set(rows)) for rows in found} == {10}
    for each, theirs, ours in zip(scores, found, wanted, strict=True):
        torch.testing.assert_close(each[theirs], each[ours], atol=tolerance, rtol=0)
    equal = sum(theirs == ours for theirs, ours in zip(found, wanted, strict=True))
    assert equal >= 45, f"{equal} of 50 rankings are equal"


@pytest.mark.parametrize(("to", "script"), [("faiss", FAISS), ("lancedb", LANCEDB)])
def test_a_library_ranks_as_the_search_does(to: str, script: str, tmp_path: Path) -> None:
    model, index = exported(tmp_path, "global", to)
    np.savez(tmp_path / "queries.npz", all=model.saved.encode_text(drawn.QUERIES).vectors)
    python = consumers.environment("indexes", PACKAGES)
    answer = consumers.run(python, script, tmp_path / "elsewhere", tmp_path / "queries.npz", "dot")
    # A search rounds scores to four digits.
    check_ranking(answer, model, index, index.picture_vectors.read(), 1e-4)


def test_lancedb_compares_every_patch_with_every_word(tmp_path: Path) -> None:
    model, index = exported(tmp_path, "token", "lancedb")
    texts = model.saved.encode_text(drawn.QUERIES)
    words: dict[str, Any] = {
        str(row): texts.vectors[row][texts.counted[row]].numpy() for row in range(len(drawn.QUERIES))
    }
    np.savez(tmp_path / "queries.npz", **words)
    python = consumers.environment("indexes", PACKAGES)
    answer = consumers.run(python, LANCEDB, tmp_path / "elsewhere", tmp_path / "queries.npz", "cosine")
    assert index.picture_tokens is not None
    # LanceDB makes unit vectors of the patches again, which are rounded to float16 in the index.
    check_ranking(answer, model, index, index.picture_tokens.read(torch.arange(150)), 5e-4)


@pytest.mark.parametrize("to", ["faiss", "lancedb"])
def test_the_pages_example_runs(to: str, clip_vit: SavedModel, tmp_path: Path) -> None:
    """The command of the page, and its block, with a model and pictures from here."""
    saved_model.save(storage.from_path(tmp_path / "model"), clip_vit.model, clip_vit.tokenizer)
    data, python = drawn.pictures(tmp_path / "data", 12).uri, consumers.environment("indexes", PACKAGES)
    environment = {**os.environ, "PYTHONPATH": str(consumers.ROOT), "WUKONG_HOME": str(tmp_path / "home")}

    def ran(program: str, *arguments: str) -> str:
        command = [str(python), "-c", program, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    main = "from wukong.commands.main import main; main()"
    said = ran(main, "index", "export", "flowers", "--to", to, "--model", "model", "--data", data, "--encode")
    assert said.startswith("flowers: 12 pictures, ")
    page = (consumers.ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    example = f"import {to}" + page.partition(f"```python\nimport {to}")[2].partition("```")[0]
    printed = ran(example.replace("models:/demo@champion", "model"))
    assert printed.count("http://site.test/") == 10
