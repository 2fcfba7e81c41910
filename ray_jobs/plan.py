"""The plan of a run: which stages have finished already, what each reads and writes, roughly how large and how long.

A stage's key depends on its parents' output. So a stage can only be found finished if its parents have finished; all
others are to do. Planning writes nothing.
"""

from dataclasses import dataclass

from wukong import stages
from wukong.config.experiment import Experiment
from wukong.errors import WukongError
from wukong.model.cost import Size
from wukong.runs import run_records
from wukong.stages import measured_rates, places
from wukong.stages.capacity import Capacity
from wukong.stages.estimate import Estimate, Work
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest


@dataclass(frozen=True)
class Planned:
    """What a run would do with one stage.

    Attributes:
        stage: its name.
        finished: the manifest of an earlier run, which is reused; None if the stage is to do.
        begun: whether some of its tasks are finished, so that it would continue after them.
        reads: URIs.
        writes: the URI below which it writes; without the key where that is not known yet.
        estimate: bytes and seconds; 0 where it is reused.
        measured: whether the estimate was measured in an earlier run of the stage.
    """

    stage: str
    finished: Manifest | None
    begun: bool
    reads: tuple[str, ...]
    writes: str
    estimate: Estimate
    measured: bool = False


def finished_jobs(experiment: Experiment) -> dict[str, Manifest] | None:
    """Return the manifests of all jobs of a whole run, by stage; None if one has work to do or cannot be looked up."""
    found: dict[str, Manifest] = {}
    for entry in (stages.of(name) for name in stages.JOBS if stages.of(name).in_whole_run):
        try:
            known = places.finished(entry.name, experiment, {parent: found[parent] for parent in entry.parents})
        except WukongError:
            return None  # the checks before a run explain it
        if known is None:
            return None
        found[entry.name] = known
    return found


def of_run(experiment: Experiment, pictures: int, size: Size, cores: int) -> list[Planned]:
    """Plan a run.

    Args:
        experiment: the experiment.
        pictures: number of images that come in, or that may be expected.
        size: size of the model.
        cores: number of cores of the machine.

    Raises:
        ConfigError: a list cannot be read, or the crawl cannot continue from the earlier crawl.
        DataError: the pictures' list cannot be read.
        StorageError: the object store cannot be read.
    """
    # How many of them the filter drops is not known before.
    work = Work(experiment, pictures, pictures, size, Capacity(cores), measured_rates.load())
    found: dict[str, Manifest] = {}
    planned = []
    for entry in map(stages.of, stages.WHOLE_RUN):
        name, writes = entry.name, entry.place(experiment)
        reads = tuple(
            found[parent].uri if parent in found else stages.of(parent).place(experiment) for parent in entry.parents
        )
        finished, begun = None, False
        if name == "crawl":
            reads = tuple(value for key, value in experiment.uris().items() if key.startswith("crawl."))
            if experiment.crawl.source.searched:
                reads = (*reads, experiment.crawl.endpoint)
            finished, writes, begun = _crawl(experiment)
        elif entry.from_experiment is not None and all(parent in found for parent in entry.parents):
            finished = places.finished(name, experiment, {parent: found[parent] for parent in entry.parents})
        if finished is not None:
            found[name] = finished
            planned.append(Planned(name, finished, False, reads, finished.uri, Estimate(0, 0)))
            continue
        before = _before(experiment, name) if entry.version else None
        roughly = entry.estimate(work) if entry.estimate else Estimate(0, 0)
        planned.append(Planned(name, None, begun, reads, writes, before or roughly, before is not None))
    return planned


def _crawl(experiment: Experiment) -> tuple[Manifest | None, str, bool]:
    """Return the crawl's manifest if it has finished, where it writes, and whether it has begun."""
    attempt = places.crawl(experiment)
    stage, finished = attempt.stage, attempt.finished
    begun = attempt.last is not None or bool(storage.list_files(stage.path("_parts")))
    return finished, stage.uri, finished is None and begun


def _before(experiment: Experiment, stage: str) -> Estimate | None:
    latest = run_records.latest(experiment, stage)
    if latest is None:
        return None
    known = manifest.load(latest.uri)
    return Estimate(known.parts.bytes, float(known.provenance.get("seconds", 0.0)))
