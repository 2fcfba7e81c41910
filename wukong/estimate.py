"""Rough estimates of the bytes that a stage writes and the seconds that it takes, before it has run.

They are computed from the demo's figures on two cores (README): they tell minutes from days and megabytes from
terabytes, no more. If a stage has run before in an experiment, its size and time then are the better estimate.
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


@dataclass(frozen=True)
class Work:
    """What a run has to do, and with what.

    Attributes:
        experiment: what is done.
        pairs: that come in.
        weights: parameters of the model.
        image: how many of them are the image tower's.
        cores: of the machine.
    """

    experiment: Experiment
    pairs: int
    weights: int
    image: int
    cores: int


def urls(experiment: Experiment, queries: int) -> tuple[int, int]:
    """Return the fewest and the most URLs that queries may be expected to find."""
    asked = min(queries, experiment.crawl.max_queries)
    most = int(asked * experiment.crawl.max_results_per_query * MOST_SHARE)
    return min(asked * LEAST_RESULTS, max(most, 1)), most


def of_crawl(work: Work) -> Estimate:
    """Of searching and downloading."""
    return Estimate(work.pairs * PICTURE_BYTES, _STARTING + work.pairs * _URL_SECONDS / work.cores)


def of_filter(work: Work) -> Estimate:
    """Of the rules and the repacking."""
    return Estimate(work.pairs * PICTURE_BYTES, _STARTING + work.pairs * _PAIR_SECONDS / work.cores)


def of_validate(work: Work) -> Estimate:
    """Of the gate."""
    return Estimate(1e6, _STARTING + work.pairs * _PAIR_SECONDS / work.cores)


def of_pretrain(work: Work) -> Estimate:
    """Of pre-training, with the features that it computes."""
    return _training(work, work.experiment.pretrain, first=True)


def of_finetune(work: Work) -> Estimate:
    """Of fine-tuning, which finds the features computed."""
    return _training(work, work.experiment.finetune, first=False)


def of_evaluate(work: Work) -> Estimate:
    """Of the evaluation."""
    return Estimate(1e6, _STARTING / 2 + work.pairs * 2 * _text(work) * _TOKENS / (work.cores * _CORE_FLOPS))


def of_register(work: Work) -> Estimate:
    """Of the model's upload to MLflow."""
    return Estimate(_BYTES * work.weights, 2.0)


def of_report(_: Work) -> Estimate:
    """Of the report."""
    return Estimate(1e6, 3.0)


def _text(work: Work) -> int:
    """Weights of the text tower that arithmetic is done with: those of the embedding are only looked up."""
    text = work.experiment.model.text
    return int(12 * text.layers * text.width**2)


def _training(work: Work, settings: Training, *, first: bool) -> Estimate:
    experiment, pairs = work.experiment, work.pairs
    model = experiment.model
    grid = (model.image.image_size / _PATCH) ** 2
    kept = model.text.width if model.similarity == "global" else model.text.width * grid
    views = 1 + max(experiment.pretrain.views, experiment.finetune.views)
    speed = settings.workers * _CARD_FLOPS if settings.gpus_per_worker else work.cores * _CORE_FLOPS
    flops = float(pairs * settings.epochs * 6 * _text(work) * _TOKENS)
    if not settings.reads_features:
        flops += pairs * settings.epochs * (2 if settings.lock == "all" else 6) * work.image * grid
    elif first:
        flops += pairs * views * 2 * work.image * grid
    features = pairs * views * kept * _BYTES if settings.reads_features and first else 0
    return Estimate(_BYTES * work.weights + features, _STARTING + flops / speed)
