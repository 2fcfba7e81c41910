"""Plan a run before it has run: for each stage bytes, seconds, cores, GPUs and memory.

``wukong run --dry-run``, the checks before a run and ``wukong plan`` use this one plan. It is computed from rates
(``wukong.stages.measured_rates``) that were measured on one machine, so another machine's times differ. If a stage has
run before in an experiment, its size and time then are the better estimate.

``training`` plans the ways to train from the rates of a worker, which are stored, told, or measured where the training
will run (``wukong.train.rates``).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, get_args

from wukong.config.experiment import Experiment
from wukong.config.features import Dtype
from wukong.config.training import Training
from wukong.curate import rules
from wukong.data.shared_memory import handed_over
from wukong.model.cost import Exchange, Size, exchange, loss_flops, pair_flops, text_flops, text_step_flops
from wukong.stages.capacity import Capacity
from wukong.stages.measured_rates import Rates
from wukong.stages.prices import GIB, Prices

PICTURE_BYTES = 30_000
"""Of a JPEG of 256 pixels, with its row and caption."""

DATA_BYTES = 2 * PICTURE_BYTES
"""Of a picture after the crawl and again after the filter, which keeps every one."""

LEAST_RESULTS, MOST_SHARE = 2, 0.83
"""Distinct URLs a query: the demo's 8,303 of 4,000 queries, and the paper's 166 million of 200,000 times 1,000."""

NETWORK_SPEED, STORE_SPEED = 12.5, 1.25
"""GB a second that a node sends to others (100 Gbit/s), and that a store gives (10 Gbit/s): assumed."""

_PROMPTS = 80  # of a class
_BYTES = 4
_OF_CHECKPOINT = 12
"""Bytes of each trained weight in a checkpoint: itself and two moments."""
_MIB = 2**20


RateName = Literal["text_step", "tower", "decode", "augment"]
RATES: tuple[RateName, ...] = get_args(RateName)

Bound = Literal[RateName, "store", "network"]

Source = Literal["measured", "told", "computed", "stored"]

GPU, STORE, NETWORK = "gpu", "store", "network"
"""Names of what is told beside rates: TFLOP/s of a GPU; GB/s that all workers read from the store, and a node sends."""

CAPTION_TOKENS = 22
"""Mean number of tokens of a caption (table 2: 22 characters)."""


@dataclass(frozen=True)
class Rate:
    """How fast one worker is at one thing.

    Attributes:
        per_second: pairs or pictures a second: of ``text_step`` training on stored features, of ``tower`` the image
            tower's forward pass; of ``decode`` decoding to the evaluation view, of ``augment`` to an augmented view,
            both on one core.
        source: ``measured`` on this machine, ``told`` by the user, ``computed`` from the speed of a GPU that the user
            told, or ``stored`` (``wukong.stages.measured_rates``).
    """

    per_second: float
    source: Source


@dataclass(frozen=True)
class Estimate:
    """What a stage takes.

    Attributes:
        bytes: what it writes, and what stays.
        seconds: its duration.
        cores: number of cores that it occupies.
        gpus: number of GPUs that it occupies.
        driver_memory: bytes of its driver.
        task_memory: bytes of its largest task or worker.
        checkpoints: bytes of the checkpoints that lie in the store until it ends.
        disk: bytes of the temporary files of a worker or task: of a training the checkpoint that it writes, or goes on
            from, of others what it makes at a time.
        shared_memory: bytes of pictures that a worker's loader processes hand over in ``/dev/shm``.
        asks: bytes a second that all of its workers read from the store, if that gives as much; 0 where it is little
            or not known.
    """

    bytes: float
    seconds: float
    cores: int = 1
    gpus: int = 0
    driver_memory: float = 0.0
    task_memory: float = 0.0
    checkpoints: float = 0.0
    disk: float = 0.0
    shared_memory: float = 0.0
    asks: float = 0.0

    def cost(self, prices: Prices, memory: float = 0.0) -> float:
        """Return what its cores, GPUs and bytes of memory cost."""
        hours = self.seconds / 3600
        return prices.held(self.cores * hours, memory / GIB * hours, self.gpus * hours)


@dataclass(frozen=True)
class Work:
    """What a run has to do, and with what.

    Attributes:
        experiment: what is done.
        urls: number of pictures that come in.
        pairs: number of pairs that the filter keeps; at most ``urls``.
        size: the model's.
        capacity: what it runs on.
        rates: those of the stages.
        told: rates of a training's worker in place of stored ones; also ``GPU``, ``STORE`` and ``NETWORK``.
        measured: those that were measured where it will run.
        caption_tokens: mean number of tokens of a caption.
        sets: bytes of the files of each published set that is there.
    """

    experiment: Experiment
    urls: int
    pairs: int
    size: Size
    capacity: Capacity
    rates: Rates
    told: Mapping[str, float] = field(default_factory=dict)
    measured: Mapping[RateName, Rate] = field(default_factory=dict)
    caption_tokens: int = CAPTION_TOKENS
    sets: Mapping[str, int] = field(default_factory=dict)

    @property
    def network(self) -> float:
        """Bytes a second that a node sends to others."""
        return 1e9 * self.told.get(NETWORK, NETWORK_SPEED)


class Measured(NamedTuple):
    """What is measured of a hold-out or a published set.

    Attributes:
        images: their number.
        texts: number of captions, or of prompts of all classes.
        directions: 2 where images are searched by texts and texts by images.
        bytes: of the pictures.
    """

    images: int
    texts: int
    directions: int
    bytes: int


@dataclass(frozen=True)
class Validations:
    """What the validations of a training take.

    Attributes:
        count: their number.
        seconds: the time of one, of texts and of scores, which the workers share; also of pictures for a trained tower.
        before: the time before the first step, in which a locked tower sees the pictures.
        asks: bytes a second of pictures that all workers read while the tower sees them.
    """

    count: int
    seconds: float
    before: float
    asks: float


@dataclass(frozen=True)
class Way:
    """One way to train.

    Attributes:
        bytes: size of stored features.
        fill_seconds: time to compute them.
        train_seconds: time of all epochs.
        read_bytes: what all epochs read from the store.
        bound_by: the rate that most of the time goes to, or ``store``, or ``network``.
        asks: bytes a second that all workers read, if the store is never too slow.
    """

    bytes: float
    fill_seconds: float
    train_seconds: float
    read_bytes: float
    bound_by: Bound
    asks: float

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


def urls(experiment: Experiment, queries: int) -> tuple[int, int]:
    """Return the fewest and the most URLs that queries may be expected to find."""
    asked = min(queries, experiment.crawl.max_queries)
    most = int(asked * experiment.crawl.max_results_per_query * MOST_SHARE)
    return min(asked * LEAST_RESULTS, max(most, 1)), most


def of_crawl(work: Work) -> Estimate:
    """Of searching and downloading."""
    # A part's pictures lie on the disk, and again in the tar that is made of them.
    part = 2.0 * PICTURE_BYTES * min(work.experiment.crawl.part_size, work.urls)
    return replace(_by_items(work, "crawl", work.urls, work.urls * PICTURE_BYTES), disk=part)


def of_filter(work: Work) -> Estimate:
    """Of the rules and the repacking; of a model that runs on pictures, only that they are decoded for it."""
    made = _by_items(work, "filter", work.urls, work.pairs * PICTURE_BYTES)
    decoding = work.pairs / work.rates.speeds.decode / made.cores if rules.run_a_model(work.experiment.filter) else 0.0
    asks = work.urls * PICTURE_BYTES / (made.seconds + decoding)
    shard = float(PICTURE_BYTES * min(work.experiment.filter.shard_size, work.pairs))
    return replace(made, seconds=made.seconds + decoding, disk=shard, asks=asks)


def of_validate(work: Work) -> Estimate:
    """Of the gate."""
    return _by_items(work, "validate", work.pairs, 1e6)


def of_pretrain(work: Work) -> Estimate:
    """Of pre-training, with the features that it computes; or of the copy of a model that is taken in its place."""
    if work.experiment.pretrain.is_skipped:
        return _of_training(work, "pretrain")
    own, features = _of_training(work, "pretrain"), of_features(work)
    if features is None:
        return own
    return replace(
        own,
        bytes=own.bytes + features.bytes,
        seconds=own.seconds + features.seconds,
        task_memory=max(own.task_memory, features.task_memory),
        disk=max(own.disk, features.disk),
    )


def of_finetune(work: Work) -> Estimate:
    """Of fine-tuning, which finds the features of pre-training; all pairs count, whatever its sources."""
    return _of_training(work, "finetune")


def of_evaluate(work: Work) -> Estimate:
    """Of the evaluation: of the hold-outs and of the published sets, by both models, or by the one that there is.

    Of the hold-outs those count that are held out by caption. An unknown set counts nothing: the checks before a run
    refuse it. Nor do pairs of captions, whose number is not known before they are read. The pictures of all published
    sets that a run reads in an object store are written once more, in tables.
    """
    settings, speeds, models = work.experiment.evaluate, work.rates.speeds, 2 - work.experiment.finetune.is_skipped
    published_sets = list(published(work, settings.tasks, settings.protocol))
    # A hold-out's features are computed once.
    pictures = sum(each.images for each in _held_out(work)) + models * sum(each.images for each in published_sets)
    compared = models * sum(_comparing(work, each) for each in (*_held_out(work), *published_sets))
    cores, gpus = work.capacity.of("evaluate"), work.capacity.gpus("evaluate")
    decoding = pictures / speeds.decode / cores
    tower, step = _flops(work, on_gpus=gpus > 0)
    computing = (pictures * work.size.tower_flops / tower + compared / step) / (gpus or cores)
    seconds = max(decoding, computing) if gpus else decoding + computing
    read = sum(each.bytes for each in (*_held_out(work), *published_sets))
    named = dict.fromkeys((*work.experiment.published_sets, *work.experiment.decontaminated_sets))
    in_store = not settings.sets.startswith("file:")
    tables = sum(each.bytes for each in published(work, [*named], settings.protocol)) if in_store else 0
    made = _estimate(work, "evaluate", work.pairs, 1e6 + tables, seconds, cores, gpus)
    return replace(made, asks=read / max(seconds, 1e-9))


def validations_of(work: Work, stage: str) -> Validations | None:
    """Of a training: its validations; None if there are none. Each worker has a share of pictures, texts and scores."""
    settings: Training = getattr(work.experiment, stage)
    asked = settings.validation
    if settings.is_skipped or not asked.every_steps:
        return None
    steps = work.pairs // settings.batch_size
    every = steps if asked.every_steps == "epoch" else asked.every_steps
    names = {*work.experiment.held_out_tasks}
    measured = list(published(work, asked.tasks, asked.protocol, asked.split))
    measured += _held_out(work) if not asked.tasks or names.intersection(asked.tasks) else []
    tower, step = _flops(work, on_gpus=settings.gpus_per_worker > 0)
    pictures = sum(each.images for each in measured) / settings.workers
    looking = pictures * (1 / work.rates.speeds.decode + work.size.tower_flops / tower)
    comparing = sum(_comparing(work, each) for each in measured) / settings.workers / step
    asks = sum(each.bytes for each in measured) / max(looking, 1e-9)
    locked = settings.lock == "all"
    count = -(-steps * settings.epochs // max(every, 1))
    return Validations(count, comparing + (0 if locked else looking), looking if locked else 0.0, asks)


def _held_out(work: Work) -> list[Measured]:
    """Return what is held out by caption, if anything is."""
    held_out = round(work.pairs * work.experiment.filter.split.held_out_captions)
    return [Measured(held_out, held_out, 2, held_out * PICTURE_BYTES)] if held_out else []


def published(work: Work, tasks: Sequence[str], by: str, part: str = "") -> Iterator[Measured]:
    """Yield the published sets among some tasks, of a part or of the protocol's.

    Their bytes are at most those of a set's files, where it is there; these may hold other parts too.
    """
    from wukong.evaluate import protocol, sets  # here, because every command reads the table of stages
    from wukong.evaluate.data_set import Classification, Retrieval

    for name in tasks:
        data_set, split = sets.REGISTRY.get(name), part or protocol.named(by).split(name)
        if data_set is None or split not in data_set.splits:
            continue
        if isinstance(data_set, Classification):
            images, texts, directions = data_set.splits[split], data_set.number_of_classes * _PROMPTS, 1
        elif isinstance(data_set, Retrieval):
            images, texts, directions = *data_set.splits[split], 2
        else:
            continue
        size = images * data_set.picture_bytes
        yield Measured(images, texts, directions, min(size, work.sets.get(name, size)))


def _comparing(work: Work, measured: Measured) -> float:
    """Return the operations of one model that encodes texts and compares them with images."""
    model, words = work.experiment.model, work.caption_tokens
    pairs = float(measured.directions * measured.images * measured.texts)
    return measured.texts * text_flops(model, words) + pairs * pair_flops(model, work.size.shape, words)


def _flops(work: Work, *, on_gpus: bool) -> tuple[float, float]:
    """Return the operations a second of the image tower and of everything else, of a core or of a GPU."""
    speeds = work.rates.speeds
    of_gpu = work.told[GPU] * 1e12 if GPU in work.told else speeds.gpu_flops
    return (of_gpu, of_gpu) if on_gpus else (speeds.tower_flops, speeds.step_flops)


def of_register(work: Work) -> Estimate:
    """Of the model's upload to MLflow."""
    return _estimate(work, "register", work.pairs, _BYTES * work.size.weights, 0.0, 1)


def of_report(work: Work) -> Estimate:
    """Of the report."""
    return _estimate(work, "report", work.pairs, 1e6, 0.0, 1)


def _by_items(work: Work, stage: str, items: int, size: float) -> Estimate:
    cores, gpus = work.capacity.of(stage), work.capacity.gpus(stage)
    return _estimate(work, stage, items, size, items * work.rates.of(stage).core_seconds / cores, cores, gpus)


def _estimate(
    work: Work, stage: str, items: int, size: float, seconds: float, cores: int, gpus: int = 0, held: int = 0
) -> Estimate:
    """Add a stage's start to its seconds, and its memory."""
    rate, millions = work.rates.of(stage), items / 1e6
    driver = rate.driver_mib + rate.driver_mib_per_million * millions
    task = rate.task_mib + rate.task_mib_per_million * millions
    return Estimate(size, rate.start + seconds, cores, gpus, driver * _MIB, task * _MIB + held)


def plan_of_training(work: Work, stage: str) -> TrainingPlan:
    """Plan one of the trainings of a run; fine-tuning finds the features of a locked tower there."""
    settings: Training = getattr(work.experiment, stage)
    rates = rates_of(work, settings)
    image_bytes = feature_bytes(*work.size.shape, work.experiment.features.dtype)
    store, seconds = 1e9 * work.told.get(STORE, 0.0), exchanged(work, settings).sent / work.network
    return training(settings, work.pairs, image_bytes, work.capacity.of(stage), rates, store, seconds)


def exchanged(work: Work, settings: Training) -> Exchange:
    """Return what a worker of a training gives to others in a step."""
    return exchange(work.experiment.model, settings, work.size.trained(settings))


def of_features(work: Work) -> Estimate | None:
    """Of the features that pre-training computes; None if its image tower runs in the training."""
    settings, way = work.experiment.pretrain, way_of(work, "pretrain")
    if not way.bytes:
        return None
    gpus = settings.workers * settings.gpus_per_worker
    made = _estimate(work, "features", work.pairs, way.bytes, way.fill_seconds, work.capacity.of("pretrain"), gpus)
    shard = way.bytes / (1 + settings.views) / max(work.pairs, 1) * work.experiment.filter.shard_size
    return replace(made, disk=shard)


def way_of(work: Work, stage: str) -> Way:
    """Return the way in which a training will be done."""
    settings: Training = getattr(work.experiment, stage)
    plan = plan_of_training(work, stage)
    stored = settings.reads_features or (settings.is_undecided and plan.faster == "cached")
    return plan.cached if stored and plan.cached is not None else plan.streamed


def _of_training(work: Work, stage: str) -> Estimate:
    settings: Training = getattr(work.experiment, stage)
    if settings.is_skipped:  # a model is copied
        return Estimate(_BYTES * work.size.weights, 0)
    gpus, held = settings.workers * settings.gpus_per_worker, work.size.memory(settings)
    way = way_of(work, stage)
    size, seconds = _BYTES * work.size.weights, way.train_seconds
    asks = way.asks
    if validations := validations_of(work, stage):
        asks = max(asks, validations.asks)
        seconds += validations.before + validations.count * validations.seconds
    one = _OF_CHECKPOINT * work.size.trained(settings)
    kept = settings.checkpoint.keep + (settings.validation.keep == "best") + 1  # and the one that is being written
    made = _estimate(work, stage, work.pairs, size, seconds, work.capacity.of(stage), gpus, held)
    picture = 0 if way.bytes else 3 * work.experiment.model.image.image_size**2
    shared = handed_over(settings.loader_workers, settings.batch_size // settings.workers, picture)
    return replace(made, checkpoints=kept * one, disk=one, shared_memory=float(shared), asks=asks)


def rates_of(work: Work, settings: Training) -> dict[RateName, Rate]:
    """Return the rates of a training's worker: told, measured, or computed from the speeds of a core or of a GPU."""
    speeds, size = work.rates.speeds, work.size
    of_tower, of_step = _flops(work, on_gpus=GPU in work.told or settings.gpus_per_worker > 0)
    step = text_step_flops(work.experiment.model, settings, size.shape, work.caption_tokens)
    per_second: dict[RateName, float] = {
        "text_step": of_step / step,
        "tower": of_tower / max(size.tower_flops, 1.0),
        "decode": speeds.decode,
        "augment": speeds.augment,
    }
    sources: dict[RateName, Source] = dict.fromkeys(RATES, "stored")
    if GPU in work.told:
        sources |= {"text_step": "computed", "tower": "computed"}
    rates = {name: Rate(per_second[name], sources[name]) for name in RATES}
    return rates | dict(work.measured) | {name: Rate(work.told[name], "told") for name in RATES if name in work.told}


def step_operations(work: Work, settings: Training) -> dict[str, float]:
    """Return the floating-point operations of a worker and step on pictures: of its towers, and of the loss."""
    model, size = work.experiment.model, work.size
    loss = loss_flops(model, settings, size.shape, work.caption_tokens)
    text = text_step_flops(model, settings, size.shape, work.caption_tokens) - loss
    image = size.tower_flops * (1 if settings.lock == "all" else 3)
    pairs = settings.batch_size / settings.workers
    return {"image": image * pairs, "text": text * pairs, "loss": loss * pairs}


def feature_bytes(tokens: int, width: int, dtype: Dtype) -> int:
    """Return the bytes of the stored features of an image: ``tokens`` vectors, of int8 with a scale of float32 each."""
    return tokens * (width + 4) if dtype == "int8" else tokens * width * 2


def training(
    settings: Training,
    pairs: int,
    image_bytes: int,
    cores: int,
    rates: Mapping[RateName, Rate],
    store: float = 0.0,
    exchanging: float = 0.0,
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
        store: bytes a second that all workers together read from the store; 0 if it is never too slow.
        exchanging: seconds of a step in which workers send to each other, beside their other work.
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
        sending = pairs // settings.batch_size * settings.epochs * exchanging
        beside: list[tuple[float, Bound]] = [(read_bytes / store if store else 0.0, "store"), (sending, "network")]
        longest, waits_for = max(beside)
        bound = waits_for if longest > filling + training else max(costs)[1]
        asks = read_bytes / max(training, sending, 1e-9)
        return Way(stored, filling, max(training, longest), read_bytes, bound, asks)

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
