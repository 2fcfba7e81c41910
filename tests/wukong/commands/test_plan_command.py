import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cli.main import app
from wukong.commands import plan
from wukong.errors import ConfigError


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    file = tmp_path / "experiment.yaml"
    image = {"name": "vit_tiny_patch16_224", "weights": "random", "image_size": 32}
    model = {"image": image, "similarity": "token", "text": {"layers": 2, "heads": 2, "width": 32}}
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    training = {"epochs": 5, "batch_size": 64, "workers": 2}
    file.write_text(yaml.safe_dump({"name": "x", "crawl": crawl, "model": model, "pretrain": training}))
    return file


TOLD = ("--rate", "text_step=100", "--rate", "tower=20", "--rate", "decode=50", "--rate", "augment=10")


def run(*arguments: str) -> str:
    ended = CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False)
    assert ended.exit_code == 0
    return ended.output


def test_told_rates_give_the_hours_and_bytes(experiment: Path) -> None:
    found = json.loads(run("--config", str(experiment), "--pairs", "36000", "--gpus", "3", *TOLD, "--json"))
    assert {rate["source"] for rate in found["rates"].values()} == {"told"}
    assert (found["gpus"], found["epochs"], found["faster"]) == (3, 5, "cached")
    # 12,000 pairs a GPU; two loaders of each decode 100 plain views a second, and the tower takes 20.
    assert found["cached"]["hours"] == pytest.approx((12_000 / 20 + 5 * 12_000 / 100) / 3600)
    assert found["cached"]["bytes"] == 36_000 * 4 * 192 * 2  # 4 patches of 192 numbers
    assert found["streamed"]["hours"] == pytest.approx(5 * 12_000 * (1 / 20 + 1 / 100) / 3600)


def test_the_output_says_which_rates_are_which(experiment: Path) -> None:
    given = ("--rate", "gpu=1", "--rate", "tower=20", "--rate", "decode=50", "--rate", "augment=10")
    lines = run("--config", str(experiment), "--pairs", "1000", "--gpus", "1", *given).splitlines()
    sources = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert sources["text_step"].endswith("computed from gpu")
    assert sources["tower"].endswith("told")
    measured = run("--config", str(experiment), "--pairs", "1000", "--gpus", "1", *TOLD[:-2]).splitlines()
    assert [line.split()[0] for line in measured if line.endswith("measured here")] == ["augment"]


@pytest.mark.parametrize("value", ["tower", "tower=fast", "tower=0", "tower=-3", "tower=inf", "cpu=3"])
def test_a_wrong_rate_is_named_with_what_is_allowed(value: str) -> None:
    with pytest.raises(ConfigError, match=r"text_step, tower, decode, augment, gpu, store") as said:
        plan.parse_rates([value])
    assert repr(value) in str(said.value)


def test_a_gpus_rate_must_be_told_where_there_is_none(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"no GPU to measure tower on.*--rate tower=500, or give --rate gpu=TFLOPS"):
        run("--config", str(experiment), "--pairs", "9", "--gpus", "2", "--rate", "text_step=10")
