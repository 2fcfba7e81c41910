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
    """Compute the score of every image for every class.

    With the global similarity, the vector of a class is the normalised mean of its prompts' vectors. With the
    token-wise similarity, the score of a class is the mean of the similarities of its prompts.

    Args:
        model: the model, in evaluation mode.
        tokenizer: the model's tokenizer.
        images: embedded images, [images, (tokens,) d].
        names: names of the classes, in Chinese.
        prompts: templates; each has one ``{}`` for the name.
        batch_size: number of captions encoded at a time.

    Returns:
        Scores, [images, classes].
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
    """Compute the top-k accuracy: the share of images whose class is among the k best.

    A wrong class with the same score as the right class is ranked before it.

    Args:
        scores: [images, classes].
        labels: the right classes, int64 [images].
        top: k.

    Raises:
        DataError: a score is NaN; it would count as the best.
    """
    refuse_not_a_number(scores, "picture", "class")
    own = scores.gather(1, labels[:, None])
    before = (scores >= own).sum(1) - 1
    return (before < top).float().mean().item()


def per_class(scores: Tensor, labels: Tensor) -> list[float]:
    """Compute the top-1 accuracy of each class on its own images; NaN for a class without images."""
    return [accuracy(scores[labels == c], labels[labels == c]) for c in range(scores.shape[1])]
