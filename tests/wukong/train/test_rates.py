"""Operations counted by formula, compared with torch's counter and with published figures; and measured rates."""

import io
from collections.abc import Callable, Iterator

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from wukong.config.model import Model
from wukong.config.training import Training
from wukong.model import cost
from wukong.model.cost import Shape
from wukong.model.similarity import global_similarity
from wukong.model.text_encoder import TextEncoder
from wukong.train import rates

SMALL = Model.model_validate(
    {
        "image": {"name": "vit_tiny_patch16_224", "weights": "random", "image_size": 32},
        "text": {"layers": 2, "heads": 2, "width": 32, "max_tokens": 16},
        "embedding": 8,
    }
)


@pytest.mark.parametrize(
    ("architecture", "billions"),
    # Of the image tower at 224 pixels, image_gflops in open_clip's docs/model_profile.csv.
    [("vit-b-32", 8.82), ("vit-l-14", 162.03)],
)
def test_operations_of_a_tower_are_the_published_ones(architecture: str, billions: float) -> None:
    model = Model.model_validate({"architecture": architecture})
    assert cost.tower_flops(model) / 1e9 == pytest.approx(billions, rel=0.03)


def test_operations_of_a_text_step_are_those_that_torch_counts() -> None:
    rows, length, batch = 4, 16, 64
    text = SMALL.text
    encoder = TextEncoder(1_000, text.layers, text.heads, text.width, text.max_tokens)
    heads = torch.nn.Linear(192, 8), torch.nn.Linear(text.width, 8)
    pooled, others = torch.randn(rows, 192, requires_grad=True), torch.randn(batch, 8, requires_grad=True)
    with FlopCounterMode(display=False) as counted:
        vectors = heads[1](encoder(torch.randint(1, 1_000, (rows, length))).mean(1))
        scores = global_similarity(heads[0](pooled), others).image_to_text
        (scores.sum() + vectors.sum()).backward()
    found = cost.text_step_flops(SMALL, Training(batch_size=batch), Shape(1, 192), length)
    assert found * rows == pytest.approx(counted.get_total_flops(), rel=0.02)


def test_the_token_wise_similarity_counts_all_captions_of_the_batch() -> None:
    token = SMALL.model_copy(update={"similarity": "token"})
    small, large = (cost.text_step_flops(token, Training(batch_size=size), Shape(4, 192), 10) for size in (8, 108))
    assert large - small == 3 * 100 * (2 * 4 * 10 * 8)


def test_the_shape_of_features_is_that_of_the_tower() -> None:
    assert cost.feature_shape(SMALL) == Shape(1, 192)
    assert cost.feature_shape(SMALL.model_copy(update={"similarity": "token"})) == Shape(4, 192)


class Clock:
    """A clock that stands still but while work runs, which takes the given seconds each time."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def work(self, seconds: Iterator[float]) -> Callable[[], None]:
        def run() -> None:
            self.now += next(seconds)

        return run


def test_a_rate_is_that_of_the_median_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(rates, "time", clock)
    # Two runs before the first round; then five rounds, two of which another program makes slow.
    works = {"a": clock.work(iter([9, 1, 1, 30, 1, 1.5, 40])), "b": clock.work(iter([9, 2, 2, 2, 60, 2, 3]))}
    assert rates._medians(works, torch.device("cpu"), seconds=1e-6) == {"a": 1.5, "b": 2}


def test_short_work_is_repeated_to_fill_its_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, ran = Clock(), []
    monkeypatch.setattr(rates, "time", clock)

    def work() -> None:
        ran.append(clock.now)
        clock.now += 0.25

    assert rates._medians({"work": work}, torch.device("cpu"), seconds=20.0) == {"work": 0.25}
    assert len(ran) == 2 + 5 * 16


def test_a_text_step_is_work_for_each_pair_and_the_optimisers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measured step has 16 pairs, because it takes long; a worker's share has 256."""
    monkeypatch.setattr(rates, "_seconds", lambda work, *_: work() or 0.5)
    monkeypatch.setattr(rates, "_medians", lambda works, *_: dict(zip(works, (0.5, 0.25), strict=True)))
    settings = Training(batch_size=512, workers=2)
    found = rates.measure(SMALL, settings, ["text_step"], torch.device("cpu"), 10)
    assert found == {"text_step": 256 / (256 / 16 * 0.5 + 0.25)}
    monkeypatch.setattr(rates, "_seconds", lambda work, *_: work() or 0.01)
    found = rates.measure(SMALL, settings, ["text_step"], torch.device("cpu"), 10)
    assert found == {"text_step": 256 / (0.5 + 0.25)}


def test_rates_that_are_asked_for_are_measured() -> None:
    settings = Training(augmentations=("crop", "flip"))
    found = rates.find(SMALL, settings, ["augment"], seconds=0.1)
    assert [(name, rate.source) for name, rate in found.items()] == [("augment", "measured")]
    assert 1 < found["augment"].per_second < 1e5


def test_the_measured_picture_is_as_large_as_a_photograph() -> None:
    data = rates.photograph(0)
    assert Image.open(io.BytesIO(data)).size == (341, 256)
    assert 25_000 < len(data) < 45_000
