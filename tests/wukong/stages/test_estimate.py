"""Plans of a training, compared with sums written out by hand."""

import pytest

from wukong.config.experiment import Experiment
from wukong.config.features import Dtype
from wukong.config.training import Training
from wukong.stages import estimate
from wukong.stages.estimate import Rate, RateName, Work


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


@pytest.mark.parametrize(
    ("similarity", "products"),
    [
        ("global", 2 * 1_000 * 1_053 * 256),
        ("token", 2 * 1_000 * 49 * 1_053 * 16 * 256),  # 49 patches, 16 tokens
    ],
)
def test_published_sets_count_in_an_evaluation(similarity: str, products: int) -> None:
    """COCO-CN: 1,000 images and 1,053 captions, by the pre-trained and by the fine-tuned model."""

    def seconds(tasks: list[str], cores: int = 2) -> float:
        experiment = Experiment.model_validate(
            {
                "name": "x",
                "storage": "file:///nowhere",
                "crawl": {"queries": "file:///nowhere/queries.txt", "endpoint": "http://nowhere.test/"},
                "evaluate": {"tasks": tasks, "sets": "file:///nowhere"},
                "model": {
                    "similarity": similarity,
                    "embedding": 256,
                    "image": {"image_size": 224},
                    "text": {"layers": 2, "heads": 4, "width": 256},
                },
            }
        )
        return estimate.of_evaluate(Work(experiment, 500, 9_000_000, 5_000_000, cores)).seconds

    image, text = 1_000 * 5_000_000 * 49, 1_053 * (2 * 12 * 256**2) * 16
    added = seconds(["coco-cn"]) - seconds([])
    assert added == pytest.approx((2 * 2 * (image + text + products) / 4e10 + 2 * 1_000 * 0.01) / 2)
    assert seconds(["coco-cn"], 8) - seconds([], 8) == pytest.approx(added / 4)
    # ImageNet has 50,000 images, so the most of its time is theirs; and 80 prompts for each of 1,000 classes.
    assert seconds(["imagenet"]) - seconds([]) > 49 * added * (similarity == "global")
    assert seconds(["imagenet", "coco-cn"]) == pytest.approx(seconds(["imagenet"]) + added)
