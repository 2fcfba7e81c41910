"""Exports come back: they are evaluated with the model's own numbers, and trainings start from their towers."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from cli.main import app
from wukong.config.model import Model
from wukong.evaluate import adapters, sets
from wukong.evaluate.model import OwnModel
from wukong.evaluate.protocol import PROTOCOLS, named
from wukong.export import parts, run
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.model.saved_model import SavedModel
from wukong.store import storage

pytestmark = pytest.mark.long

TEXT = {"layers": 2, "heads": 4, "width": 64}
VIT = {"image": {"name": "test_vit", "image_size": 32, "weights": "random"}, "text": TEXT, "embedding": 32}


@pytest.mark.parametrize("view", ["whole", "crop"])
def test_an_export_is_measured_as_the_model_itself(
    view: str, built: Callable[[dict[str, object]], SavedModel], tmp_path: Path
) -> None:
    """By every protocol: also texts that open_clip would change, and the model's own view of pictures."""
    saved = built({**VIT, "image": {**VIT["image"], "view": view}})  # type: ignore[dict-item]
    run.export(saved, "open_clip", tmp_path / "clip")
    found, own = adapters.load(f"open_clip:local-dir:{tmp_path / 'clip'}"), OwnModel(saved, "own")
    pictures, texts = parts.sample_pictures(8), ["猫，狗", "“一只猫”", "ABC的照片" * 20]
    for protocol in (*PROTOCOLS.values(), named("own")):
        torch.testing.assert_close(
            found.encode_images(pictures, protocol), own.encode_images(pictures, protocol), atol=1e-5, rtol=0
        )
        ours = own.encode_texts(texts, protocol).vectors
        torch.testing.assert_close(found.encode_texts(texts, protocol).vectors, ours, atol=1e-5, rtol=0)
    assert found.scale == pytest.approx(own.scale)


def test_wukong_evaluate_gives_an_export_the_numbers_of_the_model(
    built: Callable[[dict[str, object]], SavedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = built(VIT)
    run.export(saved, "open_clip", tmp_path / "clip")
    full = sets.of("tuxpaint")
    for number, (category, *_) in enumerate(full.names * 4):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        folder = tmp_path / "data" / "tuxpaint" / "stamps" / category
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    monkeypatch.setitem(sets.REGISTRY, "tuxpaint", replace(full, splits={"test": 4 * len(full.names)}))
    monkeypatch.setenv("WUKONG_CACHE", str(tmp_path / "cache"))
    measured = []
    for model in (str(tmp_path / "model"), f"open_clip:local-dir:{tmp_path / 'clip'}"):
        asked = ["evaluate", "--model", model, "--tasks", "tuxpaint", "--data", str(tmp_path / "data"), "--json"]
        result = CliRunner().invoke(app, asked)
        assert result.exit_code == 0, result.output
        (task,) = json.loads(result.stdout)["tasks"]
        measured.append((task["results"], task["confusion"], task["classes"]))
    assert measured[0] == measured[1]


@pytest.mark.parametrize("name", ["lite0", "clip_vit"])
def test_a_training_starts_from_the_towers_of_an_export(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    saved: SavedModel = request.getfixturevalue(name)
    run.export(saved, "open_clip", tmp_path / "clip")
    settings = saved.model.settings.model_dump(mode="json")
    settings["image"]["weights"] = storage.from_path(tmp_path / "clip" / "open_clip_model.safetensors")
    settings["text"]["weights"] = storage.from_path(tmp_path / "clip")
    begun = Model.model_validate(settings)
    torch.manual_seed(1)
    model = DualEncoder(begun, saved.tokenizer, ImageEncoder(begun.image)).eval()
    assert model.image is not None and saved.model.image is not None
    pixels = torch.randint(0, 256, (4, 3, 224, 224), dtype=torch.uint8)
    ids = saved.tokenizer(parts.sample_captions(32))
    with torch.no_grad():
        torch.testing.assert_close(model.image(pixels), saved.model.image(pixels), atol=0, rtol=0)
        torch.testing.assert_close(model.text(ids), saved.model.text(ids), atol=1e-5, rtol=0)
