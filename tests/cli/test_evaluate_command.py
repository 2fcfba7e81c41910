"""``wukong evaluate`` on a set that lies in a folder, with a tiny model saved on disk."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from cli.main import app
from wukong.config import Model as Settings
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.errors import ConfigError
from wukong.evaluate import sets
from wukong.evaluate.published import NotThereError
from wukong.model import saved_model
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder


@pytest.fixture
def model(tmp_path: Path) -> str:
    torch.manual_seed(0)
    settings = Settings.model_validate(
        {
            "image": {"name": "resnet18", "weights": "random", "image_size": 32},
            "text": {"layers": 1, "heads": 2, "width": 16, "pooling": "mean"},
            "embedding": 8,
            "similarity": "global",
        }
    )
    tokenizer = Tokenizer(packaged_vocabulary())
    dual = DualEncoder(settings, tokenizer, ImageEncoder(settings.image, with_weights=False))
    with torch.no_grad():
        dual.text.tokens.weight.mul_(50)  # random weights alone give all texts nearly one vector
    saved_model.save((tmp_path / "model").as_uri(), dual, tokenizer)
    return str(tmp_path / "model")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    stamps = tmp_path / "data" / "tuxpaint" / "stamps"
    full = sets.of("tuxpaint")
    for number, (category, *_) in enumerate(full.names * 2):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        (stamps / category).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(stamps / category / f"{number}.png")
    monkeypatch.setitem(sets.REGISTRY, "tuxpaint", replace(full, splits={"test": 18}))
    monkeypatch.setenv("WUKONG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "data"


@pytest.mark.parametrize("protocol", ["paper", "cn-clip", "clip-benchmark"])
def test_each_number_is_printed_with_its_protocol(protocol: str, model: str, data: Path, tmp_path: Path) -> None:
    written = tmp_path / "results.json"
    result = CliRunner().invoke(
        app,
        ["evaluate", "--model", model, "--tasks", "tuxpaint", "--protocol", protocol, "--data", str(data),
         "--json", str(written)],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if " to " in line and "\u2502" in line]
    assert len(lines) == 3 and all(line.split("\u2502")[-2].strip() == protocol for line in lines)
    (entry,) = json.loads(written.read_text("utf-8"))["tasks"]
    assert f"{100 * entry['results']['top1']['value']:.2f}" in lines[0]


def test_a_named_set_that_is_not_there_is_an_error_that_says_how_to_get_it(model: str, data: Path) -> None:
    result = CliRunner().invoke(app, ["evaluate", "--model", model, "--tasks", "muge", "--data", str(data)])
    assert result.exit_code and isinstance(result.exception, NotThereError)
    assert "Download" in str(result.exception)


def test_an_unknown_protocol_is_refused(model: str, data: Path) -> None:
    result = CliRunner().invoke(app, ["evaluate", "--model", model, "--protocol", "elevater", "--data", str(data)])
    assert isinstance(result.exception, ConfigError)
    assert "allowed: paper, cn-clip, clip-benchmark" in str(result.exception)
