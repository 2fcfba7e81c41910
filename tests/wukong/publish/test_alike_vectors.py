"""Takedown by example, by vectors: stored features and an index, against vectors computed picture by picture."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import shown_pictures as shown
import torch
from PIL import Image
from typer.testing import CliRunner

from cli.main import app
from wukong.config.model import Model as Settings
from wukong.data import feature_files, images
from wukong.data.decoding import decode
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.evaluate.model import OwnModel
from wukong.model import saved_model
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.publish import alike, alike_vectors
from wukong.serve import collection, encode
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage

pytestmark = pytest.mark.long
IMAGE = {"name": "vit_tiny_patch16_224", "weights": "random", "image_size": 32}
CROPPED = (40, 30, 300, 220)
"""A part of the picture: its hash is another one's."""


def model(similarity: str, seed: int = 1) -> tuple[DualEncoder, Tokenizer]:
    torch.manual_seed(seed)
    text = {"layers": 1, "heads": 2, "width": 16}
    settings = Settings.model_validate({"image": IMAGE, "text": text, "embedding": 8, "similarity": similarity})
    tokenizer = Tokenizer(packaged_vocabulary())
    return DualEncoder(settings, tokenizer, ImageEncoder(settings.image)).eval(), tokenizer


def cosines(queries: torch.Tensor, stored: dict[str, torch.Tensor]) -> dict[str, float]:
    query = queries.double().numpy().ravel()
    vectors = {key: vector.double().numpy().ravel() for key, vector in stored.items()}
    return {
        key: float(vector @ query / np.linalg.norm(vector) / np.linalg.norm(query)) for key, vector in vectors.items()
    }


@pytest.fixture
def sent(tmp_path: Path) -> alike.Example:
    path = tmp_path / "sent.png"
    shown.photo(shown.SHOWN).crop(CROPPED).save(path)
    (example,) = alike.read_examples([storage.from_path(path)])
    return example


def check(hits: list[alike.Hit], expected: dict[str, float], at_least: float) -> None:
    near = {key for key, cosine in expected.items() if cosine >= at_least}
    assert {hit.key for hit in hits} == near and 0 < len(near) < len(expected)
    for hit in hits:
        assert hit.level == "vector" and 1 - hit.distance == pytest.approx(expected[hit.key], abs=2e-3)


def between(expected: dict[str, float]) -> float:
    """A cosine in the middle of the widest gap below the nearest ten, so that rounding decides nothing."""
    ordered = sorted(expected.values(), reverse=True)[:10]
    gaps = [(before - after, (before + after) / 2) for before, after in pairwise(ordered)]
    return max(gaps)[1]


@pytest.mark.parametrize(("kind", "dtype"), [("pooled", "float16"), ("tokens", "float16"), ("pooled", "int8")])
def test_stored_features_find_what_their_tower_finds(
    tmp_path: Path, sent: alike.Example, kind: str, dtype: str
) -> None:
    root, manifests = shown.experiment(tmp_path)
    dual, tokenizer = model("token")
    trained = Stage(root, "pretrain", {"with": "a tower"}, [manifests["filter"]])
    saved_model.save(trained.path("model"), dual, tokenizer)
    tower = dual.image
    assert tower is not None

    def features(picture: Image.Image) -> torch.Tensor:
        with torch.inference_mode():
            found = tower(images.to_tensor([images.evaluation_view(picture, 32)]))
        return found.tokens[0] if kind == "tokens" else found.pooled[0]

    mine = [pair for pair in shown.pairs() if shown.split_of(pair) == "train"]
    stored = {pair.key: features(decode(pair.data)) for pair in mine}
    config = {"image": dual.settings.image.of_tower(), "kind": kind}
    made = Stage(root, "features", config, [manifests["filter"], trained.commit([])])
    path = feature_files.path_of("train", "00000", 0)
    feature_files.write(made.path(path), list(stored), torch.stack(list(stored.values())).half(), dtype)  # type: ignore[arg-type]
    other = feature_files.path_of("train", "00000", 1)  # an augmented view is not compared
    feature_files.write(made.path(other), list(stored), torch.ones(len(stored), 4).half())
    made.commit([made.describe(each, len(stored)) for each in (path, other)])
    mean = {key: value.mean(0) if kind == "tokens" else value for key, value in stored.items()}
    query = features(sent.open())
    expected = cosines(query.mean(0) if kind == "tokens" else query, mean)
    at_least = between(expected)
    hits, left_out = alike_vectors.near(root, alike.outputs_at(root), [sent], [], [], at_least)
    check(hits, expected, at_least)
    assert left_out == []

    storage.delete(trained.path("model"))
    hits, left_out = alike_vectors.near(root, alike.outputs_at(root), [sent], [], [], at_least)
    assert hits == [] and "their tower is gone" in left_out[0]


@pytest.mark.parametrize("similarity", ["global", "token"])
def test_an_index_finds_what_its_model_finds_and_one_of_another_model_is_said(
    tmp_path: Path, sent: alike.Example, similarity: str
) -> None:
    root, manifests = shown.experiment(tmp_path)
    trained = Stage(root, "finetune", {"with": "a tower"}, [manifests["filter"]])
    indexes, elsewhere = storage.from_path(tmp_path / "indexes"), storage.from_path(tmp_path / "elsewhere")
    saved_model.save(trained.path("model"), *model(similarity))
    saved_model.save(elsewhere, *model(similarity, seed=2))
    trained.commit([])
    found = collection.of(manifests["filter"].uri)
    own = OwnModel(saved_model.load(trained.path("model")), "own")
    made = encode.build(found, own, indexes)

    def vector(picture: Image.Image) -> torch.Tensor:
        encoded = own.saved.encode_image([picture])[0]
        return encoded.mean(0) if own.token_wise else encoded

    stored = {p.key: vector(decode(p.data)) for p in shown.pairs() if shown.split_of(p) != "dropped"}
    expected = cosines(vector(sent.open()), stored)
    at_least = between(expected)

    def near(models: list[str]) -> tuple[list[alike.Hit], list[str]]:
        return alike_vectors.near(root, alike.outputs_at(root), [sent], [indexes], models, at_least)

    hits, left_out = near([elsewhere])
    check(hits, expected, at_least)
    assert left_out == []

    other = encode.build(found, OwnModel(saved_model.load(elsewhere), "other"), indexes)
    storage.delete(made.uri)
    hits, left_out = near([])
    assert hits == [] and "is of a model that is not here" in left_out[0] and other.uri in left_out[0]
    assert near([elsewhere])[1] == []


def test_at_most_twenty_are_shown_for_an_example(tmp_path: Path, sent: alike.Example) -> None:
    root, manifests = shown.experiment(tmp_path)
    trained = _trained(root, manifests["filter"])
    indexes = storage.from_path(tmp_path / "indexes")
    encode.build(collection.of(manifests["filter"].uri), OwnModel(saved_model.load(trained.path("model")), ""), indexes)
    every, _ = alike_vectors.near(root, alike.outputs_at(root), [sent], [indexes], [], -1.0)
    assert len(every) == alike_vectors.NEAREST < len(shown.pairs())


def test_the_command_lists_what_vectors_find_behind_a_sign_that_a_person_takes_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, manifests = shown.experiment(tmp_path)
    trained = _trained(root, manifests["filter"])
    indexes = storage.from_path(tmp_path / "home" / "indexes")
    made = encode.build(
        collection.of(manifests["filter"].uri), OwnModel(saved_model.load(trained.path("model")), ""), indexes
    )
    monkeypatch.setenv("WUKONG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = tmp_path / "e.json"
    crawl = {"queries": "file:///q", "endpoint": "http://127.0.0.1:1"}
    config.write_text(json.dumps({"name": "test", "storage": storage.from_path(tmp_path / "store"), "crawl": crawl}))
    (tmp_path / "sent.jpg").write_bytes(shown.COPIES["equal"](shown.photo(shown.SHOWN)))

    def call(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["takedown", "--config", str(config), *arguments])
        assert done.exit_code == 0, done.output
        return done.stdout

    like = ("--like", str(tmp_path / "sent.jpg"), "--cosine", "0")
    listed = call(*like)
    assert listed.count("vector, cosine") > 5
    unlike = next(pair for pair in shown.pairs() if pair.key in listed and pair.name.isdigit())
    near_list = tmp_path / "near.txt"
    near_list.write_text(listed)
    assert "covers 5 URLs" in call(str(near_list), "--dry-run")
    near_list.write_text(listed.replace(f"# {unlike.sha256}", unlike.sha256))
    assert "covers 6 URLs" in call(str(near_list), "--reason", "case 1")
    assert not storage.list_files(made.uri)
    assert unlike.key not in call(*like)


def _trained(root: str, filtered: Manifest) -> Stage:
    trained = Stage(root, "finetune", {"with": "a tower"}, [filtered])
    saved_model.save(trained.path("model"), *model("global"))
    trained.commit([])
    return trained
