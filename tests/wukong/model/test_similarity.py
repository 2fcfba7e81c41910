import pytest
import torch
import torch.nn.functional as F

from wukong.model import similarity
from wukong.model.similarity import token_similarity


def batch(images: int, texts: int, patches: int, words: int, width: int, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)

    def unit(*shape: int) -> torch.Tensor:
        return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)

    counted = torch.rand(texts, words, generator=generator) < 0.6  # padding anywhere, not only at the end
    counted[torch.arange(texts), torch.randint(words, (texts,), generator=generator)] = True
    return unit(images, patches, width), unit(texts, words, width), counted


def naive(
    image: torch.Tensor, text: torch.Tensor, counted: torch.Tensor, with_first: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Section 4.3, with all products in memory at once and gradients by autograd."""
    products = torch.einsum("ipd,jtd->ijpt", image, text)
    matched = torch.cat([counted[:, :1] | with_first, counted[:, 1:]], 1)
    to_text = products.masked_fill(~matched[None, :, None], -torch.inf).max(3).values.mean(2)
    to_image = products.max(2).values.masked_fill(~counted, 0.0).sum(2) / counted.sum(1)
    return to_text, to_image


@pytest.fixture(params=[2**22, 500, 1], ids=["one block", "some blocks", "a text a block"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "_BLOCK_PRODUCTS", request.param)
    monkeypatch.setattr(similarity, "_BLOCK_ROWS", min(request.param, 20) if request.param < 2**22 else 2**13)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("shape", [(5, 7, 9, 6, 4), (1, 1, 1, 1, 3), (3, 4, 300, 5, 8), (4, 3, 5, 280, 8)])
@pytest.mark.parametrize("with_first", [False, True], ids=["without [CLS]", "with [CLS]"])
def test_scores_and_gradients_equal_the_naive_ones(shape: tuple[int, int, int, int, int], with_first: bool) -> None:
    image, text, counted = batch(*shape, seed=sum(shape))
    if shape[3] > 1:
        counted[:, 0] = False  # as [CLS]
        counted[:, 1] = True
    image.requires_grad_()
    text.requires_grad_()
    expected = naive(image, text, counted, with_first)
    found = token_similarity(image, text, counted, with_first)
    torch.testing.assert_close(tuple(found), expected)
    weights = [
        torch.randn(score.shape, dtype=score.dtype, generator=torch.Generator().manual_seed(3)) for score in found
    ]
    gradients = torch.autograd.grad(sum((s * w).sum() for s, w in zip(found, weights, strict=True)), (image, text))
    exact = torch.autograd.grad(sum((s * w).sum() for s, w in zip(expected, weights, strict=True)), (image, text))
    torch.testing.assert_close(gradients, exact)


@pytest.mark.usefixtures("blocks")
def test_gradients_equal_finite_differences() -> None:
    image, text, counted = batch(3, 4, 5, 4, 6, seed=1)
    assert torch.autograd.gradcheck(
        lambda image, text: tuple(token_similarity(image, text, counted)),
        (image.requires_grad_(), text.requires_grad_()),
    )


def test_scores_without_gradients_are_equal_and_store_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    image, text, counted = batch(5, 7, 9, 6, 4, seed=6)
    expected = token_similarity(image.clone().requires_grad_(), text, counted)

    def keep(_size: int) -> torch.dtype:
        raise AssertionError("which tokens won is kept where nobody asks")

    monkeypatch.setattr(similarity, "_index_type", keep)
    with torch.inference_mode():
        torch.testing.assert_close(tuple(token_similarity(image, text, counted)), tuple(expected))


def test_the_content_of_padding_has_no_influence() -> None:
    image, text, counted = batch(3, 4, 5, 6, 8, seed=2)
    clean = token_similarity(image, text, counted)
    text[~counted] = 100.0
    torch.testing.assert_close(tuple(token_similarity(image, text, counted)), tuple(clean))


def test_a_single_direction_has_its_own_gradient() -> None:
    image, text, counted = batch(3, 4, 5, 6, 8, seed=4)
    image.requires_grad_()
    (found,) = torch.autograd.grad(token_similarity(image, text, counted).text_to_image.sum(), image)
    (expected,) = torch.autograd.grad(naive(image, text, counted)[1].sum(), image)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_close(dtype: torch.dtype) -> None:
    image, text, counted = batch(6, 7, 9, 6, 16, seed=5)
    low_image, low_text = (tensor.to(dtype).requires_grad_() for tensor in (image, text))
    found = token_similarity(low_image, low_text, counted)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for score, expected in zip(found, naive(image, text, counted), strict=True):
        torch.testing.assert_close(score.double(), expected, rtol=tolerance, atol=tolerance)
    found.image_to_text.float().sum().backward()
    assert low_image.grad is not None and low_image.grad.dtype == dtype
    assert torch.isfinite(low_text.grad).all()
