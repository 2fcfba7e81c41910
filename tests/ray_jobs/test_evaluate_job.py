"""The evaluate job in blocks: what a killed job does again, which tasks share what, and what asks for a GPU."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch
from counting_proxy import counted_store, send
from made_again import cut, flipped, is_made_again, made_again, refused_wherever_a_bit_is_flipped
from PIL import Image

from ray_jobs import evaluate, finetune, fingerprints, gpus, packing
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.config.model import Model as Settings
from wukong.data import feature_files
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.errors import DataError, StorageError
from wukong.evaluate import blocks, encoding, packed, paper_tables, prompts, results, sets, stored, tasks
from wukong.evaluate.data_set import Counts, Retrieval
from wukong.evaluate.formats.pictures import Files
from wukong.evaluate.published import Caption, Captioned
from wukong.model import saved_model
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.registry import promotion
from wukong.stages import places, start
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage
from wukong.tracking import model_versions

PAPER = Path(__file__).parents[2] / "configs" / "paper"
MODEL = {
    "image": {"name": "vit_tiny_patch16_224", "weights": "random", "image_size": 32, "block": 0},
    "text": {"layers": 1, "heads": 2, "width": 16, "pooling": "mean"},
    "embedding": 8,
}
STAMPS, PHOTOS = 200, 150


def experiment(root: Path, similarity: str = "global") -> Experiment:
    split = {"held_out_captions": 0.1, "holdouts": [{"name": "held", "source": "*/held/*"}]}
    return documents.parse(
        {
            "name": "x",
            "storage": storage.from_path(root),
            "crawl": {"queries": "file:///none", "endpoint": "http://127.0.0.1:1"},
            "filter": {"split": split},
            "model": {**MODEL, "similarity": similarity},
            "evaluate": {"tasks": ["tuxpaint", "coco-cn"], "sets": storage.from_path(root / "sets")},
        }
    )


def parents_of(settings: Experiment, *, equal_towers: bool = True) -> dict[str, Manifest]:
    """A hold-out of four pairs, and two models, of which one was trained further."""
    filtered = Stage(settings.root, "filter", {"split": settings.filter.split.model_dump(mode="json")})
    keys = [f"{number:016x}" for number in range(4)]
    rows = {"key": keys, "url": [f"http://x/held/{key}" for key in keys], "caption": ["红", "绿", "蓝", "黄"]}
    storage.write_table(filtered.path("held/00000.parquet"), pa.table({**rows, "sha256": keys}))
    shard = io.BytesIO()
    with tarfile.open(fileobj=shard, mode="w") as tar:
        for number, key in enumerate(keys):
            picture = io.BytesIO()
            Image.new("RGB", (16, 16), (60 * number, 0, 0)).save(picture, "JPEG")
            entry = tarfile.TarInfo(f"{key}.jpg")
            entry.size = len(picture.getvalue())
            tar.addfile(entry, io.BytesIO(picture.getvalue()))
    storage.write_bytes(filtered.path("held/00000.tar"), shard.getvalue())
    made = {"filter": filtered.commit([filtered.describe(f"held/00000{end}", 4) for end in (".parquet", ".tar")])}
    torch.manual_seed(0)
    tokenizer, config = Tokenizer(packaged_vocabulary()), Settings.model_validate(settings.model)
    dual = DualEncoder(config, tokenizer, ImageEncoder(config.image, with_weights=False))
    with torch.no_grad():
        dual.text.tokens.weight.mul_(50)
        for name in ("pretrain", "finetune"):
            stage = Stage(settings.root, name, {"training": {"lock": "all"}}, [*made.values()])
            files = saved_model.save(stage.path("model"), deepcopy(dual), tokenizer)
            storage.write_json(stage.path("history.json"), {"history": []})
            made[name] = stage.commit([stage.describe(f"model/{file}") for file in files])
            dual.image_head.weight.add_(torch.randn_like(dual.image_head.weight))
            if not equal_towers:
                next(dual.image.parameters()).add_(1e-6)  # type: ignore[union-attr]
    return made


def draw(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (number % 200, 255 - number % 250, number % 7 * 30)).save(path)


def small_sets_and_blocks() -> list[tuple[object, str, object]]:
    """What is patched so that a classification and a retrieval set have few pictures and prompts, and many blocks."""
    stamps, photos = sets.of("tuxpaint"), sets.of("coco-cn")
    assert isinstance(photos, Retrieval)
    paths = [f"{number:03d}.png" for number in range(PHOTOS)]
    captions = [Caption(f"第{number}张照片", (number // 2,)) for number in range(2 * PHOTOS)]
    counts = {"test": Counts(PHOTOS, len(captions))}
    read = lambda folder, _split: Captioned(paths, captions, Files(folder, paths))  # noqa: E731
    small = {
        "tuxpaint": replace(stamps, splits={"test": STAMPS}),
        "coco-cn": replace(photos, splits=counts, read_published=read),
    }
    return [
        (sets, "REGISTRY", {**sets.REGISTRY, **small}),
        (prompts, "of", lambda *_: ["{}", "一张{}的照片"]),
        (blocks, "FLOPS", 1.0),
        (blocks, "_SIDE_STEP", 64),
    ]


def patch_workers() -> None:
    """Patch a worker of Ray."""
    for target, name, value in small_sets_and_blocks():
        setattr(target, name, value)


@pytest.fixture
def two_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamps = sets.of("tuxpaint")
    for number in range(STAMPS):
        category = stamps.names[number % len(stamps.names)][0]  # type: ignore[union-attr, index, arg-type]
        draw(tmp_path / "sets/tuxpaint/stamps" / category / f"{number:03d}.png", number)
    for number in range(PHOTOS):
        draw(tmp_path / "sets/coco-cn" / f"{number:03d}.png", number)
    for patched in small_sets_and_blocks():
        monkeypatch.setattr(*patched)


@pytest.fixture
def stored_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of the hold-out, as the stage of features leaves them."""
    stage = Stage(storage.from_path(tmp_path / "features"), "features", {})
    uri = feature_files.path_of("held", "00000", 0)
    values = torch.randn(4, 192, generator=torch.Generator().manual_seed(0)).half()
    feature_files.write(stage.path(uri), [f"{number:016x}" for number in range(4)], values)
    made = stage.commit([stage.describe(uri, 4)])
    monkeypatch.setattr(evaluate.features, "run", lambda *_: made)


@dataclass(eq=False)
class Answer:
    value: object


class PlayedRay:
    """Ray that runs each task when it is asked for, here."""

    def put(self, value: object) -> Answer:
        return Answer(value)

    def get(self, answer: Answer) -> object:
        return answer.value

    def wait(self, waiting: list[object], num_returns: int, timeout: float) -> tuple[list[object], list[object]]:
        return waiting[:num_returns], waiting[num_returns:]

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}


TASKS = {name: getattr(evaluate, name)._function for name in ("_read", "_on_core", "_after")}


@pytest.fixture
def played(two_sets: None, stored_features: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (evaluate, gpus):
        monkeypatch.setattr(module, "ray", PlayedRay())

    def remote(name: str) -> Callable[..., object]:
        def run(*arguments: object, **more: object) -> object:
            given = [each.value if isinstance(each, Answer) else each for each in arguments]
            made = TASKS[name](*given, **more)
            return tuple(map(Answer, made)) if name == "_read" else Answer(made)

        return run

    for name in TASKS:
        monkeypatch.setattr(evaluate, name, SimpleNamespace(remote=remote(name)))
    evaluate._models.cache_clear()  # of another test's folder


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The number of images of each forward pass of a tower, with the set."""
    seen: list[tuple[str, int]] = []
    forward, encode = ImageEncoder.forward, encoding.encode
    names: list[str] = []

    def noted(models: object, data: object, *rest: object) -> object:
        names.append(data.name)  # type: ignore[attr-defined]
        try:
            return encode(models, data, *rest)  # type: ignore[arg-type]
        finally:
            names.clear()

    def counted(self: ImageEncoder, pixels: torch.Tensor) -> object:
        if names:  # and not while a model is built, or words and patches are aligned
            seen.append((names[-1], len(pixels)))
        return forward(self, pixels)

    monkeypatch.setattr(ImageEncoder, "forward", counted)
    monkeypatch.setattr(encoding, "encode", noted)
    return seen


def images_of(encoded: list[tuple[str, int]]) -> dict[str, int]:
    return {name: sum(count for of, count in encoded if of == name) for name in dict.fromkeys(of for of, _ in encoded)}


@pytest.mark.usefixtures("played")
def test_each_damaged_part_of_an_evaluation_is_refused_and_made_again(tmp_path: Path) -> None:
    settings = experiment(tmp_path)
    parents = parents_of(settings)

    def run() -> Manifest:
        found = evaluate.run(settings, parents)
        stored.read(found.uri)
        for path in ("evaluation.html", "metrics.json"):
            storage.read_bytes(*found.file(path))
        return found

    found = run()
    for uri in found.part_uris():
        if uri.endswith((".parquet", "/evaluation.json")):
            refused_wherever_a_bit_is_flipped(uri, lambda: stored.read(found.uri), 4)
    for number, uri in enumerate(found.part_uris()):
        is_made_again(uri, run, [(cut, flipped)[number % 2]])


@pytest.mark.usefixtures("played")
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("tuxpaint", {"scores", "classes"}),
        pytest.param("coco-cn", {"images", "texts", "scores"}, marks=pytest.mark.long),
    ],
)
def test_each_kind_of_block_of_a_killed_evaluation_is_made_again(
    name: str, kinds: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = experiment(tmp_path)
    parents = parents_of(settings)
    whole = evaluate.run(settings, parents)
    storage.delete(whole.uri)
    finish = evaluate._finished

    def killed(job: object, work: blocks.Work) -> dict[str, object]:
        if work.data.name == name:
            raise KeyboardInterrupt
        return finish(job, work)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(evaluate, "_finished", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate.run(settings, parents)
    output = Path(whole.uri.removeprefix("file://"))
    kept = shutil.copytree(output, tmp_path / "kept")
    files = [path.relative_to(kept) for path in kept.rglob("*.safetensors")]
    files = sorted(path for path in files if path.parts[1] in (name, "classes"))
    one_of_each = {"classes" if path.parts[1] == "classes" else path.parts[3]: path for path in files}
    assert kinds <= one_of_each.keys()
    for kind in kinds:
        shutil.rmtree(output)
        shutil.copytree(kept, output)
        if kind == "classes":  # read for pictures alone
            (output / one_of_each["scores"]).unlink()
        damaged = storage.from_path(output / one_of_each[kind])
        cut(damaged)
        again, told = made_again(lambda: evaluate.run(settings, parents))
        assert again.digest == whole.digest, kind
        assert told == [damaged, storage.join(whole.uri, "manifest.json")]


@pytest.mark.usefixtures("played")
@pytest.mark.parametrize(
    ("killed_after", "similarity"), [(20, "global"), pytest.param(9, "token", marks=pytest.mark.long)]
)
def test_a_killed_job_goes_on_inside_a_set_and_encodes_no_image_twice(
    killed_after: int, similarity: str, tmp_path: Path, encoded: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = experiment(tmp_path, similarity)
    if similarity == "token":  # no features of tokens are stored here
        monkeypatch.setattr(evaluate.holdouts, "read", lambda *_: None)
    parents = parents_of(settings)
    make, done = tasks.make, 0

    def killed(work: blocks.Work, block: blocks.Block) -> None:
        nonlocal done
        if done == killed_after:
            raise KeyboardInterrupt
        done += 1
        make(work, block)

    monkeypatch.setattr(tasks, "make", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(settings, parents)
    monkeypatch.setattr(tasks, "make", make)
    found = evaluate.run(settings, parents)
    assert images_of(encoded) == {"tuxpaint": STAMPS, "coco-cn": PHOTOS}
    assert not storage.exists(storage.join(found.uri, "_work")), "work files go when the stage has finished"
    assert not storage.list_files(storage.join(found.uri, "_work"))

    # The same from the start, in one go and in blocks of another size.
    storage.delete(found.uri)
    monkeypatch.setattr(blocks, "FLOPS", 1e15)
    monkeypatch.setattr(blocks, "_SIDE_STEP", 2048)
    whole = evaluate.run(settings, parents)
    assert {part.path: part.sha256 for part in whole.parts} == {part.path: part.sha256 for part in found.parts}
    assert whole.digest == found.digest


@pytest.mark.usefixtures("played")
def test_towers_that_differ_encode_each_image(tmp_path: Path, encoded: list[tuple[str, int]]) -> None:
    settings = experiment(tmp_path)
    evaluate.run(settings, parents_of(settings, equal_towers=False))
    assert images_of(encoded) == {"tuxpaint": 2 * STAMPS, "coco-cn": 2 * PHOTOS}


@pytest.mark.usefixtures("played")
def test_metrics_are_those_of_the_model_that_they_name(tmp_path: Path) -> None:
    settings = experiment(tmp_path)
    made = evaluate.run(settings, parents_of(settings))
    rows = storage.read_table(storage.join(made.uri, "answers/coco-cn.parquet")).to_pylist()
    results = [f"text_to_image_r{rank}" for rank in (1, 5, 10)]
    shares = {}
    for role, group in (("finetuned", "eval"), ("pretrained", "pretrained")):
        own = [row for row in rows if row["model"] == role and row["text_to_image_r1"] is not None]
        shares[role] = [sum(row[name] for row in own) / len(own) for name in results]
        assert [made.metrics[f"{group}/retrieval/coco-cn/{name}"] for name in results] == pytest.approx(shares[role])
    assert shares["finetuned"] != shares["pretrained"]


@pytest.mark.usefixtures("played")
def test_a_damaged_picture_ends_the_job_with_its_name(tmp_path: Path) -> None:
    settings = experiment(tmp_path)
    path = tmp_path / "sets/coco-cn/120.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"120\.png cannot be decoded .*download the set again"):
        evaluate.run(settings, parents_of(settings))


@pytest.mark.long
@pytest.mark.usefixtures("played")
def test_a_set_in_an_object_store_is_asked_for_once_by_all_and_gives_the_same_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = experiment(tmp_path)
    parents = parents_of(settings)
    here = evaluate.run(settings, parents)
    storage.delete(here.uri)
    for module in (packing, fingerprints):
        monkeypatch.setattr(module, "run_all", lambda task, work, *_: [task(*each) for each in work])
    with counted_store(tmp_path / "weed") as store:
        send(tmp_path / "sets", "s3://bucket/sets")
        pictures = [f"sets/{path.relative_to(tmp_path / 'sets')}" for path in (tmp_path / "sets").rglob("*.png")]
        asked = {"sets": ["coco-cn"], "min_cosine": None}
        remote = documents.parse(
            deepcopy(settings.model_dump(mode="json"))
            | {"evaluate": settings.evaluate.model_dump(mode="json") | {"sets": "s3://bucket/sets"}}
            | {"filter": settings.filter.model_dump(mode="json") | {"decontaminate": asked}}
        )
        (known,) = fingerprints.made(remote)
        there = evaluate.run(remote, parents)
        (again,) = packing.made(remote, [("coco-cn", "test")], {}).values()  # as a training that validates on it
        assert known.parts.paths == ["fingerprints.parquet", "thumbnails.parquet"]
        assert [len(store.read[key]) for key in pictures] == [1] * (STAMPS + PHOTOS)
        store.read.clear()
        data = packed.data("s3://bucket/sets", "coco-cn", "test", again)
        assert len(data) == PHOTOS and data.image(3).size == (16, 16)
        assert not [key for key in store.read if key.startswith("sets/")]
    assert there.digest == here.digest


def test_on_a_gpu_the_texts_of_all_classes_are_read_for_many_images(tmp_path: Path, two_sets: None) -> None:
    settings, rules = experiment(tmp_path, "token"), evaluate.named("paper")
    classified, searched = (sets.of(name).read(tmp_path / "sets" / name) for name in ("tuxpaint", "coco-cn"))
    assert evaluate._sizes(settings, classified, rules, gpu=True).images == 4096  # which are read for each block
    assert evaluate._sizes(settings, searched, rules, gpu=True).images == 1024  # whose vectors are written
    assert evaluate._sizes(settings, classified, rules, gpu=False).images < 1024


def test_tasks_on_gpus_have_several_blocks() -> None:
    some = [blocks.Block("images", "", (number, number + 1)) for number in range(1_000)]
    assert [len(group) for group in evaluate._groups(some, 0)] == [1] * 1_000
    assert [len(group) for group in evaluate._groups(some, 1)] == [64] * 15 + [40]
    assert [len(group) for group in evaluate._groups(some[:80], 2)] == [10] * 8


ON_RAY = """
import os
import sys
from pathlib import Path

import ray
import test_evaluate_job as job

from ray_jobs import evaluate, filter, gpus
from wukong.config.filter import Filter
from wukong.store.manifest import Stage

settings, cards = job.experiment(Path(sys.argv[1])), int(sys.argv[2])
ray.init("local", num_cpus=2, num_gpus=cards, include_dashboard=False, log_to_driver=False, configure_logging=False,
         runtime_env={"worker_process_setup_hook": job.patch_workers})
assert gpus.count() == cards
parents = job.parents_of(settings)
given = evaluate._Job(Stage(settings.root, "evaluate", {}), settings, parents, {})
job.patch_workers()



def records(*names):
    asked = settings.evaluate.model_copy(update={"tasks": names})
    only = settings.model_copy(update={"evaluate": asked, "filter": Filter()})  # without hold-outs
    return evaluate._records(evaluate._Job(given.stage, only, parents, {}))


if cards:
    look = ray.remote(filter._read_pictures).options(num_gpus=1)
    for ask in (lambda: records("tuxpaint"),
                lambda: ray.get(look.remote(given.stage, None, given.stage, None, True, 0))):
        try:
            ask()
        except Exception as error:
            print("ERROR", str(error).replace(chr(10), " "))
    evaluate._on_gpu = lambda: os.getpid()
    evaluate._task_on_gpu.cache_clear()
    print("PROCESSES", len({ray.get(evaluate._task_on_gpu().remote()) for _ in range(3)}))
else:
    for record in records("tuxpaint", "coco-cn"):
        print(record["name"], record["queries"], len(record["tasks"]["finetuned"]))
    Path(sys.argv[1], "sets/coco-cn/120.png").write_bytes(b"no picture")
    given = evaluate._Job(Stage(settings.root, "evaluate", {"again": 1}), settings, parents, {})
    try:
        records("coco-cn")
    except Exception as error:
        print("ERROR", str(error).replace(chr(10), " "))
"""


def on_ray(folder: Path, cards: int) -> list[str]:
    here = Path(__file__)
    path = os.pathsep.join([str(here.parents[2]), str(here.parent), str(here.parents[1] / "wukong" / "store")])
    ran = subprocess.run(
        [sys.executable, "-c", ON_RAY, str(folder), str(cards)],
        capture_output=True, text=True, check=False, cwd=here.parents[2], env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout.splitlines()


@pytest.mark.long
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which the tasks would use")
@pytest.mark.usefixtures("two_sets")
@pytest.mark.parametrize(("cards", "processes"), [(1, 1), (2, 3)])
def test_where_ray_has_gpus_tasks_ask_for_them_and_none_falls_back_to_cores(
    cards: int, processes: int, tmp_path: Path
) -> None:
    """The process of a machine's only GPU lives on, with its models and loaders."""
    said = on_ray(tmp_path, cards)
    errors = [line for line in said if line.startswith("ERROR")]
    assert len(errors) == 2
    assert all("Ray gave a task a GPU of" in line and "start Ray there with num_gpus=0" in line for line in errors)
    assert said[-1] == f"PROCESSES {processes}"


@pytest.mark.long
@pytest.mark.usefixtures("two_sets")
def test_blocks_on_ray_wait_for_those_before_and_give_their_errors_on(tmp_path: Path) -> None:
    stamps, photos, error = on_ray(tmp_path, 0)
    assert stamps == f"tuxpaint {2 * STAMPS} 1" and photos == f"coco-cn {2 * 3 * PHOTOS} 1"
    assert error.startswith("ERROR") and "120.png cannot be decoded" in error


def test_the_store_says_what_is_wrong_with_a_folder_of_sets(tmp_path: Path) -> None:
    settings = experiment(tmp_path)
    with pytest.raises((DataError, StorageError), match="tuxpaint"):
        evaluate.places.evaluation(settings, parents_of(settings), [])


@pytest.mark.usefixtures("played")
def test_a_model_that_is_handed_on_is_measured_once_registered_and_fine_tuned_on_a_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``finetune-coco-cn`` starts from the digest that Table 5 shows of a column."""
    given = experiment(tmp_path)
    parents = parents_of(given)
    both = evaluate.run(given, parents)
    settings = given.model_copy(update={"finetune": documents.load(PAPER / "vit-l.yaml").finetune})
    parents["finetune"] = handed_on = finetune.run(settings, parents)
    assert places.finished("finetune", settings, parents) == handed_on
    assert [part.sha256 for part in handed_on.parts.below("model/")] == [
        part.sha256 for part in parents["pretrain"].parts.below("model/")
    ]
    made = evaluate.run(settings, parents)
    found = stored.read(made.uri)
    assert {row["model"] for table in found.tables.values() for row in table.to_pylist()} == {"pretrained"}
    before = {name: value for name, value in both.metrics.items() if name.startswith("pretrained/")}
    assert made.metrics == before | {name.replace("pretrained/", "eval/"): value for name, value in before.items()}
    assert promotion.measures(found, "eval/retrieval/coco-cn/mean_recall")
    assert results.headlines_of(found.document).keys() <= made.metrics.keys()
    table = paper_tables.table("5", [paper_tables.Evaluated("vit-l", found.document)])
    assert [model["digest"] for model in table["models"]] == [handed_on.digest]
    # The component that registers a model gets the one of finetune.
    monkeypatch.setattr(model_versions, "folder_of", lambda _: f"{handed_on.uri}/model")
    place = f"storage={storage.from_path(tmp_path)}"
    of_set = start.with_its_model(documents.load(PAPER / "finetune-coco-cn.yaml", [place, "model={}"]))
    assert [parent.digest for parent in start.take(of_set).parents] == [handed_on.digest]
