"""What a run would do: which stages are finished already, what each reads and writes, roughly how much and how long.

A stage's key follows from what its parents wrote, so it is known only where these have finished; the stages behind the
first that has not are to do. Nothing is written here.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from wukong import estimate, manifest, run_records, storage
from wukong.config import Experiment
from wukong.estimate import Estimate
from wukong.manifest import Manifest, Stage
from wukong.preflight import Size

PARENTS: Mapping[str, tuple[str, ...]] = {
    "crawl": (),
    "filter": ("crawl",),
    "validate": ("filter",),
    "pretrain": ("filter", "validate"),
    "finetune": ("filter", "pretrain"),
    "evaluate": ("filter", "pretrain", "finetune"),
    "register": ("finetune", "evaluate"),
    "report": ("evaluate",),
}
"""The stages of a run in order, and of which each reads the output."""

_OF_DATA = {"filter": ("crawl",), "validate": ("filter",), "pretrain": ("filter",)}
_NO_STAGE = ("register", "report")


@dataclass(frozen=True)
class Planned:
    """What a run would do with one stage.

    Attributes:
        stage: its name.
        finished: the manifest of an earlier run that is reused, if there is one.
        begun: whether parts of it are finished, so that it would go on from there.
        reads: URIs.
        writes: the URI below which it writes; of its stage alone where its key is not known yet.
        estimate: bytes and seconds; nothing where it is reused.
        measured: whether the estimate is of an earlier run of the stage.
    """

    stage: str
    finished: Manifest | None
    begun: bool
    reads: tuple[str, ...]
    writes: str
    estimate: Estimate
    measured: bool = False


def of_run(experiment: Experiment, pictures: int, size: Size, cores: int) -> list[Planned]:
    """Plan a run.

    Args:
        experiment: what is to be done.
        pictures: that come in, or may be expected to.
        size: of the model.
        cores: of the machine.

    Raises:
        ConfigError: a list cannot be read, or the earlier crawl cannot be gone on from.
        DataError: the pictures' list cannot be read.
        StorageError: the object store cannot be read.
    """
    roughly = estimate.of_stages(experiment, pictures, size.weights, size.image, cores)
    found: dict[str, Manifest] = {}
    planned = []
    for stage, parents in PARENTS.items():
        root = storage.join(experiment.root, stage)
        reads = tuple(found[name].uri if name in found else storage.join(experiment.root, name) for name in parents)
        finished, writes, begun = None, root, False
        if stage == "crawl":
            reads = tuple(value for key, value in experiment.uris().items() if key.startswith("crawl."))
            if experiment.crawl.engine not in ("urls", "files"):
                reads = (*reads, experiment.crawl.endpoint)
            finished, writes, begun = _crawl(experiment)
        elif stage in _NO_STAGE:
            writes = storage.join(experiment.root, "runs") if stage == "report" else "MLflow"
        elif all(name in found for name in parents):
            finished = _finished(experiment, stage, [found[name] for name in _OF_DATA.get(stage, parents)])
        if finished is not None:
            found[stage] = finished
            planned.append(Planned(stage, finished, False, reads, finished.uri, Estimate(0, 0)))
            continue
        before = None if stage in _NO_STAGE else _before(experiment, stage)
        planned.append(Planned(stage, None, begun, reads, writes, before or roughly[stage], before is not None))
    return planned


def _crawl(experiment: Experiment) -> tuple[Manifest | None, str, bool]:
    """The crawl's manifest if it has finished, where it writes, and whether it has begun."""
    from ray_jobs import crawl
    from wukong.crawl.previous import Previous

    earlier = Previous.open(experiment.crawl)
    attempt = crawl.attempt_of(experiment, {}, earlier, lambda uris: [crawl.digest_of_file(uri) for uri in uris])
    stage, finished = attempt.stage, attempt.finished
    begun = attempt.last is not None or bool(storage.list_files(stage.path("_parts")))
    return finished, stage.uri, finished is None and begun


def _finished(experiment: Experiment, stage: str, parents: Sequence[Manifest]) -> Manifest | None:
    """The manifest of a stage that was made from these parents, by this experiment and this code."""
    wanted = {parent.digest for parent in parents}
    expected = _config(experiment, stage)
    root = storage.join(experiment.root, stage)
    for uri in storage.list_files(root, "/manifest.json"):
        if len(PurePosixPath(uri[len(root) :]).parts) != 3:
            continue
        known = manifest.load(uri)
        if not wanted <= {parent.digest for parent in known.parents}:
            continue
        if all(known.config.get(key) == value for key, value in expected.items()) and _is_of_this_code(known, uri):
            return known
    return None


def _config(experiment: Experiment, stage: str) -> dict[str, Any]:
    """What a stage's manifest must say of its settings; it may say more."""
    whole: dict[str, Any] = experiment.model_dump(mode="json")
    if stage == "filter":
        return {**whole["filter"], "seed": experiment.seed}
    if stage == "validate":
        return {key: whole[key] for key in ("name", "about", "sources", "seed", "filter", "validation")}
    if stage == "evaluate":
        return {"evaluate": whole["evaluate"], "holdouts": whole["filter"]["split"]["holdouts"]}
    return {"model": whole["model"], "training": whole[stage], "seed": experiment.seed}


def _is_of_this_code(known: Manifest, uri: str) -> bool:
    """Whether this version of the stage's code gives the key that the manifest lies under."""
    version = importlib.import_module(f"ray_jobs.{known.stage}")._VERSION
    parents: Any = known.parents  # of a parent only the digest counts
    return PurePosixPath(uri).parent.name == Stage("", known.stage, known.config, parents, version).key


def _before(experiment: Experiment, stage: str) -> Estimate | None:
    latest = run_records.latest(experiment, stage)
    if latest is None:
        return None
    known = manifest.load(latest)
    return Estimate(sum(part.bytes for part in known.parts), float(known.provenance.get("seconds", 0.0)))
