"""What a run checks before its first stage, once its store answers."""

import socket
from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file

from cli import begin
from wukong.config import documents
from wukong.errors import ConfigError
from wukong.model.cost import Shape, Size
from wukong.store import storage

pytestmark = pytest.mark.slow


def test_weights_of_another_tower_end_a_run_before_it_begins(tmp_path: Path) -> None:
    other = {name: value.contiguous() for name, value in timm.create_model("test_vit2").state_dict().items()}
    save_file(other, tmp_path / "tower.safetensors")
    (tmp_path / "queries.txt").write_text("猫\n", encoding="utf-8")
    folder = storage.from_path(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as engine:
        crawl = {"queries": f"{folder}/queries.txt", "endpoint": f"http://127.0.0.1:{engine.getsockname()[1]}/search"}
        image = {"name": "test_vit", "weights": f"{folder}/tower.safetensors"}
        experiment = documents.parse({"name": "x", "storage": folder, "crawl": crawl, "model": {"image": image}})
        with pytest.raises(
            ConfigError, match=r"cannot be run:\n  model\.image\.weights: .*tower\.safetensors does not"
        ):
            begin.check_and_plan(experiment, tmp_path, Size(1, 1, 1.0, Shape(1, 1)))
    assert not (tmp_path / "x").exists()


def test_batches_are_compared_with_the_pictures_that_are_known(tmp_path: Path) -> None:
    (tmp_path / "queries.txt").write_text("猫\n", encoding="utf-8")
    folder = storage.from_path(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as engine:
        crawl = {"queries": f"{folder}/queries.txt", "endpoint": f"http://127.0.0.1:{engine.getsockname()[1]}/search"}
        training = {"batch_size": 64}
        experiment = documents.parse(
            {"name": "x", "storage": folder, "crawl": crawl, "pretrain": training, "finetune": training}
        )
        begin.check_and_plan(experiment, tmp_path, Size(1, 1, 1.0, Shape(1, 1)), 64)
        with pytest.raises(ConfigError, match=r"finetune\.batch_size: 64 is more than the 63 pictures of the corpus"):
            begin.check_and_plan(experiment, tmp_path, Size(1, 1, 1.0, Shape(1, 1)), 63)
