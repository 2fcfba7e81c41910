"""The inputs that the dual encoder gives to its similarity and its loss."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wukong.config.model import Model
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.model import dual, loss
from wukong.model.dual import DualEncoder
from wukong.model.similarity import Scores

CAPTIONS = ["猫", "红色的苹果", "一只鸟"]


def model(**settings: object) -> tuple[DualEncoder, Tensor, Tensor]:
    """A model, features of three pictures of five patches, and three captions' token ids."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(packaged_vocabulary())
    described = {"text": {"layers": 1, "heads": 2, "width": 16}, "embedding": 8, **settings}
    encoder = DualEncoder(Model.model_validate(described), tokenizer, feature_width=16)
    shape = (3, 5, 16) if encoder.token_wise else (3, 16)
    return encoder, torch.randn(shape), tokenizer(CAPTIONS)


def as_on_cuda(vectors: Tensor, dim: int = -1) -> Tensor:
    """Like autocast on CUDA: the norm is computed in float32, and the normalised vectors are float32 too."""
    return vectors / vectors.float().norm(dim=dim, keepdim=True).clamp_min(1e-12)


@pytest.mark.parametrize("embedding", [8, None], ids=["heads", "no heads"])
@pytest.mark.parametrize("device", ["cpu", "as on cuda"])
def test_tokens_have_autocasts_type_for_the_token_wise_similarity(
    embedding: int | None, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "as on cuda":
        monkeypatch.setattr(F, "normalize", as_on_cuda)
    seen: list[torch.dtype] = []
    compute = loss.token_similarity

    def watched(image: Tensor, text: Tensor, counted: Tensor, with_first: bool = False) -> Scores:
        seen.extend((image.dtype, text.dtype))
        return compute(image, text, counted, with_first)

    monkeypatch.setattr(loss, "token_similarity", watched)
    monkeypatch.setattr(dual, "token_similarity", watched)
    encoder, features, ids = model(similarity="token", embedding=embedding)
    with torch.autocast("cpu", torch.bfloat16):
        pairs = encoder(features, ids)
        encoder.similarity(pairs.image, pairs.text)
    low = encoder.loss(pairs)
    assert seen == [torch.bfloat16] * 4
    low.backward()
    exact = encoder.loss(encoder(features, ids))
    assert seen[4:] == [torch.float32] * 2
    assert low.dtype == torch.float32 and 0 < abs(low - exact) < 0.02 * exact


@pytest.mark.parametrize("device", ["cpu", "as on cuda"])
def test_vectors_are_float32_under_autocast_for_the_global_similarity(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "as on cuda":
        monkeypatch.setattr(F, "normalize", as_on_cuda)
    encoder, features, ids = model()
    with torch.autocast("cpu", torch.bfloat16):
        pairs = encoder(features, ids)
    assert pairs.image.dtype == pairs.text.vectors.dtype == torch.float32
    for vectors in (pairs.image, pairs.text.vectors):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3), rtol=1e-6, atol=1e-6)


def test_a_float64_model_computes_in_float64_without_autocast() -> None:
    encoder, features, ids = model(similarity="token")
    pairs = encoder.double()(features.double(), ids)
    assert pairs.image.dtype == pairs.text.vectors.dtype == torch.float64


@pytest.mark.parametrize("with_cls", [True, False])
def test_a_patch_may_match_cls_but_cls_does_not_count(with_cls: bool) -> None:
    """Section 4.3: a patch may match any text token that is not padding; s^T leaves [CLS] out."""
    encoder, features, ids = model(similarity="token", match_text_cls=with_cls)
    pairs = encoder(features, ids)
    products = torch.einsum("ipd,jtd->ijpt", pairs.image, pairs.text.vectors)
    to_text, to_image = torch.empty(3, 3), torch.empty(3, 3)
    for column, row in enumerate(ids):
        length = int((row != 0).sum())
        to_text[:, column] = products[:, column, :, 0 if with_cls else 1 : length].amax(2).mean(1)
        to_image[:, column] = products[:, column, :, 1:length].amax(1).mean(1)
    found = encoder.similarity(pairs.image, pairs.text)
    torch.testing.assert_close(found.image_to_text, to_text)
    torch.testing.assert_close(found.text_to_image, to_image)
    own, scale = torch.arange(3), encoder.scale
    expected = (F.cross_entropy(scale * to_text, own) + F.cross_entropy(scale * to_image.T, own)) / 2
    torch.testing.assert_close(encoder.loss(pairs), expected)
