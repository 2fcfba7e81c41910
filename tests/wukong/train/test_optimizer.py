import math
from collections.abc import Iterator
from typing import Any

import pytest
import small
import torch
from timm.optim import Lamb
from torch import nn

from wukong.config.training import Training
from wukong.train import gradients, optimizer


def test_weight_decay_applies_only_to_matrices_of_layers_and_heads() -> None:
    model, _pairs = small.make()
    groups = optimizer.parameter_groups(model, Training(weight_decay=0.05, image_head_rate=0.1))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {
        "text.layers.0.qkv.weight",
        "text.layers.0.attended.weight",
        "text.layers.0.expand.weight",
        "text.layers.0.contract.weight",
        "image_head.weight",
        "text_head.weight",
    }
    slow = {names[id(p)] for group in groups if group["rate"] == 0.1 for p in group["params"]}
    assert slow == {"image_head.weight", "image_head.bias"}
    assert sorted(names.values()) == sorted(names[id(p)] for group in groups for p in group["params"])


def test_class_token_and_positions_of_an_image_tower_have_no_weight_decay() -> None:
    model = small.with_tower(lock=1)
    groups = optimizer.parameter_groups(model, Training(weight_decay=0.05))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    trained = {names[id(p)] for group in groups for p in group["params"]}
    layers = {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}
    assert {n for n in decayed if n.startswith("image.")} == {
        f"image.backbone.blocks.{number}.{layer}.weight" for number in range(12) for layer in layers
    }
    # The stem is locked: class token, positions and patch projection are not trained at all.
    assert "image.backbone.blocks.0.norm1.weight" in trained and "image.backbone.pos_embed" not in trained
    model = small.with_tower()
    groups = optimizer.parameter_groups(model, Training(weight_decay=0.05))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    free = {names[id(p)] for group in groups if not group["weight_decay"] for p in group["params"]}
    assert {"image.backbone.cls_token", "image.backbone.pos_embed", "log_scale", "text.tokens.weight"} <= free


def test_lamb_equals_the_published_update() -> None:
    """Algorithm 2 of You et al. 2020, written out in double precision."""
    model, _pairs = small.make()
    model.double()
    settings = Training(learning_rate=0.01, weight_decay=0.05, epsilon=1e-2, image_head_rate=1.0)
    optimiser = optimizer.build(model, settings)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay = {names[id(p)]: group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    expected = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    mean = {name: torch.zeros_like(value) for name, value in expected.items()}
    square = {name: torch.zeros_like(value) for name, value in expected.items()}
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 4):
        for name, parameter in model.named_parameters():
            gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.01
            parameter.grad = gradient
            mean[name] = 0.9 * mean[name] + 0.1 * gradient
            square[name] = 0.999 * square[name] + 0.001 * gradient**2
            ratio = (mean[name] / (1 - 0.9**step)) / ((square[name] / (1 - 0.999**step)).sqrt() + 1e-2)
            update = ratio + decay[name] * expected[name]
            trust = expected[name].norm() / update.norm() if expected[name].norm() > 0 and update.norm() > 0 else 1.0
            expected[name] = expected[name] - 0.01 * trust * update
        optimiser.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-6, atol=1e-9, msg=name)


@pytest.fixture
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("width", [64, 256])
def test_lamb_on_sparse_gradients_is_timms_lamb_on_dense_ones_to_the_bit(width: int) -> None:
    torch.manual_seed(0)
    sparse, dense = (nn.Embedding(300, width, padding_idx=0, sparse=kind) for kind in (True, False))
    dense.load_state_dict(sparse.state_dict())
    settings: dict[str, Any] = {"lr": 0.01, "betas": optimizer.BETAS, "eps": 1e-2, "max_grad_norm": None}
    settings |= {"always_adapt": True}
    groups = [[{"params": [*each.parameters()], "weight_decay": 0.0}] for each in (sparse, dense)]
    sparse.weight.register_hook(gradients.summed)
    ours, timms = optimizer.RowLamb(groups[0], **settings), Lamb(groups[1], **settings)
    unused = sparse.weight[200:].detach().clone()
    for step in range(12):
        ids = torch.randint(0, 200, (40,))
        weights = torch.randn(40, width)
        for embedding, optimiser in ((sparse, ours), (dense, timms)):
            optimiser.zero_grad()
            (embedding(ids) * weights).sum().backward()
            optimiser.step()
        assert torch.equal(sparse.weight, dense.weight), step
        if step == 5:  # as if the run were killed and taken up
            state = ours.state_dict()
            ours = optimizer.RowLamb([{"params": [*sparse.parameters()], "weight_decay": 0.0}], **settings)
            ours.load_state_dict(state)
    assert sparse.weight.grad is not None and sparse.weight.grad.is_sparse
    assert torch.equal(sparse.weight[200:], unused)
    for name, value in timms.state[dense.weight].items():
        assert torch.equal(ours.state[sparse.weight][name], value), name


def test_the_learning_rate_warms_up_and_decays_as_a_cosine() -> None:
    settings = Training(learning_rate=2.0, warmup_fraction=0.1)
    rates = [optimizer.learning_rate(step, 100, settings) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[55] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(1 + math.cos(math.pi * 89 / 90))
    assert max(rates) == 2.0
    # Loshchilov and Hutter 2016, equation 5 with a lower bound of zero, over the steps after the warm-up.
    assert rates[10:] == pytest.approx([0.5 * 2.0 * (1 + math.cos(step / 90 * math.pi)) for step in range(90)])
