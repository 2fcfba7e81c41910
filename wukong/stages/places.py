"""Stages with their keys, which say where each writes and whether it has finished; without Ray, torch or their work.

A job takes its stage from here, and so does everything that asks for the job's output before a job is started. So both
compute the same key. ``of`` gives the stage that the table says; ``UPCOMING`` has the others. Parents are given as a
job gets them: manifests, by the name of their stage.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from wukong import stages
from wukong.config.crawl import Crawl
from wukong.config.decontaminate import ALL, made_by
from wukong.config.experiment import Experiment
from wukong.config.model import ImageEncoder, Model
from wukong.crawl.source import Searched
from wukong.curate import rules
from wukong.errors import ConfigError, DataError
from wukong.evaluate import set_folders
from wukong.stages import run_paths
from wukong.stages import start as start_model
from wukong.store import contents, fence, lease, manifest, storage, takedowns
from wukong.store.manifest import Manifest, Stage

if TYPE_CHECKING:
    from wukong.crawl.attempt import Attempt

_MOST_BYTES = 2 << 30
_MOST_FILES = 2_000
"""More than this of a crawl's lists is not read only to see whether the crawl has finished: its job reads them."""

_AS_MEASURED = {"dtype": "float16", "precision": "float32"}
"""How the features of hold-outs are computed and stored; evaluations read no others."""

RESERVED = "00000-start.json"
"""Name of the claim of who has reserved an output, and writes nothing of it."""

log = logging.getLogger(__name__)


Parents = Mapping[str, Manifest]
"""What a job gets: manifests, by the name of their stage."""

Upcoming = Callable[[str, Experiment, Parents], Stage | None]
"""A function like ``upcoming``, of jobs whose key_parents are all among the parents."""

UPCOMING: dict[str, Upcoming] = {}
"""By its name each job that makes another stage first, or whose key is of more than the table says (``of``)."""


def _upcoming_of(*names: str) -> Callable[[Upcoming], Upcoming]:
    def register(function: Upcoming) -> Upcoming:
        UPCOMING.update(dict.fromkeys(names, function))
        return function

    return register


def finished(name: str, experiment: Experiment, parents: Parents) -> Manifest | None:
    """Return the manifest of a stage that is a job, if the job would find it and do nothing; else None.

    What it returns is exactly what the job would return. None does not mean that the job has work to do: a crawl's
    lists may be too large to be read here, and of a training stage the features may be gone and the model still there.

    Args:
        name: name of the stage.
        experiment: the experiment.
        parents: what the job gets.

    Raises:
        ConfigError: no job has that name, or the crawl's list of queries cannot be read.
        DataError: a list or a manifest cannot be read.
        StorageError: the store cannot be read.
    """
    stage = upcoming(name, experiment, parents)
    return stage.finished() if stage is not None and stage.name == name else None


def upcoming(name: str, experiment: Experiment, parents: Parents) -> Stage | None:
    """Return the stage that a job works at first; None where that cannot be said from here.

    It is one which the job makes inside and which has not finished, or the job's own. For the arguments and errors see
    ``finished``.
    """
    entry = stages.of(name)
    if entry.runs_as != "job":
        raise ConfigError(f"{name} is no job; the jobs are {', '.join(stages.JOBS)}")
    if not parents.keys() >= {*entry.key_parents}:
        return None  # the job says which is missing
    return UPCOMING.get(name, of)(name, experiment, parents)


def of(name: str, experiment: Experiment, parents: Parents, **more: Any) -> Stage:
    """Return a stage with the key that the table says: of its version, its config and the parents in its key.

    Args:
        name: name of the stage.
        experiment: the experiment.
        parents: at least the stage's ``key_parents``.
        more: entries of the config that are not from the experiment.
    """
    entry = stages.of(name)
    made_from = [parents[parent] for parent in entry.key_parents]
    return Stage(experiment.root, name, entry.config(experiment) | more, made_from, entry.version)


@contextmanager
def reserved(name: str, experiment: Experiment, parents: Parents, run: str, record: str) -> Iterator[Manifest | None]:
    """Reserve what a job will make before the job is started, after waiting for other runs that are making it.

    The block gets the stage's manifest if the stage has finished. Else it gets None, starts the job, and while it lasts
    this process has the lease (``wukong.store.lease``) of what the job makes first, until the job takes it over.

    Args:
        name: name of the stage.
        experiment: the experiment.
        parents: what the job gets.
        run: name of the run.
        record: name of the job's record in the run.

    Raises:
        ConfigError: for this and the other errors see ``finished``.
    """
    attempt = storage.join(fence.folder_of(experiment.root, run, record), RESERVED)
    # Before the first look: from now on nothing is deleted that the run may find (wukong.publish.unneeded).
    storage.write_bytes(run_paths.uri_of(experiment, run, f"asked/{record}"), os.uname().nodename.encode())
    takedowns.wait_for_end(experiment.root)
    has_waited = False
    while (stage := upcoming(name, experiment, parents)) is not None:
        made = storage.join(stage.uri, "manifest.json")
        if stage.name == name and (known := stage.finished()) is not None:
            clean(name, experiment, parents, known)
            yield known
            return
        if has_waited:  # whoever made the last stage goes on here in a moment
            lease.wait_for_holder(stage.uri)
        with lease.held(stage.uri, partial(storage.exists, made), attempt):
            if not storage.exists(made):
                yield None
                return
        has_waited = True
    yield None


def clean(name: str, experiment: Experiment, parents: Parents, made: Manifest) -> None:
    """Delete what the job of a finished stage would have deleted, had it not been killed after its manifest.

    For the first three arguments see ``finished``.
    """
    manifest.clean(made.uri)
    if name == "crawl":  # it has left more than its manifest knows of
        crawl(experiment, parents).clean()


EVALUATED = {"finetuned": "finetune", "pretrained": "pretrain"}
"""The models that are evaluated, and the stage that each comes from."""


def evaluated(parents: Parents) -> Mapping[str, str]:
    """Those of ``EVALUATED`` that differ: a model that fine-tuning has handed on is measured once, as pre-trained."""
    last, first = (parents[stage].parts for stage in EVALUATED.values())
    digests = [[parts.sha256(f"model/{name}") for name in start_model.FILES] for parts in (last, first)]
    return {"pretrained": "finetune"} if digests[0] == digests[1] and all(digests[0]) else EVALUATED


def crawl(experiment: Experiment, parents: Parents | None = None) -> "Attempt":
    """The attempt at the crawl that has finished, or the next; it reads the lists that the crawl is made of."""
    from wukong.crawl import attempt, previous  # of no use to the other stages' components

    earlier = previous.manifest_of(experiment.crawl)
    version = stages.of("crawl").version
    return attempt.of(experiment, parents or {}, earlier, lambda uris: [*map(contents.sha256, uris)], version)


@_upcoming_of("crawl")
def _upcoming_crawl(_: str, experiment: Experiment, parents: Parents) -> Stage | None:
    return crawl(experiment, parents).stage if _is_quickly_read(experiment.crawl) else None


def filtering(experiment: Experiment, crawled: Manifest) -> Stage:
    """The filter stage; the content of the files that its rules read is in its key."""
    digests = rules.digests(experiment.filter)
    sets = {name: fingerprints(experiment, name).key for name in decontaminated_sets(experiment)}
    more = ({"digests": digests} if digests else {}) | ({"fingerprints": sets} if sets else {})
    return of("filter", experiment, {"crawl": crawled}, **more)


@_upcoming_of("filter")
def _upcoming_filtering(_: str, experiment: Experiment, parents: Parents) -> Stage:
    return filtering(experiment, parents["crawl"])


def decontaminated_sets(experiment: Experiment) -> list[str]:
    """The published sets that the filter compares with what would be trained on; of ``all`` those that are there."""
    asked = experiment.filter.decontaminate
    if asked is None:
        return []
    root, named = experiment.evaluate.sets, experiment.decontaminated_sets
    if ALL in asked.sets and root:
        there = {uri[len(root) :].lstrip("/").partition("/")[0] for uri in storage.list_files(root)}
        named = [name for name in set_folders.NAMES if name in named or name in there]
    return named


def fingerprints(experiment: Experiment, name: str) -> Stage:
    """The stage of the fingerprints of a published set.

    Raises:
        DataError: the set is not there.
    """
    asked = experiment.filter.decontaminate
    vectors = made_by(experiment.filter.vector_model) if asked and asked.min_cosine is not None else None
    config = {"set": name, "digest": set_folders.digest_of(experiment.evaluate.sets, name), "vectors": vectors}
    return Stage(experiment.root, "fingerprints", config, [], stages.of("fingerprints").version)


def packed(experiment: Experiment, name: str, split: str, digest: str | None) -> Stage:
    """The stage of the tables of a split of a published set, whose digest is computed where it is not known.

    Raises:
        DataError: the set is not there.
    """
    digest = digest or set_folders.digest_of(experiment.evaluate.sets, name)
    config = {"set": name, "digest": digest, "split": split}
    return Stage(experiment.root, "pack", config, [], stages.of("pack").version)


def look(experiment: Experiment, crawled: Manifest) -> Stage:
    """The stage of the columns that the filter's rules compute from the pictures of the pairs that are left."""
    settings = experiment.filter
    config = rules.config_of(settings, exclude=rules.picture_thresholds() | {"shard_size", "seed", "split"})
    always = {column.name for column in rules.stored_columns()}
    further = [column for column in rules.columns_of_pictures(settings) if column not in always]
    config |= {"columns": further} if further else {}
    config |= {"digests": digests} if (digests := rules.digests(settings, late=False)) else {}
    return Stage(experiment.root, "look", config, [crawled], stages.of("look").version)


def validation(experiment: Experiment, filtered: Manifest) -> Stage:
    """The validate stage; the validation that ``validation.reference`` names is compared with."""
    reference = experiment.validation.reference
    compared = manifest.load(reference).digest if reference else None
    return of("validate", experiment, {"filter": filtered}, reference_digest=compared)


@_upcoming_of("validate")
def _upcoming_validation(_: str, experiment: Experiment, parents: Parents) -> Stage:
    return validation(experiment, parents["filter"])


def features(
    experiment: Experiment,
    filtered: Manifest,
    model: Manifest | None = None,
    pairs: Literal["train", "holdouts"] = "train",
) -> Stage:
    """The stage of the features of the training pairs or of all hold-outs.

    Args:
        experiment: its ``model.image``, ``model.similarity``, ``features.dtype`` and ``pretrain.precision``, and the
            ``views`` of both trainings decide the output.
        filtered: the filter's manifest.
        model: the training stage whose image tower is used; None for the tower that the experiment names.
        pairs: ``train`` for the training pairs, ``holdouts`` for every hold-out.
    """
    how: Mapping[str, Any] = {"views": 0, **_AS_MEASURED}
    if pairs == "train":
        views = max(stages.training_of(experiment, name).views for name in stages.TRAININGS)
        how = {"views": views, "dtype": experiment.features.dtype, "precision": experiment.pretrain.precision}
    config = {**_of_tower(experiment.model), "pairs": pairs, **how}
    trained = trained_tower(model)
    if model is not None and trained is None:
        _refuse_another_tower(experiment, model)
    version = stages.of("features").version
    return Stage(experiment.root, "features", config, [m for m in (filtered, trained) if m], version)


def stored_features(uri: str, digest: str, model: Model) -> list[Manifest]:
    """The finished features of a filter's pairs that are as exact as those of evaluations, by towers of some settings.

    Features of lower precision than float32, or stored as int8, are left out. Towers of equal settings have equal
    weights only if nobody trained them: a parent other than the filter is the stage that did.

    Args:
        uri: where the filter's output lies; features are looked for beside it.
        digest: digest of its manifest.
        model: the model's settings.
    """
    root, asked = uri.rsplit("/", 2)[0], {**_of_tower(model), **_AS_MEASURED}
    version = stages.of("features").version
    found = []
    for key in storage.list_names(storage.join(root, "features")):
        place = storage.join(root, "features", key)
        if not storage.exists(storage.join(place, "manifest.json")):
            continue
        made = manifest.load(place)
        is_same = asked.items() <= made.config.items()
        # The key tells those of another version of the stage, which computed them otherwise.
        is_current = Stage(root, "features", made.config, made.parents, version).key == key
        if is_same and is_current and digest in [parent.digest for parent in made.parents]:
            found.append(made.model_copy(update={"uri": place}))
    return found


def _of_tower(model: Model) -> dict[str, Any]:
    return {"image": model.image.of_tower(), "kind": "tokens" if model.is_token_wise else "pooled"}


def decision(name: str, experiment: Experiment, filtered: Manifest, start: Manifest | None) -> str:
    """The URI of the decision whether a training with ``store_features: auto`` stores features.

    Trainings with equal inputs have one decision, which the first of them takes (``ray_jobs.features``). So have those
    that differ in their seed, or start from weights of another seed, as long as they read the same features.

    Args:
        name: name of the training stage.
        experiment: the stage's.
        filtered: the filter's manifest.
        start: manifest of the stage whose model it starts from, if any.
    """
    of_all_seeds = experiment.model_copy(update={"seed": 0})
    undecided = training(name, of_all_seeds, filtered, None, trained_tower(start))
    cache = features(experiment, filtered, start)
    key = manifest.digest_of([undecided.key, cache.key])[:16]
    return storage.join(experiment.root, "features", "_decisions", f"{key}.json")


def decided(name: str, experiment: Experiment, filtered: Manifest, start: Manifest | None) -> Experiment | None:
    """Return the experiment with what was decided in the place of ``auto``; None if nothing was decided yet.

    A training that leaves nothing to decide stays as it is. For the arguments see ``decision``.
    """
    settings = stages.training_of(experiment, name)
    if not settings.is_undecided:
        return experiment
    uri = decision(name, experiment, filtered, start)
    if not storage.exists(uri):
        return None
    return experiment.model_copy(update={name: settings.decided(store=storage.read_json(uri)["store"])})


def trained_tower(model: Manifest | None) -> Manifest | None:
    """The last stage that trained a model's image tower; None if every stage kept it locked."""
    while model is not None and model.config["training"]["lock"] == "all":
        start = next((parent for parent in model.parents if parent.stage == "pretrain"), None)
        model = manifest.load(start.uri) if start else None
    return model


def _refuse_another_tower(experiment: Experiment, model: Manifest) -> None:
    """Raise DataError if a model with a locked tower was trained on features of another one than the experiment's."""
    theirs = ImageEncoder.model_validate(model.config["model"]["image"]).of_tower()
    ours = experiment.model.image.of_tower()
    if theirs != ours:
        keys = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
        differing = "; ".join(f"{key} {theirs.get(key)!r} there, {ours.get(key)!r} now" for key in keys)
        raise DataError(
            f"the model at {model.uri} was trained on features of another image tower than the experiment's "
            f"(model.image: {differing}): go on with the experiment that it was trained by and what its address held, "
            "or train it anew"
        )


def training(
    name: str, experiment: Experiment, filtered: Manifest, computed: Manifest | None, start: Manifest | None
) -> Stage:
    """A training stage.

    Args:
        name: name of the stage, ``pretrain`` or ``finetune``.
        experiment: its ``model`` section, the section of the stage's name and the seed decide the output.
        filtered: the filter's manifest.
        computed: manifest of the features, where the stage reads them.
        start: manifest of the stage whose model it starts from, if any.

    Raises:
        DataError: a published set that decides which model is best is not there.
    """
    entry, asked = stages.of(name), stages.training_of(experiment, name).validation
    made_from = [parent for parent in (filtered, computed, start) if parent]
    published = [task for task in asked.tasks if task not in experiment.held_out_tasks] if asked.decides else []
    sets = {task: set_folders.digest_of(experiment.evaluate.sets, task) for task in published}
    config = entry.config(experiment) | ({"sets": sets} if sets else {})
    return Stage(experiment.root, name, config, made_from, entry.version)


@_upcoming_of(*stages.TRAININGS)
def _upcoming_training(name: str, experiment: Experiment, parents: Parents) -> Stage | None:
    if name == "pretrain" and experiment.pretrain.from_model:
        return start_model.stage(experiment)
    if not stages.training_of(experiment, name).epochs:
        return start_model.handed_on(experiment, parents["pretrain"])
    filtered, start = parents["filter"], parents.get("pretrain")
    settled = decided(name, experiment, filtered, start)
    if settled is None:
        return None
    if not stages.training_of(settled, name).reads_features:
        return training(name, settled, filtered, None, start)
    inside = features(settled, filtered, start)
    computed = inside.finished()
    return training(name, settled, filtered, computed, start) if computed else inside


def evaluation(experiment: Experiment, parents: Parents, computed: Sequence[Manifest]) -> Stage:
    """The evaluate stage.

    Args:
        experiment: its ``evaluate`` section, the files of the published sets that it names and the filter's hold-outs
            decide the output.
        parents: the manifests of ``filter``, ``pretrain`` and ``finetune``.
        computed: features of the hold-outs, one manifest for each of ``evaluated``.

    Raises:
        DataError: a published set is not there.
    """
    # Models whose towers were locked share their features.
    distinct = {entry.digest: entry for entry in computed}
    made_from = [parents["filter"], *distinct.values(), *(parents[stage] for stage in EVALUATED.values())]
    entry, asked = stages.of("evaluate"), experiment.evaluate
    sets = {name: set_folders.digest_of(asked.sets, name) for name in asked.tasks}
    return Stage(experiment.root, entry.name, entry.config(experiment) | {"sets": sets}, made_from, entry.version)


@_upcoming_of("evaluate")
def _upcoming_evaluation(_: str, experiment: Experiment, parents: Parents) -> Stage:
    computed = []
    for model in evaluated(parents).values():
        inside = features(experiment, parents["filter"], parents[model], "holdouts")
        if (made := inside.finished()) is None:
            return inside
        computed.append(made)
    return evaluation(experiment, parents, computed)


def rematch(experiment: Experiment, evaluated: Manifest, model: Manifest) -> tuple[Experiment, list[str]]:
    """What the evaluate stage is given to measure another run's models on the test set of an evaluation.

    Args:
        experiment: the evaluation's. Its hold-outs, tasks and protocols are kept.
        evaluated: the evaluation's manifest.
        model: manifest of the stage whose model is measured, ``finetune`` of the other run.

    Returns:
        The experiment with the other run's ``model`` section, and the URIs of the manifests of ``filter``, ``pretrain``
        and ``finetune``.

    Raises:
        DataError: a manifest that is needed is gone, or the pairs have changed since the evaluation.
        ConfigError: this version does not know the model's settings, for instance its tower.
    """
    used = next((parent for parent in evaluated.parents if parent.stage == "filter"), None)
    start = next((parent for parent in model.parents if parent.stage == "pretrain"), None)
    if used is None or start is None:
        raise DataError(
            f"{evaluated.uri} names no pairs: it is not of this project's pipeline"
            if used is None
            else f"{model.uri} names no pre-trained model: it is not of this project's pipeline"
        )
    if manifest.load(used.uri).digest != used.digest:
        raise DataError(
            f"the pairs at {used.uri} have changed since they were measured on, for instance by a takedown: run the "
            "pipeline again, which measures its model on them as they are now"
        )
    manifest.load(start.uri)
    try:
        settings = Model.model_validate(model.config["model"])
    except (KeyError, ValidationError) as error:
        raise ConfigError(f"{model.uri} has a model that this version of Wukong does not know: {error}") from error
    given = [storage.join(parent, "manifest.json") for parent in (used.uri, start.uri, model.uri)]
    return experiment.model_copy(update={"model": settings}), given


def _is_quickly_read(config: Crawl) -> bool:
    """Whether what a crawl's key is made of can be read here in seconds."""
    source = config.source
    if isinstance(source, Searched):
        return True
    sizes = storage.sizes(config.endpoint)
    if len(sizes) <= _MOST_FILES and source.bytes_read(sizes) <= _MOST_BYTES:
        return True
    log.info("the list at %s is large: the crawl's job reads it and sees whether it has finished", config.endpoint)
    return False
