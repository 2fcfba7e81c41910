"""An index made of stored features, against the vectors that the model gives for the pictures themselves."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import colours
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from wukong import stages
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.config.model import Model
from wukong.data import feature_files
from wukong.data.feature_files import File
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.errors import DataError
from wukong.evaluate.model import OwnModel
from wukong.model import saved_model
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.model.saved_model import SavedModel
from wukong.serve import collection, encode, index
from wukong.stages import places
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage
from wukong.train import features

pytestmark = pytest.mark.long
IMAGE = {"name": "vit_tiny_patch16_224", "weights": "random", "image_size": 32}
TEXT = {"layers": 1, "heads": 2, "width": 16}
KINDS: dict[str, dict[str, Any]] = {
    "global": {"similarity": "global"},
    "token": {"similarity": "token"},
    "pooled": {"similarity": "token", "image": {**IMAGE, "tokens": 1}},
}
TRAIN, HELD = {"train/00000": 9, "train/00001": 5}, {"test/00000": 3}


def photo(number: int) -> bytes:
    """Neither square nor grey, so that another view of it has other features."""
    pixels = np.random.default_rng(number).integers(0, 256, (5, 8, 3), np.uint8)
    return colours.encoded(Image.fromarray(pixels).resize((80, 50)), "JPEG", quality=95)


def experiment(root: Path, model: dict[str, Any], **sections: Any) -> Experiment:
    described = {"image": IMAGE, "text": TEXT, "embedding": 8, **model}
    crawl = {"queries": "file:///q", "endpoint": "http://x"}
    made = {"name": "x", "storage": storage.from_path(root), "crawl": crawl, "model": described, **sections}
    return documents.parse({"pretrain": {"views": 1}, "finetune": {"views": 1}, **made})


def filtered(root: Path) -> tuple[Manifest, dict[str, bytes]]:
    """A filter's output, and its pictures by key. One pair of a shard has the picture of another shard's."""
    photos: dict[str, bytes] = {}
    pairs: dict[str, list[tuple[str, str, bytes, str]]] = {}
    for shard, count in (TRAIN | HELD).items():
        pairs[shard] = []
        for _ in range(count):
            key = f"{len(photos):020d}"
            photos[key] = photo(len(photos))
            pairs[shard].append((key, f"第{len(photos)}张", photos[key], key))
    again = "8" * 20
    pairs["train/00001"].insert(2, (again, "又一张", photos[f"{0:020d}"], f"{0:020d}"))
    return colours.stage(root / "x", pairs), photos


def own(settings: Model, shift: float = 0.0) -> OwnModel:
    """A model whose tower has the weights that its settings name, or a little more."""
    torch.manual_seed(1)
    tokenizer = Tokenizer(packaged_vocabulary())
    dual = DualEncoder(settings, tokenizer, ImageEncoder(settings.image)).eval()
    assert dual.image is not None
    with torch.no_grad():
        next(iter(dual.image.backbone.parameters())).add_(shift)
    return OwnModel(SavedModel(dual, tokenizer), "m")


def store(
    settings: Experiment, data: Manifest, pairs: Any = "train", trained: Manifest | None = None, **of: Any
) -> Manifest:
    """Leave what the features job leaves: of each shard the evaluation view and, of training shards, another."""
    stage = places.features(settings, data, trained, pairs)
    tower = storage.join(trained.uri, "model") if trained else None
    parts = []
    for shard, rows in (TRAIN if pairs == "train" else HELD).items():
        for view in range(stage.config["views"] + 1):
            path = feature_files.path_of(*shard.split("/"), view)
            file = File(storage.join(data.uri, f"{shard}.tar"), view, stage.path(path))
            list(features.compute([file], settings.model, tower=tower, **of))
            parts.append(stage.describe(path, rows + (shard == "train/00001")))
    return stage.commit(parts)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures the image tower of a served model has seen, batch by batch."""
    batches: list[int] = []
    encoded = SavedModel.encode_image

    def counted(model: SavedModel, pictures: Sequence[Any], *rest: Any, **named: Any) -> Tensor:
        batches.append(len(pictures))
        return encoded(model, pictures, *rest, **named)

    monkeypatch.setattr(SavedModel, "encode_image", counted)
    return batches


def vectors(made: Manifest, model: OwnModel) -> dict[str, Tensor]:
    opened = index.open_index(made, model)
    rows = torch.arange(len(opened.keys))
    found = opened.picture_tokens.read(rows) if opened.picture_tokens else opened.picture_vectors[rows]
    return dict(zip(opened.keys, found, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_vectors_are_those_of_the_pictures(
    kind: str, tmp_path: Path, seen: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """The training's pictures from features; those of the hold-out, which nobody has measured, by the tower."""
    settings = experiment(tmp_path, KINDS[kind])
    data, photos = filtered(tmp_path)
    made, model = store(settings, data), own(settings.model)
    with caplog.at_level(logging.INFO):
        built = encode.build(collection.of(data.uri), model, storage.from_path(tmp_path / "indexes"))
    assert sum(seen) == 3
    assert f"14 pictures have their vectors from the features at {made.uri}" in caplog.text
    assert "3 pictures have their vectors from the image tower" in caplog.text
    found = vectors(built, model)
    assert set(found) == set(photos)
    for key, vector in found.items():
        torch.testing.assert_close(vector, model.saved.encode_image(photos[key])[0], atol=2e-3, rtol=0)

    store(settings, data, "holdouts")
    seen.clear()
    again = encode.build(collection.of(data.uri), model, storage.from_path(tmp_path / "others"))
    assert seen == []
    for key, vector in vectors(again, model).items():
        torch.testing.assert_close(vector, found[key], atol=2e-3, rtol=0)


def test_features_go_on_after_a_kill_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = experiment(tmp_path, KINDS["token"])
    data, _ = filtered(tmp_path)
    store(settings, data)
    model, found = own(settings.model), collection.of(data.uri)
    whole = encode.build(found, model, storage.from_path(tmp_path / "whole"))
    monkeypatch.setattr("wukong.serve.stored_features._BYTES_AT_ONCE", 1)
    monkeypatch.setattr(encode, "_BATCH_PICTURES", 4)
    encoded = encode._encode_piece

    def killed(stage: Stage, of: collection.Collection, piece: collection.Piece, *rest: Any) -> dict[str, Any]:
        if piece.name == "train-00001":
            raise KeyboardInterrupt
        return encoded(stage, of, piece, *rest)

    monkeypatch.setattr(encode, "_encode_piece", killed)
    with pytest.raises(KeyboardInterrupt):
        encode.build(found, model, storage.from_path(tmp_path / "killed"))
    monkeypatch.setattr(encode, "_encode_piece", encoded)
    again = vectors(encode.build(found, model, storage.from_path(tmp_path / "killed")), model)
    for key, vector in vectors(whole, model).items():
        torch.testing.assert_close(vector, again[key], atol=1e-3, rtol=0)


def test_features_of_a_trained_tower_are_of_that_tower_alone(
    tmp_path: Path, seen: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """The settings of both towers are equal, and so are those of a tower that differs by one small number."""
    settings = experiment(tmp_path, KINDS["global"], pretrain={"lock": "none"})
    data, photos = filtered(tmp_path)
    trained = own(settings.model, shift=0.5)
    stage = places.training("pretrain", settings, data, None, None)
    parts = saved_model.save(stage.path("model"), trained.saved.model, trained.saved.tokenizer)
    made = store(settings, data, "train", stage.commit([stage.describe(f"model/{part}") for part in parts]))
    store(settings, data, "holdouts")  # of the tower as it was

    found = vectors(encode.build(collection.of(data.uri), trained, storage.from_path(tmp_path / "i")), trained)
    assert sum(seen) == 3
    for key, vector in found.items():
        torch.testing.assert_close(vector, trained.saved.encode_image(photos[key])[0], atol=2e-3, rtol=0)
    seen.clear()
    with caplog.at_level(logging.INFO):
        encode.build(collection.of(data.uri), own(settings.model, shift=1e-6), storage.from_path(tmp_path / "i"))
    assert sum(seen) == 17, "another number is another tower"
    assert f"the features at {made.uri} are of other weights than the model's and are not used" in caplog.text
    storage.delete(storage.join(stage.uri, "model"))
    seen.clear()
    encode.build(collection.of(data.uri), trained, storage.from_path(tmp_path / "other"))
    assert sum(seen) == 17, "nobody can say of which tower they are"
    assert "because their tower is not there" in caplog.text


@pytest.mark.parametrize("why", ["int8", "bfloat16", "view", "size", "kind", "unfinished", "version", "pairs"])
def test_other_features_are_not_used(
    why: str, tmp_path: Path, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = experiment(tmp_path, KINDS["global"])
    data, _ = filtered(tmp_path)
    changed: dict[str, Any] = {
        "int8": {"features": {"dtype": "int8"}},
        "bfloat16": {"pretrain": {"views": 1, "precision": "bfloat16"}},
        "view": {"model": {"image": {**IMAGE, "view": "crop"}}},
        "size": {"model": {"image": {**IMAGE, "image_size": 48}}},
        "kind": {"model": KINDS["token"]},
    }
    other = experiment(tmp_path, **{"model": KINDS["global"], **changed.get(why, {})})
    with monkeypatch.context() as earlier:
        if why == "version":
            entry, of = stages.of("features"), stages.of
            older = replace(entry, version=entry.version - 1)
            earlier.setattr(stages, "of", lambda name: older if name == "features" else of(name))
        stored = store(other, data, dtype="int8" if why == "int8" else "float16")
    if why == "unfinished":
        storage.delete(storage.join(stored.uri, "manifest.json"))
    if why == "pairs":
        changed_pairs = data.model_copy(update={"counts": {"pairs": 1}})
        storage.write_json(storage.join(data.uri, "manifest.json"), changed_pairs.model_dump(mode="json"))
    encode.build(collection.of(data.uri), own(settings.model), storage.from_path(tmp_path / "i"))
    assert sum(seen) == 17


def test_damaged_features_are_named(tmp_path: Path) -> None:
    settings = experiment(tmp_path, KINDS["global"])
    data, _ = filtered(tmp_path)
    made = store(settings, data)
    file = storage.join(made.uri, feature_files.path_of("train", "00001", 0))
    content = storage.read_bytes(file)
    model, found = own(settings.model), collection.of(data.uri)
    storage.write_bytes(file, content[:-3] + bytes(3))
    with pytest.raises(DataError, match=r"00001\.view00\.safetensors is damaged .*delete it, and .*manifest.json"):
        encode.build(found, model, storage.from_path(tmp_path / "i"))
    storage.write_bytes(file, storage.read_bytes(storage.join(made.uri, feature_files.path_of("train", "00000", 0))))
    with pytest.raises(DataError, match=r"00001\.view00\.safetensors lacks the picture 0{18}09: delete"):
        encode.build(found, model, storage.from_path(tmp_path / "i"))
    storage.delete(made.uri)
    assert encode.build(found, model, storage.from_path(tmp_path / "i")).counts["pictures"] == 17
