"""The feature cache: what is computed again, what is shared, and what is decided for ``store_features: auto``."""

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from made_again import cut, flipped, obey, refused_wherever_a_bit_is_flipped
from PIL import Image
from safetensors.torch import save_file

from ray_jobs import features, gpus
from wukong import stages
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.config.features import Features
from wukong.data import feature_files
from wukong.errors import ConfigError, DataError
from wukong.stages import places, start
from wukong.stages.estimate import RATES, Rate
from wukong.store import storage
from wukong.store.conditional_store import UnconditionalError
from wukong.store.manifest import Manifest, Part, Stage
from wukong.train import features as train_features

IMAGE = {"name": "vit_tiny_patch16_224", "weights": "random", "image_size": 32}
SHARDS = {"00000": 3, "00001": 2}


def experiment(root: Path, **changed: object) -> Experiment:
    sections = {
        "name": "test",
        "storage": storage.from_path(root),
        "crawl": {"queries": "file:///none", "endpoint": "http://127.0.0.1:1"},
        "model": {"image": IMAGE, "text": {"layers": 1, "heads": 2, "width": 32}, "embedding": 16},
        "pretrain": {"batch_size": 2, "views": 1, "workers": 1, "store_features": "auto"},
    }
    return documents.parse({**sections, **changed})


@pytest.fixture
def filtered(tmp_path: Path) -> Manifest:
    made = experiment(tmp_path)
    stage = Stage(made.root, "filter", stages.of("filter").config(made))
    folder = Path(storage.filesystem(stage.uri)[1]) / "train"
    folder.mkdir(parents=True)
    parts = []
    for shard, count in SHARDS.items():
        keys = [f"{shard}-{number}" for number in range(count)]
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number, key in enumerate(keys):
                picture = io.BytesIO()
                Image.new("RGB", (40, 30), (50 * number, 90, len(shard))).save(picture, "JPEG")
                entry = tarfile.TarInfo(f"{key}.jpg")
                entry.size = len(picture.getvalue())
                tar.addfile(entry, io.BytesIO(picture.getvalue()))
        pq.write_table(pa.table({"key": keys}), folder / f"{shard}.parquet")
        parts += [stage.describe(f"train/{shard}{suffix}", count) for suffix in (".tar", ".parquet")]
    return stage.commit(parts)


def written(uri: str) -> dict[str, tuple[int, bytes]]:
    """When each file of features was written, and what it holds."""
    folder = Path(storage.filesystem(uri)[1])
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*.safetensors")}


class PlayedRay:
    """Ray that runs each task when it is asked for, here."""

    def __init__(self, gpus: int = 0) -> None:
        self.gpus = gpus

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0, **({"GPU": float(self.gpus)} if self.gpus else {})}

    def wait(self, waiting: list[object], num_returns: int, timeout: float) -> tuple[list[object], list[object]]:
        return waiting[:num_returns], waiting[num_returns:]

    def get(self, answer: "Answer") -> object:
        return answer.value


@dataclass(eq=False)
class Answer:
    value: object


TASKS = {name: getattr(features, name)._function for name in ("_on_core", "_on_gpu")}


def play(monkeypatch: pytest.MonkeyPatch, cards: int = 0) -> None:
    for module in (features, gpus):
        monkeypatch.setattr(module, "ray", PlayedRay(cards))
    monkeypatch.setattr(gpus, "of_task", lambda: "cuda")
    for name, task in TASKS.items():
        remote = SimpleNamespace(remote=lambda *arguments, task=task: Answer(task(*arguments)))
        monkeypatch.setattr(features, name, remote)


@pytest.fixture(params=["played", pytest.param("real", marks=[pytest.mark.long])])
def some_ray(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "real":
        request.getfixturevalue("local_ray")
    else:
        play(monkeypatch)


@pytest.mark.parametrize("suffix", [".tar", ".parquet"])
def test_altered_shards_are_refused(tmp_path: Path, filtered: Manifest, suffix: str, monkeypatch) -> None:
    play(monkeypatch)
    refused_wherever_a_bit_is_flipped(
        filtered.part_uris("train/", suffix)[0], lambda: features.run(experiment(tmp_path), {"filter": filtered}), 4
    )


def test_damaged_features_are_computed_again_by_doing_what_the_message_says(
    tmp_path: Path, filtered: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch)
    settings = experiment(tmp_path)
    found = features.run(settings, {"filter": filtered})
    before = written(found.uri)
    for damage in (cut, flipped):
        damaged = storage.join(found.uri, "train/00001.view01.safetensors")
        damage(damaged)
        with pytest.raises(DataError) as refused:
            feature_files.read(damaged)
        assert obey(refused.value) == [damaged, storage.join(found.uri, "manifest.json")]
        assert features.run(settings, {"filter": filtered}).digest == found.digest
        after = written(found.uri)
        assert {name: data for name, (_, data) in after.items()} == {name: data for name, (_, data) in before.items()}
        assert [name for name in after if after[name] != before[name]] == ["00001.view01.safetensors"]
        before = after


@pytest.mark.usefixtures("some_ray")
def test_only_what_is_missing_is_computed_and_other_text_towers_share_it(tmp_path: Path, filtered: Manifest) -> None:
    settings = experiment(tmp_path)
    found = features.run(settings, {"filter": filtered})
    assert found.counts == {"pictures": 10}  # five, in two views
    before = written(found.uri)
    assert set(before) == {f"{shard}.view0{view}.safetensors" for shard in SHARDS for view in (0, 1)}

    # As after a kill: the manifest is not there, one file is not there, and of another only the record is not.
    storage.delete(storage.join(found.uri, "manifest.json"))
    storage.delete(storage.join(found.uri, "_parts/train/00000.view01.safetensors.json"))
    storage.delete(storage.join(found.uri, "_parts/train/00001.view00.safetensors.json"))
    storage.delete(storage.join(found.uri, "train/00001.view00.safetensors"))
    again = features.run(settings, {"filter": filtered})
    after = written(found.uri)
    assert again.digest == found.digest
    assert {name: data for name, (_, data) in after.items()} == {name: data for name, (_, data) in before.items()}
    computed = {name for name in after if after[name][0] != before[name][0]}
    assert computed == {"00000.view01.safetensors", "00001.view00.safetensors"}

    text = {"layers": 3, "heads": 4, "width": 64, "pooling": "mean"}
    model = {"image": IMAGE, "text": text, "embedding": 8, "temperature": 0.5}
    training = {"batch_size": 4, "epochs": 7, "views": 1, "workers": 1, "store_features": "auto"}
    other = experiment(tmp_path, model=model, pretrain=training, seed=3)
    assert features.run(other, {"filter": filtered}) == again
    assert written(found.uri) == after
    # A sweep's further run decides in no time, because the features are there.
    decision = features.decide("pretrain", other, filtered)
    assert decision is not None and decision.record["store"] is True and "there already" in decision.record["why"]

    small = experiment(tmp_path, features={"dtype": "int8"})
    rounded = features.run(small, {"filter": filtered})
    assert rounded.uri != found.uri
    # A vector of 192 numbers and a scale, in place of 192 numbers of two bytes; the keys are in both.
    saved = {part.path: part.bytes for part in found.parts}
    for part in rounded.parts:
        assert abs(saved[part.path] - part.bytes - part.rows * (2 * 192 - 196)) < 100


def tower_at(place: Path, seed: int) -> None:
    torch.manual_seed(seed)
    save_file(timm.create_model("test_vit").state_dict(), place)


def test_features_of_a_replaced_file_are_computed_anew_and_a_run_that_has_begun_refuses_it(
    tmp_path: Path, filtered: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch)
    place = tmp_path / "tower.safetensors"
    image = {"name": "test_vit", "weights": storage.from_path(place), "image_size": 160}
    settings = experiment(tmp_path, model={"image": image, "text": {"layers": 1, "heads": 2, "width": 32}})
    made = []
    for seed in (0, 1):
        tower_at(place, seed)
        begun = start.as_it_begins(settings)
        made.append(features.run(begun, {"filter": filtered}))
        assert features.run(begun, {"filter": filtered}) == made[-1]
    first, second = (next(iter(sorted(written(each.uri).items()))) for each in made)
    assert made[0].uri != made[1].uri and first[0] == second[0] and first[1][1] != second[1][1]
    storage.delete(made[1].uri)
    tower_at(place, 2)
    train_features._encoder.cache_clear()  # as another process has it
    with pytest.raises(DataError, match=r"tower\.safetensors was replaced: its SHA-256 is .* under another name"):
        features.run(begun, {"filter": filtered})
    assert not storage.list_files(made[1].uri, ".safetensors"), "nothing of the third is under the second's key"


@pytest.mark.parametrize(("epochs", "store"), [(20, True), (1, False)])
def test_rates_decide_once(
    tmp_path: Path, filtered: Manifest, epochs: int, store: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features of two views do not pay for one epoch; for twenty they do."""
    training = {"batch_size": 2, "views": 1, "workers": 1, "epochs": epochs, "store_features": "auto"}
    settings = experiment(tmp_path, pretrain=training)
    play(monkeypatch)
    asked = []

    class Measured:
        def options(self, **resources: int) -> "Measured":
            asked.append(resources)
            return self

        def remote(self, *_: object) -> Answer:
            return Answer({name: Rate(100.0 if name == "text_step" else 10.0, "measured") for name in RATES})

    monkeypatch.setattr(features, "_measure", Measured())
    decision = features.decide("pretrain", settings, filtered)
    assert decision is not None and asked == [{"num_cpus": 1}]
    assert decision.record["store"] is store
    assert decision.experiment.pretrain.store_features is store
    assert decision.experiment.pretrain.views == (1 if store else 0)
    # A run that goes on, when the machine is another: the decision stays.
    monkeypatch.setattr(features, "_measure", None)
    assert features.decide("pretrain", settings, filtered) == decision
    assert places.decided("pretrain", settings, filtered, None) == decision.experiment
    seeded = features.decide("pretrain", experiment(tmp_path, pretrain=training, seed=3), filtered)
    assert seeded is not None and seeded.record == decision.record, "seeds are trained in one way"
    # It is the run that a config with the same setting in the place of auto would be.
    plain = training | {"store_features": store, "views": 1 if store else 0}
    explicit = experiment(tmp_path, pretrain=plain)
    assert places.training("pretrain", decision.experiment, filtered, None, None).key == (
        places.training("pretrain", explicit, filtered, None, None).key
    )


@pytest.mark.parametrize("conditional", [True, False])
def test_of_two_runs_that_decide_at_once_one_decides_for_both(
    tmp_path: Path, filtered: Manifest, conditional: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run looks, measures and writes while the first still measures, and has found other rates."""
    settings, decided = experiment(tmp_path), []

    def measured(*_: object) -> dict[str, object]:
        first = not decided
        decided.append(None)
        if first:
            decided[0] = features.decide("pretrain", settings, filtered)
        return {"store": first, "why": f"{first}"}

    def refused(*_: object) -> None:
        raise UnconditionalError("501 NotImplemented")

    monkeypatch.setattr(features, "_decision", measured)
    if not conditional:
        monkeypatch.setattr(storage, "write_if", refused)
    last = features.decide("pretrain", settings, filtered)
    (early, _) = decided
    assert last is not None and early is not None
    assert last.record == early.record == {"store": False, "why": "False"}
    assert last.experiment == early.experiment and last.experiment.pretrain.store_features is False


@pytest.mark.parametrize("locked", [True, False])
def test_trainings_from_weights_of_several_seeds_have_one_decision_if_they_have_the_same_features(
    tmp_path: Path, filtered: Manifest, locked: bool
) -> None:
    training = {"batch_size": 2, "views": 1, "workers": 1, "lock": "all" if locked else "none"}
    training |= {} if locked else {"store_features": False, "views": 0}
    addresses = set()
    for seed in range(3):
        settings = experiment(tmp_path, seed=seed, pretrain=training, finetune={"store_features": "auto"})
        start = places.training("pretrain", settings, filtered, None, None).commit([])
        addresses.add(places.decision("finetune", settings, filtered, start))
    assert len(addresses) == (1 if locked else 3)


def test_gpus_get_several_files_a_task_and_processes_that_decode(
    tmp_path: Path, filtered: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "_FILES_ON_A_GPU", 3)
    given = []

    def compute(*arguments: object) -> list[dict[str, object]]:
        work, device, decoders = arguments[2], *arguments[5:]
        assert isinstance(work, list)
        given.append(([entry.target for entry in work], device, decoders))
        return [Part(path=entry.target, rows=1, bytes=0, sha256="").model_dump() for entry in work]

    monkeypatch.setattr(features, "_compute", compute)
    play(monkeypatch, cards=1)
    features.run(experiment(tmp_path), {"filter": filtered})
    assert [device for _, device, _ in given] == ["cuda"] * 4
    assert [target for targets, _, _ in given for target in targets] == [
        f"train/{shard}.view0{view}.safetensors" for shard in SHARDS for view in (0, 1)
    ]
    assert {decoders for _, _, decoders in given} == {2}
    play(monkeypatch)
    storage.delete(f"{experiment(tmp_path).root}/features")
    features.run(experiment(tmp_path), {"filter": filtered}, on_gpus=True)
    assert {device for _, device, _ in given[4:]} == {"cuda"}


def test_gpus_that_never_come_are_named(
    tmp_path: Path, filtered: Manifest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    training = {"batch_size": 2, "workers": 1, "store_features": "auto", "gpus_per_worker": 1}
    settings = experiment(tmp_path, pretrain=training)
    play(monkeypatch)
    monkeypatch.setattr(gpus, "MAX_FAILURES", 2)
    monkeypatch.setattr(features, "_on_gpu", SimpleNamespace(remote=lambda *_: object()))
    asked = SimpleNamespace(remote=lambda *_: object())
    monkeypatch.setattr(features, "_measure", SimpleNamespace(options=lambda **_: asked))
    looks: list[float] = []

    def wait(_self: object, waiting: list[object], num_returns: int, timeout: float) -> tuple[list[object], ...]:
        looks.append(timeout)
        return [], waiting

    monkeypatch.setattr(PlayedRay, "wait", wait)
    for ask in (
        lambda: features.run(settings, {"filter": filtered}, on_gpus=True),
        lambda: features.decide("pretrain", settings, filtered),
    ):
        looks.clear()
        caplog.clear()
        with pytest.raises(ConfigError, match="none came for 180 seconds: the cluster has 2 cores and 0 GPUs"):
            ask()
        assert looks == [60.0] * 3
        assert [f"none came for {seconds} seconds" in caplog.text for seconds in (60, 120, 180)] == [True, True, False]


def test_without_room_nothing_is_measured(tmp_path: Path, filtered: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_measure", None)
    assert places.finished("pretrain", experiment(tmp_path), {"filter": filtered}) is None
    small = experiment(tmp_path, features={"room_gib": 1e-9})
    decision = features.decide("pretrain", small, filtered)
    assert decision is not None and decision.record["store"] is False
    assert "there is room for 9e-10 GiB" in decision.record["why"]
    # 5 pictures, 2 views of 192 numbers of two bytes.
    assert decision.record["gib"] == 5 * 2 * 192 * 2 / 2**30
    assert features.decide("pretrain", experiment(tmp_path, pretrain={"workers": 1}), filtered) is None


def test_the_room_of_an_object_store_must_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")  # else a stack of this machine is looked for
    told, untold = Features(room_gib=3), Features()
    assert features.room_for_features("s3://bucket", told) == 3 * 2**30
    assert features.room_for_features("s3://bucket", untold) is None
    free = features.room_for_features(storage.from_path(tmp_path / "not" / "there"), untold)
    assert free is not None and free > 0


@pytest.mark.parametrize(("files", "cards", "sizes"), [(5, 0, [1] * 5), (10, 1, [2] * 5), (1_000, 1, [64] * 15 + [40])])
def test_tasks_on_gpus_have_several_files(files: int, cards: int, sizes: list[int]) -> None:
    assert [len(group) for group in features._groups([None] * files, cards)] == sizes  # type: ignore[list-item]
