"""The contrastive loss of section 4.3 and its sigmoid variant, on one worker or several.

Each worker holds its own pairs and gathers the vectors of all other workers, with gradients. So the mean of the
workers' losses is the loss of the whole batch on one worker, and the mean of their gradients is its gradient.

No worker gets more than it uses. The scores of a worker's captions with all images come from the workers that hold the
images, each its block (all-to-all). The gradients of gathered vectors are summed and divided in one step
(reduce-scatter), so that a worker gets the sums of its own rows only. Gloo, for processors, computes the same sums, in
some of its versions by an all-reduce.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from wukong.model.similarity import token_similarity


def world() -> tuple[int, int]:
    """Return this worker's rank and the number of workers; (0, 1) if training is not distributed."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gathered(local: Tensor) -> Tensor:
    """Join the tensors of all workers along the first axis, in rank order; gradients flow back to each worker."""
    if world()[1] == 1:
        return local
    result: Tensor = _Gather.apply(local)
    return result


class _Gather(torch.autograd.Function):
    """``gathered`` for autograd: the gradient of a worker's tensor is the sum of its gradients on all workers."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        ctx.rows = len(local)
        return gathered_constant(local)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        whole = _exact(gradient).contiguous()
        own = whole.new_empty(ctx.rows, *whole.shape[1:])
        dist.reduce_scatter_tensor(own, whole)
        return own.to(gradient.dtype)


def gathered_constant(local: Tensor) -> Tensor:
    """``gathered`` for tensors that need no gradient."""
    workers = world()[1]
    if workers == 1:
        return local
    whole = local.new_empty(workers * len(local), *local.shape[1:])
    dist.all_gather_into_tensor(whole, local.contiguous())
    return whole


def exchanged(scores: Tensor) -> Tensor:
    """Turn this worker's images against all captions into this worker's captions against all images, with gradients.

    Args:
        scores: [rows, rows of all workers], of this worker's images with the captions of all workers in rank order.

    Returns:
        [rows, rows of all workers], of this worker's captions with the images of all workers in rank order.
    """
    if world()[1] == 1:
        return scores.T
    result: Tensor = _Exchange.apply(scores)
    return result


class _Exchange(torch.autograd.Function):
    """``exchanged`` for autograd: it moves each number once, so the gradients move back the same way."""

    @staticmethod
    def forward(_ctx: Any, scores: Tensor) -> Tensor:
        return _transposed(scores)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return _transposed(gradient)


def _transposed(local: Tensor) -> Tensor:
    """Return this worker's rows of the transpose of the matrix whose rows the workers hold in rank order."""
    rows, workers = len(local), world()[1]
    # Block w of the rows, transposed, goes to worker w.
    sent = local.view(rows, workers, rows).permute(1, 2, 0).contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent)
    return received.transpose(0, 1).reshape(rows, workers * rows)


def contrastive(scores: Tensor, excluded: Tensor | None = None) -> Tensor:
    """Softmax loss in one direction (L^I or L^T): the mean cross-entropy of each row's own candidate, a scalar.

    Args:
        scores: [rows, candidates], already divided by the temperature; row r of this worker forms a pair with
            candidate ``rank * rows + r``.
        excluded: bool [rows, candidates], candidates that are not used as negatives of a row; a row's own candidate is
            never excluded.
    """
    rows = len(scores)
    own = torch.arange(rows, device=scores.device) + world()[0] * rows
    allowed = torch.ones_like(scores, dtype=torch.bool) if excluded is None else ~excluded
    allowed = allowed.scatter(1, own[:, None], value=True)
    logs = F.log_softmax(_exact(scores).masked_fill(~allowed, -torch.inf), 1)
    return -logs.gather(1, own[:, None]).mean()


def pairwise(scores: Tensor, excluded: Tensor | None = None) -> Tensor:
    """Sigmoid loss (Zhai et al. 2023, algorithm 1): binary cross-entropy, summed over candidates, mean over rows.

    Args:
        scores: [rows, candidates], already divided by the temperature, with the bias added; see ``contrastive``.
        excluded: bool [rows, candidates], candidates that do not enter the loss; a row's own candidate is never
            excluded.
    """
    rows = len(scores)
    own = torch.arange(rows, device=scores.device) + world()[0] * rows
    answers = torch.zeros_like(_exact(scores)).scatter(1, own[:, None], value=1.0)
    losses = F.binary_cross_entropy_with_logits(_exact(scores), answers, reduction="none")
    if excluded is not None:
        losses = losses.masked_fill(excluded.scatter(1, own[:, None], value=False), 0.0)
    return losses.sum() / rows


def _exact(values: Tensor) -> Tensor:
    """Convert to float32 or more: losses are not summed in half precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def same_caption(captions: Tensor) -> Tensor:
    """Compare this worker's captions with those of all workers.

    Args:
        captions: int64 [rows], a number for each caption; equal captions have equal numbers.

    Returns:
        bool [rows, rows of all workers], True where the captions are equal.
    """
    return captions[:, None] == gathered_constant(captions)[None, :]


def global_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    captions: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Compute the loss of this worker's pairs with the global similarity (CLIP).

    Args:
        image: [rows, d], unit vectors; image r and caption r are a pair.
        text: [rows, d], unit vectors.
        scale: one over the temperature, a scalar.
        captions: int64 [rows], equal for equal captions. Pairs with equal captions are not used as negatives of each
            other. None to use all as negatives.
        bias: a scalar that the sigmoid loss adds to the scaled similarities; None for the softmax loss.

    Returns:
        A scalar: (L^I + L^T) / 2, or the sigmoid loss.
    """
    excluded = None if captions is None else same_caption(captions)
    # A temperature of 0.01 multiplies the rounding errors of half precision by 100.
    image, text = _exact(image), _exact(text)
    image_rows = scale * image @ gathered(text).T
    if bias is not None:
        return pairwise(image_rows + bias, excluded)
    text_rows = scale * text @ gathered(image).T
    return (contrastive(image_rows, excluded) + contrastive(text_rows, excluded)) / 2


def token_loss(
    image: Tensor,
    text: Tensor,
    counted: Tensor,
    scale: Tensor,
    captions: Tensor | None = None,
    bias: Tensor | None = None,
    with_first: bool = False,
    longest: int | None = None,
) -> Tensor:
    """Compute the loss of this worker's pairs with the token-wise similarity (FILIP); see ``global_loss``.

    Workers exchange only text tokens and the scores of their own captions. The sigmoid loss is the mean of the losses
    of s^I and of s^T.

    Args:
        image: [rows, n1, d], unit vectors.
        text: [rows, n2, d], unit vectors; n2 may differ between workers.
        counted: bool [rows, n2], the text tokens that count.
        scale: one over the temperature, a scalar.
        captions: see ``global_loss``.
        bias: see ``global_loss``.
        with_first: whether a patch may also match the first token of a text, [CLS]; see ``token_similarity``.
        longest: number of tokens that no worker's texts exceed, to which several workers pad them; None to ask all for
            the longest, for which the processor waits.

    Returns:
        A scalar.
    """
    excluded = None if captions is None else same_caption(captions)
    if world()[1] == 1:
        longest = text.shape[1]
    missing = (longest or _longest(text.shape[1], text.device)) - text.shape[1]
    text, counted = F.pad(text, (0, 0, 0, missing)), F.pad(counted, (0, missing))
    scores = token_similarity(image, gathered(text), gathered_constant(counted), with_first)
    if bias is not None:
        # The sigmoid loss has no sum over candidates, so this worker's images against all captions are enough.
        sides = (pairwise(scale * side + bias, excluded) for side in scores)
        return sum(sides, start=torch.zeros((), device=image.device)) / 2
    text_rows = exchanged(scores.text_to_image)
    return (contrastive(scale * scores.image_to_text, excluded) + contrastive(scale * text_rows, excluded)) / 2


def _longest(length: int, device: torch.device) -> int:
    """Return the largest length of all workers."""
    longest = torch.tensor(length, device=device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    return int(longest)
