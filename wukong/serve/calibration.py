"""From when on something is similar: calibrated on the collection, so that meaningless texts find nothing.

The best of many pictures always has some score, and it says little by itself: some texts score high with every picture.
So it is asked how far the best score stands out from the scores of pictures in general for the same text
(``search.Found``). Two kinds of texts are searched in the collection. Captions of the collection have a picture there.
Meaningless texts have none: they are as long as those captions and made of the characters of all captions, drawn at
random. The threshold is what a share of ``FALSE_ALARMS`` of meaningless texts exceeds, determined on one half of the
texts. The other half gives the error rates that are stored beside it. If most captions miss the threshold, the model
does not tell captions of this collection from meaningless texts, and the threshold is not used.
"""

import random
from typing import Any

import torch

from wukong.evaluate.model import OwnModel
from wukong.serve.index import Index
from wukong.serve.query import search_forms
from wukong.serve.search import Searcher

FALSE_ALARMS = 0.05
TEXTS = 1_000
_LEAST_TEXTS = 20
_MOST_MISSES = 0.5
_AT_A_TIME = 64


def calibrate(index: Index, model: OwnModel, seed: int = 0) -> dict[str, Any]:
    """Determine the threshold of an index.

    Args:
        index: the index, not calibrated yet.
        model: the model that it was made with.
        seed: decides which captions are taken and which meaningless texts are made.

    Returns:
        ``threshold``; ``false_alarms``, the share of meaningless texts that find something; ``misses``, the share of
        captions that find nothing; ``texts``, how many of each kind were searched; ``used``, whether the threshold is
        used. Empty where the collection has fewer than 20 captions.
    """
    captions = search_forms(index.captions)
    if len(captions) < _LEAST_TEXTS:
        return {}
    numbers = random.Random(seed)
    taken = numbers.sample(captions, min(TEXTS, len(captions)))
    characters = "".join(captions)
    meaningless = ["".join(numbers.choices(characters, k=len(caption))) for caption in taken]
    searcher = Searcher(index, model)
    stands_out = [
        torch.tensor(
            [
                found.stands_out
                for start in range(0, len(texts), _AT_A_TIME)
                for found in searcher.pictures_of_texts(texts[start : start + _AT_A_TIME], 1)
            ]
        )
        for texts in (taken, meaningless)
    ]
    half = len(taken) // 2
    threshold = round(float(torch.quantile(stands_out[1][:half], 1 - FALSE_ALARMS)), 4)
    misses = float((stands_out[0][half:] < threshold).float().mean())
    return {
        "threshold": threshold,
        "false_alarms": round(float((stands_out[1][half:] >= threshold).float().mean()), 4),
        "misses": round(misses, 4),
        "texts": len(taken),
        "used": misses <= _MOST_MISSES,
    }
