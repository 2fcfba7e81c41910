"""Fine-tuning on a published set's train part, from another experiment's model, up to Table 7.

The set is COCO-CN in its published form, of coloured shapes. Its published numbers are replaced in a copy of the
project, which its Ray workers read too.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

import ray_jobs
import wukong
from wukong.store import storage

pytestmark = [pytest.mark.slow, pytest.mark.long]

COLOURS = {"红": "red", "绿": "green", "蓝": "blue", "黄": "yellow"}
COLOURS |= {"黑": "black", "灰": "grey", "紫": "purple", "橙": "orange"}
GROUNDS = {"白": "white", "粉": "pink", "棕": "brown", "青": "cyan", "银": "silver"}
SHAPES = {"圆": "ellipse", "方块": "rectangle"}
COPIES, VALIDATED, TESTED = 2, 12, 24

TRAIN_IT = """
import json, sys

import ray
import torch
from typer.testing import CliRunner

from ray_jobs import crawl, evaluate, filter as filtering, finetune, pretrain
from wukong import stages
from wukong.commands.app import app
from wukong.config import documents
from wukong.data.tokenizer import Tokenizer
from wukong.errors import WukongError
from wukong.model import saved_model
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.stages import places, preflight, preflight_model, start
from wukong.store import storage
from wukong.store.manifest import Stage

sets, store, tables = sys.argv[1:4]
batch_size, epochs, rows = map(int, sys.argv[4:])
TRAINING = {"batch_size": batch_size, "workers": 1, "learning_rate": 0.02, "image_head_rate": 0.1}
CHOOSING = {"every_steps": "epoch", "tasks": ["coco-cn"], "split": "val", "keep": "best",
            "metric": "retrieval/coco-cn/mean_recall"}
MODEL = {"image": {"image_size": 64, "block": 2}, "embedding": 32, "temperature": 0.2, "min_temperature": 0.1,
         "text": {"layers": 1, "heads": 2, "width": 64, "pooling": "mean"}}


def experiment(name, **changed):
    return documents.parse({
        "name": name, "storage": store,
        "crawl": {"engine": "published_set", "endpoint": f"{sets}/coco-cn", "min_side": 1, "part_size": rows},
        "filter": {"min_side": 1, "max_caption_count": 1000, "duplicate_images": "keep",
                   "shard_size": rows},
        "finetune": TRAINING | {"epochs": epochs, "validation": CHOOSING},
        "evaluate": {"sets": sets, "tasks": ["coco-cn"]},
        "registry": {"metric": "eval/retrieval/coco-cn/mean_recall"},
    } | changed)


def parents_of(name):
    return {parent: made[parent] for parent in stages.of(name).parents if parent in made}


def refused(call, *given):
    try:
        call(*given)
    except WukongError as error:
        return str(error)


ray.init("local", num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False)
before = experiment("before", model=MODEL)
torch.manual_seed(0)
tokenizer = Tokenizer.of(before.model.text)
dual = DualEncoder(before.model, tokenizer, ImageEncoder(before.model.image))
trained = Stage(before.root, "pretrain", {"model": MODEL, "training": {"lock": "all"}})
files = saved_model.save(trained.path("model"), dual, tokenizer)
there = trained.commit([trained.describe(f"model/{file}") for file in files], counts={"pairs": 7})
taken = {"from_model": there.uri + "/model"}
other = experiment("after", pretrain=taken, model=MODEL | {"embedding": 16})
after = start.with_its_model(experiment("after", pretrain=taken))
preflight.check_stages(after)
preflight.check_world(after)
preflight_model.check_sets(after)
made = {"crawl": crawl.run(after, {})}
for name, job in (("filter", filtering), ("pretrain", pretrain), ("finetune", finetune), ("evaluate", evaluate)):
    made[name] = job.run(after, made)
document = storage.read_json(made["evaluate"].uri + "/evaluation.json")
shown = CliRunner().invoke(app, ["paper", "table7", made["evaluate"].uri, "--output", tables])
rows = [row for uri in made["crawl"].part_uris("parts/", ".parquet") for row in storage.read_table(uri).to_pylist()]
print(json.dumps({
    "refused": refused(start.with_its_model, other),
    "statuses": sorted({(row["url"].rpartition("/")[2].partition("#")[0], row["status"], row["error"] or "")
                        for row in rows if row["status"] != "success"}),
    "counts": [made["crawl"].counts.get(name, 0) for name in ("results", "success", "measured")],
    "trained": [made["filter"].counts["train"], made["finetune"].counts["pairs"]],
    "copied": [part.sha256 for part in made["pretrain"].parts.below("model/")]
    == [part.sha256 for part in there.parts.below("model/")],
    "from": [made["pretrain"].parents[0].digest == there.digest, made["pretrain"].counts],
    "model": after.model == before.model,
    "validations": [entry["step"] for entry in storage.read_json(made["finetune"].uri + "/history.json")[
        "validations"]["history"]],
    "found again": [name for name in made if places.finished(name, after, parents_of(name)) == made[name]],
    "split": [(entry["model"], entry["split"], entry["sizes"]) for entry in document["tasks"]],
    "rises": {entry["result"]: entry["difference"] for entry in document["comparisons"]},
    "trained on": [entry["trained_on"] for entry in document["trained_on"]],
    "table": [shown.exit_code, shown.output],
}))
"""


def draw(path: Path, colour: str, ground: str, shape: str, copy: int) -> None:
    image = Image.new("RGB", (96, 96), ground)
    left, top = 10 + 8 * (copy % 4), 14 + 6 * (copy % 4)
    getattr(ImageDraw.Draw(image), shape)((left, top, left + 50, top + 50), fill=colour)
    for bit in range(12):  # so that no two copies are the same
        ImageDraw.Draw(image).rectangle((8 * bit, 90, 8 * bit + 7, 95), fill="black" if copy >> bit & 1 else ground)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "JPEG", quality=95)


def coco_cn(folder: Path) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Write COCO-CN of shapes; return the numbers of images and captions of each part, and the images left out.

    The captions of val and test are combinations that the train part has not. Two of its pictures show that apart: one
    has the file of a test picture, another the caption of one.
    """
    shapes = sorted(product(COLOURS, GROUNDS, SHAPES), key=lambda each: hash_of("".join(each)))
    parts: dict[str, list[tuple[str, str]]] = {"test": [], "val": [], "train": []}
    for number, (colour, ground, shape) in enumerate(shapes):
        part = "test" if number < TESTED else "val" if number < TESTED + VALIDATED else "train"
        for copy in range(COPIES if part == "train" else 1):
            name = f"COCO_train2014_{10 * number + copy:012d}"
            draw(folder / "train2014" / f"{name}.jpg", COLOURS[colour], GROUNDS[ground], SHAPES[shape], copy)
            parts[part].append((name, f"{ground}底上{colour}色的{shape}"))
    (same, _), (again, _) = parts["train"][:2]
    shutil.copy(folder / "train2014" / f"{parts['test'][0][0]}.jpg", folder / "train2014" / f"{same}.jpg")
    parts["train"][1] = again, parts["test"][1][1]
    captions = [(name, 0, words) for part in parts.values() for name, words in part]
    captions += [(name, 1, f"画着{words}") for name, words in parts["train"][5:25]]
    place = folder / "coco-cn-version1805v1.1"
    place.mkdir()
    lines = "".join(f"{name}#{n}\t{words}\n" for name, n, words in captions)
    (place / "imageid.human-written-caption.txt").write_text(lines, "utf-8")
    for part, images in parts.items():
        (place / f"coco-cn_{part}.txt").write_text("".join(f"{name}\n" for name, _ in images))
    counts = {part: (len(images), len(images) + (20 if part == "train" else 0)) for part, images in parts.items()}
    return counts, [f"{same}.jpg", f"{again}.jpg"]


def hash_of(words: str) -> int:
    return sum(ord(each) * 7919**place for place, each in enumerate(words, 1)) % 10_007


def coco_cn_of_published_size(folder: Path) -> None:
    """Write COCO-CN of shapes with as many pictures and captions as are published, no two of them the same."""
    shapes, number, lines = list(product(COLOURS, GROUNDS, SHAPES)), 0, []
    place = folder / "coco-cn-version1805v1.1"
    place.mkdir(parents=True)
    for part, images, captions in (("train", 18_341, 20_065), ("val", 1_000, 1_100), ("test", 1_000, 1_053)):
        names = []
        for _ in range(images):
            colour, ground, shape = shapes[number % len(shapes)]
            name, copy = f"COCO_train2014_{number:012d}", number // len(shapes)
            draw(folder / "train2014" / f"{name}.jpg", COLOURS[colour], GROUNDS[ground], SHAPES[shape], copy)
            lines += [f"{name}#{n}\t{ground}底上{colour}色的{shape}第{number}张{'图' * n}" for n in (0, 1)]
            names.append(name)
            number += 1
        del lines[len(lines) - 2 * images + 2 * (captions - images) + 1 :: 2]  # the first pictures have two
        (place / f"coco-cn_{part}.txt").write_text("".join(f"{name}\n" for name in names))
    (place / "imageid.human-written-caption.txt").write_text("\n".join(lines), "utf-8")


def trained(folder: Path, code: Path, *, batch_size: int, epochs: int, rows: int) -> dict[str, Any]:
    """What a fine-tuning on the set in a folder tells; the code of the project lies in another."""
    sets, store = (storage.from_path(folder / name) for name in ("sets", "store"))
    ended = subprocess.run(
        [sys.executable, "-c", TRAIN_IT, sets, store, str(folder / "tables"), str(batch_size), str(epochs), str(rows)],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(code)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-5000:]
    told: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return told


def check_table(told: Mapping[str, Any], folder: Path) -> None:
    """Check that the model's numbers are in the page of Table 7."""
    code, output = told["table"]
    assert code == 0, output
    (row,) = [row for row in json.loads((folder / "tables" / "table7.json").read_text())["rows"]
              if row["set"] == "coco-cn"]  # fmt: skip
    assert len(row["ours"]) == 1 and (folder / "tables" / "table7.html").is_file()


def test_fine_tuning_on_a_set_from_another_experiments_model(tmp_path: Path) -> None:
    counts, left_out = coco_cn(tmp_path / "sets" / "coco-cn")
    for package in (wukong, ray_jobs):
        folder = Path(package.__file__ or "").parent
        shutil.copytree(folder, tmp_path / folder.name, ignore=shutil.ignore_patterns("*.pyc"))
    reader = tmp_path / "wukong" / "evaluate" / "sets" / "coco_cn.py"
    source = reader.read_text()
    for part, published in {"train": "18_341, 20_065", "val": "1_000, 1_100", "test": "1_000, 1_053"}.items():
        assert f'"{part}": Counts({published})' in source
        source = source.replace(f'"{part}": Counts({published})', f'"{part}": Counts{counts[part]}')
    reader.write_text(source)
    told = trained(tmp_path, tmp_path, batch_size=16, epochs=6, rows=50)
    captions = counts["train"][1]
    assert told["counts"] == [captions, captions - 2, 2]
    why = "the {} is in a part of COCO-CN that is measured"
    assert told["statuses"] == sorted([[left_out[0], "measured", why.format("picture")],
                                       [left_out[1], "measured", why.format("caption")]])  # fmt: skip
    assert told["trained"] == [captions - 2, captions - 2], "no rule drops a pair of the set"
    assert "model.embedding is 16, and the model's is 32" in told["refused"] and "--set model={}" in told["refused"]
    assert told["copied"] and told["model"]
    assert told["found again"] == ["crawl", "filter", "pretrain", "finetune", "evaluate"]
    assert told["from"] == [True, {"pairs": 7}]
    assert told["validations"] == [(captions - 2) // 16 * epoch for epoch in range(1, 7)], "after each epoch"
    measured = sorted([model, split] for model, split, _ in told["split"])
    assert measured == [["finetuned", "test"], ["pretrained", "test"]]
    assert all(given == {"captions": TESTED, "images": TESTED} for _, _, given in told["split"])
    assert told["trained on"] == [0, 0], "nothing that is measured was trained on"
    for result in ("text_to_image_r1", "image_to_text_r1"):
        assert told["rises"][result]["low"] > 0, told["rises"]
    check_table(told, tmp_path)


@pytest.mark.timeout(3600)
@pytest.mark.skipif(os.environ.get("WUKONG_APART") != "papers", reason="make test-apart NAME=papers")
def test_fine_tuning_on_a_set_of_published_size(tmp_path: Path) -> None:
    coco_cn_of_published_size(tmp_path / "sets" / "coco-cn")
    told = trained(tmp_path, Path(__file__).parents[2], batch_size=512, epochs=2, rows=1000)
    assert told["counts"] == [20_065, 20_065, 0]
    assert told["trained"] == [20_065, 20_065]
    assert all(given == {"captions": 1_053, "images": 1_000} for _, _, given in told["split"])
    check_table(told, tmp_path)
