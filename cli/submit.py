"""Submit a pipeline to Kubeflow Pipelines, from Python: ``submit`` uploads it, starts a run, and waits for its end.

``wukong submit`` (``cli.submit_command``) prints what this does.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from cli.compiled_pipeline import images_of, parameters_of, titles_of, version_of
from cli.kfp_api import Pipelines, Submitted
from cli.run_result import Outcome, Result, RunError, stages_of, with_records
from cli.stage_progress import StageProgress
from components.parameters import IN_FORM, Parameters
from wukong.commands.app import DEMO, ConfigOption, SetOption
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError
from wukong.runs import origin
from wukong.runs.origin import Source
from wukong.stages import preflight

_TYPES: dict[str, type | tuple[type, ...]] = {
    "STRING": str,
    "NUMBER_INTEGER": int,
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": bool,
    "LIST": list,
    "STRUCT": dict,
}
_COMPILED = Path(__file__).parents[1] / "pipelines" / "compiled"
_MEASURING = ("training", "evaluate", "recurring")
_NAMESPACE = "wukong"  # where an installation makes RayJobs
_OURS = {"experiment", "run", "source"}  # parameters that are made here

HOST = "http://localhost:8080"
"""The address of KFP behind a port-forward of its UI."""
HOST_VARIABLE, TOKEN_VARIABLE, NAMESPACE_VARIABLE = "WUKONG_KFP_HOST", "WUKONG_KFP_TOKEN", "WUKONG_KFP_NAMESPACE"


@dataclass(frozen=True)
class Submission:
    """What to submit, where and how. Each field is an option of ``wukong submit``, whose help says what it is."""

    pipeline: Annotated[
        str, typer.Argument(help="training, data, evaluate or recurring; or a compiled pipeline's file.")
    ] = "training"
    config: ConfigOption = DEMO
    overrides: SetOption = None
    params: Annotated[
        list[str] | None,
        typer.Option("--param", metavar="NAME=VALUE", help="A parameter of the pipeline, e.g. gpus_per_worker=1."),
    ] = None
    host: Annotated[
        str | None, typer.Option(envvar=HOST_VARIABLE, help="Address of Kubeflow Pipelines.", show_default=HOST)
    ] = None
    token: Annotated[
        str | None, typer.Option(envvar=TOKEN_VARIABLE, help="Bearer token, where the address asks for one.")
    ] = None
    namespace: Annotated[
        str | None, typer.Option(envvar=NAMESPACE_VARIABLE, help="Your namespace, in multi-user mode.")
    ] = None
    group: Annotated[
        str | None, typer.Option("--experiment", help="KFP experiment of the run; by default the experiment's name.")
    ] = None
    name: Annotated[str | None, typer.Option("--name", help="Name of the run; by default experiment and time.")] = None
    every: Annotated[
        str | None,
        typer.Option("--every", help="Make the run recurring: 30m, 12h, 7d, or a cron expression of six fields."),
    ] = None
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the run's end and say how it ended.")] = True
    timeout: Annotated[float, typer.Option(min=1, help="Hours to wait; the run itself goes on.")] = 168.0
    pinned: Annotated[
        bool,
        typer.Option(
            "--pinned",
            help="Refuse a config that is not committed as it is, and a pipeline whose images are not named by digest.",
        ),
    ] = False


def parameters(file: Path, experiment: Experiment, run: str, given: Sequence[str]) -> dict[str, Any]:
    """Make the parameters of a run of a compiled pipeline.

    Args:
        file: the compiled pipeline.
        experiment: for the parameter ``experiment``, which gets what its file and ``--set`` have set.
        run: for the parameter ``run``.
        given: ``name=value`` entries, whose values are YAML.

    Raises:
        ConfigError: the pipeline has no such parameter, the value is of another type, one it needs is missing, or they
            make no valid experiment.
    """
    known = parameters_of(file)
    made: dict[str, Any] = {
        "experiment": experiment.model_dump(mode="json", exclude_unset=True),
        "run": run,
    }
    for entry in given:
        name, separator, text = entry.partition("=")
        if not separator:
            raise ConfigError(f"--param {entry!r}: write it as name=value, for instance epochs=3")
        if name not in known or name in _OURS:
            others = ", ".join(sorted(known.keys() - _OURS))
            raise ConfigError(f"--param {entry!r}: the {file.stem} pipeline has the parameters {others}")
        kind = known[name]["parameterType"]
        value = text if kind == "STRING" else yaml.safe_load(text)
        if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "BOOLEAN"):
            raise ConfigError(f"--param {entry!r}: {name} is a {kind.lower().replace('_', ' ')}")
        made[name] = value
    missing = [name for name, definition in known.items() if name not in made and "defaultValue" not in definition]
    if missing:
        raise ConfigError(f"the {file.stem} pipeline needs --param {missing[0]}=…: {known[missing[0]]['description']}")
    asked_for(made)  # as the first component does
    return made


def asked_for(values: Mapping[str, Any]) -> Experiment:
    """Return the experiment that a run with these parameters does.

    Raises:
        ConfigError: it is not valid.
    """
    return Parameters(**{name: value for name, value in values.items() if name in IN_FORM}).changed_experiment()


@dataclass(frozen=True)
class Prepared:
    """What is to be submitted, after it was checked.

    Attributes:
        asked: as it was asked for.
        file: the compiled pipeline.
        run: name of the run.
        values: the pipeline's parameters.
        experiment: that the run does.
        source: which revisions are submitted.
        images: names of the images that the pipeline has.
    """

    asked: Submission
    file: Path
    run: str
    values: Mapping[str, Any]
    experiment: Experiment
    source: Source
    images: tuple[str, ...]

    @property
    def measures(self) -> bool:
        """Whether the pipeline evaluates a model."""
        return self.file.stem in _MEASURING

    def result(self, outcome: Outcome, error: str | None = None, group: str | None = None) -> Result:
        """Return what is known of the run, with an outcome."""
        return Result(
            outcome=outcome,
            error=error,
            run=self.run,
            group=group,
            experiment=self.experiment.name,
            source=self.source,
            images=self.images,
        )

    def connect(self) -> Pipelines:
        """Connect to the Kubeflow Pipelines that was asked for, or else that of the variables.

        Raises:
            ConfigError: the token's file cannot be read.
            SubmitError: nothing answers there, or it refuses.
        """
        asked = self.asked
        return Pipelines(
            asked.host or os.environ.get(HOST_VARIABLE) or HOST,
            asked.token or os.environ.get(TOKEN_VARIABLE),
            asked.namespace or os.environ.get(NAMESPACE_VARIABLE),
        )


def prepare(asked: Submission, experiment: Experiment | None = None) -> Prepared:
    """Check what is to be submitted; the arguments are those of ``submit``.

    Raises:
        ConfigError: there is no such pipeline or parameter, the experiment is not valid, or it is not pinned.
    """
    file = Path(asked.pipeline) if asked.pipeline.endswith(".yaml") else _COMPILED / f"{asked.pipeline}.yaml"
    if not file.exists():
        known = ", ".join(sorted(entry.stem for entry in _COMPILED.glob("*.yaml")))
        raise ConfigError(
            f"there is no pipeline {asked.pipeline!r}: use one of {known}, or the path of a compiled file"
        )
    if experiment is not None:
        source = Source(code=origin.own_revision())
    else:
        overrides = list(asked.overrides or ())
        experiment, source = documents.load(asked.config, overrides), origin.of_file(asked.config, overrides)
    run = asked.name or f"{experiment.name}-{datetime.now():%Y%m%d-%H%M%S}"
    preflight.check_name(experiment, run)
    preflight.check_stages(experiment, ("evaluate",) if file.stem in _MEASURING else ())
    # Recurring runs take KFP's names, because each needs its own records and jobs.
    given = asked.params or ()
    values = parameters(file, experiment, "" if asked.every else run, given)
    changed = asked_for(values)
    made = {"pipeline": file.stem, "version": version_of(file), "params": tuple(given)}
    source = source.model_copy(update={**made, "digest": origin.digest_of_experiment(changed)})
    if "source" in parameters_of(file):
        values["source"] = source.model_dump_json(exclude_defaults=True)
    images = images_of(file)
    if asked.pinned:
        _refuse_unpinned(source, images)
    return Prepared(asked, file, run, values, changed, source, images)


def submit(
    asked: Submission,
    experiment: Experiment | None = None,
    *,
    records: bool = True,
    on_start: Callable[[Submitted], None] = lambda _: None,
    on_change: Callable[[str], None] = lambda _: None,
) -> Result:
    """Upload a pipeline, start a run of it or make a recurring run, and wait for the run's end.

    Args:
        asked: what to submit, as the options of ``wukong submit`` say it.
        experiment: what to submit in the place of the experiment's file, of which no revision is known then.
        records: whether to read what the run left in its storage, which must then be reached from here. One that is
            away is waited for as stages wait, ``WUKONG_STORE_PATIENCE`` seconds.
        on_start: called when the run has begun, or the recurring run was made.
        on_change: called with a line for a person when something has changed.

    Returns:
        What became of it, also where it did not succeed; ``Result.check`` makes an error of that.

    Raises:
        ConfigError: it is not valid; nothing was submitted.
        SubmitError: KFP cannot be reached or refuses; no run was begun.
    """
    prepared = prepare(asked, experiment)
    return submit_prepared(prepared, prepared.connect(), records=records, on_start=on_start, on_change=on_change)


def submit_prepared(
    prepared: Prepared,
    api: Pipelines,
    *,
    records: bool,
    on_start: Callable[[Submitted], None],
    on_change: Callable[[str], None],
) -> Result:
    """Submit what was prepared; arguments, result and errors are those of ``submit``."""
    asked = prepared.asked
    version, group = api.upload(prepared.file), asked.group or prepared.experiment.name
    result = prepared.result(Outcome.SCHEDULED if asked.every else Outcome.SUBMITTED, group=group)
    try:
        if asked.every:
            begun = api.schedule(group, prepared.run, version, prepared.values, asked.every)
        else:
            begun = api.start(group, prepared.run, version, prepared.values)
    except RunError as raised:
        return result.model_copy(update={"outcome": raised.outcome, "error": str(raised)})
    on_start(begun)
    result = result.model_copy(update={"id": begun.identity, "url": begun.url})
    if asked.every or not asked.wait:
        return result
    progress = StageProgress(cluster_of(api.namespace), prepared.experiment.name, prepared.run)
    outcome, error = Outcome.SUCCEEDED, None
    try:
        titles = titles_of(prepared.file)
        seen = api.wait(begun, on_change, asked.timeout * 3600, progress=progress.now, titles=titles)
    except RunError as raised:
        outcome, error, seen = raised.outcome, str(raised), raised.seen
    known = {"outcome": outcome, "error": error, "state": seen.state or None, "stages": stages_of(seen)}
    result = result.model_copy(update=known)
    return with_records(result, prepared.experiment) if records else result


def cluster_of(namespace: str | None) -> str:
    """Return the namespace of a user's RayJobs."""
    return namespace or os.environ.get("WUKONG_CLUSTER") or _NAMESPACE


def _refuse_unpinned(source: Source, images: Sequence[str]) -> None:
    """Refuse a config that no revision holds as it is, and images that are not named by their digests.

    Raises:
        ConfigError: there is such a thing; the message names all.
    """
    problems = []
    if not source.revision:
        problems.append("the config is in no revision of a git repository")
    elif source.dirty:
        problems.append("the config's repository has changes, or lacks the config: commit them")
    problems += [
        f"the pipeline has the image {image} without a digest: docs/cluster.md, 'Images', pins it"
        for image in images
        if "@sha256:" not in image
    ]
    if problems:
        raise ConfigError("\n  ".join(["--pinned: it is not bound to what it was made of:", *problems]))
