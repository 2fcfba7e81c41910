"""Describe the evaluation protocol of a run in sentences, for reports: the settings in which evaluations differ."""

from wukong.config import Experiment

_CAPTIONS = {
    "distinct": "Equal captions are one caption, and every picture that has it is right.",
    "all": "Every caption of a picture is a separate query, and only its own picture is right.",
    "first": "Only the first caption of each picture is used, and only its own picture is right.",
}
_VIEWS = {
    "whole": "Pictures are shown whole, on a white square.",
    "crop": "Pictures are resized by their shorter side and cut to the square in their middle.",
}
_CLS = {
    True: "A patch may match the text's [CLS] (s^I, as in section 4.3 and the authors' code); s^T leaves [CLS] out.",
    False: "Neither similarity uses the text's [CLS]; section 4.3 leaves it out of s^T only.",
}


def sentences(experiment: Experiment) -> list[str]:
    """Describe the evaluation protocol, one sentence for each setting.

    Args:
        experiment: the experiment; ``evaluate.captions``, ``model.image.view`` and, for the token-wise similarity,
            ``model.match_text_cls`` are used.
    """
    found = [
        "Each picture is one candidate, however many captions it has.",
        _CAPTIONS[experiment.evaluate.captions],
        _VIEWS[experiment.model.image.view],
    ]
    if experiment.model.similarity == "token":
        found.append(_CLS[experiment.model.match_text_cls])
    return found
