"""What a planned run asks of what it runs on: where it does not fit there, and where it is slow, with the remedy.

``wukong plan`` and ``wukong check`` say the same of an experiment. All of it is arithmetic: nothing is measured here.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

from wukong import stages
from wukong.config.experiment import Experiment
from wukong.evaluate import set_folders
from wukong.runtime.amounts import duration, size
from wukong.stages import estimate
from wukong.stages.capacity import Pods
from wukong.stages.estimate import STORE, STORE_SPEED, Estimate, Work

_CONFIG_MAP = "of the ConfigMap ray-job"
APART = (
    "{stage}: its {gpus} GPUs are in a pod each, so they exchange by the network, not by NVLink: set gpu.gpus_per_pod "
    f"{_CONFIG_MAP} to the GPUs of a node, or to node"
)


def estimates(work: Work) -> dict[str, Estimate]:
    """Return the estimate of each stage of a whole run."""
    return {name: made(work) for name in stages.WHOLE_RUN if (made := stages.of(name).estimate) is not None}


def facts(work: Work, planned: Mapping[str, Estimate]) -> Iterator[str]:
    """Say what the stages ask for beside time, cores, GPUs and memory."""
    for name, each in planned.items():
        if each.checkpoints:
            yield (
                f"While {name} goes on, up to {size(each.checkpoints)} of checkpoints lie in the store too; a worker "
                f"needs {size(each.disk)} for temporary files"
                + (f", and {size(each.shared_memory)} of /dev/shm for its loaders." if each.shared_memory else ".")
            )
    for name in stages.TRAININGS:
        settings = stages.training_of(work.experiment, name)
        exchanged = estimate.exchanged(work, settings)
        if settings.workers > 1:
            yield (
                f"In a step of {name} a worker hands the others {size(exchanged.gradients)} of gradients and "
                f"{size(exchanged.vectors + exchanged.returned + exchanged.scores)} of vectors, their gradients and "
                f"scores; it sends {size(exchanged.sent)}, in {exchanged.sent / work.network:.3g} s at "
                f"{size(work.network)}/s between nodes."
            )
        if validations := estimate.validations_of(work, name):
            yield (
                f"{name} is validated {validations.count:,} times, {duration(validations.seconds)} each, and prepares "
                f"that in {duration(validations.before)}."
            )
    if asking := ", ".join(f"{size(each.asks)}/s by {name}" for name, each in planned.items() if each.asks):
        yield f"The store is asked for {asking}."
    if names := work.experiment.published_sets:
        measured = [*estimate.published(work, names, work.experiment.evaluate.protocol)]
        yield (
            f"{len(names)} published sets are measured, of {sum(each.images for each in measured):,} pictures and "
            f"about {size(sum(each.bytes for each in measured))}, at {work.experiment.evaluate.sets}."
        )


def problems(work: Work, planned: Mapping[str, Estimate]) -> Iterator[str]:
    """Say where what is planned does not fit what it runs on, with the remedy."""
    capacity = work.capacity
    stored = sum(each.bytes for each in planned.values()) + max(each.checkpoints for each in planned.values())
    if capacity.store is not None:
        yield from too_full(capacity.store, stored)
    for name, each in planned.items():
        if capacity.head_memory is not None and each.driver_memory > capacity.head_memory:
            yield (
                f"the driver of {name} needs {size(each.driver_memory)} and the head has "
                f"{size(capacity.head_memory)}: enlarge head.memory {_CONFIG_MAP}"
            )
        if pods := capacity.pods.get(name):
            yield from _too_small(work, name, each, pods)


def _too_small(work: Work, name: str, each: Estimate, pods: Pods) -> Iterator[str]:
    """Say where the pods of a stage are too small for a worker or task of it."""
    made = f"a checkpoint of {name}" if each.checkpoints else f"what a task of {name} makes"
    key = f"stages.{name}"
    for needed, there, said, has, remedy in (
        (each.task_memory, pods.memory, f"a task of {name} needs", "its pods have {}", f"enlarge {key}.memory"),
        (
            each.disk,
            pods.disk,
            f"{made} takes",
            "a worker has {} for temporary files",
            "enlarge the volume tmp in template.yaml",
        ),
        (
            each.shared_memory,
            pods.shared_memory,
            f"loaders of a worker of {name} hand over",
            "there are {} of shared memory",
            f"lower loader_workers or batch_size, or enlarge {key}.shared_memory",
        ),
    ):
        if there is not None and needed > there:
            yield f"{said} {size(needed)} and {has.format(size(there))}: {remedy} {_CONFIG_MAP}"
    if not stages.of(name).trains:
        return
    settings = stages.training_of(work.experiment, name)
    if not settings.reads_features and settings.loader_workers > pods.cores:
        yield (
            f"{name}.loader_workers: {settings.loader_workers} processes decode in a pod with {pods.cores} cores for "
            f"each worker: at most {pods.cores} are allowed here"
        )
    weights = work.size.weights
    read = 8 * weights  # in float32: the model, and the file that it is read from
    if pods.memory is not None and read > pods.memory:
        yield f"{name}: a model of {weights:,} weights is not read in a pod with {size(pods.memory)} of memory"


def notes(work: Work, planned: Mapping[str, Estimate]) -> Iterator[str]:
    """Say what makes the stages slow, with the remedy."""
    model, speed = work.experiment.model, 1e9 * work.told.get(STORE, STORE_SPEED)
    for name, each in planned.items():
        if each.asks > speed:
            yield (
                f"{name}: its workers ask the store for {size(each.asks)}/s, and {size(speed)}/s is what it "
                f"{'gives' if STORE in work.told else 'is assumed to give'}: take a store of more servers "
                "(docs/store.md), or fewer workers"
            )
    for name in stages.TRAININGS:
        settings = stages.training_of(work.experiment, name)
        gpus, needed = settings.workers * settings.gpus_per_worker, estimate.step_operations(work, settings)
        if work.capacity.gpus_per_pod == 1 and gpus > 1:
            yield APART.format(stage=name, gpus=gpus)
        if not settings.is_skipped and estimate.way_of(work, name).bound_by == "network":
            yield (
                f"{name}: to exchange what a step needs takes longer than the rest of the step: take fewer workers "
                "with more pairs each, or a faster network"
            )
        if model.is_token_wise and needed["loss"] > needed["image"]:
            yield (
                f"{name}: the token-wise loss takes {needed['loss'] / 1e12:,.1f} TFLOP of a worker's step, more than "
                f"the image tower with {needed['image'] / 1e12:,.1f}: compare fewer tokens of a picture, such as "
                "model.image.tokens: 9, or take a smaller batch_size"
            )


def too_full(room: int, needed: float) -> Iterator[str]:
    """Say that a store has not the room for so many bytes, where it has not."""
    if needed > room:
        yield (
            f"the store holds {size(room)} and {size(needed)} are needed: enlarge its claim and its volumes, or take a "
            "store outside (docs/store.md)"
        )


def unknown_sets(experiment: Experiment, names: Collection[str] = stages.WHOLE_RUN) -> Iterator[str]:
    """Say which sets some stages measure or compare with that nothing here can read."""
    holdouts = [holdout.name for holdout in experiment.filter.split.holdouts]
    asked: list[tuple[str, str, Sequence[str], Sequence[str]]] = [
        ("evaluate", "evaluate.tasks", experiment.evaluate.tasks, ()),
        ("filter", "filter.decontaminate.sets", experiment.decontaminated_sets, holdouts),
    ]
    for name in stages.TRAININGS:
        tasks = stages.training_of(experiment, name).validation.tasks
        asked.append((name, f"{name}.validation.tasks", tasks, experiment.held_out_tasks))
    for stage, key, named, others in asked:
        for each in named if stage in names else ():
            if each not in (*set_folders.NAMES, *others):
                known = ", ".join([*others, *set_folders.NAMES])
                yield f"{key}: there is no evaluation set {each!r}; there are {known}"


def too_few(experiment: Experiment, pairs: int) -> Iterator[str]:
    """Say that the gate asks for more than so many pairs, which are the most that there can be, where it does."""
    asked = experiment.validation.min_pairs
    if pairs < asked:
        yield (
            f"the gate asks for {asked:,} pairs and there are {pairs:,} at most, so it would refuse them after the "
            "crawl: lower validation.min_pairs, or find more by another list or more queries"
        )
