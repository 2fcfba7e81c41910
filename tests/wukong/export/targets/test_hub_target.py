"""The Hub's layout: opened by open_clip as a repository, from a cache without a network, and by this project."""

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import consumers
import numpy as np
import pytest
from huggingface_hub import ModelCard
from typer.testing import CliRunner

import wukong
from cli.main import app
from wukong.errors import ConfigError
from wukong.export import parts, run
from wukong.export.target import Options
from wukong.export.targets import REGISTRY, hub
from wukong.model.saved_model import SavedModel

pytestmark = pytest.mark.long

TINY = {
    "image": {"name": "test_vit", "image_size": 32, "weights": "random", "view": "crop"},
    "text": {"layers": 1, "heads": 2, "width": 64},
    "embedding": 32,
}
OPENS = """
import os, sys

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_CACHE=sys.argv[1])
import numpy, torch
from PIL import Image
{opens}
with torch.no_grad():
    image = model.eval().encode_image(preprocess(Image.open(sys.argv[2]))[None], normalize=True)
    text = model.encode_text(tokenizer(["一只猫", "猫，狗"]), normalize=True)
numpy.savez(sys.argv[3], image=image, text=text)
"""


def cached(folder: Path, cache: Path, name: str) -> None:
    """Lay a folder out as the Hub's library does with what it has downloaded of a repository."""
    place = cache / f"models--{name.replace('/', '--')}"
    commit = "0" * 40
    shutil.copytree(folder, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)


def test_what_the_card_says_opens_the_repository(
    built: Callable[[dict[str, object]], SavedModel], tmp_path: Path
) -> None:
    saved = built(TINY)
    checks = run.export(saved, "hub", tmp_path / "hub", Options(name="owner/clip-zh"))
    assert {check.by.split()[0] for check in checks} >= {"open_clip"}
    card = ModelCard.load(tmp_path / "hub" / "README.md")
    assert (card.data.library_name, card.data.language, card.data.license) == ("open_clip", "zh", "unknown")
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    (opens,) = re.findall(r"With open_clip:\n\n```python\n(.*?)```", card.text, re.DOTALL)
    cached(tmp_path / "hub", tmp_path / "cache", "owner/clip-zh")
    picture = parts.sample_pictures(1)[0]
    picture.save(tmp_path / "picture.png")
    script = OPENS.replace("{opens}", opens)
    consumers.run(Path(sys.executable), script, tmp_path / "cache", tmp_path / "picture.png", tmp_path / "vectors.npz")
    found = np.load(tmp_path / "vectors.npz")
    np.testing.assert_allclose(found["image"], saved.encode_image(picture), atol=1e-5)
    np.testing.assert_allclose(found["text"], saved.encode_text(["一只猫", "猫，狗"]).vectors, atol=1e-5)
    own = wukong.load(tmp_path / "hub" / "wukong")
    np.testing.assert_array_equal(own.encode_image(picture), saved.encode_image(picture))


def test_a_token_wise_model_is_there_for_what_can_hold_it(
    built: Callable[[dict[str, object]], SavedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in set(hub.PREFERRED) - {"open_clip"}:
        monkeypatch.delitem(REGISTRY, name, raising=False)
    saved = built({**TINY, "similarity": "token"})
    assert run.export(saved, "hub", tmp_path / "hub", Options(name="owner/tokens")) == []
    assert not (tmp_path / "hub" / "open_clip_config.json").exists()
    card = ModelCard.load(tmp_path / "hub" / "README.md")
    assert card.data.library_name is None and "With open_clip" not in card.text and "With Wukong" in card.text
    assert wukong.load(tmp_path / "hub" / "wukong").model.token_wise


def test_the_second_target_that_holds_a_model_lies_in_a_folder_of_its_own(
    built: Callable[[dict[str, object]], SavedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(_saved: SavedModel, folder: Path, options: Options) -> list[Any]:
        (folder / "config.json").write_text(options.hub or "", "utf-8")
        return []

    monkeypatch.setattr(hub, "PREFERRED", {"onnx": "First{below}.", "open_clip": "Second {name}{below}."})
    for name in ("onnx", "open_clip"):
        stands_in = type(REGISTRY[name])(name, "", (), lambda *_: None, write)
        monkeypatch.setitem(REGISTRY, name, stands_in)
    run.export(built(TINY), "hub", tmp_path / "hub", Options(name="owner/two"))
    assert (tmp_path / "hub" / "config.json").read_text() == "owner/two"
    assert (tmp_path / "hub" / "open_clip" / "config.json").is_file()
    text = (tmp_path / "hub" / "README.md").read_text("utf-8")
    assert "First." in text and 'Second owner/two + "/open_clip".' in text


@pytest.mark.parametrize("name", ["wukong", "a/b/c", "中文/模型", "owner/"])
def test_a_name_that_no_repository_can_have_is_refused(
    name: str, built: Callable[[dict[str, object]], SavedModel], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"--name OWNER/NAME"):
        run.export(built(TINY), "hub", tmp_path / "hub", Options(name=name))
    assert not (tmp_path / "hub").exists()


def test_the_command_takes_licence_and_results(
    built: Callable[[dict[str, object]], SavedModel], tmp_path: Path
) -> None:
    built(TINY)
    (tmp_path / "other.json").write_text('{"format": 1, "models": [], "tasks": []}', "utf-8")
    asked = ["model", "export", str(tmp_path / "model"), str(tmp_path / "hub"), "--to", "hub", "--name", "owner/clip"]
    refused = CliRunner().invoke(app, [*asked, "--results", str(tmp_path / "other.json")])
    assert isinstance(refused.exception, ConfigError) and "no result of this model" in str(refused.exception)
    assert not (tmp_path / "hub").exists()
    done = CliRunner().invoke(app, [*asked, "--licence", "Apache-2.0"])
    assert done.exit_code == 0, done.output
    assert ModelCard.load(tmp_path / "hub" / "README.md").data.license == "apache-2.0"
