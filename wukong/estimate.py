"""Roughly how many bytes a stage writes and how many seconds it takes, before it has run.

The figures are of the demo on two cores (README) and of arithmetic: they tell minutes from days and megabytes from
terabytes, no more. Where a stage has run before in an experiment, what it took then is the better estimate.
"""

from dataclasses import dataclass

from wukong.config import Experiment, Training

PICTURE_BYTES = 30_000
"""Of a JPEG of 256 pixels, with its row and caption."""

LEAST_RESULTS, MOST_SHARE = 2, 0.83
"""Distinct URLs a query: the demo's 8,303 of 4,000 queries, and the paper's 166 million of 200,000 times 1,000."""

_STARTING = 8.0
_URL_SECONDS = 0.008  # of a core
_PAIR_SECONDS = 0.002  # of a core, for the rules and for the gate
_CORE_FLOPS, _CARD_FLOPS = 4e10, 5e13
_PATCH = 32
_TOKENS = 16
_BYTES = 4


@dataclass(frozen=True)
class Estimate:
    """Bytes written and seconds taken."""

    bytes: float
    seconds: float


def urls(experiment: Experiment, queries: int) -> tuple[int, int]:
    """The fewest and the most URLs that queries may be expected to find."""
    asked = min(queries, experiment.crawl.max_queries)
    most = int(asked * experiment.crawl.max_results_per_query * MOST_SHARE)
    return min(asked * LEAST_RESULTS, max(most, 1)), most


def of_stages(experiment: Experiment, pictures: int, weights: int, image: int, cores: int) -> dict[str, Estimate]:
    """An estimate for each stage that a run has.

    Args:
        experiment: what is done.
        pictures: that come in.
        weights: parameters of the model.
        image: of them, the image tower's.
        cores: of the machine.
    """
    model, pairs = experiment.model, pictures
    width = model.text.width
    text = 12 * model.text.layers * width**2  # no arithmetic is done with the embedding of words
    grid = (model.image.image_size / _PATCH) ** 2
    kept = model.text.width if model.similarity == "global" else model.text.width * grid
    views = 1 + max(experiment.pretrain.views, experiment.finetune.views)
    seeing = pairs * views * 2 * image * grid

    def training(settings: Training, *, first: bool) -> Estimate:
        speed = settings.workers * _CARD_FLOPS if settings.gpus_per_worker else cores * _CORE_FLOPS
        work = float(pairs * settings.epochs * 6 * text * _TOKENS)
        if not settings.reads_features:
            work += pairs * settings.epochs * (2 if settings.lock == "all" else 6) * image * grid
        elif first:
            work += seeing
        features = pairs * views * kept * _BYTES if settings.reads_features and first else 0
        return Estimate(_BYTES * weights + features, _STARTING + work / speed)

    return {
        "crawl": Estimate(pictures * PICTURE_BYTES, _STARTING + pictures * _URL_SECONDS / cores),
        "filter": Estimate(pairs * PICTURE_BYTES, _STARTING + pairs * _PAIR_SECONDS / cores),
        "validate": Estimate(1e6, _STARTING + pairs * _PAIR_SECONDS / cores),
        "pretrain": training(experiment.pretrain, first=True),
        "finetune": training(experiment.finetune, first=False),
        "evaluate": Estimate(1e6, _STARTING / 2 + pairs * 2 * text * _TOKENS / (cores * _CORE_FLOPS)),
        "register": Estimate(_BYTES * weights, 2.0),
        "report": Estimate(1e6, 3.0),
    }
