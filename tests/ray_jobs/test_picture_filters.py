"""The filter job with rules that judge pictures by a model: what is dropped, stored and counted, and not read again."""

import hashlib
import io

import numpy as np
import onnx
import polars as pl
import pytest
from crawled import experiment
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from ray_jobs import filter as job
from wukong.config.documents import parse
from wukong.errors import ConfigError
from wukong.stages import preflight
from wukong.store import storage

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture
def model(tmp_path):
    """A model that says how red a picture is."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("Gather", ["means", "first"], ["y"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "red",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 3, 32, 32))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 1))],
        [numpy_helper.from_array(np.array([0]), "first")],
    )
    opset = [helper.make_opsetid("", 17)]
    data = helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    assert onnx.load_model_from_string(data)
    (tmp_path / "red.onnx").write_bytes(data)
    return {
        "uri": storage.from_path(tmp_path / "red.onnx"),
        "sha256": hashlib.sha256(data).hexdigest(),
        "licence": "made by a test",
        "input": {"size": 32, "resize": "squash"},
        "output": {"range": [0, 1]},
    }


def picture(row):
    """A picture that is the redder, the higher its number is; the last one is too long for a model."""
    number = int(row["url"].rsplit("/", 1)[1])
    target = io.BytesIO()
    Image.new("RGB", (100, 5) if number == 19 else (40, 40), (12 * number, 0, 0)).save(target, "PNG")
    return target.getvalue()


def test_scores_are_stored_and_decide_and_no_picture_is_read_again_for_another_threshold(tmp_path, make_crawl, model):
    rows = [{"url": f"http://x/noto/{n}", "caption": f"第{n}张图片"} for n in range(20)]
    crawl = make_crawl(rows, part_size=8, picture=picture)

    def filtered(**sections):
        return job.run(experiment(tmp_path, split={}, **sections), {"crawl": crawl})

    manifest = filtered(unsafe={"model": model, "max_score": 0.5})
    kept, dropped = (
        pl.concat(pl.DataFrame(storage.read_table(uri)) for uri in manifest.part_uris(prefix, ".parquet"))
        for prefix in ("train/", "dropped/")
    )
    everything = pl.concat([kept.select("url", "unsafe_score"), dropped.select("url", "unsafe_score")])
    scores = {int(url.rsplit("/", 1)[1]): score for url, score in everything.iter_rows()}
    assert scores.pop(19) is None
    assert [scores[number] for number in range(19)] == pytest.approx([12 * n / 255 for n in range(19)], abs=1e-5)
    assert manifest.dropped["unsafe"] == len(dropped) == 8
    assert set(dropped["dropped_by"]) == {"unsafe"}
    assert manifest.counts["unread/unsafe"] == 1
    looks = {path: path.stat().st_mtime_ns for path in (tmp_path / "store/test/look").rglob("*.parquet")}

    looser = filtered(unsafe={"model": model, "max_score": 0.7})
    assert looser.dropped["unsafe"] == 4
    assert looks == {path: path.stat().st_mtime_ns for path in (tmp_path / "store/test/look").rglob("*.parquet")}
    without = filtered()
    assert "unsafe_score" not in pl.DataFrame(storage.read_table(without.part_uris("train/", ".parquet")[0])).columns
    assert "unread/unsafe" not in without.counts


def test_missing_and_other_weights_are_refused_before_the_first_stage(tmp_path, model):
    def checked(**changed):
        made = experiment(tmp_path, unsafe={"model": model | changed}).model_dump(mode="json")
        (tmp_path / "queries.txt").write_text("猫\n", "utf-8")
        made["crawl"]["queries"] = storage.from_path(tmp_path / "queries.txt")
        named = parse(made)
        preflight.check_world(named)
        preflight.check_lists(named)

    checked()
    gone = storage.from_path(tmp_path / "gone.onnx")
    with pytest.raises(ConfigError, match=f"filter.unsafe.model.uri: {gone} does not exist; name a file"):
        checked(uri=gone)
    with pytest.raises(
        ConfigError, match=rf"filter.unsafe.model.uri: .*has the SHA-256 {model['sha256']}, and 0{{64}}"
    ):
        checked(sha256="0" * 64)
