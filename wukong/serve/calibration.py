"""From which score on something is similar: calibrated on the collection, so that meaningless texts find nothing.

The scores of a model say nothing by themselves: they depend on how it was trained, and the best of 100,000 pictures
scores higher than the best of 100. So two kinds of texts are searched in the collection itself. Captions of the
collection have a picture there. Meaningless texts have none: they are as long as those captions and made of the
characters of all captions, drawn at random. The threshold is the score that a share of ``FALSE_ALARMS`` of meaningless
texts exceeds with its best picture, determined on one half of the texts. The other half gives the error rates that are
stored beside it.
"""

import random
from typing import TYPE_CHECKING, Any

import torch

from wukong.evaluate.model import OwnModel
from wukong.serve.query import search_forms

if TYPE_CHECKING:
    from wukong.serve.index import Index

FALSE_ALARMS = 0.05
TEXTS = 1_000
_LEAST_TEXTS = 20


def calibrate(index: "Index", model: OwnModel, seed: int = 0) -> dict[str, Any]:
    """Determine the threshold of an index.

    Args:
        index: the index, not calibrated yet.
        model: the model that it was made with.
        seed: decides which captions are taken and which meaningless texts are made.

    Returns:
        ``threshold``; ``false_alarms``, the share of meaningless texts that find something; ``misses``, the share of
        captions that find nothing; ``texts``, how many of each kind were searched. Empty where the collection has fewer
        than 20 captions.
    """
    from wukong.serve.search import Searcher

    captions = search_forms(index.captions)
    if len(captions) < _LEAST_TEXTS:
        return {}
    numbers = random.Random(seed)
    taken = numbers.sample(captions, min(TEXTS, len(captions)))
    characters = "".join(captions)
    meaningless = ["".join(numbers.choices(characters, k=len(caption))) for caption in taken]
    searcher = Searcher(index, model)
    best = [
        torch.tensor([hits[0].score for hits in searcher.pictures_of_texts(texts, 1)]) for texts in (taken, meaningless)
    ]
    half = len(taken) // 2
    threshold = round(float(torch.quantile(best[1][:half], 1 - FALSE_ALARMS)), 4)
    return {
        "threshold": threshold,
        "false_alarms": round(float((best[1][half:] >= threshold).float().mean()), 4),
        "misses": round(float((best[0][half:] < threshold).float().mean()), 4),
        "texts": len(taken),
        "rule": "5 % of meaningless texts, made of the captions' characters, have a picture that scores higher",
    }
