"""Rough estimates of the bytes that a stage writes and the seconds that it takes, before it has run.

They are computed from the demo's figures on two cores (README): they tell minutes from days and megabytes from
terabytes, no more. If a stage has run before in an experiment, its size and time then are the better estimate.

``training`` is finer: it plans a training from rates that were measured (``wukong.train.rates``) or told.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from wukong.config.experiment import Experiment
from wukong.config.features import Dtype
from wukong.config.training import Training

PICTURE_BYTES = 30_000
"""Of a JPEG of 256 pixels, with its row and caption."""

LEAST_RESULTS, MOST_SHARE = 2, 0.83
"""Distinct URLs a query: the demo's 8,303 of 4,000 queries, and the paper's 166 million of 200,000 times 1,000."""

_STARTING = 8.0
_URL_SECONDS = 0.008  # of a core
_PAIR_SECONDS = 0.002  # of a core, for the rules and for the gate
_CORE_FLOPS, _CARD_FLOPS = 4e10, 5e13
_DECODING_SECONDS = 0.01  # of a core
_MODELS, _PROMPTS = 2, 80  # of an evaluation
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
        pairs: number of pairs that come in.
        weights: parameters of the model.
        image: how many of them are the image tower's.
        cores: number of the machine's cores.
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
    """Of the evaluation: of the hold-outs, whose features are there, and of the published sets, by both models.

    An unknown set counts nothing: the checks before a run refuse it.
    """
    from wukong.evaluate import protocol, sets  # here, because every command reads the table of stages
    from wukong.evaluate.data_set import Classification

    model, settings = work.experiment.model, work.experiment.evaluate
    grid = (model.image.image_size / _PATCH) ** 2
    tokens = grid if model.is_token_wise else 1.0
    flops, decoding = float(work.pairs * 2 * _text(work) * _TOKENS), 0.0
    for name in settings.tasks:
        data_set = sets.REGISTRY.get(name)
        split = protocol.named(settings.protocol).split(name)
        if data_set is None or split not in data_set.splits:
            continue
        if isinstance(data_set, Classification):
            images, texts, directions = data_set.splits[split], len(data_set.classes) * _PROMPTS, 1
        else:
            (images, texts), directions = data_set.splits[split], 2
        words = 1 if tokens == 1 else _TOKENS
        products = directions * images * tokens * texts * words * (model.embedding or model.text.width)
        flops += _MODELS * 2 * (images * work.image * grid + texts * _text(work) * _TOKENS + products)
        decoding += _MODELS * images * _DECODING_SECONDS
    return Estimate(1e6, _STARTING / 2 + flops / (work.cores * _CORE_FLOPS) + decoding / work.cores)


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
    kept = model.text.width * (grid if model.is_token_wise else 1)
    views = 1 + max(experiment.pretrain.views, experiment.finetune.views)
    speed = settings.workers * _CARD_FLOPS if settings.gpus_per_worker else work.cores * _CORE_FLOPS
    flops = float(pairs * settings.epochs * 6 * _text(work) * _TOKENS)
    if not settings.reads_features:
        flops += pairs * settings.epochs * (2 if settings.lock == "all" else 6) * work.image * grid
    elif first:
        flops += pairs * views * 2 * work.image * grid
    features = pairs * views * kept * _BYTES if settings.reads_features and first else 0
    return Estimate(_BYTES * work.weights + features, _STARTING + flops / speed)


RateName = Literal["text_step", "tower", "decode", "augment"]
RATES: tuple[RateName, ...] = get_args(RateName)

GPU = "gpu"
"""Name of what a GPU is told to sustain, in TFLOP/s."""

CAPTION_TOKENS = 22
"""Mean number of tokens of a caption (table 2: 22 characters)."""


@dataclass(frozen=True)
class Rate:
    """How fast one worker is at one thing.

    Attributes:
        per_second: pairs or pictures a second: of ``text_step`` training on stored features, of ``tower`` the image
            tower's forward pass; of ``decode`` decoding to the evaluation view, of ``augment`` to an augmented view,
            both on one core.
        source: ``measured`` on this machine, ``told`` by the user, or ``computed`` from the speed of a GPU that the
            user told.
    """

    per_second: float
    source: Literal["measured", "told", "computed"]


@dataclass(frozen=True)
class Way:
    """One way to train.

    Attributes:
        bytes: size of stored features.
        fill_seconds: time to compute them.
        train_seconds: time of all epochs.
        read_bytes: what all epochs read from the store.
        bound_by: the rate that most of the time goes to, or ``store``.
    """

    bytes: float
    fill_seconds: float
    train_seconds: float
    read_bytes: float
    bound_by: RateName | Literal["store"]

    @property
    def seconds(self) -> float:
        """All of the time."""
        return self.fill_seconds + self.train_seconds


@dataclass(frozen=True)
class TrainingPlan:
    """What a training takes.

    Attributes:
        pair_bytes: size of the pairs as they are stored.
        cached: the way with stored features; None if the image tower is trained.
        streamed: the way with the image tower in each epoch.
    """

    pair_bytes: float
    cached: Way | None
    streamed: Way

    @property
    def faster(self) -> Literal["cached", "streamed"]:
        """The way that takes less time."""
        return "cached" if self.cached is not None and self.cached.seconds <= self.streamed.seconds else "streamed"


def feature_bytes(tokens: int, width: int, dtype: Dtype) -> int:
    """Return the bytes of the stored features of an image: ``tokens`` vectors, of int8 with a scale of float32 each."""
    return tokens * (width + 4) if dtype == "int8" else tokens * width * 2


def training(
    settings: Training,
    pairs: int,
    image_bytes: int,
    cores: int,
    rates: Mapping[RateName, Rate],
    store: float | None = None,
) -> TrainingPlan:
    """Plan a training from the rates of one worker.

    On GPUs, loader processes decode while the GPU computes, and the slower of both decides. On processors, a worker
    computes with one thread. Loader processes decode beside it if a worker has more cores than that, else the times add
    up. Features are computed by a task on each GPU, or on each core.

    Args:
        settings: the training's.
        pairs: number of pairs.
        image_bytes: bytes of the features of one view of an image, see ``feature_bytes``.
        cores: number of cores of all machines together; only for a training on processors.
        rates: all of them.
        store: bytes a second that all workers together read from the store; None if it is never too slow.
    """
    on_gpus = settings.gpus_per_worker > 0
    spare = settings.loader_workers if on_gpus else min(settings.loader_workers, cores // settings.workers - 1)
    views = 1 + settings.views

    def way(stored: float, fill: list[RateName], train: list[RateName], read: float) -> Way:
        tasks = settings.workers if on_gpus else max(cores, 1)
        first, fill_costs = _per_item(fill, rates, max(1, spare) if on_gpus else 0)
        each, train_costs = _per_item(train, rates, max(1, spare) if on_gpus else spare)
        filled, seen = pairs * views / tasks, pairs * settings.epochs / settings.workers
        costs: list[tuple[float, RateName]] = [(filled * cost, name) for name, cost in fill_costs.items()]
        costs += [(seen * cost, name) for name, cost in train_costs.items()]
        read_bytes = float(pairs * settings.epochs) * read
        filling, training = filled * first, seen * each
        reading = read_bytes / store if store else 0.0
        bound = "store" if reading > filling + training else max(costs)[1]
        return Way(stored, filling, max(training, reading), read_bytes, bound)

    cached = None
    if settings.lock == "all":
        prepare: RateName = "augment" if settings.views else "decode"
        # All views of a pair are read, and one of them is used.
        read = float(views * image_bytes)
        cached = way(pairs * read, [prepare, "tower"], ["text_step"], read)
    seen: RateName = "augment" if settings.augmentations else "decode"
    streamed = way(0, [], [seen, "tower", "text_step"], PICTURE_BYTES)
    return TrainingPlan(pairs * float(PICTURE_BYTES), cached, streamed)


def _per_item(
    names: list[RateName], rates: Mapping[RateName, Rate], decoders: int
) -> tuple[float, dict[RateName, float]]:
    """Return the seconds that a worker takes for one pair, and those of each rate.

    Args:
        names: names of the rates.
        rates: all of them.
        decoders: cores that decode while the worker computes; 0 or less if it decodes and computes in turn.
    """
    decode = {"decode", "augment"}
    costs = {name: 1 / rates[name].per_second / (max(1, decoders) if name in decode else 1) for name in names}
    decoding = sum(cost for name, cost in costs.items() if name in decode)
    computing = sum(costs.values()) - decoding
    return (max(decoding, computing) if decoders > 0 else decoding + computing), costs
