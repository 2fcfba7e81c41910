"""``wukong evaluate`` on a set that lies in a folder, with a tiny model saved on disk."""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from cli.main import app
from wukong.commands import evaluate
from wukong.config import documents
from wukong.config.model import Model as Settings
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.errors import ConfigError, DataError
from wukong.evaluate import sets
from wukong.evaluate.model import OwnModel
from wukong.evaluate.protocol import OWN
from wukong.evaluate.published import NotThereError
from wukong.model import saved_model
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.runs import run_records
from wukong.runs.run_records import Record
from wukong.store import storage
from wukong.store.manifest import Stage


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
         "--output", str(written)],
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


def test_two_models_stand_beside_each_other_on_the_page_and_in_the_json(model: str, data: Path, tmp_path: Path) -> None:
    written, page = tmp_path / "results.json", tmp_path / "page.html"
    result = CliRunner().invoke(
        app,
        ["evaluate", "--model", model, "--fine-tuned", model, "--tasks", "tuxpaint", "--data", str(data),
         "--output", str(written), "--report", str(page)],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert f"Model {model}, zero-shot" in result.output and f"Model {model}, fine-tuned" in result.output
    found = json.loads(written.read_text("utf-8"))
    first, second = found["tasks"]
    assert (first["model"], second["model"]) == ("pretrained", "finetuned") and first["results"] == second["results"]
    compared = {each["result"]: each for each in found["comparisons"]}
    assert set(compared) == set(first["results"])
    end = 1 - 0.025 ** (1 / 18)  # Clopper and Pearson's, of none of 18
    assert [compared["top1"]["difference"][each] for each in ("low", "value", "high")] == pytest.approx([-end, 0, end])
    assert compared["top1"]["mcnemar"] == {"only_first": 0, "only_second": 0, "p": 1.0, "exact": True}
    assert compared["mean_per_class"]["mcnemar"] is None
    assert "Fine-tuned less zero-shot" in result.output and f"{-100 * end:+.2f} to {100 * end:+.2f}" in result.output
    assert set(found["missing"]) == set(sets.REGISTRY) - {"tuxpaint"} and "Download" in found["missing"]["muge"]
    assert [model["digest"] for model in found["models"]] == [found["models"][0]["digest"]] * 2
    html = page.read_text("utf-8")
    assert "Tux Paint categories" in html and html.count("data:image/jpeg;base64,") == len(first["examples"])


def test_pictures_that_the_model_was_trained_on_are_counted_and_notes_printed(
    model: str, data: Path, tmp_path: Path
) -> None:
    stamps = sorted((data / "tuxpaint").rglob("*.png"))
    root = storage.from_path(tmp_path / "store")
    filtered = Stage(root, "filter", {})
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in stamps[:5]] + ["0" * 64]
    storage.write_table(filtered.path("train/00000.parquet"), pa.table({"sha256": digests, "url": ["u"] * 6}))
    storage.write_bytes(filtered.path("train/00000.tar"), b"")
    pairs = filtered.commit([filtered.describe(f"train/00000.{end}", 6) for end in ("parquet", "tar")])
    stage = Stage(root, "pretrain", {"training": {"sources": ["*"]}}, [pairs])
    for file in Path(model).iterdir():
        storage.upload(file, stage.path(f"model/{file.name}"))
    stage.commit([])
    written, page = tmp_path / "results.json", tmp_path / "page.html"
    command = ["evaluate", "--model", stage.path("model"), "--fine-tuned", model, "--tasks", "tuxpaint"]
    result = CliRunner().invoke(app, [*command, "--data", str(data), "--output", str(written), "--report", str(page)])
    assert result.exit_code == 0, result.output
    assert any("│ 5 of 18" in line for line in result.output.splitlines())
    assert "5 of 18 pictures were trained on" in result.output and "not known" in result.output
    assert sets.of("tuxpaint").note in result.output
    found = json.loads(written.read_text("utf-8"))
    assert found["notes"] == {"tuxpaint": sets.of("tuxpaint").note}
    assert [(each["model"], each["trained_on"], each["pictures"]) for each in found["trained_on"]] == [
        ("pretrained", 5, 18),
        ("finetuned", None, 18),
    ]
    (overlap,) = found["overlaps"]
    assert (overlap["model"], overlap["overlap"], overlap["by"]["file"], overlap["queries"]) == ("pretrained", 5, 5, 5)
    whole = 18 * found["tasks"][0]["results"]["top1"]["value"]
    inside = 5 * overlap["results"]["top1"]["overlap"]["value"]
    clean = overlap["results"]["top1"]["clean"]["value"]
    assert 13 * clean == pytest.approx(whole - inside)
    assert (
        "Tux Paint categories, zero-shot: 5 of 18 pictures overlap with the training data. "
        f"top-1: {100 * whole / 18:.2f} % with them, {100 * clean:.2f} % without. The overlap raises the result by"
    ) in result.output
    text = page.read_text("utf-8")
    assert "Overlap with the training data" in text
    assert "The zero-shot model: 5 of 18 pictures were trained on." in text
    assert "whether it was trained on these pictures is not known: no manifest of a training lies beside it" in text
    assert "The demo trains" in text


def test_the_example_of_the_help_names_no_set_that_the_demo_trains_on() -> None:
    said = " ".join(CliRunner().invoke(app, ["evaluate", "--help"]).output.split())
    example = said.split("wukong evaluate --model")[1].split("--protocol")[0]
    named = [name for name, each in sets.REGISTRY.items() if name in example]
    assert named and not [name for name in named if "trains" in sets.of(name).note]


def test_with_all_and_nothing_there_it_says_where_sets_belong_and_fetches_none(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(evaluate, "fetched", lambda names: dict.fromkeys(asked.extend(names) or ()))
    result = CliRunner().invoke(app, ["evaluate", "--model", model, "--data", str(tmp_path / "none")])
    assert isinstance(result.exception, DataError)
    assert f"none of the {len(sets.REGISTRY)} sets is in" in str(result.exception)
    assert not asked
    command = ["evaluate", "--model", model, "--data", str(tmp_path / "none"), "--tasks", "tuxpaint"]
    assert isinstance(CliRunner().invoke(app, command).exception, NotThereError)
    assert asked == ["tuxpaint"]


@pytest.mark.parametrize("as_list", [False, True])
def test_a_folder_or_list_of_own_pictures_is_measured(as_list: bool, model: str, tmp_path: Path) -> None:
    pictures = tmp_path / "mytest"
    pictures.mkdir()
    captions = ["红色的猫", "绿色的船", "蓝色的天空"]
    for number, caption in enumerate(captions):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(caption, encoding="utf-8")
    rows = [f"mytest/{number}.png,{caption}" for number, caption in enumerate(captions)]
    (tmp_path / "list.csv").write_text("\n".join(["path,caption", *rows]), encoding="utf-8")
    given, written = tmp_path / "list.csv" if as_list else pictures, tmp_path / "r.json"
    result = CliRunner().invoke(app, ["evaluate", "--model", model, "--data", str(given), "--output", str(written)])
    assert result.exit_code == 0, result.output
    (entry,) = json.loads(written.read_text("utf-8"))["tasks"]
    assert (entry["kind"], entry["sizes"]) == ("retrieval", {"images": 3, "captions": 3})
    own = OwnModel(saved_model.load(Path(model).as_uri()), "m")
    images = own.encode_images([Image.open(pictures / f"{n}.png").convert("RGB") for n in range(3)], OWN)
    scores = own.image_to_text(images, own.encode_texts(captions, OWN))
    right = [int(scores[:, n].argmax()) == n for n in range(3)]
    assert entry["results"]["text_to_image_r1"]["value"] == pytest.approx(sum(right) / 3)


def test_own_pictures_without_a_caption_are_an_error_that_names_both_readings(model: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["evaluate", "--model", model, "--data", str(tmp_path)])
    assert isinstance(result.exception, DataError)
    assert "no folder of an evaluation set" in str(result.exception) and "no picture" in str(result.exception)


def test_a_wrong_name_is_said_before_large_libraries_are_loaded(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom cli.main import main\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules, file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", program, "evaluate", "--model", "x", "--tasks", "nope"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    assert ended.returncode and "there is no evaluation set 'nope'" in ended.stderr
    assert ended.stderr.rstrip().endswith("False")


def test_hold_outs_of_an_experiment_are_measured_by_their_own_protocol(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WUKONG_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "x.yaml"
    file.write_text(
        f"name: x\nstorage: {(tmp_path / 'store').as_uri()}\ncrawl: {{queries: file:///q, endpoint: http://x}}\n"
        "filter: {split: {held_out_captions: 0.1, holdouts: [{name: new, source: '*/held/*'}]}}\n"
    )
    asked = [
        "evaluate",
        "--model",
        model,
        "--tasks",
        "new",
        "--config",
        str(file),
        "--output",
        str(tmp_path / "r.json"),
    ]
    early = CliRunner().invoke(app, asked)
    assert isinstance(early.exception, DataError) and "no run of x has filtered pairs" in str(early.exception)
    stage = Stage(f"{(tmp_path / 'store').as_uri()}/x", "filter", {})
    captions = ["红色的猫", "绿色的船", "蓝色的天空"]
    rows = []
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for number, caption in enumerate(captions):
            picture = io.BytesIO()
            pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(picture, "JPEG")
            rows.append({"key": f"k{number}", "url": f"http://x/{number}", "caption": caption, "sha256": str(number)})
            member = tarfile.TarInfo(f"k{number}.jpg")
            member.size = len(picture.getvalue())
            tar.addfile(member, io.BytesIO(picture.getvalue()))
    storage.upload(tmp_path / "shard.tar", stage.path("new/00000.tar"))
    storage.write_table(stage.path("new/00000.parquet"), pa.Table.from_pylist(rows))
    found = stage.commit([stage.describe(f"new/00000.{end}", 3) for end in ("tar", "parquet")])
    record = Record(stage="filter", state="succeeded", manifest=f"{found.uri}/manifest.json")
    run_records.claim(documents.load(file), "first")
    run_records.write(documents.load(file), "first", record)
    result = CliRunner().invoke(app, [*asked, "--run", "first"])
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "r.json").read_text("utf-8"))
    (entry,) = written["tasks"]
    assert (entry["task"], entry["split"], entry["protocol"]) == ("new", "holdout", "own")
    assert entry["sizes"] == {"images": 3, "captions": 3}
    assert "Hold-outs: Equal captions are one caption" in " ".join(written["protocols"]["own"])
    squashed = CliRunner().invoke(app, [*asked, "--protocol", "cn-clip"])
    assert squashed.exit_code == 0, squashed.output
    (entry,) = json.loads((tmp_path / "r.json").read_text("utf-8"))["tasks"]
    assert entry["protocol"] == "cn-clip"
    assert f"Hold-outs: of the run first, {found.uri}" in squashed.output
    other = CliRunner().invoke(app, [*asked, "--run", "second"])
    assert "run second of x has no filtered pairs" in str(other.exception)
    of_run = [each for each in asked if each not in ("--config", str(file))]
    named = CliRunner().invoke(app, [*of_run, "--run", f"{(tmp_path / 'store').as_uri()}/x/runs/first/"])
    assert named.exit_code == 0, "a run names its experiment, and needs no file"
    assert json.loads((tmp_path / "r.json").read_text("utf-8")) == written
    file.write_text(file.read_text().replace("http://x", "http://y"))
    of_others = CliRunner().invoke(app, asked)
    assert "no run of x has filtered pairs of the images of http://y at" in str(of_others.exception)
    assert "(runs there on other images: first)" in str(of_others.exception)


def test_without_a_tracking_server_there_is_no_logging(
    model: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("WUKONG_HOME", str(tmp_path / "none"))
    result = CliRunner().invoke(
        app, ["evaluate", "--model", model, "--tasks", "tuxpaint", "--data", str(data), "--mlflow", "x"]
    )
    assert isinstance(result.exception, ConfigError) and "MLFLOW_TRACKING_URI is not set" in str(result.exception)
