"""s^I on a processor, in float32 and in 8-bit integers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wukong.evaluate import best_words
from wukong.model.dual import Texts


def drawn(images: int = 23, texts: int = 40, width: int = 31) -> tuple[Tensor, Texts]:
    torch.manual_seed(0)
    image = F.normalize(torch.randn(images, 6, width), dim=-1)
    text = F.normalize(torch.randn(texts, 9, width), dim=-1)
    counted = torch.arange(9)[None] < torch.randint(2, 10, (texts, 1))
    counted[:, 0] = False
    return image, Texts(text, counted)


def by_loop(image: np.ndarray, text: np.ndarray, counted: Tensor, with_first: bool) -> np.ndarray:
    found = np.empty((len(image), len(text)), image.dtype)
    for row, tokens in enumerate(text):
        matched = counted[row].numpy().copy()
        matched[0] = with_first
        found[:, row] = (image @ tokens[matched].T).max(2).sum(1)
    return found


@pytest.mark.parametrize("with_first", [True, False])
def test_exact_scores_equal_a_loop_over_texts(with_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(best_words, "_BLOCK_TOKENS", 20)
    monkeypatch.setattr(best_words, "_BLOCK_PATCHES", 35)  # five images of 6 patches
    image, text = drawn()
    expected = by_loop(image.double().numpy(), text.vectors.double().numpy(), text.counted, with_first) / 6
    np.testing.assert_allclose(best_words.exact(image, text, with_first), expected, atol=1e-6)


@pytest.mark.parametrize("with_first", [True, False])
def test_rough_scores_are_those_of_rounded_vectors(with_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly, in 64-bit integers: so no product was cut to 8 or 16 bits on its way."""
    monkeypatch.setattr(best_words, "_ROUGH_TOKENS", 20)
    monkeypatch.setattr(best_words, "_BLOCK_PATCHES", 35)  # five images of 6 patches
    image, text = drawn()
    matched = text.counted.clone()
    matched[:, 0] = with_first
    image_steps = np.abs(image.numpy()).max((1, 2)) / np.float32(127)
    text_steps = np.abs(text.vectors.numpy() * matched[:, :, None].numpy()).max((1, 2)) / np.float32(127)
    whole = np.rint(image.numpy() / image_steps[:, None, None]).astype(np.int64)
    words = np.rint(text.vectors.numpy() / text_steps[:, None, None]).astype(np.int64)
    expected = by_loop(whole, words, text.counted, with_first) * (image_steps[:, None] * text_steps / 6)
    np.testing.assert_allclose(best_words.rough(image, text, with_first), expected, rtol=1e-6)


def test_the_largest_numbers_do_not_overflow() -> None:
    image = torch.full((2, 3, 512), 512**-0.5) * torch.tensor([1.0, -1.0])[:, None, None]
    text = Texts(torch.full((1, 2, 512), 512**-0.5), torch.tensor([[False, True]]))
    np.testing.assert_allclose(best_words.rough(image, text), [[1.0], [-1.0]], rtol=1e-6)


def test_a_score_of_a_vector_that_is_not_finite_is_not_a_number() -> None:
    image, text = drawn()
    image[3, 2, 1] = torch.nan
    found = best_words.rough(image, text)
    assert found[3].isnan().all() and found[:3].isfinite().all()
