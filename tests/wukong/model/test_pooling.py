"""Pooled image tokens: their values, the loss on them, what depends on them and what does not, and wrong settings."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wukong.config import documents
from wukong.config.model import Model
from wukong.config.training import Training
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.errors import ConfigError
from wukong.model.cost import Size
from wukong.model.dual import DualEncoder
from wukong.model.loss import token_loss
from wukong.model.pooling import AreaMeans, AttentionMaps
from wukong.train import optimizer

CAPTIONS = ["猫", "红色的苹果", "一只鸟"]
TEXT = {"layers": 1, "heads": 2, "width": 16}


def model(patches: int = 16, **image: object) -> tuple[DualEncoder, torch.Tensor, torch.Tensor]:
    """A token-wise model, features of three images, and three captions' token ids."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(packaged_vocabulary())
    settings = Model.model_validate({"text": TEXT, "embedding": 8, "similarity": "token", "image": image})
    return DualEncoder(settings, tokenizer, feature_width=16), torch.randn(3, patches, 16), tokenizer(CAPTIONS)


@pytest.mark.parametrize(("side", "wanted"), [(7, 1), (7, 2), (7, 3), (7, 7), (16, 3), (16, 4)])
def test_areas_are_means_of_their_patches(side: int, wanted: int) -> None:
    """By slices: an area begins at the floor and ends at the ceiling of its share of the rows and columns."""
    grid = np.random.default_rng(0).normal(size=(side, side, 5))
    ends = [(side * n // wanted, -(-side * (n + 1) // wanted)) for n in range(wanted)]
    expected = [grid[top:bottom, left:right].mean((0, 1)) for top, bottom in ends for left, right in ends]
    found = AreaMeans(wanted**2)(torch.from_numpy(grid).reshape(1, side**2, 5))[0]
    # The shares are stored in float32.
    np.testing.assert_allclose(found.numpy(), np.array(expected), atol=1e-6)


def test_means_that_were_first_taken_in_inference_mode_serve_a_training() -> None:
    pooled = AreaMeans(4)
    with torch.inference_mode():
        pooled(torch.zeros(1, 36, 2))
    given = torch.ones(1, 36, 2, requires_grad=True)
    pooled(given).sum().backward()
    torch.testing.assert_close(given.grad, torch.full((1, 36, 2), 1 / 9))


def test_a_tower_with_too_few_patches_is_refused_before_it_is_trained() -> None:
    settings = {"name": "resnet18", "weights": "random", "image_size": 64, "tokens": 9}
    with pytest.raises(ConfigError, match=r"4 patches, of which 9 square areas"):
        Size.of(Model.model_validate({"image": settings, "text": TEXT, "similarity": "token"}))


@pytest.mark.parametrize("patches", [8, 4])
def test_patches_that_have_no_such_areas_are_refused(patches: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"model\.image\.tokens: .* gives {patches} patches, of which 9 square areas"
    ):
        AreaMeans(9)(torch.zeros(1, patches, 2))


def test_the_loss_of_areas_is_that_of_the_means_of_projected_patches() -> None:
    """A mean before the linear head is the mean after it."""
    encoder, features, ids = model(tokens=4)
    pairs = encoder(features, ids)
    projected = encoder.image_head(features).view(3, 2, 2, 2, 2, 8).mean((2, 4)).reshape(3, 4, 8)
    torch.testing.assert_close(pairs.image, F.normalize(projected, dim=-1))
    expected = token_loss(F.normalize(projected, dim=-1), *pairs.text, pairs.scale, None, None, True)
    torch.testing.assert_close(encoder.loss(pairs), expected)


def test_attention_pools_projected_patches_and_every_weight_is_trained() -> None:
    encoder, features, ids = model(patches=5, tokens=3, pooling="attention")
    pooling = encoder.image_pooling
    assert isinstance(pooling, AttentionMaps)
    pairs = encoder(features, ids)
    torch.testing.assert_close(pairs.image, F.normalize(pooling(encoder.image_head(features)), dim=-1))
    assert pairs.image.shape == (3, 3, 8)
    encoder.loss(pairs).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in pooling.parameters())


def test_a_whitened_head_whitens_the_areas_that_it_reads() -> None:
    encoder, features, _ = model(tokens=4)
    areas = AreaMeans(4)(features)
    plain, *_ = model(tokens=None)
    encoder.whiten_image_head(features)
    plain.whiten_image_head(areas)
    assert torch.equal(encoder.image_head.weight, plain.image_head.weight)


def test_pooling_has_the_rate_and_the_decay_of_the_image_head() -> None:
    encoder, *_ = model(tokens=3, pooling="attention")
    groups = optimizer.parameter_groups(encoder, Training(image_head_rate=0.5, weight_decay=0.1))
    found = {id(each): (group["rate"], group["weight_decay"]) for group in groups for each in group["params"]}
    assert encoder.image_pooling is not None
    decays = {name: found[id(weight)] for name, weight in encoder.image_pooling.named_parameters()}
    assert decays["norm.weight"] == (0.5, 0.0)
    assert {decays[name] for name in decays if "norm" not in name} == {(0.5, 0.1)}


def test_settings_without_pooled_tokens_are_written_as_before_there_were_any() -> None:
    written = Model().model_dump(mode="json")["image"]
    assert "tokens" not in written and "pooling" not in written
    chosen = Model.model_validate({"similarity": "token", "image": {"tokens": 12, "pooling": "attention"}})
    again = Model.model_validate_json(chosen.model_dump_json())
    assert again == chosen and again.image.tokens == 12
    assert chosen.image.of_tower() == written, "the tower's features do not depend on how they are pooled"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model.image.tokens=9", "image.tokens is of the token-wise similarity"),
        ("model.image.pooling=attention", "image.tokens, the number of tokens, is not given"),
        ("model={similarity: token, image: {tokens: 10}}", "10 square areas are no square; 4, 9, 16"),
    ],
)
def test_wrong_settings_are_named(change: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        documents.loads("name: x\nstorage: s3://b/x\ncrawl: {queries: s3://b/q.txt, endpoint: http://x/s}", [change])


def test_attention_needs_eight_groups_of_channels() -> None:
    with pytest.raises(ConfigError, match=r"model\.embedding: 12: .* multiple of 8"):
        AttentionMaps(12, 3)
