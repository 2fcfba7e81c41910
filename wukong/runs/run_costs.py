"""What the stages of a run have held: cores, memory and GPUs by the second, processor time used, and bytes written.

Processes that see a part of it leave sheets below ``runs/RUN/held/STAGE/``, each its own file: on a cluster the
launcher writes down the pods that it sees (``ray_jobs.launch.kuberay.pods``), and every attempt at a job what Ray had,
what of it was used and what it wrote (``ray_jobs.machines``). Nothing here is part of an output: a run costs something,
equal inputs give equal bytes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import reduce
from typing import Any, Literal

from pydantic import Field

from wukong import stages
from wukong.config.experiment import Experiment
from wukong.config.section import Strict
from wukong.runs import run_records
from wukong.runs.run_records import Record
from wukong.stages.prices import GIB, Prices
from wukong.stages.run_paths import uri_of
from wukong.store import storage

FILE = "cost.json"
"""Beside the records of a run: what it has held so far."""

_FOLDER = "held"
_HOUR = 3600.0

Source = Literal["pods", "ray"]


class Holding(Strict):
    """A pod or a node of Ray, for the time for which it is known to have been held.

    Attributes:
        key: the same in every sheet that names this pod or node, and in no other's.
        name: its host's name.
        cores: those that nobody else could get.
        memory: bytes of memory, likewise.
        gpus: number of GPUs.
        began: seconds since the epoch.
        until: likewise, the last moment at which it was seen, or its end.
        ended: whether ``until`` is the end.
        used: seconds of processor time; None if they are not known.
    """

    key: str
    name: str
    cores: float
    memory: int
    gpus: float
    began: float
    until: float
    ended: bool = False
    used: float | None = None


class Sheet(Strict):
    """What one process has seen of what a stage holds.

    Attributes:
        source: ``pods``, as Kubernetes has them, or ``ray``, what Ray was given.
        held: the pods or nodes.
        written: bytes of the parts of the manifests that the process has committed, by the manifest's stage.
    """

    source: Source
    held: tuple[Holding, ...] = ()
    written: dict[str, int] = Field(default_factory=dict)


@dataclass(frozen=True)
class Held:
    """What was held, added up.

    Attributes:
        core_hours: cores multiplied by hours.
        gib_hours: GiB of memory multiplied by hours.
        gpu_hours: GPUs multiplied by hours.
        measured: the core-hours of pods or nodes whose processor time is known.
        used: the processor time of these, in hours, of each at most what it held.
        ended: whether all ends are known; otherwise it was at least as much.
    """

    core_hours: float = 0.0
    gib_hours: float = 0.0
    gpu_hours: float = 0.0
    measured: float = 0.0
    used: float = 0.0
    ended: bool = True

    def __add__(self, other: "Held") -> "Held":
        """Return both together."""
        sums = {each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(Held)}
        return Held(**sums | {"ended": self.ended and other.ended})

    @property
    def idle(self) -> float | None:
        """The share of the measured core-hours in which no processor time was used; None if nothing was measured."""
        return 1 - self.used / self.measured if self.measured else None


@dataclass(frozen=True)
class StageCost:
    """What a stage of a run has cost.

    Attributes:
        stage: name of its record.
        source: what ``held`` was read from; None if nothing was held or it is not known.
        reused: whether an earlier run had finished it.
        held: by all attempts; None if it is not known.
        written: bytes of the parts of the manifests that its attempts committed; None if that is not known.
    """

    stage: str
    source: Source | None
    reused: bool
    held: Held | None
    written: int | None


def add_up(holdings: Iterable[Holding]) -> Held:
    """Add up what pods or nodes have held. By the clocks of two machines an end may be before its beginning: 0 s."""

    def of(one: Holding) -> Held:
        hours = max(one.until - one.began, 0.0) / _HOUR
        core_hours = one.cores * hours
        known = one.used is not None
        used = min((one.used or 0.0) / _HOUR, core_hours)
        size = one.memory / GIB * hours
        return Held(core_hours, size, one.gpus * hours, core_hours if known else 0.0, used, one.ended)

    return reduce(Held.__add__, map(of, holdings), Held())


def joined(sheets: Iterable[Sheet]) -> list[Holding]:
    """Join what sheets say: each pod once, or where no pod was seen each of Ray's nodes.

    Several processes may have seen a pod, since a launcher that was lost is followed by another. Processor times of
    pods are those of Ray's nodes with the pod's name.
    """
    found: dict[Source, dict[str, Holding]] = {"pods": {}, "ray": {}}
    for sheet in sheets:
        of_source = found[sheet.source]
        for one in sheet.held:
            of_source[one.key] = _both(of_source[one.key], one) if one.key in of_source else one
    if not found["pods"]:
        return list(found["ray"].values())
    used = {one.name: one.used for one in found["ray"].values() if one.used is not None}
    return [one.model_copy(update={"used": used.get(one.name)}) for one in found["pods"].values()]


def _both(one: Holding, other: Holding) -> Holding:
    """Return what two sheets say of one pod: who knows its end is right, else who saw it last."""
    last = max(one, other, key=lambda each: (each.ended, each.until))
    used = [each.used for each in (one, other) if each.used is not None]
    return last.model_copy(update={"began": min(one.began, other.began), "used": max(used, default=None)})


def write(experiment: Experiment, run: str, stage: str, name: str, sheet: Sheet) -> None:
    """Store a sheet.

    Args:
        experiment: the experiment.
        run: name of the pipeline run.
        stage: name of the stage's record.
        name: which no other process gives a sheet of this stage.
        sheet: what the process has seen so far.
    """
    storage.write_json(uri_of(experiment, run, f"{_FOLDER}/{stage}/{name}.json"), sheet.model_dump(mode="json"))


def of_run(experiment: Experiment, run: str) -> list[StageCost]:
    """Return what each job of a run has cost so far, all attempts together, in the order of the table of stages.

    The evaluation of the champion is among them. Stages that their component alone does are not: they are no jobs.
    """
    folder = uri_of(experiment, run, _FOLDER)
    sheets: dict[str, list[Sheet]] = {}
    for uri in storage.list_files(folder, ".json"):
        stage = uri[len(folder) :].strip("/").partition("/")[0]
        sheets.setdefault(stage, []).append(Sheet.model_validate(storage.read_json(uri)))
    records = {name: run_records.read(experiment, run, name) for name in (*stages.JOBS, "champion")}
    return [of_stage(name, records[name], sheets.get(name, [])) for name in records if records[name] or name in sheets]


def of_stage(name: str, record: Record | None, sheets: Sequence[Sheet]) -> StageCost:
    """Return what a stage has cost, by its record, if it has ended, and by the sheets of all its attempts."""
    reused = record is not None and record.reused
    holdings = joined(sheets)
    source: Source = "pods" if any(sheet.source == "pods" and sheet.held for sheet in sheets) else "ray"
    by_jobs = [sheet.written for sheet in sheets if sheet.source == "ray"]
    written: int | None = 0 if reused else None
    if by_jobs and record is not None and record.state == "succeeded":  # of others nobody knows what is left
        written = sum(size for each in by_jobs for size in each.values())
    if holdings:
        return StageCost(name, source, reused, add_up(holdings), written)
    return StageCost(name, None, reused, Held() if reused else None, written)


def total(costs: Sequence[StageCost]) -> StageCost:
    """Return what all stages have cost together; they have held at least so much, if of one it is not known."""
    held = reduce(Held.__add__, (Held(ended=False) if each.held is None else each.held for each in costs), Held())
    written = [each.written for each in costs if each.written is not None]
    return StageCost("run", None, False, held, sum(written) if len(written) == len(costs) else None)


def numbers(cost: StageCost, prices: Prices) -> dict[str, float]:
    """Return what is known as named numbers, for MLflow and ``cost.json``; money only where there are prices."""
    known: dict[str, float] = {}
    if (held := cost.held) is not None:
        known = {"core_hours": held.core_hours, "gib_hours": held.gib_hours, "gpu_hours": held.gpu_hours}
        if held.idle is not None:
            known["idle_share"] = held.idle
        if prices:
            known["money"] = prices.held(held.core_hours, held.gib_hours, held.gpu_hours)
    if cost.written is not None:
        known["bytes_written"] = cost.written
        if prices:
            known["money_a_month"] = prices.stored(cost.written)
    return known


def document(costs: Sequence[StageCost], prices: Prices) -> dict[str, Any]:
    """Return what ``cost.json`` holds. What is not known is null."""
    names = ("core_hours", "gib_hours", "gpu_hours", "idle_share", "bytes_written")

    def shown(cost: StageCost) -> dict[str, Any]:
        at_least = cost.held is not None and not cost.held.ended
        return {**dict.fromkeys(names), **numbers(cost, prices), "at_least": at_least}

    return {
        "run": shown(total(costs)),
        "stages": {each.stage: {"source": each.source, "reused": each.reused, **shown(each)} for each in costs},
        "not_known": [each.stage for each in costs if each.held is None],
        "prices": asdict(prices) if prices else None,
    }
