"""Submit a pipeline to Kubeflow Pipelines, from Python: ``submit`` uploads it, starts a run, and waits for its end.

``wukong submit`` (``cli.submit_command``) prints what this does.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from cli.compiled_pipeline import images_of, parameters_of, titles_of, version_of
from cli.kfp_api import Pipelines, Submitted
from cli.run_result import Outcome, Result, RunError, stages_of, with_records
from cli.stage_progress import StageProgress
from components import run_ends
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
_HOST, _TOKEN, _USERS_NAMESPACE = "WUKONG_KFP_HOST", "WUKONG_KFP_TOKEN", "WUKONG_KFP_NAMESPACE"


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
    numbers = {name: values[name] for name in run_ends.NUMBERS if name in values}
    model = values.get("model", "")
    return run_ends.experiment_of(values["experiment"], values.get("overrides", []), numbers, model)


@dataclass(frozen=True)
class Prepared:
    """What is to be submitted, after it was checked.

    Attributes:
        file: the compiled pipeline.
        run: name of the run.
        values: the pipeline's parameters.
        experiment: that the run does.
        source: which revisions are submitted.
        images: names of the images that the pipeline has.
    """

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


def prepare(
    pipeline: str,
    config: Path | Experiment,
    *,
    overrides: Sequence[str] = (),
    given: Sequence[str] = (),
    name: str | None = None,
    recurs: bool = False,
    pinned: bool = False,
) -> Prepared:
    """Check what is to be submitted; the arguments are those of ``submit``.

    Raises:
        ConfigError: there is no such pipeline or parameter, the experiment is not valid, or it is not pinned.
    """
    file = Path(pipeline) if pipeline.endswith(".yaml") else _COMPILED / f"{pipeline}.yaml"
    if not file.exists():
        known = ", ".join(sorted(entry.stem for entry in _COMPILED.glob("*.yaml")))
        raise ConfigError(f"there is no pipeline {pipeline!r}: use one of {known}, or the path of a compiled file")
    if isinstance(config, Experiment):
        experiment, source = config, Source(code=origin.own_revision())
    else:
        experiment, source = documents.load(config, list(overrides)), origin.of_file(config, overrides)
    run = name or f"{experiment.name}-{datetime.now():%Y%m%d-%H%M%S}"
    preflight.check_name(experiment, run)
    preflight.check_stages(experiment, ("evaluate",) if file.stem in _MEASURING else ())
    # Recurring runs take KFP's names, because each needs its own records and jobs.
    values = parameters(file, experiment, "" if recurs else run, given)
    asked = asked_for(values)
    made = {"pipeline": file.stem, "version": version_of(file), "params": tuple(given)}
    source = source.model_copy(update={**made, "digest": origin.digest_of_experiment(asked)})
    if "source" in parameters_of(file):
        values["source"] = source.model_dump_json(exclude_defaults=True)
    images = images_of(file)
    if pinned:
        _refuse_unpinned(source, images)
    return Prepared(file, run, values, asked, source, images)


def submit(
    pipeline: str,
    config: Path | Experiment,
    *,
    overrides: Sequence[str] = (),
    params: Mapping[str, Any] | None = None,
    host: str | None = None,
    token: str | None = None,
    namespace: str | None = None,
    group: str | None = None,
    name: str | None = None,
    every: str | None = None,
    pinned: bool = False,
    timeout: float = 7 * 86_400,
    records: bool = True,
    on_start: Callable[[Submitted], None] = lambda _: None,
    on_change: Callable[[str], None] = lambda _: None,
) -> Result:
    """Upload a pipeline, start a run of it or make a recurring run, and wait for the run's end.

    Args:
        pipeline: a name of ``pipelines/compiled``, or the path of a compiled pipeline.
        config: an experiment's file, with whose repository's revision the run is recorded; or the experiment itself.
        overrides: ``key.path=value`` entries that change the file's experiment.
        params: further parameters of the pipeline.
        host: address of KFP; None for that of ``WUKONG_KFP_HOST``, or http://localhost:8080.
        token: a bearer token; None for that of ``WUKONG_KFP_TOKEN``, or that in the file that
            ``KF_PIPELINES_SA_TOKEN_PATH`` names, if there is one.
        namespace: the user's, in multi-user mode; None for that of ``WUKONG_KFP_NAMESPACE``, if there is one.
        group: KFP's experiment, which is made if it does not exist; None for the experiment's name.
        name: the name of the run; None for the experiment's name and the time.
        every: see ``Pipelines.schedule``; None to start one run now.
        pinned: refuse what is not bound to a revision and to digests: see ``wukong submit --pinned``.
        timeout: seconds to wait for the run's end; 0 not to wait. The run itself goes on.
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
    given = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in (params or {}).items()]
    prepared = prepare(
        pipeline, config, overrides=overrides, given=given, name=name, recurs=every is not None, pinned=pinned
    )
    return submit_prepared(
        prepared,
        Pipelines(
            host or os.environ.get(_HOST) or HOST,
            token or os.environ.get(_TOKEN),
            namespace or os.environ.get(_USERS_NAMESPACE),
        ),
        group=group,
        every=every,
        timeout=timeout,
        records=records,
        on_start=on_start,
        on_change=on_change,
    )


def submit_prepared(
    prepared: Prepared,
    api: Pipelines,
    *,
    group: str | None,
    every: str | None,
    timeout: float,
    records: bool,
    on_start: Callable[[Submitted], None],
    on_change: Callable[[str], None],
) -> Result:
    """Submit what was prepared; arguments, result and errors are those of ``submit``."""
    version, group = api.upload(prepared.file), group or prepared.experiment.name
    result = Result(
        outcome=Outcome.SCHEDULED if every else Outcome.SUBMITTED,
        run=prepared.run,
        group=group,
        experiment=prepared.experiment.name,
        source=prepared.source,
        images=prepared.images,
    )
    try:
        if every:
            begun = api.schedule(group, prepared.run, version, prepared.values, every)
        else:
            begun = api.start(group, prepared.run, version, prepared.values)
    except RunError as raised:
        return result.model_copy(update={"outcome": raised.outcome, "error": str(raised)})
    on_start(begun)
    result = result.model_copy(update={"id": begun.identity, "url": begun.url})
    if every or not timeout:
        return result
    progress = StageProgress(cluster_of(api.namespace), prepared.experiment.name, prepared.run)
    outcome, error = Outcome.SUCCEEDED, None
    try:
        titles = titles_of(prepared.file)
        seen = api.wait(begun, on_change, timeout, progress=progress.now, titles=titles)
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
