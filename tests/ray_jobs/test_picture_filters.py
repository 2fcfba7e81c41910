"""The filter job with rules that judge pictures by a model: what is dropped, stored and counted, and not read again."""

import hashlib
import io
import json
import tarfile

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


def written(file, nodes, outputs, constants):
    """Write a graph that takes pictures as ``x``; return its settings."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 3, "height", "width"))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return {"uri": storage.from_path(file), "sha256": digest, "licence": "made by a test"}


@pytest.fixture
def model(tmp_path):
    """A model that says how red a picture is."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("Gather", ["means", "first"], ["y"], axis=1),
    ]
    made = written(tmp_path / "red.onnx", nodes, {"y": ("n", 1)}, {"first": np.array([0])})
    return made | {"input": {"size": 32, "resize": "squash"}, "output": {"range": [0, 1]}}


@pytest.fixture
def detector(tmp_path):
    """A detector that sees a face of half a picture's sides in its middle, as surely as the picture is red."""
    nodes = [
        helper.make_node("Conv", ["x", "middle"], ["heat"], kernel_shape=[32, 32], strides=[32, 32]),
        helper.make_node("Conv", ["x", "none", "size"], ["scale"], kernel_shape=[32, 32], strides=[32, 32]),
        helper.make_node("Conv", ["x", "none"], ["offset"], kernel_shape=[32, 32], strides=[32, 32]),
    ]
    middle = np.zeros((1, 3, 32, 32), np.float32)
    middle[0, 0, 16, 16] = 1
    constants = {
        "middle": middle,
        "none": np.zeros((2, 3, 32, 32), np.float32),
        "size": np.log(np.array([0.5, 0.5], np.float32)),
    }
    outputs = {name: ("n", channels, "h", "w") for name, channels in (("heat", 1), ("scale", 2), ("offset", 2))}
    made = written(tmp_path / "faces.onnx", nodes, outputs, constants)
    return made | {"input": {"size": 32, "resize": "squash"}}


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


def test_faces_are_stored_with_pairs_in_tables_and_shards(tmp_path, make_crawl, detector):
    rows = [{"url": f"http://x/noto/{n}", "caption": f"摄影师张伟明在第{n}号公园里拍照"} for n in range(20)]
    crawl = make_crawl(rows, part_size=8, picture=picture)
    faces = {"model": detector, "max_faces": 0, "min_score": 0.7}
    manifest = job.run(experiment(tmp_path, split={}, faces=faces), {"crawl": crawl})
    assert manifest.dropped["faces"] == 4  # 15 to 18
    assert {name: manifest.counts[name] for name in ("unread/faces", "with_faces", "name_and_face")} == {
        "unread/faces": 1, "with_faces": 0, "name_and_face": 0,
    }  # fmt: skip
    kept = pl.concat(pl.DataFrame(storage.read_table(uri)) for uri in manifest.part_uris("train/", ".parquet"))
    by_number = {int(row["url"].rsplit("/", 1)[1]): row for row in kept.to_dicts()}
    box = {"x": 0.25, "y": 0.25, "width": 0.5, "height": 0.5, "score": 14 * 12 / 255}
    assert by_number[14]["faces"] == [pytest.approx(box, abs=1e-5)]
    assert by_number[2]["faces"] == [] and by_number[19]["faces"] is None
    (first, *_) = manifest.part_uris("train/", ".tar")
    with tarfile.open(fileobj=io.BytesIO(storage.read_bytes(first))) as tar:
        stored = [json.load(tar.extractfile(member)) for member in tar if member.name.endswith(".json")]
    of_key = {row["key"]: row["faces"] for row in kept.to_dicts()}
    assert stored and all(row.get("faces") == of_key[row["key"]] for row in stored)  # null is left out there

    loose = job.run(experiment(tmp_path, split={}, faces={"model": detector}), {"crawl": crawl})
    assert loose.counts["with_faces"] == loose.counts["name_and_face"] == 8  # 11 to 18 are red enough


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
