"""Each kind of file and address; pyarrow, safetensors, tarfile and PIL write what is described."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from safetensors.numpy import save_file

from wukong.config import documents
from wukong.errors import ConfigError, DataError, StorageError
from wukong.runs import describe, origin, run_records
from wukong.runs.origin import Source
from wukong.runs.run_records import Record
from wukong.store import manifest, storage
from wukong.store.manifest import Stage


def at(path: Path) -> str:
    return storage.from_path(path)


@pytest.mark.parametrize("most", [0, 10])
def test_a_stage_shows_counts_drops_parents_and_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(manifest, "MOST_IN_JSON", most)
    crawl = Stage(at(tmp_path), "crawl", {"a": 1}).commit([], counts={"urls": 9})
    stage = Stage(at(tmp_path), "filter", {}, [crawl])
    rows = {"key": list("abcdefg"), "caption": ["一只猫"] * 7, "other": [b"x"] * 7}
    storage.write_table(stage.path("train/00000.parquet"), pa.table(rows))
    made = stage.commit(
        [stage.describe("train/00000.parquet", 7)], counts={"train": 7}, dropped={"length": 2, "none": 0}
    )
    for place in (made.uri, f"{made.uri}/manifest.json"):
        found = describe.describe(place)
        assert (found["kind"], found["stage"], found["digest"], found["rows"]) == ("manifest", "filter", made.digest, 7)
        assert found["counts"] == {"train": 7} and found["dropped"] == {"length": 2}
        assert [parent["digest"] for parent in found["parents"]] == [crawl.digest]
        assert found["pairs"] == [{"key": key, "caption": "一只猫"} for key in "abcde"]
        assert found["files"][0]["path"] == "train/00000.parquet"


def test_a_run_shows_its_stages(tmp_path: Path) -> None:
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    experiment = documents.parse({"name": "x", "storage": at(tmp_path), "crawl": crawl})
    run_records.claim(experiment, "first")
    run_records.write(experiment, "first", Record(stage="crawl", state="failed", error="no engine"))
    found = describe.describe(describe.resolve("first", at(tmp_path)))
    assert (found["kind"], found["name"], found["experiment"], found["report"]) == ("run", "first", "x", None)
    assert found["stages"] == [{"stage": "crawl", "state": "failed", "error": "no engine"}]
    assert found["origin"] is None
    origin.store(experiment, "first", Source(repository="https://git.example/runs", revision="f00", dirty=False))
    came = describe.describe(describe.resolve("first", at(tmp_path)))["origin"]
    assert (came["repository"], came["revision"], came["dirty"]) == ("https://git.example/runs", "f00", False)


def test_a_table_shows_its_columns_and_first_rows(tmp_path: Path) -> None:
    storage.write_table(at(tmp_path / "t.parquet"), pa.table({"n": range(1000), "caption": ["猫"] * 1000}))
    found = describe.describe(at(tmp_path / "t.parquet"))
    assert (found["rows"], found["schema"]) == (1000, {"n": "int64", "caption": "string"})
    assert found["head"] == [{"n": n, "caption": "猫"} for n in range(5)]
    storage.write_table(at(tmp_path / "empty.parquet"), pa.table({"n": pa.array([], pa.int64())}))
    assert describe.describe(at(tmp_path / "empty.parquet"))["head"] == []


def test_a_model_shows_its_tensors(tmp_path: Path) -> None:
    save_file({"text.a": np.zeros((3, 4), np.float32), "b": np.zeros((), np.float16)}, tmp_path / "model.safetensors")
    found = describe.describe(at(tmp_path / "model.safetensors"))
    assert found["parameters"] == 13
    assert {(t["name"], t["dtype"], tuple(t["shape"])) for t in found["tensors"]} == {
        ("text.a", "F32", (3, 4)),
        ("b", "F16", ()),
    }
    storage.write_json(at(tmp_path / "config.json"), {"model": {"similarity": "token"}})
    whole = describe.describe(at(tmp_path))
    assert (whole["kind"], whole["parameters"], whole["config"]["model"]["similarity"]) == ("model", 13, "token")


def test_a_tar_a_picture_a_text_and_a_folder(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("k.jpg", "k.txt"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    Image.new("RGB", (7, 5)).save(tmp_path / "p.png")
    (tmp_path / "list.csv").write_text("path,caption\n" + "1.jpg,猫\n" * 100, encoding="utf-8")
    (tmp_path / "blob").write_bytes(bytes(range(20)))
    tar_found = describe.describe(at(tmp_path / "a.tar"))
    assert [file["path"] for file in tar_found["files"]] == ["k.jpg", "k.txt"] and tar_found["count"] == 2
    assert describe.describe(at(tmp_path / "p.png"))["size"] == [7, 5]
    assert describe.describe(at(tmp_path / "list.csv"))["head"][:2] == ["path,caption", "1.jpg,猫"]
    assert describe.describe(at(tmp_path / "blob"))["begins"].startswith("00 01 02")
    folder = describe.describe(at(tmp_path))
    assert (folder["kind"], folder["count"]) == ("folder", 4)
    assert folder["bytes"] == sum(file.stat().st_size for file in tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x.parquet", "x.safetensors", "x.tar", "x.jpg", "x.json"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xff" * 700)
    with pytest.raises((DataError, StorageError), match=name):
        describe.describe(at(tmp_path / name))


@pytest.mark.parametrize(
    ("place", "error", "said"),
    [
        ("models:/demo", ConfigError, "models:/demo/1"),
        ("runs:/nothing", ConfigError, "32 letters"),
        ("ftp://host/a", ConfigError, "only s3://"),
        ("no/such/file", DataError, "no such file or folder"),
        ("nobody", DataError, "no run 'nobody'"),
        ("http://127.0.0.1:1/#/compare-runs?runs=%5B%5D", ConfigError, "page for a browser"),
        ("http://127.0.0.1:1/#/models/demo", ConfigError, "models:/demo/1"),
    ],
)
def test_an_address_that_names_nothing_says_what_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, error: type[Exception], said: str
) -> None:
    monkeypatch.setenv("WUKONG_HOME", str(tmp_path / "home"))
    with pytest.raises(error, match=said):
        describe.resolve(place, at(tmp_path))


def test_an_address_at_which_there_is_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is nothing at"):
        describe.describe(at(tmp_path / "none"))


@pytest.mark.slow
def test_what_mlflow_knows_leads_to_what_was_stored(
    tmp_path: Path, mlflow_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    from wukong.tracking import mlflow_runs, run_links, stage_results

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_address)
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    experiment = documents.parse({"name": "described", "storage": at(tmp_path), "crawl": crawl})
    made = Stage(experiment.root, "crawl", {}).commit([])
    with mlflow_runs.stage_run(experiment, "first", "crawl") as run_id:
        stage_results.log_stage(run_id, made)
    mlflow_runs.log_page(experiment, "first", "<p>悟空</p>", "report.html")
    pages, client = run_links.pages(experiment, "first"), MlflowClient(mlflow_address)
    assert pages is not None
    client.create_registered_model("described")
    client.create_model_version("described", f"runs:/{run_id}/model", run_id, tags={"wukong.model": made.uri})
    client.set_registered_model_alias("described", "champion", "1")
    for place in (
        "models:/described/1",
        "models:/described@champion",
        f"{mlflow_address}/#/models/described/versions/1",
        f"{mlflow_address}/#/models/described/versions/1?workspace=default",
    ):
        assert describe.resolve(place, "") == f"{made.uri}/model"
    assert describe.resolve(f"runs:/{run_id}", "") == f"{made.uri}/manifest.json"
    assert describe.resolve(pages.run, "") == f"{experiment.root}/runs/first"
    assert describe.resolve(f"{pages.run}?workspace=default", "") == f"{experiment.root}/runs/first"
    page = describe.describe(describe.resolve(pages.artifact("report.html"), ""))
    assert page["head"] == ["<p>悟空</p>"]
    with pytest.raises(DataError, match=r"has no file none\.html"):
        describe.resolve(f"runs:/{pages.run.rsplit('/', 1)[1]}/none.html", "")
