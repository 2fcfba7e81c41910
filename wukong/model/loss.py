"""The contrastive objective of section 4.3 and its sigmoid variant, over one worker or several.

A worker holds the rows of its own pictures and captions; every other worker's are gathered with their gradient, so that
the mean over workers is the loss, and the mean of their gradients the gradient, of one worker on the joined batch.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from wukong.model.similarity import token_similarity


def world() -> tuple[int, int]:
    """This worker's rank and the number of workers; (0, 1) where nothing is distributed."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gathered(local: Tensor) -> Tensor:
    """Join every worker's tensor along the first axis, in rank order; gradients flow back to each worker's part."""
    if world()[1] == 1:
        return local
    result: Tensor = _Gather.apply(local)
    return result


class _Gather(torch.autograd.Function):
    """``gathered``: the gradient of a worker's part is the sum of what all workers found for it."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        ctx.rows = len(local)
        return gathered_constant(local)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous()
        dist.all_reduce(total)
        rank = world()[0]
        return total[rank * ctx.rows : (rank + 1) * ctx.rows]


def gathered_constant(local: Tensor) -> Tensor:
    """``gathered`` for what has no gradient."""
    workers = world()[1]
    if workers == 1:
        return local
    parts = [torch.empty_like(local) for _ in range(workers)]
    dist.all_gather(parts, local.contiguous())
    return torch.cat(parts)


def contrastive(scores: Tensor, excluded: Tensor | None = None, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of each row against the pair that belongs to it (one of L^I, L^T), a scalar.

    Args:
        scores: [rows, candidates], already divided by the temperature; row r of this worker belongs to candidate
            ``rank * rows + r``.
        excluded: bool [rows, candidates], candidates that are no negatives of a row; a row's own is never excluded.
        label_smoothing: probability mass spread evenly over the candidates that are not excluded.
    """
    rows = len(scores)
    own = torch.arange(rows, device=scores.device) + world()[0] * rows
    allowed = torch.ones_like(scores, dtype=torch.bool) if excluded is None else ~excluded
    allowed = allowed.scatter(1, own[:, None], value=True)
    logs = F.log_softmax(_exact(scores).masked_fill(~allowed, -torch.inf), 1)
    loss = -logs.gather(1, own[:, None]).squeeze(1)
    if label_smoothing:
        even = -logs.masked_fill(~allowed, 0.0).sum(1) / allowed.sum(1)
        loss = (1 - label_smoothing) * loss + label_smoothing * even
    return loss.mean()


def pairwise(scores: Tensor, excluded: Tensor | None = None, label_smoothing: float = 0.0) -> Tensor:
    """Sigmoid loss (Zhai et al. 2023, algorithm 1): is this a pair or not, summed over candidates, mean over rows.

    Args:
        scores: [rows, candidates], already divided by the temperature, the bias added; see ``contrastive``.
        excluded: bool [rows, candidates], candidates that count for nothing; a row's own is never excluded.
        label_smoothing: the answer is 1 - half of it for a pair and half of it for any other.
    """
    rows = len(scores)
    own = torch.arange(rows, device=scores.device) + world()[0] * rows
    answers = torch.zeros_like(_exact(scores)).scatter(1, own[:, None], value=1.0)
    if label_smoothing:
        answers = answers * (1 - label_smoothing) + label_smoothing / 2
    losses = F.binary_cross_entropy_with_logits(_exact(scores), answers, reduction="none")
    if excluded is not None:
        losses = losses.masked_fill(excluded.scatter(1, own[:, None], value=False), 0.0)
    return losses.sum() / rows


def _exact(values: Tensor) -> Tensor:
    """Losses are not summed up in half precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def same_caption(captions: Tensor) -> Tensor:
    """Tell for this worker's rows which of all captions are equal to theirs: bool [rows, all rows].

    Args:
        captions: int64 [rows], a number that two captions share when they are the same.
    """
    return captions[:, None] == gathered_constant(captions)[None, :]


def global_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    captions: Tensor | None = None,
    label_smoothing: float = 0.0,
    bias: Tensor | None = None,
) -> Tensor:
    """Loss with the global similarity over this worker's rows, a scalar: (L^I + L^T) / 2, or the sigmoid loss.

    Args:
        image: [rows, d], unit vectors; picture r and caption r are a pair.
        text: [rows, d], unit vectors.
        scale: one over the temperature, a scalar.
        captions: int64 [rows], equal for equal captions, which are then not each other's negatives; None to let them.
        label_smoothing: see ``contrastive`` and ``pairwise``.
        bias: what the sigmoid loss adds to the scaled similarities, a scalar; None for the softmax over candidates.
    """
    excluded = None if captions is None else same_caption(captions)
    # Temperatures of 0.01 magnify what half precision rounds away.
    image, text = _exact(image), _exact(text)
    image_rows = scale * image @ gathered(text).T
    if bias is not None:
        return pairwise(image_rows + bias, excluded, label_smoothing)
    text_rows = scale * text @ gathered(image).T
    return (contrastive(image_rows, excluded, label_smoothing) + contrastive(text_rows, excluded, label_smoothing)) / 2


def token_loss(
    image: Tensor,
    text: Tensor,
    counted: Tensor,
    scale: Tensor,
    captions: Tensor | None = None,
    label_smoothing: float = 0.0,
    bias: Tensor | None = None,
    with_first: bool = False,
) -> Tensor:
    """``global_loss`` with the token-wise similarity; between workers only text tokens and scores travel.

    The sigmoid loss is the mean of that of s^I and that of s^T.

    Args:
        image: [rows, n1, d], unit vectors.
        text: [rows, n2, d], unit vectors; n2 may differ between workers.
        counted: bool [rows, n2], the text tokens that take part.
        scale: one over the temperature, a scalar.
        captions: see ``global_loss``.
        label_smoothing: see ``contrastive`` and ``pairwise``.
        bias: see ``global_loss``.
        with_first: a patch may match each text's first token, [CLS], too; see ``token_similarity``.
    """
    excluded = None if captions is None else same_caption(captions)
    missing = _longest(text.shape[1], text.device) - text.shape[1]
    text, counted = F.pad(text, (0, 0, 0, missing)), F.pad(counted, (0, missing))
    scores = token_similarity(image, gathered(text), gathered_constant(counted), with_first)
    if bias is not None:
        # Each pair is judged by itself, so a worker's pictures against all captions are all it needs, from either side.
        sides = (pairwise(scale * side + bias, excluded, label_smoothing) for side in scores)
        return sum(sides, start=torch.zeros((), device=image.device)) / 2
    rank, rows = world()[0], len(image)
    text_rows = gathered(scores.text_to_image)[:, rank * rows : (rank + 1) * rows].T
    return (
        contrastive(scale * scores.image_to_text, excluded, label_smoothing)
        + contrastive(scale * text_rows, excluded, label_smoothing)
    ) / 2


def _longest(length: int, device: torch.device) -> int:
    """The largest of all workers' lengths."""
    longest = torch.tensor(length, device=device)
    if world()[1] > 1:
        dist.all_reduce(longest, dist.ReduceOp.MAX)
    return int(longest)
