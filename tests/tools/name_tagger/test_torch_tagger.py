"""The tagger in torch against the one in numpy, and its loss against every path of tags."""

import random

import numpy as np
import pytest
import torch
from small_tagger import paths, small_tagger

from tools.name_tagger.captions import Labelled
from tools.name_tagger.fit import FitSettings
from tools.name_tagger.torch_tagger import exported


def test_exported_weights_give_the_scores_and_the_likelihood_of_the_torch_model():
    fitted, model, encoder = small_tagger(seed=1)
    captions = [Labelled("刘亦菲在X", [(0, 3)]), Labelled("在刘", [(1, 2)]), Labelled("菲菲", [])]
    ids, marks, inside, tags = encoder.batch(captions, FitSettings(missing=(), missing_one=0), random.Random(0))
    with torch.no_grad():
        scores, loss = model.scores(ids, marks, inside), model.loss(ids, marks, inside, tags)
    likelihood, steps = [], exported(model)["steps"].astype(float)
    for row, (text, spans) in enumerate(captions):
        mine = fitted.scores([text])[:, 0]
        np.testing.assert_allclose(scores[row, : len(text)], mine, atol=1e-5)
        powers = dict(paths(mine.astype(float), steps))
        labelled = {
            path: power
            for path, power in powers.items()
            if [(i, path.index(3, i) + 1) if tag == 1 else (i, i + 1) for i, tag in enumerate(path) if tag in (1, 4)]
            == spans
        }
        assert len(labelled) == 1
        likelihood.append(np.log(sum(labelled.values()) / sum(powers.values())))
    assert float(loss) == pytest.approx(-np.mean(likelihood), abs=1e-4)
