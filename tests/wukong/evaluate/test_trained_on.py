"""Which pictures of a set a model was trained on: compared with what was written, by sets of digests."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from wukong.errors import DataError
from wukong.evaluate import trained_on
from wukong.evaluate.data_set import ClassificationData
from wukong.evaluate.formats.pictures import Arrays, Files, Parts
from wukong.evaluate.holdouts import Pictures as HeldOut
from wukong.evaluate.trained_on import Pictures
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage
from wukong.tracking import model_versions


def pairs_at(uri: str) -> "set[trained_on.Pairs] | str":
    return trained_on.pairs_at(uri, model_versions.folder_of)


def digest(number: int) -> str:
    return hashlib.sha256(f"picture {number}".encode()).hexdigest()


def pictures(*digests: str | None) -> Pictures:
    return Pictures([f"{number}" for number in range(len(digests))], digests, held_out=False)


def counts(models: "Mapping[str, set[trained_on.Pairs] | str]", tasks: Mapping[str, Pictures]) -> list[dict[str, Any]]:
    return trained_on.counts(models, tasks, trained_on.seen(models, tasks))


def filtered(root: str, shards: Mapping[str, Sequence[int]]) -> Manifest:
    stage = Stage(root, "filter", {"of": sorted(shards)})
    parts = []
    for path, numbers in shards.items():
        rows = [{"key": f"{n}", "url": f"http://x/{'ab'[n % 2]}/{n}.jpg", "sha256": digest(n)} for n in numbers]
        storage.write_table(stage.path(f"{path}.parquet"), pa.Table.from_pylist(rows))
        storage.write_bytes(stage.path(f"{path}.tar"), b"")
        parts += [stage.describe(f"{path}.{suffix}", len(rows)) for suffix in ("parquet", "tar")]
    return stage.commit(parts)


def trained(root: str, name: str, parents: Sequence[Manifest], sources: Sequence[str] = ("*",)) -> Manifest:
    return Stage(root, name, {"training": {"sources": list(sources)}}, parents).commit([])


def test_the_pictures_of_all_trainings_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = storage.from_path(tmp_path)
    first = filtered(f"{root}/one", {"train/00000": range(10), "train/00001": range(10, 20), "test/00000": [50]})
    second = filtered(f"{root}/two", {"train/00000": [*range(30, 40), *range(3)]})
    before = trained(root, "pretrain", [first], ["*/a/*"])
    after = trained(f"{root}/later", "finetune", [second, before])
    models = {"pretrained": trained_on.pairs_of(before), "finetuned": trained_on.pairs_of(after)}
    tasks = {
        "all": pictures(*(digest(n) for n in range(60))),
        "twice": pictures(digest(1), digest(1), digest(99)),
        "held": pictures(digest(50)),
    }
    read: list[tuple[str, ...]] = []
    real = storage.read_table
    monkeypatch.setattr(storage, "read_table", lambda uri, columns: read.append(tuple(columns)) or real(uri, columns))
    found = {(each["task"], each["model"]): each for each in counts(models, tasks)}
    of_first = {n for n in range(20) if n % 2 == 0}
    of_second = of_first | {*range(30, 40), *range(3)}
    assert {key: each["trained_on"] for key, each in found.items()} == {
        ("all", "pretrained"): len(of_first),
        ("all", "finetuned"): len(of_second),
        ("twice", "pretrained"): 0,
        ("twice", "finetuned"): 2,
        ("held", "pretrained"): 0,
        ("held", "finetuned"): 0,
    }
    assert {each["pictures"] for each in found.values()} == {60, 3, 1} and not any(
        each["why"] for each in found.values()
    )
    assert sorted(read) == [("sha256",), ("sha256", "url"), ("sha256", "url")], "each table once, and no other column"


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    root = storage.from_path(tmp_path)
    pairs = filtered(root, {"train/00000": range(4)})
    model = trained(root, "pretrain", [pairs])
    known = trained_on.pairs_of(model)
    (arrays,) = counts({"pretrained": known}, {"pixels": pictures(None, None)})
    assert arrays["trained_on"] is None and arrays["why"] == "the set's pictures are no files of their own"
    (foreign,) = counts({"pretrained": "it is a model of others"}, {"a": pictures(digest(1))})
    assert foreign["trained_on"] is None and foreign["why"] == "it is a model of others"
    storage.delete(pairs.part_uris("train/", ".parquet")[0])
    (gone,) = counts({"pretrained": known}, {"a": pictures(digest(1))})
    assert gone["trained_on"] is None and "00000.parquet" in gone["why"]


def test_a_models_pairs_are_found_by_the_manifest_beside_it(tmp_path: Path) -> None:
    root = storage.from_path(tmp_path)
    model = trained(root, "pretrain", [filtered(root, {"train/00000": range(4)})])
    known = trained_on.pairs_of(model)
    assert pairs_at(f"{model.uri}/model") == pairs_at(f"{model.uri}/model/") == known
    assert pairs_at(storage.filesystem(model.uri)[1] + "/model") == known
    assert pairs_at(f"onnx:{storage.filesystem(model.uri)[1]}/exported") == known
    for other in ("open_clip:ViT-B-32/openai", "cn_clip:ViT-B-16", "wukong_release:a/b", "transformers:a/b"):
        assert pairs_at(other) == "it is a model of others"
    assert pairs_at(str(tmp_path / "alone" / "model")) == "no manifest of a training lies beside it"
    storage.delete(f"{model.parents[0].uri}/manifest.json")
    assert "its lineage cannot be read (no manifest at" in str(pairs_at(f"{model.uri}/model"))


@pytest.mark.slow
def test_a_registered_version_says_what_it_was_made_from(
    tmp_path: Path, mlflow_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_address)
    root = storage.from_path(tmp_path)
    model = trained(root, "finetune", [filtered(root, {"train/00000": range(4)})])
    client = mlflow.MlflowClient(mlflow_address)
    client.create_registered_model("of-trained-on")
    for tags in ({"wukong.model": model.uri}, {}):
        client.create_model_version("of-trained-on", "s3://nowhere/model", tags=tags)
    client.set_registered_model_alias("of-trained-on", "champion", "1")
    known = trained_on.pairs_of(model)
    assert pairs_at("models:/of-trained-on@champion") == pairs_at("models:/of-trained-on/1") == known
    assert "models:/of-trained-on/2 does not say where its files are" in str(pairs_at("models:/of-trained-on/2"))
    assert "alias other not found" in str(pairs_at("models:/of-trained-on@other"))
    assert "of-nobody" in str(pairs_at("models:/of-nobody@champion"))


def test_a_pictures_digest_is_that_of_its_file(tmp_path: Path) -> None:
    Image.new("RGB", (3, 3)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"123")
    files = Files(tmp_path, ["a.png", "b.png", "none.png"])
    of_file = hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    assert files.digest(0) == of_file and files.digest(1) == hashlib.sha256(b"123").hexdigest()
    with pytest.raises(DataError, match=r"none\.png cannot be read"):
        files.digest(2)
    (tmp_path / "both").write_bytes(b"--" + (tmp_path / "a.png").read_bytes() + b"123")
    size = (tmp_path / "a.png").stat().st_size
    parts = Parts([tmp_path / "both"], np.array([[0, 2, size], [0, 2 + size, 3]]))
    assert [parts.digest(0), parts.digest(1)] == [files.digest(0), files.digest(1)]
    assert Arrays([np.zeros((2, 4, 4), np.uint8)]).digest(0) is None
    held = HeldOut(["t", "t"], ["k", "l"], ["a" * 64, None])
    data = ClassificationData("x", "test", ["c"], ["k", "l"], np.zeros(2, np.int64), held, "X")
    assert trained_on.digests(data) == ["a" * 64, None]
