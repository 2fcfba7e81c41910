"""How a submitted run ended, in a form for programs: what ``cli.submit.submit`` returns, and its errors."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from wukong import stages
from wukong.config.experiment import Experiment
from wukong.errors import WukongError
from wukong.runs.origin import Source
from wukong.runs.run import Run
from wukong.runtime import environment

FORMAT = 1
"""Of the JSON: fields may be added to it; where one goes or changes its meaning, the number changes."""

_TASKS = {(entry.function or entry.name).replace("_", "-"): entry.name for entry in stages.TABLE}
"""The stage of each task of KFP."""


class Outcome(StrEnum):
    """What became of a run."""

    CHECKED = "checked"
    """Nothing was submitted, only looked whether it could be."""
    SUBMITTED = "submitted"
    """It was begun, and nobody waited for its end."""
    SCHEDULED = "scheduled"
    """A recurring run was made."""
    SUCCEEDED = "succeeded"
    REFUSED = "refused"
    """No stage was begun: the config, KFP, or the check at the beginning of the run refused it."""
    FAILED = "failed"
    TERMINATED = "terminated"
    """Somebody ended it."""
    LOST = "lost"
    """It was begun, or may have been, and how it ended is not known: time was up, or KFP did not answer."""

    @property
    def exit_status(self) -> int:
        """The exit status of ``wukong submit``; 2 is that of a wrong option."""
        return _STATUS.get(self, 0)


_STATUS = {Outcome.REFUSED: 1, Outcome.FAILED: 3, Outcome.TERMINATED: 4, Outcome.LOST: 5}


@dataclass(frozen=True)
class Seen:
    """What KFP said of a run when it was last asked.

    Attributes:
        state: the run's, as KFP writes it; empty if it has said nothing.
        tasks: state of each task.
        seconds: that tasks have taken, of those that have ended.
    """

    state: str = ""
    tasks: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


class SubmitError(WukongError):
    """Kubeflow Pipelines could not be reached or refused a request, or the run did not succeed."""


class RunError(SubmitError):
    """A run was begun and did not succeed, or its end was not seen."""

    def __init__(self, said: str, outcome: Outcome, seen: Seen | None = None) -> None:
        super().__init__(said)
        self.outcome, self.seen, self.exit_status = outcome, seen or Seen(), outcome.exit_status


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RunStage(_Strict):
    """A stage of a run. What is not known is None.

    Attributes:
        stage: its name.
        state: ``succeeded`` or ``failed`` by its record, else KFP's word for its task, in small letters.
        reused: whether an earlier run had finished it.
        seconds: that its task took in KFP.
        work_seconds: of its own work, by its record.
        manifest: URI of its output's manifest.
        images: that its job's pods have run, each with its digest.
        error: why it failed, by its record.
    """

    stage: str
    state: str
    reused: bool | None = None
    seconds: float | None = None
    work_seconds: float | None = None
    manifest: str | None = None
    images: tuple[str, ...] = ()
    error: str | None = None


class Gate(_Strict):
    """What was decided about the run's model.

    Attributes:
        model: name of the registered model.
        version: the run's.
        alias: that the gate gives.
        promoted: whether the version has it.
        says: why, in sentences.
    """

    model: str
    version: str
    alias: str
    promoted: bool
    says: str


class Result(_Strict):
    """What is known of a run that was submitted, or was to be. What is not known is None or empty.

    Attributes:
        format: ``FORMAT``.
        outcome: what became of it.
        error: why it did not succeed.
        run: name of the run, or of the recurring run.
        id: KFP's.
        state: KFP's, as it was last seen.
        url: of its page in KFP.
        group: KFP's experiment.
        experiment: name of the experiment.
        source: which revisions were submitted.
        image_revision: revision of the image of the run's components.
        images: that the pipeline names, and that the run's pods have run. One that ends with a digest was run, or is
            pinned.
        stages: those that have begun, in their order.
        report: URI of its report.
        metrics: of its evaluation.
        gate: what was decided about its model.
        notes: what does not fit, and what could not be read.
    """

    format: int = FORMAT
    outcome: Outcome
    error: str | None = None
    run: str = ""
    id: str | None = None
    state: str | None = None
    url: str | None = None
    group: str | None = None
    experiment: str = ""
    source: Source = Source()
    image_revision: str | None = None
    images: tuple[str, ...] = ()
    stages: tuple[RunStage, ...] = ()
    report: str | None = None
    metrics: dict[str, float] = {}
    gate: Gate | None = None
    notes: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise an error unless the run has succeeded or goes on as it was asked to.

        Raises:
            RunError: it has not.
        """
        if self.outcome.exit_status:
            raise RunError(self.error or self.outcome, self.outcome)


def stages_of(seen: Seen) -> tuple[RunStage, ...]:
    """Return the stages of a run that have begun, by what KFP said of its tasks."""
    states = {_TASKS[task]: state for task, state in seen.tasks.items() if task in _TASKS}
    seconds = {_TASKS[task]: taken for task, taken in seen.seconds.items() if task in _TASKS}
    return tuple(
        RunStage(stage=stage, state=states[stage].lower(), seconds=seconds.get(stage))
        for stage in stages.RECORDED
        if stage in states
    )


def with_records(result: Result, experiment: Experiment) -> Result:
    """Add what a run left in its storage. Where that cannot be read, a note says why, and the rest is as it was."""
    try:
        environment.use_for(experiment.storage)
        found = _recorded(result, experiment)
    except (WukongError, ValidationError) as error:
        told = f"The records of the run were not read: {error}"
        return result.model_copy(update={"notes": (*result.notes, told)})
    return result.model_copy(update=found)


def _recorded(result: Result, experiment: Experiment) -> dict[str, Any]:
    run = Run.of(experiment, result.run)
    by_kfp = {each.stage: each for each in result.stages}
    merged = []
    for stage in stages.RECORDED:
        made = by_kfp.get(stage)
        if record := run.records.get(stage):
            made = (made or RunStage(stage=stage, state=record.state)).model_copy(
                update={
                    "state": record.state,
                    "reused": record.reused,
                    "work_seconds": record.seconds,
                    "manifest": record.manifest or None,
                    "error": record.error or None,
                }
            )
        if made is not None:
            merged.append(made.model_copy(update={"images": tuple(run.images.get(stage, ()))}))
    found: dict[str, Any] = {"stages": tuple(merged)}
    run_by = sorted({*itertools.chain.from_iterable(run.images.values())})
    known = {image.partition("@")[0] for image in run_by}
    found["images"] = (*run_by, *(image for image in result.images if image.partition("@")[0] not in known))
    if run.origin:
        found["image_revision"] = run.origin.image_revision or None
        found["notes"] = (*result.notes, *filter(None, [run.origin.difference]))
    if run.verdict:
        found["gate"] = Gate(**run.verdict[0].model_dump(include=set(Gate.model_fields)))
    return found | {"metrics": run.metrics, "report": run.report}
