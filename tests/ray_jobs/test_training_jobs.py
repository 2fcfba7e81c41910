"""Features, pretrain, finetune and evaluate on real Ray: coloured shapes with Chinese names."""

import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from crawled import complete
from english import english
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from cli.main import app
from ray_jobs import evaluate, features, finetune, pretrain
from ray_jobs import filter as filter_job
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.crawl.part_writer import Spool, write_part
from wukong.data import feature_files
from wukong.errors import DataError
from wukong.evaluate import answers, holdouts, trained_on
from wukong.evaluate.data_set import Classification
from wukong.evaluate.results import tasks_of
from wukong.model import saved_model
from wukong.stages import places
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage, load

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

COLOURS = {
    "红": "red",
    "绿": "green",
    "蓝": "blue",
    "黄": "yellow",
    "黑": "black",
    "灰": "grey",
    "紫": "purple",
    "橙": "orange",
}
SHAPES = {"圆": "ellipse", "方块": "rectangle", "三角": "polygon"}
HOLDOUTS = [
    {"name": "new-words", "source": "*/plain/*", "captions": "unseen"},
    {"name": "new-style", "source": "*/outlined/*", "captions": "any"},
]


def experiment(root: Path, finetuning: Mapping[str, object] | None = None, **pretraining: object) -> Experiment:
    training = {"epochs": 4, "batch_size": 16, "learning_rate": 0.02, "views": 1, "image_head_rate": 0.1}
    training |= {"checkpoint": {"least_seconds": 0, "most_share": 1}}
    return documents.parse(
        {
            "name": "test",
            "storage": storage.from_path(root),
            "crawl": {"queries": "file:///none", "endpoint": "http://127.0.0.1:1"},
            "filter": {"shard_size": 30, "split": {"held_out_captions": 0.2, "holdouts": HOLDOUTS}},
            "model": {
                "image": {"image_size": 64, "block": 2},
                "text": {"layers": 1, "heads": 2, "width": 32, "dropout": 0.1, "pooling": "mean"},
                "embedding": 16,
                "temperature": 0.2,
                "min_temperature": 0.1,
            },
            "pretrain": {**training, "whiten_image_head": True, **pretraining},
            "finetune": {**training, "epochs": 1, "learning_rate": 0.002, **(finetuning or {})},
            "evaluate": {
                "classification": [
                    {
                        "name": "colours",
                        "holdouts": ["new-style"],
                        "classes": {name: f"*/{colour}-*" for name, colour in COLOURS.items()},
                    },
                    {"name": "none", "holdouts": ["new-style"], "classes": {"猫": "*/cat/*"}},
                ]
            },
        }
    )


def picture(style: str, colour: str, shape: str, place: int) -> bytes:
    image = Image.new("RGB", (220, 240), "white")
    draw = ImageDraw.Draw(image)
    left, top = 20 + 15 * place, 30 + 10 * place
    box = (left, top, left + 130, top + 130)
    points = [(left + 65, top), (left, top + 130), (left + 130, top + 130)]
    outline = {"outline": "black", "width": 6} if style == "outlined" else {}
    if shape == "polygon":
        draw.polygon(points, fill=colour, **outline)
    else:
        getattr(draw, shape)(box, fill=colour, **outline)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=95)
    return encoded.getvalue()


@pytest.fixture(scope="module")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    stage = Stage(storage.from_path(tmp_path_factory.mktemp("crawl")), "crawl", {})
    rows = []
    with Spool() as spool:
        for style, copies in (("plain", 4), ("outlined", 1)):
            for name, colour in COLOURS.items():
                for title, shape in SHAPES.items():
                    for place in range(copies):
                        url = f"http://x/{style}/{colour}-{shape}-{place}.jpg"
                        row = complete({"url": url, "caption": f"{name}色的{title}", "width": 220, "height": 240})
                        spool.add(row["key"], picture(style, colour, shape, place))
                        rows.append(row)
        write_part(stage.path("parts/00000"), rows, spool)
    return stage.commit([stage.describe(f"parts/00000{suffix}", len(rows)) for suffix in (".tar", ".parquet")])


@pytest.fixture(scope="module")
def done(local_ray: None, crawl: Manifest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Manifest]:
    settings = experiment(tmp_path_factory.mktemp("whole"))
    found = {"filter": filter_job.run(settings, {"crawl": crawl})}
    for name, job in (("pretrain", pretrain), ("finetune", finetune), ("evaluate", evaluate)):
        found[name] = job.run(settings, found)
    found["features"] = features.run(settings, found)
    found["holdout features"] = features.run(settings, found, pairs="holdouts")
    return found


def test_what_has_finished_is_found_without_a_job(done: dict[str, Manifest], crawl: Manifest, tmp_path: Path) -> None:
    settings = experiment(Path(storage.filesystem(done["filter"].uri)[1]).parents[2])
    parents = {"filter": {"crawl": crawl}, "pretrain": {"filter": done["filter"]}}
    for name in ("filter", "pretrain", "finetune", "evaluate"):
        assert places.finished(name, settings, parents.get(name, done)) == done[name]
        assert places.finished(name, experiment(tmp_path), parents.get(name, done)) is None
    other = experiment(Path(storage.filesystem(done["filter"].uri)[1]).parents[2], epochs=9)
    assert places.finished("pretrain", other, parents["pretrain"]) is None


def test_features_are_what_the_tower_gives_for_each_view(done: dict[str, Manifest]) -> None:
    settings = experiment(Path("/data"))
    trained = {part.path.split(".view")[1][:2] for part in done["features"].parts}
    assert trained == {"00", "01"}
    assert all(part.path.startswith("train/") for part in done["features"].parts)
    manifest = done["holdout features"]
    assert {part.path.split("/")[0] for part in manifest.parts} == {"new-words", "new-style"}
    assert {part.path.split(".view")[1][:2] for part in manifest.parts} == {"00"}
    keys, found = feature_files.read(manifest.part_uris("new-style/")[0])
    from wukong.data import images, shards
    from wukong.model.image_encoder import ImageEncoder

    pictures = dict(shards.pictures(done["filter"].part_uris("new-style/", ".tar")[0]))
    views = [images.evaluation_view(images.decode(pictures[key]), 64) for key in keys]
    with torch.inference_mode():
        expected = ImageEncoder(settings.model.image).eval()(images.to_tensor(views)).pooled
    torch.testing.assert_close(found.float(), expected, rtol=5e-3, atol=5e-3)


def test_the_model_finds_unseen_pictures_and_is_measured(done: dict[str, Manifest]) -> None:
    metrics = done["evaluate"].metrics
    report = storage.read_json(storage.join(done["evaluate"].uri, "evaluation.json"))
    measured = {(task["model"], task["task"]): task for task in report["tasks"]}
    tasks = ("new-words", "new-style", "colours")
    assert list(measured) == [(model, task) for model in ("finetuned", "pretrained") for task in tasks]
    chance = measured["finetuned", "new-style"]["chance"]
    assert chance["text_to_image_r1"] == pytest.approx(1 / 24)
    assert metrics["eval/retrieval/new-style/text_to_image_r5"] > 3 * chance["text_to_image_r5"] / 2
    assert measured["finetuned", "colours"]["chance"]["top1"] == pytest.approx(1 / 8)
    assert "eval/classification/none/top1" not in metrics
    assert "pretrained/retrieval/new-style/text_to_image_r1" in metrics
    assert not [name for name in metrics if "chance" in name or name.endswith(("_low", "_high"))]
    assert metrics["eval/retrieval/holdouts/mean_recall"] == pytest.approx(
        (metrics["eval/retrieval/new-words/mean_recall"] + metrics["eval/retrieval/new-style/mean_recall"]) / 2
    )
    digests = {model["role"]: model["digest"] for model in report["models"]}
    assert digests == {"finetuned": done["finetune"].digest, "pretrained": done["pretrain"].digest}
    assert len(report["training"]["pretrain"]) == 4
    assert report["overlaps"] == []
    seen = {(each["model"], each["task"]): each for each in report["trained_on"]}
    assert seen.keys() == measured.keys()
    for key, each in seen.items():
        assert (each["trained_on"], each["pictures"]) == (0, measured[key]["sizes"]["images"])


def test_the_stage_writes_the_page_with_its_pictures(done: dict[str, Manifest]) -> None:
    assert {part.path for part in done["evaluate"].parts} == {
        "evaluation.html", "evaluation.json", "metrics.json",
        *(f"answers/{task}.parquet" for task in ("colours", "new-style", "new-words")),
    }  # fmt: skip
    page = storage.read_bytes(storage.join(done["evaluate"].uri, "evaluation.html")).decode()
    assert "Table 5" in page and "<h3>new-style</h3>" in page
    report = storage.read_json(storage.join(done["evaluate"].uri, "evaluation.json"))
    shown = [task for task in report["tasks"] if task["model"] == "finetuned"]
    images = [
        image
        for task in shown
        for example in task["examples"]
        for image in ([example] if "label" in example else example["images"])
    ]
    assert images and page.count("data:image/jpeg;base64,") == len(images)


@pytest.fixture
def stamps(tmp_path: Path) -> Path:
    """A folder of evaluation sets with Tux Paint's categories: as many pictures, of one colour each."""
    from wukong.evaluate import sets

    found = sets.of("tuxpaint")
    assert isinstance(found, Classification) and found.names is not None
    for number in range(found.splits["test"]):
        category = found.names[number % len(found.names)][0]
        target = tmp_path / "sets" / "tuxpaint" / "stamps" / category / f"{number:03d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number % 200, 255 - number % 250, number % 7 * 30)).save(target)
    return tmp_path / "sets"


def test_published_sets_are_measured_beside_the_hold_outs(
    done: dict[str, Manifest], stamps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(storage.filesystem(done["filter"].uri)[1]).parents[2]
    plain = experiment(root)
    # Each seventh stamp is said to be trained on.
    files = {path.relative_to(stamps / "tuxpaint" / "stamps").as_posix(): path for path in stamps.rglob("*.png")}
    trained = {name for name, path in files.items() if int(path.stem) % 7 == 0}
    table = pa.table({"sha256": [hashlib.sha256(files[name].read_bytes()).hexdigest() for name in sorted(trained)]})
    storage.write_table(storage.from_path(tmp_path / "train.parquet"), table)
    pairs = trained_on.Pairs(storage.from_path(tmp_path), ("train.parquet",), ("*",))
    monkeypatch.setattr(trained_on, "pairs_of", lambda _: {pairs})
    asked = {"tasks": ("tuxpaint",), "protocol": "cn-clip", "sets": storage.from_path(stamps)}
    settings = plain.model_copy(update={"evaluate": plain.evaluate.model_copy(update=asked)})
    found = evaluate.run(settings, done)
    assert found.config["sets"].keys() == {"tuxpaint"} and "sets" not in found.config["evaluate"]
    assert found.counts["tuxpaint"] == 615
    report = storage.read_json(storage.join(found.uri, "evaluation.json"))
    published = [task for task in report["tasks"] if task["task"] == "tuxpaint"]
    assert [(task["model"], task["protocol"], task["split"]) for task in published] == [
        ("finetuned", "cn-clip", "test"),
        ("pretrained", "cn-clip", "test"),
    ]
    assert set(report["protocols"]) == {"own", "cn-clip"} and "tuxpaint" not in report["missing"]
    answered = answers.read(storage.read_table(storage.join(found.uri, "answers/tuxpaint.parquet")), "finetuned")
    right = dict(zip(answered.queries, answered.results["top1"].tolist(), strict=True))
    assert trained < right.keys()
    clean = sum(value for name, value in right.items() if name not in trained) / (615 - len(trained))
    overlap = {each["model"]: each for each in report["overlaps"]}
    assert overlap["finetuned"]["overlap"] == overlap["pretrained"]["queries"] == len(trained)
    assert overlap["finetuned"]["results"]["top1"]["clean"]["value"] == pytest.approx(clean)
    (headline,) = {name for name in found.metrics if name.endswith("_without_overlap") and name.startswith("eval/")}
    assert headline.startswith("eval/classification/tuxpaint/")
    held = {name: value for name, value in found.metrics.items() if "tuxpaint" not in name}
    assert held == done["evaluate"].metrics, "hold-outs have the numbers that they have without it"
    # A killed stage: its manifest and one record are not there. What is left is not made again.
    records = Path(storage.filesystem(found.uri)[1]) / "_parts"
    times = {path.name: path.stat().st_mtime_ns for path in records.iterdir()}
    assert set(times) == {f"{name}.json" for name in ("new-words", "new-style", "colours", "none", "tuxpaint")}
    (records / "new-words.json").unlink()
    storage.delete(storage.join(found.uri, "manifest.json"))
    again = evaluate.run(settings, done)
    assert again.digest == found.digest
    kept = {path.name for path in records.iterdir() if path.stat().st_mtime_ns == times[path.name]}
    assert kept == set(times) - {"new-words.json"}
    # A set of other files is another input.
    next(stamps.rglob("000.png")).write_bytes(b"")
    computed = [features.run(settings, done, done[name], "holdouts") for name in ("finetune", "pretrain")]
    assert places.evaluation(settings, done, computed).key != found.uri.rsplit("/", 1)[1]


def differences_on(page: str, title: str) -> list[tuple[float, float, float, list[str]]]:
    """Of each result of a set: zero-shot, fine-tuned, the difference that is shown, and McNemar's two counts."""
    section = re.split(f"<h3[^>]*>{title}</h3>", page)[1].split("</table>", maxsplit=1)[0]
    head = [re.sub("<[^>]*>", "", cell) for cell in re.findall("<th.*?</th>", section)]
    assert head[1:3] == ["zero-shot", "fine-tuned"] and head[4:] == ["fine-tuned less zero-shot", "McNemar's p"]
    found = []
    for row in section.split("</thead>")[1].split("<tr>")[1:]:
        cells = re.findall("<td.*?</td>", row)
        before, after, change = (float(re.findall("<b>(.*?)</b>", cells[n])[0]) for n in (1, 2, 4))
        found.append((before, after, change, re.findall("<small>([0-9,]+) : ([0-9,]+)</small>", cells[5])))
    return found


def test_the_pages_of_both_paths_take_zero_shot_from_fine_tuned(
    done: dict[str, Manifest], stamps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WUKONG_CACHE", str(tmp_path / "cache"))
    good = done["pretrain"].uri
    spoiled = Stage(f"{storage.from_path(tmp_path)}/x", "finetune", done["finetune"].config)
    saved = saved_model.load(f"{good}/model")
    with torch.no_grad():
        for weights in saved.model.image_head.parameters():
            weights.copy_(torch.randn(weights.shape, generator=torch.Generator().manual_seed(0)))
    saved_model.save(spoiled.path("model"), saved.model, saved.tokenizer)
    storage.write_json(spoiled.path("history.json"), storage.read_json(f"{done['finetune'].uri}/history.json"))
    parents = {**done, "finetune": spoiled.commit([])}
    plain = experiment(tmp_path)
    asked = {"tasks": ("tuxpaint",), "protocol": "cn-clip", "sets": storage.from_path(stamps)}
    found = evaluate.run(plain.model_copy(update={"evaluate": plain.evaluate.model_copy(update=asked)}), parents)
    of_job = english(storage.read_bytes(f"{found.uri}/evaluation.html").decode())
    shown = differences_on(of_job, "new-style")
    changes = [change for _, _, change, _ in shown]
    assert min(changes) < -20, "the spoiled model is much worse"
    assert changes == pytest.approx([after - before for before, after, _, _ in shown], abs=0.11)
    rows = storage.read_table(f"{found.uri}/answers/tuxpaint.parquet").to_pylist()
    right = {role: [row["top1"] for row in rows if row["model"] == role] for role in ("pretrained", "finetuned")}
    pairs = list(zip(right["pretrained"], right["finetuned"], strict=True))
    counts = [(str(sum(pair == (0, 1) for pair in pairs)), str(sum(pair == (1, 0) for pair in pairs)))]
    assert counts[0][0] != counts[0][1]
    assert differences_on(of_job, "Tux Paint categories")[0][3] == counts, (
        "only fine-tuned right : only zero-shot right"
    )
    page = tmp_path / "page.html"
    options = ["--tasks", "tuxpaint", "--protocol", "cn-clip", "--data", str(stamps), "--report", str(page)]
    models = ["--model", f"{good}/model", "--fine-tuned", spoiled.path("model")]
    result = CliRunner().invoke(app, ["evaluate", *models, *options])
    assert result.exit_code == 0, result.output
    of_command = english(page.read_text("utf-8"))
    both = [differences_on(each, "Tux Paint categories") for each in (of_job, of_command)]
    assert both[0] == both[1]


@pytest.mark.long
def test_a_model_is_measured_on_the_test_set_of_another_run(
    done: dict[str, Manifest], crawl: Manifest, tmp_path: Path
) -> None:
    """As the champion is, when a later run has other hold-outs and another text tower."""
    plain = experiment(tmp_path)
    later = plain.model_copy(
        update={
            "model": plain.model.model_copy(update={"text": plain.model.text.model_copy(update={"layers": 2})}),
            "filter": plain.filter.model_copy(
                update={"split": plain.filter.split.model_copy(update={"held_out_captions": 0.4})}
            ),
        }
    )
    filtered = filter_job.run(later, {"crawl": crawl})
    evaluated = Stage(later.root, "evaluate", {}, [filtered]).commit([])
    given, uris = places.rematch(later, evaluated, done["finetune"])
    parents = {parent.stage: parent for parent in map(load, uris)}
    found = evaluate.run(given, parents)
    assert places.finished("evaluate", given, parents) == found
    digests = []
    for each in (found, done["evaluate"]):
        report = storage.read_json(storage.join(each.uri, "evaluation.json"))
        (words,) = (task for task in tasks_of(report, "retrieval") if task["task"] == "new-words")
        digests.append(words["digest"])
    data = holdouts.read(later, filtered, "new-words")
    assert data is not None and digests[0] == data.digest != digests[1]
    assert done["finetune"].digest in [parent.digest for parent in found.parents]
    assert found.part_uris("answers/new-words", ".parquet")


def test_empty_hold_outs_end_the_evaluation_before_anything_is_computed(
    done: dict[str, Manifest], tmp_path: Path
) -> None:
    parts = tuple(part for part in done["filter"].parts if part.path.startswith("train/"))
    parents = done | {"filter": done["filter"].model_copy(update={"parts": parts})}
    settings = experiment(tmp_path)
    with pytest.raises(DataError, match="every hold-out is empty"):
        evaluate.run(settings, parents)
    assert not storage.list_files(f"{settings.root}/features")


def test_the_package_gives_the_numbers_that_were_measured(done: dict[str, Manifest]) -> None:
    """From pictures and captions alone, without cached features: the same recall as the evaluation says."""
    from wukong.data import images, shards

    loaded = saved_model.load(storage.join(done["finetune"].uri, "model"))
    tar = done["filter"].part_uris("new-style/", ".tar")[0]
    table = storage.read_table(tar.replace(".tar", ".parquet"), ["key", "caption"]).to_pylist()
    captions = {row["key"]: row["caption"] for row in table}
    pairs = [(images.decode(data), captions[key]) for key, data in shards.pictures(tar)]
    scores = loaded.similarity(
        loaded.encode_image([image for image, _ in pairs]), loaded.encode_text([caption for _, caption in pairs])
    )
    found = (scores.argmax(0) == torch.arange(len(pairs))).float().mean().item()  # each caption occurs once here
    assert found == pytest.approx(done["evaluate"].metrics["eval/retrieval/new-style/text_to_image_r1"], abs=0.05)


def test_speed_is_kept_beside_the_data(done: dict[str, Manifest]) -> None:
    uri = done["pretrain"].uri
    measured = storage.read_json(storage.join(uri, "measured.json"))
    assert [entry["epoch"] for entry in measured] == [1, 2, 3, 4]
    assert all(entry["pairs_per_second"] > 0 for entry in measured)
    assert "measured.json" not in {part.path for part in done["pretrain"].parts}


@pytest.mark.long
def test_a_pre_training_goes_on_from_an_earlier_one(done: dict[str, Manifest]) -> None:
    """What the recurring pipeline does: the first epoch's loss begins where the earlier model stood."""
    settings = experiment(Path(storage.filesystem(done["filter"].uri)[1]).parents[2], epochs=1)  # with the features
    anew = pretrain.run(settings, {"filter": done["filter"]})
    further = pretrain.run(settings, {"filter": done["filter"], "pretrain": done["pretrain"]})
    assert further.metrics["loss"] < anew.metrics["loss"]
    assert done["pretrain"].digest in {parent.digest for parent in further.parents}


def test_confusions_add_up_to_the_accuracy(done: dict[str, Manifest]) -> None:
    evaluation = storage.read_json(storage.join(done["evaluate"].uri, "evaluation.json"))
    (task,) = [entry for entry in tasks_of(evaluation, "classification") if entry["task"] == "colours"]
    matrix = torch.tensor(task["confusion"])
    assert task["candidates"] == list(COLOURS)
    assert int(matrix.sum()) == task["sizes"]["images"]
    assert float(matrix.diag().sum() / matrix.sum()) == pytest.approx(task["results"]["top1"]["value"])
    by_name = {entry["name"]: entry["images"] for entry in task["classes"]}
    assert matrix.sum(1).tolist() == [by_name.get(name, 0) for name in COLOURS]


@pytest.mark.long
def test_a_tower_trained_in_part_is_published_and_measured(
    crawl: Manifest, done: dict[str, Manifest], tmp_path: Path
) -> None:
    """Pre-training trains the image tower's last layer groups on pictures; fine-tuning runs that tower, locked."""
    from wukong.model.image_encoder import ImageEncoder

    changed = {"views": 0, "whiten_image_head": False, "lock": 3, "micro_batch": 4, "loader_workers": 1}
    locked = {"views": 0, "store_features": False, "loader_workers": 0}
    settings = experiment(tmp_path, locked, epochs=1, **changed)
    found = {"filter": filter_job.run(settings, {"crawl": crawl})}
    for name, job in (("pretrain", pretrain), ("finetune", finetune), ("evaluate", evaluate)):
        found[name] = job.run(settings, found)
    given = ImageEncoder(settings.model.image).state_dict()
    towers = {
        name: saved_model.load(storage.join(found[name].uri, "model")).model.image for name in ("pretrain", "finetune")
    }
    states = {name: tower.state_dict() for name, tower in towers.items() if tower is not None}
    moved = {name for name, value in given.items() if not torch.equal(value, states["pretrain"][name])}
    late = {name for name in given if name.startswith(("backbone.blocks.2", "backbone.blocks.3"))}
    assert moved and moved <= late, sorted(moved - late)
    assert any("conv" in name for name in moved) and any("running_mean" in name for name in moved)
    assert all(torch.equal(value, states["pretrain"][name]) for name, value in states["finetune"].items())
    texts = [saved_model.load(storage.join(found[name].uri, "model")).model.text for name in ("pretrain", "finetune")]
    assert not torch.equal(texts[0].tokens.weight, texts[1].tokens.weight)
    assert not any(parent.stage == "features" for name in ("pretrain", "finetune") for parent in found[name].parents)
    # What is measured is features of that tower, once for both models; the given tower's are another stage.
    used = [parent for parent in found["evaluate"].parents if parent.stage == "features"]
    assert len(used) == 1 and used[0].digest != done["holdout features"].digest
    # Of that tower nothing is computed that is not measured: no training pair.
    computed = storage.list_files(f"{settings.root}/features", ".safetensors")
    assert computed and not [uri for uri in computed if "/train/" in uri]
    assert "eval/retrieval/new-style/text_to_image_r1" in found["evaluate"].metrics
