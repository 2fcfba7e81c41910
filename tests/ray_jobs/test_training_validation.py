"""A training stage with validation, from stored features, with its one worker in this process in place of Ray Train."""

import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
import torch
from counting_proxy import counted_store, send
from made_again import cut, flipped, is_made_again, made_again
from PIL import Image

from ray_jobs import packing, training, training_worker, worker_group
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.data import feature_files
from wukong.errors import ConfigError, DataError
from wukong.evaluate import holdouts, sets, tasks
from wukong.evaluate.data_set import Classification
from wukong.evaluate.model import OwnModel
from wukong.evaluate.protocol import OWN, named
from wukong.model import saved_model
from wukong.model.image_encoder import ImageEncoder
from wukong.registry import choices
from wukong.stages import places
from wukong.store import fence, storage
from wukong.store.manifest import Manifest, Stage
from wukong.tracking import availability, training_metrics
from wukong.train import checkpoint as checkpoints
from wukong.train.state import State

NAMES = [f"{colour}色的{shape}" for colour in "红绿蓝黄黑灰紫橙" for shape in ("圆", "方块", "三角", "星星")]
MODEL = {
    "image": {"image_size": 64, "block": 2},
    "text": {"layers": 1, "heads": 2, "width": 32, "pooling": "mean"},
    "embedding": 16,
}


class Given(NamedTuple):
    """What the stage reads: the filter's output and the features of its pairs and of its hold-out."""

    filtered: Manifest
    trained: Manifest
    held: Manifest


def experiment(root: str, sets: str = "", **validation: object) -> Experiment:
    split = {"held_out_captions": 0.1, "holdouts": [{"name": "held", "source": "*/held/*", "captions": "any"}]}
    classes = {"红": "*/红*", "绿": "*/绿*", "蓝": "*/蓝*"}
    empty = {"name": "cats", "holdouts": ["held"], "classes": {"猫": "*/cat/*"}}
    return documents.parse(
        {
            "name": "test",
            "storage": root,
            "crawl": {"queries": "file:///none", "endpoint": "http://127.0.0.1:1"},
            "filter": {"split": split},
            "model": MODEL,
            "pretrain": {
                "epochs": 3,
                "batch_size": 16,
                "learning_rate": 0.02,
                "workers": 1,
                "log_every": 4,
                "validation": validation,
            },
            "evaluate": {
                "classification": [{"name": "colours", "holdouts": ["held"], "classes": classes}, empty],
                "sets": sets,
            },
        }
    )


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    root = storage.from_path(tmp_path_factory.mktemp("given"))
    settings = experiment(root)
    width = ImageEncoder(settings.model.image).pooled_width
    drawn = torch.Generator().manual_seed(0)
    of_name = torch.randn(len(NAMES), width, generator=drawn)
    filtered, parts = Stage(root, "filter", {}), []
    stored: dict[str, Stage] = {name: Stage(root, f"features-{name}", {}) for name in ("train", "held")}
    for split, copies in (("train", 3), ("held", 1)):
        captions = NAMES * copies
        keys = [f"{split}{number:016x}" for number in range(len(captions))]
        urls = [f"http://x/{split}/{caption}.jpg" for caption in captions]
        table = pa.table({"key": keys, "url": urls, "caption": captions, "sha256": keys})
        storage.write_table(filtered.path(f"{split}/00000.parquet"), table)
        storage.write_bytes(filtered.path(f"{split}/00000.tar"), b"")
        parts += [filtered.describe(f"{split}/00000{suffix}", len(keys)) for suffix in (".parquet", ".tar")]
        noisy = of_name.repeat(copies, 1) + torch.randn(len(keys), width, generator=drawn)
        feature_files.write(stored[split].path(feature_files.path_of(split, "00000", 0)), keys, noisy.half())
    made = {
        name: stage.commit([stage.describe(feature_files.path_of(name, "00000", 0), len(NAMES))])
        for name, stage in stored.items()
    }
    return Given(filtered.commit(parts), made["train"], made["held"])


class InProcess:
    """What this stage needs of Ray Train's trainer: it runs the worker's function here."""

    fits = 0

    def __init__(self, work: Callable[[], None], **_: object) -> None:
        self._work = work

    def fit(self) -> None:
        InProcess.fits += 1
        self._work()


@pytest.fixture
def in_process(given: Given, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The worker runs here, and features are those that are given."""

    def computed(
        _experiment: object, _parents: object, _model: object = None, pairs: str = "train", **_: object
    ) -> Manifest:
        return given.trained if pairs == "train" else given.held

    monkeypatch.setenv(fence.VARIABLE, "")
    monkeypatch.setattr(worker_group, "_Trainer", InProcess)
    monkeypatch.setattr(training_worker, "_log_in_drivers_format", lambda: None)
    monkeypatch.setattr(training_worker, "_threads", lambda _: 1)
    monkeypatch.setattr("ray.train.torch.get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr("ray.nodes", list)
    monkeypatch.setattr(training.features, "run", computed)
    InProcess.fits = 0
    yield
    torch.use_deterministic_algorithms(mode=False)


@pytest.fixture
def logged(in_process: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[int, float]]:
    """Metrics that the worker logs, by name and step."""
    found: dict[str, dict[int, float]] = {}

    def log(metrics: Mapping[str, float], step: int = 0) -> None:
        for name, value in metrics.items():
            found.setdefault(name, {})[step] = value

    monkeypatch.setattr(training_metrics, "keep_metrics", log)
    return found


def history_of(trained: Manifest) -> dict[str, Any]:
    found: dict[str, Any] = storage.read_json(storage.join(trained.uri, "history.json"))
    return found


def test_the_best_model_is_packed_and_measured_as_the_evaluation_does(
    given: Given, tmp_path: Path, logged: dict[str, dict[int, float]]
) -> None:
    root, metric = storage.from_path(tmp_path), "retrieval/held/mean_recall"
    asked = experiment(root, every_steps=5, keep="best", metric=metric)
    trained = training.run("pretrain", asked, given.filtered)
    found = history_of(trained)["validations"]
    measured = {entry["step"]: entry["metrics"][metric] for entry in found["history"]}
    assert list(measured) == [5, 10, 15, 18]  # 96 pairs are 6 steps an epoch
    best = max(measured.values())
    assert found["best"] == trained.metrics["validation/best"] == best
    assert trained.metrics["validation/best_step"] == min(step for step, value in measured.items() if value == best)
    assert (found["kept"], found["metric"], found["stopped"]) == ("best", metric, False)
    assert logged[f"pretrain/validation/{metric}"] == measured
    assert list(logged["pretrain/validation/best"].values()) == [*accumulate(measured.values(), max)]
    assert set(logged["pretrain/validation/classification/colours/top1"]) == set(measured)
    # What lies in the package gives that number.
    packed = OwnModel(saved_model.load_for_features(storage.join(trained.uri, "model")), "packed")
    held = holdouts.read(asked, given.filtered, "held")
    assert held is not None
    stored = packed.encode_features(holdouts.features(asked, given.filtered, given.held.uri, held))
    assert tasks.measure(packed, held, OWN, tmp_path, stored).results["mean_recall"].value == pytest.approx(best)
    # The gate knows that it is the best of four.
    assert choices.of_model(asked.root, trained) == [
        choices.Choice(by="pretrain.validation", of=4, metric=metric, tasks=asked.pretrain.validation.tasks)
    ]
    assert not storage.list_files(storage.join(trained.uri, "_checkpoints"))
    assert places.training("pretrain", asked, given.filtered, given.trained, None).finished() == trained


def test_each_damaged_file_of_a_trained_model_is_made_again(
    given: Given, tmp_path: Path, logged: dict[str, dict[int, float]]
) -> None:
    asked = experiment(storage.from_path(tmp_path))

    def run() -> Manifest:
        made = training.run("pretrain", asked, given.filtered)
        saved_model.load_for_features(storage.join(made.uri, "model"))
        storage.read_json(*made.file("history.json"))
        return made

    for number, uri in enumerate(run().part_uris()):
        is_made_again(uri, run, [(cut, flipped)[number % 2]])


@pytest.mark.parametrize("keep", ["best", pytest.param("last", marks=pytest.mark.long)])
@pytest.mark.usefixtures("logged")
def test_a_damaged_checkpoint_of_a_killed_training_is_made_again(
    given: Given, tmp_path: Path, keep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = "retrieval/held/mean_recall"
    asked = experiment(storage.from_path(tmp_path), every_steps=5, keep=keep, metric=metric)
    whole = training.run("pretrain", asked, given.filtered)
    storage.delete(whole.uri)
    with monkeypatch.context() as killed:
        killed.setattr(training, "_publish", lambda *_: sys.exit("killed"))
        with pytest.raises(SystemExit):
            training.run("pretrain", asked, given.filtered)
    kept = shutil.copytree(whole.uri.removeprefix("file://"), tmp_path / "kept")
    for name in ("model.safetensors", "progress.json", "checkpoint.json"):
        shutil.rmtree(whole.uri.removeprefix("file://"))
        shutil.copytree(kept, whole.uri.removeprefix("file://"))
        folder = storage.join(whole.uri, "_checkpoints")
        newest = checkpoints.newest(folder)
        assert newest is not None
        best = State.of(checkpoints.load_weights(newest)[1]).validations.checkpoint
        cut(storage.join(best or newest, name))
        again, told = made_again(lambda: training.run("pretrain", asked, given.filtered))
        assert told == [folder if best and best != newest else newest]
        assert again.digest == whole.digest


def test_validation_alone_changes_neither_place_nor_bytes(
    given: Given, tmp_path: Path, logged: dict[str, dict[int, float]]
) -> None:
    plain = training.run("pretrain", experiment(storage.from_path(tmp_path / "plain")), given.filtered)
    assert not [name for name in logged if "validation/" in name]
    root = storage.from_path(tmp_path / "validated")
    validated = training.run("pretrain", experiment(root, every_steps=2), given.filtered)
    assert validated.digest == plain.digest
    assert validated.uri.rpartition("/")[2] == plain.uri.rpartition("/")[2]
    assert set(logged["pretrain/validation/retrieval/held/mean_recall"]) == set(range(2, 19, 2))
    assert logged["pretrain/validation_seconds"][18] > 0
    assert len(logged["system/worker_0/cpu_percent"]) > 3 and logged["system/worker_0/memory_gib"][18] > 0


def test_broken_pictures_and_lost_shards_are_counted(
    given: Given, tmp_path: Path, logged: dict[str, dict[int, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = training.run("pretrain", experiment(storage.from_path(tmp_path / "plain")), given.filtered)
    assert plain.counts == {"pairs": 96}
    assert set(logged["pretrain/lost_shards"].values()) == set(logged["pretrain/broken_pictures"].values()) == {0}
    load = training.checkpoints.load_weights

    def with_losses(uri: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        state, progress = load(uri)
        return state, progress | {"broken": 2, "lost": [0]}

    monkeypatch.setattr(training.checkpoints, "load_weights", with_losses)
    found = training.run("pretrain", experiment(storage.from_path(tmp_path / "lost")), given.filtered)
    assert found.counts == {"pairs": 96, "broken_pictures": 2, "lost_shards": 1}


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.usefixtures("logged")
def test_an_operation_without_a_deterministic_version_ends_a_deterministic_training(
    deterministic: bool, given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``put_`` is one that has none on processors either."""
    make = training_worker._starting_point

    def with_put(*arguments: Any, **options: Any) -> Any:
        model, pairs, tokenizer = make(*arguments, **options)

        def put(*_: object) -> None:
            torch.zeros(2).put_(torch.tensor([1]), torch.ones(1))

        model.register_forward_pre_hook(put)
        return model, pairs, tokenizer

    monkeypatch.setattr(training_worker, "_starting_point", with_put)
    settings = experiment(storage.from_path(tmp_path))
    changed = settings.pretrain.model_copy(update={"deterministic": deterministic})
    settings = settings.model_copy(update={"pretrain": changed})
    if not deterministic:
        assert training.run("pretrain", settings, given.filtered).counts["pairs"] == 96
        return
    with pytest.raises(ConfigError, match=r"pretrain.deterministic is true.* version of put_ .*set pretrain.determin"):
        training.run("pretrain", settings, given.filtered)
    assert InProcess.fits == 1, "it is not tried again"


def test_training_ends_early(given: Given, tmp_path: Path, logged: dict[str, dict[int, float]]) -> None:
    settings = experiment(storage.from_path(tmp_path), every_steps=4, patience=1)
    unchanged = settings.pretrain.model_copy(update={"learning_rate": 1e-30})
    settings = settings.model_copy(update={"pretrain": unchanged})
    trained = training.run("pretrain", settings, given.filtered)
    found = history_of(trained)
    assert [entry["step"] for entry in found["validations"]["history"]] == [4, 8] and found["validations"]["stopped"]
    assert [epoch["epoch"] for epoch in found["history"]] == [1, 2]
    assert found["validations"]["kept"] == "last" and trained.metrics["loss"] == found["history"][-1]["loss"]


def test_a_set_without_pictures_cannot_decide(
    given: Given, tmp_path: Path, logged: dict[str, dict[int, float]]
) -> None:
    asked = {"every_steps": 4, "keep": "best", "metric": "classification/cats/top1"}
    settings = experiment(storage.from_path(tmp_path), **asked)
    with pytest.raises(DataError, match=r"'classification/cats/top1', and cats has no pictures"):
        training.run("pretrain", settings, given.filtered)
    assert InProcess.fits == 1


@pytest.mark.long
def test_a_published_set_is_measured_with_the_locked_tower(
    given: Given, tmp_path: Path, logged: dict[str, dict[int, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tower runs once beside a training on features; the package with its tower gives the same number.

    A set in a bucket gives it too, and a training that begins again asks for none of its pictures.
    """
    stamps, rules = sets.of("tuxpaint"), named("cn-clip")
    assert isinstance(stamps, Classification) and stamps.names is not None
    for number in range(stamps.splits["test"]):
        category = stamps.names[number % len(stamps.names)][0]
        target = tmp_path / "sets" / "tuxpaint" / "stamps" / category / f"{number:03d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number % 200, 255 - number % 250, number % 7 * 30)).save(target)
    asked = {"every_steps": 9, "tasks": ["tuxpaint"], "protocol": "cn-clip", "keep": "best"}
    metric = "classification/tuxpaint/top1"
    folder = storage.from_path(tmp_path / "sets")
    settings = experiment(storage.from_path(tmp_path / "out"), folder, metric=metric, **asked)
    trained = training.run("pretrain", settings, given.filtered)
    assert set(logged[f"pretrain/validation/{metric}"]) == {9, 18}
    assert trained.config["sets"].keys() == {"tuxpaint"}
    packed = OwnModel(saved_model.load(storage.join(trained.uri, "model")), "packed")
    data = stamps.read(tmp_path / "sets" / "tuxpaint", rules.split("tuxpaint"))
    found = tasks.measure(packed, data, rules, tmp_path / "cache").results["top1"].value
    assert found == pytest.approx(trained.metrics["validation/best"], abs=0.005)  # features have 16 bits
    monkeypatch.setattr(packing, "run_all", lambda task, work: [task(*each) for each in work])
    with counted_store(tmp_path / "weed") as store:
        send(tmp_path / "sets", "s3://bucket/sets")
        settings = experiment(storage.from_path(tmp_path / "other"), "s3://bucket/sets", metric=metric, **asked)
        there = training.run("pretrain", settings, given.filtered)
        assert there.digest == trained.digest
        storage.delete(there.uri)
        assert training.run("pretrain", settings, given.filtered).digest == trained.digest
        pictures = {key: ranges for key, ranges in store.read.items() if key.endswith(".png")}
        assert len(pictures) == stamps.splits["test"] and {len(each) for each in pictures.values()} == {1}


@pytest.mark.usefixtures("in_process")
def test_the_end_of_a_training_does_not_wait_for_each_report_that_mlflow_has_not_taken(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(availability, "_PROBE_SECONDS", 1.0)
    monkeypatch.setattr(training_metrics, "_unsent", [])
    monkeypatch.setenv("MLFLOW_RUN_ID", "of-the-stage")
    asked = experiment(storage.from_path(tmp_path))
    asked = documents.parse(
        asked.model_dump(mode="json") | {"pretrain": {**asked.pretrain.model_dump(), "log_every": 1}}
    )
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:  # it accepts, and never answers
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        trained = training.run("pretrain", asked, given.filtered)
        waited = time.monotonic() - began
    assert len(history_of(trained)["history"]) == 3
    assert waited < 8, "18 looks and 3 epochs were reported, and each took a second"
    assert "21 sets of metrics of pretrain are left out; the epochs are sent from its history.json" in caplog.text
