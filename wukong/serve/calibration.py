"""The threshold below which the search page says that it found nothing, calibrated on the collection.

The best of many pictures always has some score, and it says little by itself: some texts score high with every picture.
The measure is therefore how far the best score stands out from the scores of pictures in general for the same text
(``search.SearchResult``). Two kinds of texts are searched in the collection. Captions of it have a picture there.
Texts about other things have none: they are as long as those captions and made of common words that no caption has.
(Captions with their characters mixed would not do: 旗 and any other character find flags, and rightly so.)

The threshold is what all captions but a share of ``MISSES`` reach, determined on one half of the texts: the rule "95 %
true positives" of out-of-distribution detection. The other half gives the error rates that are stored beside it. There
is a threshold only if, by Fisher's exact test on that half, more texts about other things than captions find nothing:
a weak model tells the two kinds apart for none or few of the texts.
"""

import random
from collections.abc import Sequence
from itertools import islice
from typing import Any

import pyarrow as pa
import torch

from wukong.curate.names import word_lists
from wukong.evaluate.model import OwnModel
from wukong.serve.index import Index
from wukong.serve.search import Searcher

MISSES = 0.05
SIGNIFICANCE = 0.01
TEXTS = 1_000
_LEAST_TEXTS = 20
_AT_A_TIME = 64
_COMMON = 100
"""Least frequency, in jieba's dictionary, of the words that texts about other things are made of."""
_WORDS = 2_000
_SEARCHED = 200_000
"""Most captions of a shard in which words must not occur."""


def calibrate(found: Sequence[Index], model: OwnModel, seed: int = 0) -> dict[str, Any]:
    """Determine the threshold of an index.

    Args:
        found: the shards of the index, not calibrated yet.
        model: the model that it was made with.
        seed: decides which captions are taken and which texts about other things are made.

    Returns:
        ``threshold``; ``false_alarms``, the share of texts about other things that find something; ``misses``, the
        share of captions that find nothing; ``texts``, how many of each kind were searched; ``p``, of the test;
        ``used``, whether the threshold is used. Empty where the collection has fewer than 20 captions, or nearly every
        common word.
    """
    captions = [form for index in found for form in _some(index.forms)]
    if len(captions) < _LEAST_TEXTS:
        return {}
    numbers = random.Random(seed)
    taken = numbers.sample(captions, min(TEXTS, len(captions)))
    words = _words_of_none(captions, numbers)
    if len(words) < _LEAST_TEXTS:
        return {}
    searchers = [Searcher(index, model) for index in found]
    about_others = [_text(words, len(caption), numbers) for caption in taken]
    there, foreign = _stand_out(searchers, taken), _stand_out(searchers, about_others)
    half = len(taken) // 2
    threshold = round(float(torch.quantile(there[:half], MISSES)), 4)
    missed, refused = there[half:] < threshold, foreign[half:] < threshold
    p = _more(int(refused.sum()), int(missed.sum()), len(taken) - half)
    return {
        "threshold": threshold,
        "false_alarms": round(1 - float(refused.float().mean()), 4),
        "misses": round(float(missed.float().mean()), 4),
        "texts": len(taken),
        "p": p,
        "used": p <= SIGNIFICANCE,
    }


def _some(forms: pa.ChunkedArray) -> list[str]:
    """Captions spread over a shard; all of them where they are not very many."""
    step = max(1, -(-len(forms) // _SEARCHED))
    return list(forms.take(pa.array(range(0, len(forms), step), pa.int64())).to_pylist())


def _words_of_none(captions: list[str], numbers: random.Random) -> list[str]:
    """Draw common words that no caption has."""
    common = [word for word, frequency, _ in word_lists.dictionary() if len(word) > 1 and frequency >= _COMMON]
    numbers.shuffle(common)
    written = "\n".join(captions)
    return list(islice((word for word in common if word not in written), _WORDS))


def _text(words: list[str], length: int, numbers: random.Random) -> str:
    """Make a text of some words, two characters long at least."""
    text = ""
    while len(text) < max(2, length):
        text += numbers.choice(words)
    return text[: max(2, length)]


def _stand_out(searchers: Sequence[Searcher], texts: list[str]) -> torch.Tensor:
    """By how much the best score of all shards exceeds the mean of their pictures in general, for each text."""
    bests, means = [], []
    for searcher in searchers:
        found = [
            each
            for start in range(0, len(texts), _AT_A_TIME)
            for each in searcher.pictures_of_texts(texts[start : start + _AT_A_TIME], 1)
        ]
        best = [each.hits[0].score if each.hits else 0.0 for each in found]
        bests.append(best)
        means.append([score - each.stands_out for score, each in zip(best, found, strict=True)])
    return torch.tensor(bests).amax(0) - torch.tensor(means).mean(0)


def _more(one: int, other: int, of: int) -> float:
    """Compute the one-sided p-value of Fisher's exact test: ``one`` of ``of`` is not more often than ``other``."""
    from scipy.stats import fisher_exact  # its import takes a second

    return float(fisher_exact([[one, of - one], [other, of - other]], alternative="greater").pvalue)
