"""Gradient caching, compared with one graph over the whole batch."""

from dataclasses import replace
from pathlib import Path

import pytest
import small
import torch
import workers
from torch.nn.parallel import DistributedDataParallel

from wukong.config.training import Training
from wukong.model.dual import DualEncoder, Embedded, Texts
from wukong.train import gradients, optimizer
from wukong.train.batches import Batch
from wukong.train.pairs import Pairs

CASES = [(similarity, loss) for similarity in ("global", "token") for loss in ("softmax", "sigmoid")]


def found(model: DualEncoder) -> dict[str, torch.Tensor]:
    return {name: value.grad.to_dense().clone() for name, value in model.named_parameters() if value.grad is not None}


def share(pairs: Pairs, rank: int = 0, count: int = 1) -> Batch:
    batch = next(pairs.batches(16, 0, 0, rank, count))
    return replace(batch, features=batch.features.double())


def make(similarity: str, loss: str, dropout: float = 0.0) -> tuple[DualEncoder, Pairs]:
    model, pairs = small.make(dropout, similarity, loss)
    return model.double().train(), pairs


@pytest.mark.parametrize(("similarity", "loss"), CASES)
@pytest.mark.parametrize("micro_batch", [1, 5, 8])
def test_gradients_in_pieces_equal_those_of_the_whole_batch(similarity: str, loss: str, micro_batch: int) -> None:
    model, pairs = make(similarity, loss)
    whole = gradients.backward(model, model, share(pairs), Training())
    expected = found(model)
    model.zero_grad()
    pieces = gradients.backward(model, model, share(pairs), Training(micro_batch=micro_batch))
    torch.testing.assert_close(pieces, whole, rtol=1e-10, atol=0)
    torch.testing.assert_close(found(model), expected, rtol=1e-8, atol=1e-12)
    assert set(expected) == {name for name, _ in model.named_parameters()}


def test_dropout_is_equal_in_both_passes() -> None:
    """The oracle keeps the graphs of all pieces and differentiates the loss of the whole batch."""
    model, pairs = make("global", "softmax", dropout=0.3)
    batch = share(pairs)
    torch.manual_seed(4)
    parts = [model(batch.features[start : start + 4], batch.ids[start : start + 4]) for start in range(0, 16, 4)]
    texts = Texts(torch.cat([p.text.vectors for p in parts]), torch.cat([p.text.counted for p in parts]))
    model.loss(Embedded(torch.cat([p.image for p in parts]), texts, model.scale, None), batch.captions).backward()
    expected, after = found(model), torch.rand(())
    model.zero_grad()
    torch.manual_seed(4)
    gradients.backward(model, model, batch, Training(micro_batch=4))
    torch.testing.assert_close(found(model), expected, rtol=1e-8, atol=1e-12)
    assert torch.rand(()) == after  # and what is drawn next is what would have been


def test_bfloat16_is_close_to_float32() -> None:
    model, pairs = small.make()
    batch = next(pairs.batches(16, 0, 0))
    exact = gradients.backward(model.train(), model, batch, Training())
    expected = found(model)
    for micro_batch in (0, 8):
        model.zero_grad()
        low = gradients.backward(model, model, batch, Training(precision="bfloat16", micro_batch=micro_batch))
        assert low.dtype == torch.float32
        assert 0 < abs(low - exact) < 0.02 * exact
        for name, value in found(model).items():
            assert value.dtype == torch.float32
            assert (value - expected[name]).norm() < 0.05 * expected[name].norm() + 1e-6, name


def _pictures(similarity: str, rank: int, count: int, lock: int | str = 12) -> tuple[DualEncoder, Batch]:
    """A model with a wholly or partly locked image tower, and this worker's images and captions."""
    model = small.with_tower(similarity, lock).double().train()
    _, pairs = small.make(similarity=similarity)
    batch = share(pairs, rank, count)
    pixels = torch.randint(0, 256, (28, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return model, replace(batch, features=pixels[batch.rows])


def _share(rank: int, count: int) -> dict[str, dict[str, torch.Tensor]]:
    shares = {}
    for similarity, loss in [*CASES, ("global", "pictures"), ("token", "pictures")]:
        if loss == "pictures":
            model, batch = _pictures(similarity, rank, count)
        else:
            model, pairs = make(similarity, loss)
            batch = share(pairs, rank, count)
        find = model.image is not None
        replica = DistributedDataParallel(model, find_unused_parameters=find) if count > 1 else model
        settings = Training(micro_batch=3 if count > 1 else 0, clip_gradient_norm=0.01)
        shares[f"{similarity}, {loss}"] = {"loss": gradients.backward(model, replica, batch, settings), **found(model)}
    return shares


@pytest.mark.long
def test_two_workers_in_pieces_equal_one_worker_with_the_whole_batch(tmp_path: Path) -> None:
    first, second = workers.run(2, tmp_path, _share)
    for case, alone in _share(0, 1).items():
        torch.testing.assert_close((first[case]["loss"] + second[case]["loss"]) / 2, alone["loss"], rtol=1e-10, atol=0)
        assert ("image.backbone.blocks.11.mlp.fc2.weight" in alone) == ("pictures" in case)
        assert "image.backbone.blocks.10.mlp.fc2.weight" not in alone
        for name, value in alone.items():
            if name != "loss":
                torch.testing.assert_close(first[case][name], value, rtol=1e-8, atol=1e-12)
                assert torch.equal(first[case][name], second[case][name])


@pytest.mark.parametrize("micro_batch", [0, 5])
@pytest.mark.parametrize(("share_of_norm", "sparse"), [(0.25, False), (4.0, False), (0.25, True)])
def test_a_long_gradient_is_shortened_like_torchs_clip(micro_batch: int, share_of_norm: float, sparse: bool) -> None:
    model, pairs = make("global", "softmax")
    batch = share(pairs)
    embedded = model(batch.features, batch.ids)
    model.loss(embedded, batch.captions).backward()
    norm = torch.stack([value.grad.norm() for value in model.parameters() if value.grad is not None]).norm()
    limit = share_of_norm * float(norm)
    torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
    expected = found(model)
    model.zero_grad()
    model.text.tokens.sparse = sparse
    gradients.backward(model, model, batch, Training(micro_batch=micro_batch, clip_gradient_norm=limit))
    torch.testing.assert_close(found(model), expected, rtol=1e-6, atol=1e-12)
    length = torch.stack([value.norm() for value in found(model).values()]).norm()
    assert float(length) == pytest.approx(min(1.0, share_of_norm) * float(norm), rel=1e-5)


@pytest.mark.parametrize("similarity", ["global", "token"])
@pytest.mark.parametrize(("lock", "images"), [("all", 16), (12, 32)], ids=["locked", "partly locked"])
def test_a_locked_tower_sees_each_image_once(similarity: str, lock: int | str, images: int) -> None:
    model, batch = _pictures(similarity, 0, 1, lock)
    whole = gradients.backward(model, model, batch, Training())
    expected = found(model)
    model.zero_grad()
    assert model.image is not None
    seen: list[int] = []
    model.image.register_forward_pre_hook(lambda _tower, given: seen.append(len(given[0])))
    pieces = gradients.backward(model, model, batch, Training(micro_batch=5))
    assert sum(seen) == images
    torch.testing.assert_close(pieces, whole, rtol=1e-10, atol=0)
    torch.testing.assert_close(found(model), expected, rtol=1e-8, atol=1e-12)


def test_batch_norm_updates_its_statistics_once() -> None:
    model, pairs = small.make()
    norm = torch.nn.BatchNorm1d(small.WIDTH)
    model.image_head = torch.nn.Sequential(norm, model.image_head)
    gradients.backward(model.train(), model, next(pairs.batches(16, 0, 0)), Training(micro_batch=8))
    assert int(norm.num_batches_tracked) == 2  # pieces, each seen twice


@pytest.mark.long
def test_compiled_towers_give_equal_gradients() -> None:
    """Batches of several lengths, for which each layer is compiled once. The image tower has one block, for speed.

    The graphs of both passes run as they are: to generate code for processors takes minutes.
    """
    results = []
    for compiled in (False, True):
        model = small.with_tower(block=0).train()
        if compiled:
            model.compile_towers("aot_eager")
        names, shares = list(model.state_dict()), []
        rows = 6
        for number, lengths in enumerate(((6, 3, 1), (5, 2, 2), (7, 6, 3))):
            generator = torch.Generator().manual_seed(number)
            pixels = torch.randint(0, 256, (rows, 3, 32, 32), generator=generator, dtype=torch.uint8)
            ids = torch.randint(200, 9_000, (rows, max(lengths)), generator=generator)
            real = torch.tensor([lengths[row % 3] for row in range(rows)])
            ids = ids.masked_fill(torch.arange(max(lengths)) >= real[:, None], 0)
            batch = Batch(pixels, ids, torch.arange(rows), torch.arange(rows))
            model.zero_grad()
            shares.append({"loss": gradients.backward(model, model, batch, Training()), **found(model)})
        results.append((names, shares))
    (names, expected), (compiled_names, shares) = results
    assert compiled_names == names
    torch.testing.assert_close(shares, expected, rtol=1e-3, atol=1e-5)


def test_activation_checkpointing_works_with_pieces() -> None:
    model, pairs = make("global", "softmax", dropout=0.3)
    results = []
    for checkpointed in (False, True):
        model.text.checkpoint_activations = checkpointed
        model.zero_grad()
        torch.manual_seed(4)
        gradients.backward(model, model, share(pairs), Training(micro_batch=4))
        results.append(found(model))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("micro_batch", [0, 4])
@pytest.mark.parametrize("limit", [0.0, 1e-3])
def test_gradients_in_float16_are_scaled_back_before_they_are_clipped(micro_batch: int, limit: float) -> None:
    found = []
    for precision in ("float32", "float16"):
        model, pairs = small.make(similarity="token")
        settings = Training(precision=precision, micro_batch=micro_batch, clip_gradient_norm=limit)
        optimiser = optimizer.build(model.train(), settings)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=precision == "float16")
        gradients.backward(model, model, next(pairs.batches(16, 0, 0)), settings, (scaler, optimiser))
        found.append(torch.cat([gradient.flatten() for gradient in gradients.of(model)]))
    exact, low = found
    assert (exact - low).norm() < 0.02 * exact.norm()
