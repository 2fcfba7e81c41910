"""A tagger of a few states with random weights, and all paths of tags through its scores."""

import itertools

import numpy as np
import torch

from tools.name_tagger.fit import Encoder
from tools.name_tagger.torch_tagger import TorchTagger, exported
from wukong.curate.names import tagger, word_lists


def small_tagger(seed=0, hidden=3):
    """The tagger in numpy, the one in torch with the same weights, and the encoder of captions."""
    torch.manual_seed(seed)
    rows, vectors = {"刘": 0, "亦": 1, "菲": 2, "在": 3}, torch.randn(5, tagger.VECTOR).numpy()
    model = TorchTagger(vectors, hidden, dropout=0.3)
    with torch.no_grad():
        for weight in model.weights.values():
            weight.copy_(torch.randn(weight.shape) * (0.3 if weight.dim() > 1 else 1))
    words = word_lists.NameWords({"刘亦菲": {0}, "在": {1, 3}, "亦菲": {7}})
    fitted = tagger.Tagger(exported(model), vectors, rows, words)
    return fitted, model.eval(), Encoder(rows, len(vectors) - 1, words)


def paths(scores, steps):
    """Every path of tags that is allowed through the scores of one text, with its potential."""
    tags = tagger.TAGS
    for path in itertools.product(range(len(tags)), repeat=len(scores)):
        allowed = tagger.FIRST[path[0]] and tagger.LAST[path[-1]]
        if allowed and all(tagger.FOLLOWS[pair] for pair in itertools.pairwise(path)):
            value = sum(scores[place, tag] for place, tag in enumerate(path))
            yield path, np.exp(value + sum(steps[pair] for pair in itertools.pairwise(path)))
