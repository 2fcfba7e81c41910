"""What the workers of a training exchange in a step, by sums that are written out."""

import pytest

from wukong.config.model import Model
from wukong.config.training import Training
from wukong.model.cost import exchange

TEXT = {"layers": 2, "heads": 4, "width": 256, "max_tokens": 32}


def model(**more: object) -> Model:
    return Model.model_validate({"embedding": 128, "image": {"image_size": 224}, "text": TEXT} | more)


@pytest.mark.parametrize(("precision", "bytes_each"), [("float32", 4), ("tf32", 4), ("bfloat16", 2), ("float16", 2)])
def test_token_wise_exchange(precision: str, bytes_each: int) -> None:
    settings = Training.model_validate({"batch_size": 800, "workers": 8, "precision": precision})
    found = exchange(model(similarity="token"), settings, 7_000_000)
    assert found.gradients == 7_000_000 * 4
    assert found.vectors == 100 * 32 * 128 * bytes_each, "the words of a worker's 100 captions"
    assert found.returned == 800 * 32 * 128 * 4, "the gradients of all captions' words, in float32"
    assert found.scores == 2 * 100 * 800 * 4, "of 100 pictures with 800 captions, there and back"
    # Seven workers get the vectors of each. A sum in a ring of eight sends seven eighths, and again as much to tell it.
    by_hand = 7 * found.vectors + 7 / 8 * (2 * found.gradients + found.returned + found.scores)
    assert found.sent == pytest.approx(by_hand)


@pytest.mark.parametrize(("loss", "sides"), [("softmax", 2), ("sigmoid", 1)])
def test_global_exchange_is_in_float32_whatever_the_precision(loss: str, sides: int) -> None:
    settings = Training.model_validate({"batch_size": 80, "workers": 4, "precision": "bfloat16"})
    found = exchange(model(loss=loss), settings, 1_000)
    vectors = sides * 20 * 128 * 4
    assert found == (4, 4_000, vectors, 4 * vectors, 0, 0)
    assert found.sent == pytest.approx(3 * vectors + 3 / 4 * (2 * 4_000 + 4 * vectors))


def test_the_sigmoid_loss_needs_no_others_scores() -> None:
    settings = Training.model_validate({"batch_size": 80, "workers": 4})
    assert exchange(model(similarity="token", loss="sigmoid"), settings, 1).scores == 0


def test_workers_that_share_the_optimisers_state_hand_on_what_they_moved() -> None:
    settings = Training.model_validate({"batch_size": 80, "workers": 4, "shard_optimizer": True})
    found, whole = (
        exchange(model(), each, 1_000) for each in (settings, settings.model_copy(update={"shard_optimizer": False}))
    )
    assert (found.weights, whole.weights) == (1_000, 0), "a quarter of 4,000 bytes"
    assert found.sent - whole.sent == pytest.approx(3 * 1_000), "to three others"


def test_one_worker_exchanges_nothing() -> None:
    alone = exchange(model(similarity="token"), Training(batch_size=80, workers=1), 1_000)
    assert (alone.gradients, alone.sent) == (0, 0)
