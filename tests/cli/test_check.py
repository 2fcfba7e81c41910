"""The check before a cluster: every config of the paper passes it without a hub, and what could not run is named."""

import socket
from contextlib import nullcontext
from pathlib import Path

import pytest
import timm
from safetensors.torch import save
from typer.testing import CliRunner

from cli import check
from cli.main import app
from wukong.config import documents
from wukong.errors import ConfigError
from wukong.store import storage

PAPER = Path(__file__).parents[2] / "configs" / "paper"


def refused(config: Path, *overrides: str, overlay: str = "gpu") -> str:
    with pytest.raises(ConfigError) as error:
        check.check_one(documents.load(config, [*overrides]), *check.resources_of(overlay), stand_in=True)
    return str(error.value)


@pytest.mark.long
def test_every_config_of_the_paper_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    configs = [path for path in sorted(PAPER.rglob("*.yaml")) if "small" not in path.parts]
    done = CliRunner().invoke(app, ["check", *map(str, configs), "--stand-in", "--overlay", "gpu"])
    assert done.exit_code == 0, done.output
    passed = [line for line in done.output.splitlines() if "can be run on gpu" in line]
    assert len(passed) == len(configs) == 21


def test_what_a_run_asks_for_is_told() -> None:
    """By hand: ten loader processes with two batches each, and two more, of 256 pictures of 224 x 224 x 3 bytes."""
    done = CliRunner().invoke(app, ["check", str(PAPER / "vit-b-32.yaml"), "--stand-in"])
    assert f"{22 * 256 * 3 * 224**2 / 1e6:.1f} MB of /dev/shm for its loaders" in done.output
    assert "In a step of pretrain a worker hands the others 406.8 MB of gradients" in done.output  # 4 x 101.7 million
    assert "22 published sets are measured, of 336,690 pictures and about" in done.output
    assert (
        "Slow: pretrain: its workers ask the store for 3.1 GB/s, and 1.2 GB/s is what it is assumed to" in done.output
    )


def test_a_hub_is_refused_with_the_command_that_brings_the_weights() -> None:
    said = refused(PAPER / "vit-b-32.yaml", "model.image.weights=hub", "model.text.weights=hub:org/bert-base-chinese")
    assert "model.image.weights: 'hub': only the crawl reaches the internet" in said
    assert "`wukong weights get vit_base_patch32_clip_quickgelu_224.openai --to" in said
    assert "`wukong weights get bert-base-chinese --to" in said


def test_what_pods_do_not_see_or_hold_is_named() -> None:
    said = refused(
        PAPER / "vit-b-32.yaml",
        *(
            "crawl.queries=file:///words.txt",
            "pretrain.loader_workers=13",
            "finetune.epochs=1",
            "finetune.gpus_per_worker=2",
        ),
    )
    assert "crawl.queries: file:///words.txt is on this machine" in said
    assert "pretrain.loader_workers: 13 processes decode in a pod with 12 cores" in said
    assert "finetune.gpus_per_worker: 2: a worker trains on one device" in said
    without = [f"{stage}.gpus_per_worker=0" for stage in ("pretrain", "finetune")]
    said = refused(PAPER / "vit-l.yaml", *without, "pretrain.lock=none", overlay="kind")
    assert "a task of pretrain needs 7.9 GB and its pods have 3.2 GB: enlarge stages.pretrain.memory" in said
    assert "pretrain: a model of 404,945,921 weights is not read in a pod with 3.2 GB" in said


def test_settings_and_set_names_are_checked_together() -> None:
    said = refused(PAPER / "vit-b-32.yaml", "evaluate.tasks=[imagenet, image-net]", "model.image.name=vit_none")
    assert "there is no evaluation set 'image-net'" in said and "timm has no model 'vit_none'" in said


def test_a_gate_that_the_queries_cannot_pass_is_told(caplog: pytest.LogCaptureFixture) -> None:
    for words in (100_000, 50_000):
        refused(PAPER / "vit-b-32.yaml", f"crawl.max_queries={words}", "model.image.name=vit_none")
    assert caplog.messages == [
        "the gate asks for 50,000,000 pairs and there are 41,495,850 at most, so it would refuse them after the crawl: "
        "lower validation.min_pairs, or find more by another list or more queries"
    ]


def test_an_overlay_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"--overlay gpus: .* use base, gpu, kind"):
        check.resources_of("gpus")


def test_a_stand_in_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("somebody is asked"))
    listed = ["crawl.engine=urls", "crawl.endpoint=s3://wukong/inputs/wukong-100m"]  # as docs/paper.md says
    asked = documents.load(PAPER / "vit-b-32.yaml", [*listed, "crawl.previous=s3://wukong/x/manifest.json"])
    assert check.check_one(asked, *check.resources_of("gpu"), stand_in=True).size.image > 0


@pytest.mark.long
@pytest.mark.usefixtures("object_store")
def test_a_real_store_and_search_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = documents.load(
        PAPER / "vit-b-32.yaml",
        [
            "model.image.name=test_vit",
            "model.image.weights=s3://wukong/inputs/tower.safetensors",
            "evaluate.tasks=[]",
            "filter.decontaminate=null",
        ],
    )
    with socket.create_server(("127.0.0.1", 0)) as engine:
        monkeypatch.setenv("WUKONG_CONNECT_TO", f"image.baidu.com=127.0.0.1:{engine.getsockname()[1]}")
        with pytest.raises(ConfigError, match=r"crawl\.queries: s3://wukong/inputs/queries\.txt does not exist"):
            check.check_one(experiment, *check.resources_of("gpu"), stand_in=False)
        storage.write_bytes("s3://wukong/inputs/queries.txt", "猫\n".encode())
        storage.write_bytes("s3://wukong/inputs/evaluation-sets/imagenet/x", b"x")
        for name, message in (("test_vit2", "does not fit"), ("test_vit", "")):
            tower = {key: value.contiguous() for key, value in timm.create_model(name).state_dict().items()}
            storage.write_bytes("s3://wukong/inputs/tower.safetensors", save(tower))
            with pytest.raises(ConfigError, match=message) if message else nullcontext():
                assert check.check_one(experiment, *check.resources_of("gpu"), stand_in=False).size.image > 0
