"""Loss and gradients of one batch. A batch that does not fit into memory is processed in pieces.

Gradient caching (Gao et al. 2021): the contrastive loss needs all pairs of the batch, but only their vectors. So the
batch is encoded piece by piece without a graph. The loss is computed from all vectors, and its gradient with respect to
the vectors. Then each piece is encoded a second time, with a graph, and the gradients of its vectors are propagated
back. Dropout uses the same random numbers both times. The result is the gradient of the whole batch; the memory depends
on the size of a piece and of all vectors.

A locked image tower needs no graph, so it runs once: its features are kept for the second time.
"""

from contextlib import nullcontext
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from wukong.config.training import Training
from wukong.model.dual import DualEncoder, Embedded, Texts
from wukong.model.text_encoder import packed_size
from wukong.train.batches import Batch

_PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}

Scaling: TypeAlias = tuple[torch.amp.GradScaler, torch.optim.Optimizer]
"""What scales the loss, and the optimiser of the gradients that are scaled back."""


def backward(
    model: DualEncoder, replica: nn.Module, batch: Batch, settings: Training, scaling: Scaling | None = None
) -> Tensor:
    """Compute the loss of a batch and add its gradients to the parameters' gradients, then clip their norm.

    With several workers, the loss is that of this worker's pairs; the gradients are averaged over the workers. Batch
    norm in training mode sees ``micro_batch`` pairs at a time; all other results do not depend on ``micro_batch``.
    Clipped is the norm over all parameters of the whole batch's gradient, equally on every worker.

    Args:
        model: the model, in training mode.
        replica: the module to call: the model itself, or its ``DistributedDataParallel``.
        batch: this worker's share of the batch.
        settings: settings of the training; ``micro_batch``, ``precision``, ``clip_gradient_norm`` and the options of
            the loss are used.
        scaling: see ``Scaling``; None to scale nothing.

    Returns:
        The loss, a scalar without a graph.
    """
    captions = batch.captions.to(model.log_scale.device) if settings.exclude_same_captions else None
    size = settings.micro_batch or len(batch.ids)
    pieces = [slice(start, start + size) for start in range(0, len(batch.ids), size)]
    if len(pieces) == 1:
        loss = model.loss(_embed(replica, batch.features, batch, settings), captions)
        _scaled(loss, scaling).backward()
        _clip(model, settings, scaling)
        return loss.detach()

    kept = [buffer.clone() for buffer in model.buffers()]
    states, inputs, parts = [], [], []
    with torch.no_grad():
        for piece in pieces:
            states.append(_random_state(model.log_scale.device))
            inputs.append(_without_locked_tower(model, batch.features[piece], settings))
            parts.append(_embed(model, inputs[-1], batch, settings, piece))
        # The second pass updates the running statistics, so undo the update of the first.
        for buffer, value in zip(model.buffers(), kept, strict=True):
            buffer.copy_(value)
    whole = _joined(parts)
    loss = model.loss(whole, captions)
    _scaled(loss, scaling).backward()

    for piece, state, features in zip(pieces, states, inputs, strict=True):
        last = piece is pieces[-1]
        wait = replica.no_sync() if isinstance(replica, DistributedDataParallel) and not last else nullcontext()
        with wait:
            _set_random_state(model.log_scale.device, state)
            embedded = _embed(replica, features, batch, settings, piece)
            back = [
                (embedded.image, _gradient(whole.image)[piece]),
                (embedded.text.vectors, _gradient(whole.text.vectors)[piece]),
            ]
            for output, leaf in ((embedded.scale, whole.scale), (embedded.bias, whole.bias)):
                if output is not None and leaf is not None:
                    # Every piece returns the same scale and bias. Add their gradient once, with the last piece.
                    back.append((output, _gradient(leaf) if last else torch.zeros_like(leaf)))
            trained = [(output, gradient) for output, gradient in back if output.requires_grad]
            torch.autograd.backward([output for output, _ in trained], [gradient for _, gradient in trained])
    _clip(model, settings, scaling)
    return loss.detach()


def of(model: nn.Module) -> list[Tensor]:
    """Return the gradients of all trained weights; of a sparse one, its rows that are not zero."""
    gradients = []
    for weight in model.parameters():
        if weight.grad is not None and weight.grad.is_sparse:
            weight.grad = summed(weight.grad)
            gradients.append(weight.grad.values())
        elif weight.grad is not None:
            gradients.append(weight.grad)
    return gradients


def summed(gradient: Tensor) -> Tensor:
    """Sum the entries of each row of a sparse gradient, one after the other as torch does for a whole gradient.

    ``coalesce`` sums three and more entries in another order.
    """
    if gradient.is_coalesced():
        return gradient
    numbers, entries = gradient._indices()[0], gradient._values()
    rows, places = numbers.unique(return_inverse=True)
    values = entries.new_zeros(len(rows), *entries.shape[1:]).index_add_(0, places, entries)
    return torch.sparse_coo_tensor(rows[None], values, gradient.shape, check_invariants=False, is_coalesced=True)


def norm(model: nn.Module) -> Tensor:
    """Return the norm of the gradient over all trained weights, a scalar."""
    return nn.utils.get_total_norm(of(model))


def _embed(
    model: nn.Module, features: Tensor, batch: Batch, settings: Training, piece: slice = slice(None)
) -> Embedded:
    """Embed a piece of a batch, whose image features or images are given."""
    device, ids = next(model.parameters()).device, batch.ids[piece]
    packed = None if batch.lengths is None else packed_size(int(batch.lengths[piece].sum()), ids.numel())
    with autocast(device, settings.precision):
        embedded: Embedded = model(features.to(device, non_blocking=True), ids.to(device, non_blocking=True), packed)
    return embedded


def _without_locked_tower(model: DualEncoder, features: Tensor, settings: Training) -> Tensor:
    """Return what the trained layers read: the features of images if the image tower is locked, else the inputs."""
    if features.dtype != torch.uint8 or model.image is None or not model.image.is_locked:
        return features
    device = model.log_scale.device
    with autocast(device, settings.precision):
        return model.select(model.image(features.to(device, non_blocking=True)))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the block in which a device computes in a precision of ``Training``."""
    return torch.autocast(device.type, _PRECISIONS.get(precision), enabled=precision in _PRECISIONS)


def half(precision: str) -> torch.dtype | None:
    """Return the type of 16 bits of a precision of ``Training``; None if it has another."""
    return _PRECISIONS.get(precision)


def _scaled(loss: Tensor, scaling: Scaling | None) -> Tensor:
    return loss if scaling is None else scaling[0].scale(loss)


def _clip(model: nn.Module, settings: Training, scaling: Scaling | None) -> None:
    if scaling is not None:
        scaling[0].unscale_(scaling[1])
    if settings.clip_gradient_norm:
        factor = settings.clip_gradient_norm / (norm(model) + 1e-6)
        torch._foreach_mul_(of(model), factor.clamp(max=1.0))


def _joined(parts: list[Embedded]) -> Embedded:
    """Join the vectors of all pieces as new leaves, without the graph that computed them."""
    scale, bias = parts[0].scale, parts[0].bias
    return Embedded(
        torch.cat([part.image for part in parts]).requires_grad_(),
        Texts(
            torch.cat([part.text.vectors for part in parts]).requires_grad_(),
            torch.cat([part.text.counted for part in parts]),
        ),
        scale.detach().clone().requires_grad_(),
        None if bias is None else bias.detach().clone().requires_grad_(),
    )


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _random_state(device: torch.device) -> list[Tensor]:
    state = [torch.get_rng_state()]
    return [*state, torch.cuda.get_rng_state(device)] if device.type == "cuda" else state


def _set_random_state(device: torch.device, state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
