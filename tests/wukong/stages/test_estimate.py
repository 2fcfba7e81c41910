"""Plans of a run and of its trainings, compared with sums written out by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from wukong import stages
from wukong.config.experiment import Experiment
from wukong.config.features import Dtype
from wukong.config.training import Training
from wukong.data.tokenizer import Tokenizer
from wukong.errors import ConfigError
from wukong.model.cost import Shape, Size, text_step_flops
from wukong.model.dual import DualEncoder
from wukong.stages import estimate, measured_rates
from wukong.stages.capacity import Capacity, Pods
from wukong.stages.estimate import Estimate, Rate, RateName, Work
from wukong.stages.measured_rates import Rates
from wukong.stages.prices import Prices
from wukong.store import storage
from wukong.train import checkpoint, optimizer


def rates(**per_second: float) -> dict[RateName, Rate]:
    values = {"text_step": 100.0, "tower": 20.0, "decode": 50.0, "augment": 10.0, **per_second}
    return {name: Rate(value, "told") for name, value in values.items()}  # type: ignore[misc]


def test_on_processors_features_are_computed_on_all_cores_and_training_has_one_thread_a_worker() -> None:
    settings = Training(epochs=3, batch_size=8, workers=2, views=0, loader_workers=5)
    plan = estimate.training(settings, 1_000, 7, 8, rates())
    assert plan.cached is not None
    # A task on each of 8 cores decodes and encodes in turn.
    assert plan.cached.fill_seconds == pytest.approx(1_000 / 8 * (1 / 50 + 1 / 20))
    assert plan.cached.train_seconds == pytest.approx(3 * 500 / 100)
    assert plan.cached.bound_by == "text_step"
    # Each worker has 3 cores beside its own: they decode 30 a second while it computes.
    assert plan.streamed.seconds == pytest.approx(3 * 500 * max(1 / 30, 1 / 20 + 1 / 100))
    assert plan.cached.bytes == 1_000 * 7
    assert plan.pair_bytes == 1_000 * estimate.PICTURE_BYTES
    assert plan.faster == "cached"


@pytest.mark.parametrize(("cores", "loaders"), [(2, 5), (8, 0), (1, 2)])
def test_without_cores_to_spare_or_loaders_a_worker_decodes_and_computes_in_turn(cores: int, loaders: int) -> None:
    settings = Training(epochs=3, batch_size=8, workers=2, loader_workers=loaders)
    plan = estimate.training(settings, 1_000, 7, cores, rates())
    assert plan.streamed.seconds == pytest.approx(3 * 500 * (1 / 10 + 1 / 20 + 1 / 100))


def test_on_gpus_the_slower_of_loaders_and_gpu_decides() -> None:
    settings = Training(epochs=3, batch_size=8, workers=2, gpus_per_worker=1, views=2, loader_workers=3)
    plan = estimate.training(settings, 1_000, 14, 64, rates())
    assert plan.cached is not None
    # Three views of 500 pictures; loaders give 30 a second, the tower takes 20.
    assert plan.cached.fill_seconds == pytest.approx(3 * 500 / 20)
    assert plan.cached.bytes == 3 * 1_000 * 14
    # The GPU needs 1/20 + 1/100 seconds for a pair, the loaders 1/30.
    assert plan.streamed.seconds == pytest.approx(3 * 500 * 0.06)
    plan = estimate.training(settings, 1_000, 14, 64, rates(augment=1.0))
    assert plan.streamed.seconds == pytest.approx(3 * 500 / 3)
    assert plan.streamed.bound_by == "augment"


@pytest.mark.parametrize(("dtype", "expected"), [("float16", 50 * 768 * 2), ("int8", 50 * (768 + 4))])
def test_features_take_bytes_for_each_number_and_in_int8_for_each_scale(dtype: Dtype, expected: int) -> None:
    assert estimate.feature_bytes(50, 768, dtype) == expected


def test_a_slow_store_decides_what_is_faster() -> None:
    settings = Training(epochs=3, batch_size=8, workers=2)
    plan = estimate.training(settings, 1_000, 200_000, 4, rates(), store=1e6)
    assert plan.cached is not None
    assert plan.cached.read_bytes == 3 * 1_000 * 200_000
    assert plan.cached.train_seconds == pytest.approx(3 * 1_000 * 0.2)  # 200 KB a pair
    assert plan.cached.bound_by == "store"
    assert plan.streamed.read_bytes == 3 * 1_000 * estimate.PICTURE_BYTES
    assert plan.streamed.bound_by == "augment"
    assert plan.faster == "streamed"


def test_a_trained_tower_has_no_stored_features() -> None:
    plan = estimate.training(Training(lock="none", batch_size=8), 1_000, 7, 1, rates())
    assert plan.cached is None
    assert plan.faster == "streamed"


def test_streaming_is_faster_where_filling_takes_longer_than_it_saves() -> None:
    settings = Training(epochs=1, batch_size=8, workers=1, views=9, augmentations=())
    plan = estimate.training(settings, 1_000, 7, 1, rates())
    assert plan.faster == "streamed"


RATES = Rates.model_validate(
    {
        "machine": "m",
        "measured": "2026-11-28",
        "command": "c",
        "speeds": {"step_flops": 2e10, "tower_flops": 4e10, "decode": 100.0, "augment": 50.0, "gpu_flops": 1e13},
        "stages": {
            "crawl": {
                "start": 5,
                "core_seconds": 0.004,
                "driver_mib": 100,
                "driver_mib_per_million": 30,
                "task_mib": 200,
            },
            "filter": {"start": 6, "core_seconds": 0.002, "task_mib": 500, "task_mib_per_million": 7},
            "validate": {"start": 7, "core_seconds": 0.001},
            **{name: {"start": 10, "task_mib": 1000} for name in ("features", "pretrain", "finetune", "evaluate")},
            **{name: {"start": 2} for name in ("register", "report")},
        },
    }
)
SIZE = Size(weights=9_000_000, image=5_000_000, tower_flops=2e9, shape=Shape(1, 1280))
MIB = 2**20


def experiment(**sections: object) -> Experiment:
    value: dict[str, object] = {
        "name": "x",
        "storage": "file:///nowhere",
        "crawl": {"queries": "file:///nowhere/queries.txt", "endpoint": "http://nowhere.test/"},
        "model": {"embedding": 256, "image": {"image_size": 224}, "text": {"layers": 2, "heads": 4, "width": 256}},
    }
    return Experiment.model_validate(value | sections)


def work(
    experiment: Experiment, urls: int = 3_000_000, pairs: int = 2_000_000, size: Size = SIZE, **more: object
) -> Work:
    given = {"capacity": Capacity(4), "rates": RATES} | more
    return Work(experiment, urls, pairs, size, **given)  # type: ignore[arg-type]


def test_the_data_stages_take_the_time_of_their_items_on_their_cores() -> None:
    here = work(experiment())
    assert estimate.of_crawl(here) == Estimate(
        bytes=3e6 * 30_000,
        seconds=5 + 3e6 * 0.004 / 4,
        cores=4,
        driver_memory=190 * MIB,
        task_memory=200 * MIB,
        disk=2 * 1_000 * 30_000,
    )
    filtered = estimate.of_filter(here)
    assert (filtered.bytes, filtered.seconds) == (2e6 * 30_000, 6 + 3e6 * 0.002 / 4)
    assert filtered.task_memory == 521 * MIB
    marked = experiment(filter={"decontaminate": {"hashes": ["s3://b/h"], "action": "mark"}})
    assert estimate.of_filter(work(marked)).seconds == filtered.seconds + 2e6 / 100 / 4, "pictures are decoded"
    assert estimate.of_validate(here).seconds == 7 + 2e6 * 0.001 / 4
    on_pods = work(experiment(), capacity=Capacity(1, {"crawl": Pods(8, 4)}))
    assert (estimate.of_crawl(on_pods).seconds, estimate.of_crawl(on_pods).cores) == (5 + 3e6 * 0.004 / 32, 32)
    assert estimate.of_filter(on_pods).cores == 1


def test_a_training_takes_its_features_and_its_epochs() -> None:
    training = {"epochs": 3, "batch_size": 8, "workers": 2, "views": 1}
    here = work(experiment(pretrain=training, finetune=training | {"epochs": 1}))
    step = text_step_flops(here.experiment.model, here.experiment.pretrain, SIZE.shape, 22)
    features, pretrain, finetune = (
        made(here) for made in (estimate.of_features, estimate.of_pretrain, estimate.of_finetune)
    )
    assert features is not None
    # Two views on 4 cores; an image takes 1/50 s to draw and 0.05 s in the tower.
    assert features.seconds == pytest.approx(10 + 2 * 2e6 / 4 * (1 / 50 + 0.05))
    assert features.bytes == 2 * 2e6 * 1280 * 2
    epoch = 1e6 * step / 2e10
    assert pretrain.seconds == pytest.approx(features.seconds + 10 + 3 * epoch)
    assert pretrain.bytes == features.bytes + 4 * 9e6
    assert finetune.seconds == pytest.approx(10 + epoch), "it finds the features"
    assert finetune.task_memory == 1000 * MIB + 16 * 4_000_000


def test_a_training_on_gpus_takes_their_speed_and_says_how_many() -> None:
    training = {"epochs": 2, "batch_size": 8, "workers": 4, "gpus_per_worker": 1, "store_features": False}
    here = work(experiment(pretrain=training))
    step = text_step_flops(here.experiment.model, here.experiment.pretrain, SIZE.shape, 22)
    assert estimate.of_features(here) is None
    found = estimate.of_pretrain(here)
    loaders = here.experiment.pretrain.loader_workers
    per_pair = max(1 / 50 / loaders, (2e9 + step) / 1e13)
    assert found.seconds == pytest.approx(10 + 2 * 2e6 / 4 * per_pair)
    assert found.gpus == 4
    price = Prices(cpu=0.5, gib=0.25, gpu=3.0)
    assert found.cost(price) == pytest.approx(found.seconds / 3600 * (4 * 0.5 + 4 * 3.0))
    assert found.cost(price, 8 * 2**30) == pytest.approx(found.seconds / 3600 * (4 * 0.5 + 4 * 3.0 + 8 * 0.25))


def test_told_rates_come_before_measured_ones_and_these_before_stored_ones() -> None:
    here = work(
        experiment(),
        told={"gpu": 2.0, "decode": 7.0},
        measured={"augment": Rate(9, "measured"), "decode": Rate(8, "measured")},
    )
    found = estimate.rates_of(here, here.experiment.pretrain)
    assert found["tower"] == Rate(2e12 / 2e9, "computed")
    assert found["text_step"].source == "computed"
    assert (found["decode"], found["augment"]) == (Rate(7.0, "told"), Rate(9, "measured"))
    assert {rate.source for rate in estimate.rates_of(work(experiment()), here.experiment.pretrain).values()} == {
        "stored"
    }


@pytest.mark.parametrize(
    ("similarity", "products"),
    [
        ("global", 2 * 1_000 * 1_053 * 256),
        ("token", 2 * 1_000 * 49 * 1_053 * 16 * 256),  # 49 patches, 16 tokens
    ],
)
def test_published_sets_count_in_an_evaluation(similarity: str, products: int) -> None:
    """COCO-CN: 1,000 images and 1,053 captions, by the pre-trained and by the fine-tuned model."""
    size = Size(9_000_000, 5_000_000, 2e9, Shape(49 if similarity == "token" else 1, 256))
    model = {"embedding": 256, "image": {"image_size": 224}, "text": {"layers": 2, "heads": 4, "width": 256}}

    def seconds(tasks: list[str], cores: int = 2) -> float:
        measured = experiment(
            evaluate={"tasks": tasks, "sets": "file:///nowhere"}, model=model | {"similarity": similarity}
        )
        return estimate.of_evaluate(work(measured, size=size, capacity=Capacity(cores), caption_tokens=16)).seconds

    text = 1_053 * ((2 * 12 * 2 * 256**2) * 16 + 4 * 2 * 256 * 16**2)
    added = seconds(["coco-cn"]) - seconds([])
    encoding = 2 * 1_000 * (2e9 / 4e10 + 1 / 100)
    assert added == pytest.approx((encoding + 2 * (text + 2 * products) / 2e10) / 2)
    assert seconds(["coco-cn"], 8) - seconds([], 8) == pytest.approx(added / 4)
    # ImageNet has 50,000 images, so the most of its time is theirs; and 80 prompts for each of 1,000 classes.
    assert seconds(["imagenet"]) - seconds([]) > 49 * added * (similarity == "global")
    assert seconds(["imagenet", "coco-cn"]) == pytest.approx(seconds(["imagenet"]) + added)


IMAGENET = {"evaluate": {"tasks": ["imagenet"], "sets": "file:///nowhere"}}
TEXTS = 80 * 1_000 * ((2 * 12 * 2 * 256**2) * 22 + 4 * 2 * 256 * 22**2)
PRODUCTS = 2 * 50_000 * 80 * 1_000 * 256
"""Operations on ImageNet's 50,000 pictures and its 1,000 classes with 80 prompts each."""


def test_the_pictures_of_published_sets_are_read_and_in_a_store_written_again_in_tables() -> None:
    """ImageNet as published has 6.25 GB, CIFAR10's test part 30 MB; of files that are there, no more than they have."""
    validated = {"validation": {"every_steps": "epoch", "tasks": ["cifar10"]}, "lock": "none"}
    given, nothing = ({"tasks": tasks, "sets": "s3://bucket/sets"} for tasks in (["imagenet"], []))
    here = work(experiment(evaluate=given, pretrain=validated))
    none = estimate.of_evaluate(work(experiment(evaluate=nothing)))
    planned = estimate.of_evaluate(here)
    assert planned.bytes - none.bytes == 6.25e9 + 30e6
    assert planned.asks == pytest.approx(6.25e9 / (planned.seconds - none.seconds)) and none.asks == 0
    small = estimate.of_evaluate(replace(here, sets={"imagenet": 10**9, "cifar10": 10**9}))
    assert small.bytes - none.bytes == 1e9 + 30e6
    assert estimate.of_evaluate(work(experiment(**IMAGENET))).bytes == none.bytes
    while_training = estimate.validations_of(here, "pretrain")
    looking = 10_000 * (1 / 100 + 2e9 / 4e10) / here.experiment.pretrain.workers
    assert while_training is not None and while_training.asks == pytest.approx(30e6 / looking)
    assert estimate.of_pretrain(here).asks == max(while_training.asks, estimate.way_of(here, "pretrain").asks)


def test_an_evaluation_on_gpus_takes_their_speed_or_that_of_the_cores_which_decode() -> None:
    given = {"capacity": Capacity(12, {"evaluate": Pods(4, 3, 1)})}
    found, nothing = (estimate.of_evaluate(work(experiment(**each), **given)) for each in (IMAGENET, {}))
    computing = (2 * 50_000 * 2e9 + 2 * (TEXTS + PRODUCTS)) / 1e13 / 4
    assert found.seconds - nothing.seconds == pytest.approx(max(computing, 2 * 50_000 / 100 / 12))
    assert (found.gpus, found.cores) == (4, 12)
    told = work(experiment(**IMAGENET), told={"gpu": 0.1}, **given)
    slow = (2 * 50_000 * 2e9 + 2 * (TEXTS + PRODUCTS)) / 1e11 / 4
    assert estimate.of_evaluate(told).seconds - nothing.seconds == pytest.approx(slow)
    assert estimate.of_evaluate(work(experiment(**IMAGENET))).gpus == 0


def test_a_model_that_is_handed_on_costs_a_copy_and_is_measured_once() -> None:
    once, twice, none = (
        work(experiment(finetune={"epochs": epochs, "gpus_per_worker": 1}, **more))
        for epochs, more in ((0, IMAGENET), (1, IMAGENET), (0, {}))
    )
    assert estimate.of_finetune(once) == Estimate(4 * 9e6, 0)
    added, both = (estimate.of_evaluate(each).seconds - estimate.of_evaluate(none).seconds for each in (once, twice))
    assert both == pytest.approx(2 * added) and added > 0


@pytest.mark.parametrize(("lock", "every", "count"), [("all", 1_000, 50), ("none", "epoch", 3)])
def test_validations_take_their_share_of_a_training(lock: str, every: int | str, count: int) -> None:
    """16,667 steps an epoch, three epochs; five workers share pictures, texts and scores."""
    training = {"epochs": 3, "batch_size": 120, "workers": 5, "gpus_per_worker": 1, "store_features": False}
    training |= {"lock": lock}
    validation = {"tasks": ["imagenet"], "metric": "classification/imagenet/top1", "every_steps": every}
    validated, plain = (
        work(experiment(pretrain=training | more, evaluate={"sets": "file:///nowhere"}), pairs=16_667 * 120)
        for more in ({"validation": validation}, {})
    )
    found = estimate.validations_of(validated, "pretrain")
    assert found is not None and estimate.validations_of(plain, "pretrain") is None
    looking, comparing = 50_000 / 5 * (2e9 / 1e13 + 1 / 100), (TEXTS + PRODUCTS) / 5 / 1e13
    once, each = (looking, comparing) if lock == "all" else (0, looking + comparing)
    assert (found.count, found.before, found.seconds) == (count + (lock == "all"), once, pytest.approx(each))
    added = estimate.of_pretrain(validated).seconds - estimate.of_pretrain(plain).seconds
    assert added == pytest.approx(once + found.count * each)


def test_checkpoints_are_as_large_as_they_are_written(tmp_path: Path) -> None:
    image = {"name": "vit_tiny_patch16_224", "weights": "random", "image_size": 32}
    asked = experiment(
        model={"embedding": 16, "image": image, "text": {"layers": 1, "heads": 2, "width": 32}},
        pretrain={"workers": 1, "batch_size": 8, "checkpoint": {"keep": 3}},
    )
    size = Size.of(asked.model)
    dual = DualEncoder(asked.model, Tokenizer.of(asked.model.text), feature_width=size.shape.width, with_weights=False)
    steps = optimizer.build(dual, asked.pretrain)
    for weight in dual.parameters():
        weight.grad = torch.zeros_like(weight)
    steps.step()
    writer = checkpoint.Writer(storage.from_path(tmp_path))
    writer.save(dual, steps, 1, {})
    writer.wait()
    writer.close()
    written = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    found = estimate.of_pretrain(work(asked, size=size))
    assert found.disk == pytest.approx(written, rel=0.01)
    assert found.checkpoints == 4 * found.disk, "three, and one that is being written"


def test_hold_outs_by_caption_count_in_an_evaluation() -> None:
    split = {"held_out_captions": 0.1, "holdouts": [{"name": "h", "source": "*", "captions": "unseen"}]}
    few, many = (
        estimate.of_evaluate(work(experiment(filter={"split": split}), pairs=pairs)).seconds for pairs in (1_000, 2_000)
    )
    assert many - few > 100 * (2e9 / 4e10 + 1 / 100) / 4, "100 more pictures are encoded"


def test_the_packaged_rates_are_of_every_stage_that_is_planned() -> None:
    packaged = measured_rates.load(Path(measured_rates.__file__).with_suffix(".json"))
    assert {*stages.WHOLE_RUN, "features"} == set(packaged.stages)
    assert all(packaged.of(name).core_seconds > 0 for name in ("crawl", "filter", "validate"))


def test_the_rates_of_the_stacks_home_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WUKONG_HOME", str(tmp_path))
    assert measured_rates.load().machine != "m"
    (tmp_path / "rates.json").write_text(RATES.model_dump_json())
    assert measured_rates.load() == RATES
    (tmp_path / "rates.json").write_text('{"machine": 3}')
    with pytest.raises(ConfigError, match=r"rates.json: these rates cannot be read .*make bench NAME=scale"):
        measured_rates.load()


def test_what_lies_on_a_disk_and_in_shared_memory() -> None:
    seen = {"epochs": 1, "batch_size": 8, "workers": 2, "loader_workers": 3, "store_features": False}
    streamed, stored = work(experiment(pretrain=seen)), work(experiment(pretrain=seen | {"store_features": True}))
    # Each of three processes has two batches of 4 pictures ready, and the training two.
    assert estimate.of_pretrain(streamed).shared_memory == (3 * 2 + 2) * 4 * 3 * 224 * 224
    assert estimate.of_pretrain(stored).shared_memory == 0
    features = estimate.of_features(stored)
    assert features is not None and features.disk == 1_000 * 1_280 * 2, "a shard of 1,000 pairs"
    assert estimate.of_pretrain(stored).disk == 12 * 4_000_000, "a checkpoint: weights and two moments"
    assert (estimate.of_crawl(streamed).disk, estimate.of_filter(streamed).disk) == (2 * 3e7, 3e7)
    assert estimate.of_crawl(work(experiment(), urls=10, pairs=10)).disk == 2 * 10 * 30_000


def test_what_the_workers_ask_of_the_store() -> None:
    seen = {"epochs": 3, "batch_size": 8, "workers": 2, "store_features": False}
    here = work(experiment(pretrain=seen))
    filtered, pretrained = estimate.of_filter(here), estimate.of_pretrain(here)
    assert filtered.asks == pytest.approx(3e6 * 30_000 / (6 + 3e6 * 0.002 / 4))
    assert pretrained.asks == pytest.approx(3 * 2e6 * 30_000 / (pretrained.seconds - 10))
    slow = estimate.of_pretrain(work(experiment(pretrain=seen), told={"store": 1e-5}))
    assert slow.seconds - 10 == pytest.approx(3 * 2e6 * 30_000 / 1e4)
    assert slow.asks == pretrained.asks, "what is asked for is not what a slow store gives"


def test_a_training_takes_at_least_the_time_of_its_exchange() -> None:
    settings = Training(epochs=3, batch_size=8, workers=2, gpus_per_worker=1, loader_workers=3)
    assert estimate.training(settings, 1_000, 14, 64, rates(), exchanging=0.1).streamed.seconds == pytest.approx(90)
    slow = estimate.training(settings, 1_000, 14, 64, rates(), exchanging=1.0).streamed
    assert (slow.bound_by, slow.train_seconds) == ("network", 3 * (1_000 // 8))
    assert slow.asks == pytest.approx(3 * 1_000 * 30_000 / 375)
    model = {"embedding": 256, "image": {"image_size": 224}, "text": {"layers": 2, "heads": 4, "width": 256}}
    trained = {"batch_size": 8, "workers": 2}
    here = work(experiment(model=model, pretrain=trained), told={"network": 1e-6})
    # Half of two gradients of 4 million weights, the other's 2 x 4 vectors, and half of the gradients of all 16.
    sent = 0.5 * 2 * 4 * 4_000_000 + 2 * 4 * 256 * 4 + 0.5 * 2 * 8 * 256 * 4
    assert estimate.exchanged(here, here.experiment.pretrain).sent == sent
    assert estimate.way_of(here, "pretrain").train_seconds == pytest.approx(2e6 // 8 * 20 * sent / 1e3)
