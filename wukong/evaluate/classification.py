"""Zero-shot classification with prompts (section 5.2)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wukong.data.tokenizer import Tokenizer
from wukong.evaluate.prompts import PROMPTS
from wukong.evaluate.retrieval import refuse_not_a_number
from wukong.model.dual import DualEncoder


@torch.inference_mode()
def class_scores(
    model: DualEncoder,
    tokenizer: Tokenizer,
    images: Tensor,
    names: Sequence[str],
    prompts: Sequence[str] = PROMPTS,
    batch_size: int = 256,
) -> Tensor:
    """Score every picture for every class, [images, classes].

    With the global similarity a class is the normalised mean of its prompts' vectors; with the token-wise one its score
    is the mean of its prompts' similarities.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        images: embedded pictures, [images, (tokens,) d].
        names: of the classes, in Chinese.
        prompts: templates with one ``{}``.
        batch_size: captions encoded at a time.
    """
    columns = []
    for name in names:
        ids = tokenizer([prompt.format(name) for prompt in prompts])
        texts = [model.embed_text(ids[start : start + batch_size]) for start in range(0, len(ids), batch_size)]
        if model.token_wise:
            scores = torch.cat([model.similarity(images, text).image_to_text for text in texts], 1)
            columns.append(scores.mean(1))
        else:
            mean = torch.cat([text.vectors for text in texts]).mean(0)
            columns.append(images @ F.normalize(mean, dim=0))
    return torch.stack(columns, 1)


def accuracy(scores: Tensor, labels: Tensor, top: int = 1) -> float:
    """Share of pictures whose class is among the ``top`` best; classes that score the same stand before it.

    Args:
        scores: [images, classes].
        labels: int64 [images].
        top: how many.

    Raises:
        DataError: a score is not a number, which would count as the best.
    """
    refuse_not_a_number(scores, "picture", "class")
    own = scores.gather(1, labels[:, None])
    before = (scores >= own).sum(1) - 1
    return (before < top).float().mean().item()


def per_class(scores: Tensor, labels: Tensor) -> list[float]:
    """Top-1 accuracy of each class over its own pictures; NaN where it has none."""
    return [accuracy(scores[labels == c], labels[labels == c]) for c in range(scores.shape[1])]
