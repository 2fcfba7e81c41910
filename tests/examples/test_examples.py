"""Each example runs as its page says, and prints what it should."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from wukong.config.model import Model
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.model import saved_model
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.store import storage

ROOT = Path(__file__).parents[2]


def run(script: str, *arguments: str, library: Path = ROOT) -> list[str]:
    """The lines that an example prints."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / script), *arguments],
        env={**os.environ, "PYTHONPATH": str(library)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_example_is_listed_and_tested() -> None:
    page = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    folders = {folder.name for folder in (ROOT / "examples").iterdir() if folder.is_dir()} - {"__pycache__"}
    assert folders == {"own_urls", "own_rule", "own_encoder", "load_model", "ci"}
    assert all(f"`{name}/`" in page for name in folders)


@pytest.mark.long
def test_own_urls() -> None:
    lines = run("own_urls/crawl_urls.py")
    # One URL is gone, one image is too small, one caption is not Chinese.
    assert {line.split()[1].rpartition("/")[2] for line in lines if line.startswith("kept")} == {"cat.jpg", "dog.jpg"}
    steps = {line[:45].strip(): line[45:].split()[:2] for line in lines if not line.startswith("kept")}
    assert steps["pictures downloaded"] == ["3", "2"]
    assert steps["caption is Chinese"] == ["2", "1"]


def test_own_rule(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "wukong", tmp_path / "wukong", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "examples" / "own_rule" / "repetition.py", tmp_path / "wukong" / "curate" / "rules")
    decided = dict(line.split("\t") for line in run("own_rule/try_rule.py", library=tmp_path))
    assert decided == {
        "一只猫在窗台上": "kept",
        "哈哈哈哈哈哈": "repetition",
        "000.jpg": "meaningless",
        "a cat": "language",
    }


@pytest.mark.long
def test_own_encoder() -> None:
    assert set(run("own_encoder/train_small.py")) == {"red: 红色", "green: 绿色", "blue: 蓝色", "yellow: 黄色"}


@pytest.mark.long
def test_load_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = {"layers": 1, "heads": 2, "width": 16}
    settings = Model.model_validate({"image": {"image_size": 64}, "text": text, "embedding": 8})
    tokenizer = Tokenizer(packaged_vocabulary())
    model = DualEncoder(settings, tokenizer, ImageEncoder(settings.image)).eval()
    saved_model.save(storage.from_path(tmp_path / "model"), model, tokenizer)
    images = [tmp_path / f"{colour}.png" for colour in ("red", "green", "blue")]
    for image in images:
        Image.new("RGB", (80, 60), image.stem).save(image)
    ranked = run("load_model/search.py", str(tmp_path / "model"), "一只猫", *map(str, images))
    loaded = saved_model.load(tmp_path / "model")
    expected = (loaded.encode_image(images) @ loaded.encode_text("一只猫").vectors[0]).tolist()
    assert {line.split("  ")[1]: float(line.split("  ")[0]) for line in ranked} == {
        str(image): pytest.approx(score, abs=6e-4) for image, score in zip(images, expected, strict=True)
    }
    scores = [float(line.split("  ")[0]) for line in ranked]
    assert scores == sorted(scores, reverse=True)
