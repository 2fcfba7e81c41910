"""Operations counted by formula, compared with torch's counter and with published figures; and measured rates."""

import io

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from wukong.config import Model, Training
from wukong.model.similarity import global_similarity
from wukong.model.text_encoder import TextEncoder
from wukong.train import rates
from wukong.train.rates import Shape

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
    assert rates.tower_flops(model) / 1e9 == pytest.approx(billions, rel=0.03)


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
    found = rates.text_step_flops(SMALL, Training(batch_size=batch), Shape(1, 192), length)
    assert found * rows == pytest.approx(counted.get_total_flops(), rel=0.02)


def test_the_token_wise_similarity_counts_all_captions_of_the_batch() -> None:
    token = SMALL.model_copy(update={"similarity": "token"})
    small, large = (rates.text_step_flops(token, Training(batch_size=size), Shape(4, 192), 10) for size in (8, 108))
    assert large - small == 3 * 100 * (2 * 4 * 10 * 8)


def test_the_shape_of_features_is_that_of_the_tower() -> None:
    assert rates.feature_shape(SMALL) == Shape(1, 192)
    assert rates.feature_shape(SMALL.model_copy(update={"similarity": "token"})) == Shape(4, 192)


def test_a_text_step_is_work_for_each_pair_and_the_optimisers(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([0.5, 0.25])
    ran = []

    def clock(work: object, _device: torch.device, _seconds: float) -> float:
        assert callable(work)
        work()
        ran.append(work)
        return next(taken)

    monkeypatch.setattr(rates, "_seconds", clock)
    settings = Training(batch_size=512, workers=2)
    found = rates.text_step(SMALL, settings, Shape(1, 192), torch.device("cpu"), 10)
    assert found == 256 / (256 / 64 * 0.5 + 0.25)  # 64 pairs were measured, 256 are a worker's share
    assert len(ran) == 2


@pytest.mark.parametrize("augmentations", [(), ("crop", "flip")])
def test_rates_are_repetitions_by_seconds(augmentations: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(1_000))
    monkeypatch.setattr(rates.time, "perf_counter", lambda: float(next(now)))
    # Each look at the clock is a second: one at the start, one in each repetition after the third, one at the end.
    assert rates.decode(SMALL.image, augmentations, seconds=4.0) == pytest.approx(7 / 6, rel=0.35)
    assert rates.tower(SMALL, Training(), torch.device("cpu"), seconds=0.0) > 0


def test_the_measured_picture_is_as_large_as_a_photograph() -> None:
    data = rates.photograph(0)
    assert Image.open(io.BytesIO(data)).size == (341, 256)
    assert 25_000 < len(data) < 45_000
