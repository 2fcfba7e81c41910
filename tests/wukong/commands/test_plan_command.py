import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cli.main import app
from wukong import stages
from wukong.errors import ConfigError
from wukong.train import rates as rates_of_training


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


def test_the_output_says_which_rates_are_which(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = rates_of_training.measure
    monkeypatch.setattr(rates_of_training, "measure", lambda *given: measure(*given[:-1], 0.1))  # not for 20 s
    given = ("--rate", "gpu=1", "--rate", "tower=20", "--rate", "decode=50", "--rate", "augment=10")
    lines = run("--config", str(experiment), "--pairs", "1000", "--gpus", "1", *given).splitlines()
    sources = {line.split()[0]: line.rstrip() for line in lines if line.startswith("  ")}
    assert sources["text_step"].endswith("computed from gpu")
    assert sources["tower"].endswith("told")
    measured = run("--config", str(experiment), "--pairs", "1000", "--gpus", "1", *TOLD[:-2], "--measure").splitlines()
    assert [line.split()[0] for line in measured if line.rstrip().endswith("measured here")] == ["augment"]


PAPER = Path(__file__).parents[3] / "configs" / "paper"


@pytest.mark.parametrize(
    ("name", "batch", "tokens", "outweighs"),
    [("vit-l", 10_240, 256, False), ("vit-l", 32_800, 256, True), ("vit-l", 32_800, 9, False)],
)
def test_a_loss_that_outweighs_the_tower_is_said(name: str, batch: int, tokens: int, outweighs: bool) -> None:
    """By hand: each of 32 words with each patch, 256 numbers, forward and twice backward, two operations each."""
    changed = ["--set", f"pretrain.batch_size={batch}", "--set", f"finetune.batch_size={batch}"]
    if tokens != 256:
        changed += ["--set", f"model.image.tokens={tokens}"]
    found = json.loads(run("--config", str(PAPER / f"{name}.yaml"), "--pairs", "100000000", *changed, "--json"))
    loss = 3 * 2 * (batch / 40) * batch * tokens * 32 * 256
    assert found["operations"]["loss"] == pytest.approx(loss)
    assert found["operations"]["image"] == pytest.approx(
        batch / 40 * 162e9, rel=0.05
    )  # ViT-L/14, 81 GMAC at 224 pixels
    said = [note for note in found["notes"] if "pretrain: the token-wise loss" in note and "model.image.tokens" in note]
    assert bool(said) == outweighs


@pytest.mark.parametrize(("together", "said"), [(1, 2), (8, 0), ("node", 0)])
def test_gpus_in_a_pod_each_are_said(experiment: Path, tmp_path: Path, together: int | str, said: int) -> None:
    settings = {"head": {"memory": "1Gi"}, "stages": {"pretrain": {"cpus": 4}}, "gpu": {"gpus_per_pod": together}}
    metadata = {"name": "ray-job", "namespace": "wukong"}
    manifest = {"kind": "ConfigMap", "metadata": metadata, "data": {"settings.yaml": yaml.safe_dump(settings)}}
    (tmp_path / "overlay.yaml").write_text(yaml.safe_dump(manifest))
    given = ("--config", str(experiment), "--pairs", "1000", "--overlay", str(tmp_path / "overlay.yaml"), *TOLD)
    found = json.loads(run(*given, "--gpus", "4", "--json"))
    assert len([note for note in found["notes"] if "are in a pod each" in note]) == said
    assert "are in a pod each" not in run(*given, "--gpus", "1")


@pytest.mark.parametrize("value", ["tower", "tower=fast", "tower=0", "tower=-3", "tower=inf", "cpu=3"])
def test_a_wrong_rate_is_named_with_what_is_allowed(experiment: Path, value: str) -> None:
    with pytest.raises(ConfigError, match=r"text_step, tower, decode, augment, gpu, network, store") as said:
        run("--config", str(experiment), "--pairs", "9", "--rate", value)
    assert repr(value) in str(said.value)


def test_a_gpus_rate_must_be_told_where_there_is_none(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"no GPU to measure tower on.*--rate tower=500, or give --rate gpu=TFLOPS"):
        run("--config", str(experiment), "--pairs", "9", "--gpus", "2", "--rate", "text_step=10", "--measure")


@pytest.fixture
def rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates of this machine, in the stack's home."""
    of_items = {"crawl": 0.004, "filter": 0.002, "validate": 0.001}
    of_stages = {name: {"start": 10.0, "core_seconds": of_items.get(name, 0.0), "driver_mib": 512, "task_mib": 1024,
                        "driver_mib_per_million": 100 * (name == "validate"), "largest": 9_000}
                 for name in (*stages.WHOLE_RUN, "features")}  # fmt: skip
    speeds = {"step_flops": 1e10, "tower_flops": 1e10, "decode": 100, "augment": 50, "gpu_flops": 1e13}
    value = {"machine": "old box", "measured": "2026-11-28", "command": "c", "speeds": speeds, "stages": of_stages}
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "rates.json").write_text(json.dumps(value))
    monkeypatch.setenv("WUKONG_HOME", str(tmp_path / "home"))


@pytest.mark.usefixtures("rates")
def test_a_whole_run_is_planned_with_its_costs(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("--config", str(experiment), "--urls", "3000000", "--pairs", "2000000", "--cores", "4")
    found = json.loads(run(*given, "--price", "cpu=0.5,gib_month=0.02", "--json"))
    planned = found["stages"]
    assert list(planned) == list(stages.WHOLE_RUN)
    assert [planned[name]["seconds"] for name in ("crawl", "filter", "validate")] == [3_010, 1_510, 510]
    assert [planned[name]["bytes"] for name in ("crawl", "filter")] == [9e10, 6e10]
    assert planned["validate"]["driver_memory"] == (512 + 100 * 2) * 2**20
    assert planned["crawl"]["cost"] == pytest.approx(3_010 / 3600 * 4 * 0.5)
    assert found["stored_bytes"] == sum(each["bytes"] for each in planned.values()) > 1.5e11
    assert found["cost"]["month"] == pytest.approx(found["stored_bytes"] / 2**30 * 0.02)
    monkeypatch.setenv("WUKONG_PRICES", "cpu=0.5")
    monkeypatch.setenv("WUKONG_CURRENCY", "EUR")
    text = run(*given)
    assert " EUR a month." in text and "memory" not in text
    assert "The cost of memory is left out" in run(*given, "--price", "gib=1")
    assert "Rates of old box, 2026-11-28" in text and "up to 9,000 items" in text
    crawl = next(line.split() for line in text.splitlines() if line.startswith("  crawl"))
    assert crawl == ["crawl", "50.2", "min", "4", "-", "536.9", "MB", "1.1", "GB", "90.0", "GB", "1.67"]


@pytest.mark.usefixtures("rates")
def test_an_overlay_says_how_many_cores_there_are_and_what_does_not_fit(experiment: Path, tmp_path: Path) -> None:
    settings = {
        "head": {"memory": "600Mi"},
        "stages": {name: {"workers": 3, "cpus": 2, "memory": "2Gi"} for name in stages.JOBS},
    }
    maps = [
        {"metadata": {"name": "ray-job", "namespace": "wukong"}, "data": {"settings.yaml": yaml.safe_dump(settings)}},
        {"metadata": {"name": "wukong-settings", "namespace": "wukong"}, "data": {"WUKONG_STORE_CAPACITY": "100Gi"}},
    ]
    maps[1]["metadata"]["annotations"] = {"wukong/sized-for-urls": "4321"}
    file = tmp_path / "overlay.yaml"
    file.write_text(yaml.safe_dump_all([{"kind": "ConfigMap"} | entry for entry in maps]))
    given = ("--config", str(experiment), "--urls", "2000000", "--overlay", str(file))
    found = json.loads(run(*given, "--json"))
    assert found["stages"]["crawl"]["cores"] == 3 * 2
    assert found["stages"]["pretrain"]["cores"] == 2 * 2, "the experiment says how many workers a training has"
    assert found["store_holds"] == 100 * 2**30
    store, driver = found["problems"]
    assert "the store holds 107.4 GB and 12" in store and "enlarge its claim" in store
    assert "the driver of validate needs 746.6 MB and the head has 629.1 MB" in driver
    crawl = found["stages"]["crawl"]
    priced = json.loads(run(*given, "--price", "gib=0.5", "--json"))["stages"]["crawl"]["cost"]
    assert priced == pytest.approx(crawl["seconds"] / 3600 * 0.5 * (3 * 2 + 600 / 1024)), "workers and the head"
    maps[1]["data"]["WUKONG_PRICES"] = "cpu=0.25"
    file.write_text(yaml.safe_dump_all([{"kind": "ConfigMap"} | entry for entry in maps]))
    charged = json.loads(run(*given, "--json"))["stages"]["crawl"]["cost"]
    assert charged == pytest.approx(crawl["seconds"] / 3600 * 6 * 0.25), "the installation's own prices"
    fits = json.loads(run("--config", str(experiment), "--urls", "1000", "--overlay", str(file), "--json"))
    assert fits["problems"] == []
    worker = {"template": {"spec": {"volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "12Mi"}}]}}}
    maps[0]["data"]["template.yaml"] = yaml.safe_dump({"spec": {"rayClusterSpec": {"workerGroupSpecs": [worker]}}})
    settings["gpu"] = {"gpus_per_pod": 2}
    maps[0]["data"]["settings.yaml"] = yaml.safe_dump(settings)
    file.write_text(yaml.safe_dump_all([{"kind": "ConfigMap"} | entry for entry in maps]))
    of_plan = ("--config", str(experiment), "--urls", "1000", "--overlay", str(file), "--json")
    small = json.loads(run(*of_plan, "--gpus", "2"))["problems"]
    assert len(small) == 4
    assert "what a task of crawl makes takes 60.0 MB and a worker has 6.3 MB" in small[0], "a task on each of two cores"
    assert "what a task of filter makes takes 30.0 MB" in small[1]
    assert "a checkpoint of pretrain takes" in small[2] and "has 6.3 MB for temporary files" in small[2]
    assert len(json.loads(run(*of_plan))["problems"]) == 2, "without GPUs each worker of a training has its own pod"
    text = run("--config", str(experiment), "--urls", "1000")
    assert "While pretrain goes on, up to" in text and "is validated" not in text
    validated = ("--set", "finetune.validation.every_steps=1", "--set", "finetune.epochs=2")
    held = 'filter.split={held_out_captions: 0.1, holdouts: [{name: h, source: "*", captions: unseen}]}'
    text = run("--config", str(experiment), "--urls", "2000", "--set", held, *validated)
    assert "finetune is validated 6 times, " in text
    few = json.loads(run("--config", str(experiment), "--urls", "1000", "--pairs", "999", "--json"))["problems"]
    assert len(few) == 1 and "asks for 1,000 pairs and there are 999 at most" in few[0]
    assert json.loads(run("--config", str(experiment), "--overlay", str(file), "--json"))["urls"] == 4_321


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--urls or --pairs"),
        (("--urls", "5", "--pairs", "6"), "6 pairs cannot come from 5 URLs"),
        (("--urls", "5", "--price", "ram=3"), "--price: 'ram=3' .* cpu, gib, gpu, gib_month"),
        (("--urls", "5", "--overlay", "nowhere"), "--overlay: nowhere is neither"),
        (("--urls", "5", "--overlay", "nowhere", "--cores", "4"), "--cores: the overlay says"),
    ],
)
def test_what_cannot_be_planned_is_refused(experiment: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run("--config", str(experiment), *arguments)
