"""Compare runs: the parameters that differ, and each metric's difference with its interval.

Runs are read from MLflow and from the records that they left. The first run is the baseline. Where two runs were
measured on the same data by the same protocol, and both stored their answers (``wukong.evaluate.answers``), differences
are paired. Where the gate had one run's model measured on the sets of the other, that evaluation is compared, as the
gate compared it. Without stored answers they are of two independent intervals, which are wider. Metrics of other data
or of another protocol are not compared.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from wukong.config.evaluators import EVALUATORS, HOLDOUTS
from wukong.errors import ConfigError, StorageError
from wukong.evaluate import answers, stored
from wukong.evaluate.results import DOCUMENT, HOLDOUT, role_of
from wukong.evaluate.stored import Evaluation
from wukong.registry import over_seeds
from wukong.runtime import environment
from wukong.runtime.language import _
from wukong.store import manifest, storage
from wukong.tracking import run_links, tags
from wukong.tracking.mlflow_rest import MlflowError, Run, Server
from wukong.tracking.tags import PARENT_TAG, RUN_TAG

if TYPE_CHECKING:
    from wukong.evaluate.answers import Scores
    from wukong.evaluate.interval import Interval

FORMAT = 1
_RUN_ID = re.compile(r"[0-9a-f]{32}")
_READERS = 8
_NO_SUCH_RESULT = _("not comparable: the first run has no such result")

Verdict: TypeAlias = Literal["baseline", "better", "worse", "noise", "incomparable", "missing"]


@dataclass(frozen=True)
class Measured:
    """A run of MLflow and its evaluation.

    Attributes:
        run: the run.
        evaluation: of its model on its sets.
        model: digest of the manifest of its model; empty where it has none.
        rival: the evaluation on its sets that the gate had made of the model that held the alias; empty if none was.
        rival_model: digest of the manifest of that model.
    """

    run: Run
    evaluation: Evaluation
    model: str = ""
    rival: Evaluation = field(default_factory=Evaluation)
    rival_model: str = ""


@dataclass(frozen=True)
class _Pair:
    """The evaluations of the first run and of another one that are compared; a note says if one is the gate's."""

    first: Evaluation
    other: Evaluation
    known: "dict[tuple[int, str], Scores | None]"
    note: str = ""

    @classmethod
    def of(cls, first: Measured, other: Measured, known: "dict[tuple[int, str], Scores | None]") -> "_Pair":
        if other.rival_model and other.rival_model == first.model:
            note = _("by the gate's evaluation of the model of {model_of} on the sets of {run}").format(
                model_of=first.run.name, run=other.run.name
            )
            return cls(other.rival, other.evaluation, known, note)
        if first.rival_model and first.rival_model == other.model:
            note = _("by the gate's evaluation of the model of {model_of} on the sets of {run}").format(
                model_of=other.run.name, run=first.run.name
            )
            return cls(first.evaluation, first.rival, known, note)
        return cls(first.evaluation, other.evaluation, known)

    def scores(self, name: str) -> "tuple[Scores | None, Scores | None]":
        """The answers of both on a task; each is read once for all pairs."""
        for each in (self.first, self.other):
            if (id(each), name) not in self.known:
                task = each.tasks().get(name)
                self.known[id(each), name] = each.scores(task) if task is not None else None
        return self.known[id(self.first), name], self.known[id(self.other), name]


def find(server: Server, names: Sequence[str]) -> list[Run]:
    """Find runs by name or by MLflow's ID; the ID of a stage's run stands for the run that it belongs to.

    Raises:
        ConfigError: there is no such run, several have the name, or a run is named twice.
    """
    experiments = [] if all(map(_RUN_ID.fullmatch, names)) else server.experiments()
    with ThreadPoolExecutor(_READERS) as pool:
        runs = list(pool.map(lambda name: _find(server, experiments, name), names))
    if len({run.run_id for run in runs}) != len(runs):
        raise ConfigError(f"a run is named twice in {' '.join(names)}: name different ones")
    return runs


def _find(server: Server, experiments: Sequence[str], name: str) -> Run:
    if _RUN_ID.fullmatch(name):
        return _by_id(server, name)
    if set(name) & set("'\"\\"):
        raise ConfigError(f"run {name!r}: a run's name has no quotes; `wukong compare` takes names or MLflow's IDs")
    runs = server.search_runs(experiments, f"attributes.run_name = '{name}'")
    own = [run for run in runs if not _is_stage(run)]
    if not own:
        raise ConfigError(f"MLflow at {server.address} has no run {name!r}: give the name of a run, or its ID")
    if len(own) > 1:
        known = [f"{run.run_id} of experiment {run.experiment_id}" for run in own]
        several = f"{len(own)} runs are named {name!r}: name the one that you mean by its ID:"
        raise ConfigError("\n  ".join([several, *known]))
    return own[0]


def _is_stage(run: Run) -> bool:
    """Whether a run is a stage of another one. A sweep's trials are nested too, and are whole runs."""
    return PARENT_TAG in run.tags and RUN_TAG not in run.tags


def _by_id(server: Server, run_id: str) -> Run:
    try:
        run = server.run(run_id)
        return server.run(run.tags[PARENT_TAG]) if _is_stage(run) else run
    except MlflowError as error:
        if error.code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise ConfigError(
            f"MLflow at {server.address} has no run with the ID {run_id}: `wukong compare` takes names too"
        ) from error


def read(server: Server, runs: Sequence[Run]) -> list[Measured]:
    """Read what the evaluations of some runs left.

    Raises:
        StorageError: the store cannot be read.
        DataError: an evaluation's file is damaged.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda run: _read(server, run), runs))


def _read(server: Server, run: Run) -> Measured:
    if RUN_TAG not in run.tags:  # an evaluation that was logged alone
        if (data := _file(server, run, DOCUMENT)) is None:
            return Measured(run, Evaluation())
        document = stored.check(json.loads(data), f"{DOCUMENT} of the run {run.name}")
        role = run.tags.get(tags.ROLE_TAG) or role_of(document)
        tables = {}
        for name in {task["task"] for task in document["tasks"] if task["model"] == role}:
            path = f"{answers.FOLDER}/{name}.parquet"
            if (data := _file(server, run, path)) is not None:
                tables[name] = stored.parse(data, f"{path} of the run {run.name}")
        return Measured(run, Evaluation(document, tables, role=role))
    if (folder := run_links.folder_of(run)) is None:
        raise StorageError(
            f"the run {run.name} ({run.run_id}) has no parameters `storage` and `name` in MLflow, which say where its "
            "data lie: it was logged by something else, or its first stage could not reach MLflow"
        )
    environment.use_for(folder)
    evaluation, model = _recorded(folder, "evaluate")
    return Measured(run, evaluation, model, *_recorded(folder, "champion"))


def _recorded(folder: str, record: str) -> tuple[Evaluation, str]:
    """Return the evaluation that a run's record names, and the digest of the measured model; empty if there is none."""
    uri = storage.join(folder, f"{record}.json")
    if not storage.exists(uri) or not (made := storage.read_json(uri)["manifest"]):
        return Evaluation(), ""
    models = [parent.digest for parent in manifest.load(made).parents if parent.stage == "finetune"]
    return stored.read(made), models[0] if models else ""


def _file(server: Server, run: Run, path: str) -> bytes | None:
    """Read a file of a run; None if there is none, or if the server does not pass files on."""
    try:
        return server.read_file(run, path)
    except MlflowError as error:
        if error.status not in (404, 501):
            raise
        return None


def compare(measured: Sequence[Measured]) -> dict[str, Any]:
    """Compare runs with the first of them.

    Args:
        measured: the runs; two at least.

    Returns:
        ``format``. ``baseline``: the first run's name. ``runs``: of each ``name``, ``run_id``, ``experiment_id``,
        ``model`` (its digest) and ``manifest``. ``parameters``: those that differ, each with a value for every run,
        None where a run has none. ``sets``: for the means over hold-outs and for each data set ``task``, ``title``,
        ``kind``, ``split``, ``digest``, ``protocol``, ``headline``, ``sizes``, and under ``results`` by name an entry
        for every run: ``value``, ``low``, ``high``, ``units``; ``difference`` from the baseline (``value``, ``low``,
        ``high``, ``level``, ``units``, ``paired``) or None; ``verdict``, a key of ``SIGNS``; ``note``, why there is no
        paired difference. Where runs differ in their seed alone: ``configurations``, each with ``name``, ``parameters``
        and by seed its ``runs``; and in each set under ``over_seeds`` by result an entry for each configuration, as
        ``wukong.registry.over_seeds`` makes them. Both are empty where no two runs do.

    Raises:
        ConfigError: there are fewer than two runs.
    """
    if len(measured) < 2:
        raise ConfigError("one run has nothing to be compared with: name two runs or more")
    known: dict[tuple[int, str], Scores | None] = {}
    pairs = [_Pair.of(measured[0], each, known) for each in measured]
    names = list(dict.fromkeys(task for each in pairs for task in each.other.tasks()))
    sets = [_compared(pairs, name) for name in names]
    asked = [(each.kind, result) for each in EVALUATORS.values() for result in each.means]
    means = [mean for each in asked if (mean := _means(pairs, *each)) is not None]
    grouped = over_seeds.configurations([each.run.params for each in measured])
    for each in [*means, *sets]:
        results = each["results"].items() if grouped else ()
        each["over_seeds"] = {result: over_seeds.entries(row, grouped) for result, row in results}
    return {
        "format": FORMAT,
        "baseline": measured[0].run.name,
        "runs": [
            {
                "name": each.run.name,
                "run_id": each.run.run_id,
                "experiment_id": each.run.experiment_id,
                "model": next(
                    (
                        model["digest"]
                        for model in each.evaluation.document.get("models", ())
                        if model["role"] == each.evaluation.role
                    ),
                    None,
                ),
                "manifest": each.evaluation.uri,
            }
            for each in measured
        ],
        "parameters": differing([each.run.params for each in measured]),
        "configurations": [
            {
                "name": each.name,
                "parameters": dict(each.parameters),
                "runs": {seed: measured[number].run.name for seed, number in each.runs.items()},
            }
            for each in grouped
        ],
        "sets": [*means, *sets],
    }


def differing(parameters: Sequence[Mapping[str, str]]) -> dict[str, list[str | None]]:
    """Return the parameters whose values are not the same in all runs, each with a value for every run."""
    keys = dict.fromkeys(key for each in parameters for key in each)
    values = {key: [each.get(key) for each in parameters] for key in keys}
    return {key: row for key, row in values.items() if len(set(row)) > 1}


def _compared(pairs: Sequence[_Pair], name: str) -> dict[str, Any]:
    """Compare the runs on one data set."""
    tasks, firsts = ([each.tasks().get(name) for each in side] for side in _sides(pairs))
    shown = firsts[0] or next(task for task in tasks if task is not None)
    notes = [_why_incomparable(first, task) for first, task in zip(firsts, tasks, strict=True)]
    scores = [(None, None) if why else pair.scores(name) for pair, why in zip(pairs, notes, strict=True)]
    paired = _paired(pairs, scores)
    results: dict[str, list[dict[str, Any]]] = {}
    for result in shown["results"]:
        row = []
        for n, task in enumerate(tasks):
            value = task["results"].get(result) if task else None
            if value is None:
                row.append(_entry(None, "missing", notes[n] or _("{result} was not measured").format(result=result)))
            elif n == 0:
                row.append(_entry(value, "baseline", notes[n]))
            elif notes[n]:
                row.append(_entry(value, "incomparable", notes[n]))
            elif result in paired[n]:
                row.append(_with(value, paired[n][result], paired=True, note=pairs[n].note))
            elif (first := firsts[n]) is None or result not in first["results"]:
                row.append(_entry(value, "incomparable", _NO_SUCH_RESULT))
            else:
                difference = _unpaired(baseline=first["results"][result], other=value)
                row.append(_with(value, difference, paired=False))
        results[result] = row
    about = ("task", "title", "kind", "split", "digest", "protocol", "headline", "sizes")
    return {**{key: shown[key] for key in about}, "results": results}


def _why_incomparable(first: Mapping[str, Any] | None, task: Mapping[str, Any] | None) -> str:
    if task is None:
        return _("not measured")
    if first is None:
        return _("not comparable: the first run was not measured on it")
    if first["digest"] != task["digest"]:
        return _("not comparable: other data ({digest} and {other})").format(
            digest=first["digest"][:8], other=task["digest"][:8]
        )
    if first["protocol"] != task["protocol"]:
        return _("not comparable: protocols {protocol} and {other}").format(
            protocol=first["protocol"], other=task["protocol"]
        )
    return ""


def _sides(pairs: Sequence[_Pair]) -> tuple[list[Evaluation], list[Evaluation]]:
    """Return what is compared, and what each of it is compared with."""
    return [pair.other for pair in pairs], [pair.first for pair in pairs]


_Answers: TypeAlias = Sequence["tuple[Scores | None, Scores | None]"]
"""Of each pair the answers of the first and of the other, or None where none are stored."""


def _paired(pairs: Sequence[_Pair], scores: _Answers) -> list[dict[str, "Interval"]]:
    """Return each run's paired differences from the first, by result; empty where there are none."""
    from wukong.evaluate.paired import differences

    intervals: list[dict[str, Interval]] = [{} for _ in pairs]
    together: dict[str, list[int]] = {}  # by what they are compared with
    for n, (pair, (first, other)) in enumerate(zip(pairs, scores, strict=True)):
        if n and first is not None and other is not None:
            together.setdefault(pair.note, []).append(n)
    for numbers in together.values():
        first, others = scores[numbers[0]][0], [other for n in numbers if (other := scores[n][1]) is not None]
        if first is not None:
            computed = differences(first, others)
            intervals = [computed[numbers.index(n)] if n in numbers else each for n, each in enumerate(intervals)]
    return intervals


def _means(pairs: Sequence[_Pair], kind: str, result: str) -> dict[str, Any] | None:
    """Compare the means of a result over hold-outs; None where the first run has fewer than two."""
    held, bases = (
        [
            [task for _, task in sorted(each.tasks().items()) if (task["kind"], task["split"]) == (kind, HOLDOUT)]
            for each in side
        ]
        for side in _sides(pairs)
    )
    if len(held[0]) < 2:
        return None
    scores: list[tuple[Scores | None, Scores | None]] = []
    notes = []
    for pair, tasks, base in zip(pairs, held, bases, strict=True):
        wanted, own = ([(t["task"], t["digest"], t["protocol"]) for t in each] for each in (base, tasks))
        parts = [pair.scores(task["task"]) for task in tasks] if own == wanted else []
        first, other = (
            answers.mean_of(there, result) if (there := [each for each in side if each is not None]) else None
            for side in (zip(*parts, strict=True) if parts and all(None not in part for part in parts) else ((), ()))
        )
        scores.append((first, other))
        notes.append("" if own == wanted else _("not comparable: other hold-outs") if tasks else _("not measured"))
    paired = _paired(pairs, scores)
    row = []
    for n, tasks in enumerate(held):
        known_of = [t["results"][result] for t in tasks]
        average = sum(one["value"] for one in known_of) / max(1, len(known_of))
        units = min((one["units"] for one in known_of), default=0)
        value = {"value": average, "low": None, "high": None, "units": units} if known_of else None
        if value is None:
            row.append(_entry(None, "missing", notes[n]))
        elif notes[n]:
            row.append(_entry(value, "incomparable", notes[n]))
        elif n == 0:
            row.append(_entry(value, "baseline"))
        elif result in paired[n]:
            row.append(_with(value, paired[n][result], paired=True, note=pairs[n].note))
        else:
            row.append(_entry(value, "incomparable", _("no interval: a run has stored no answers")))
    return {
        "task": HOLDOUTS,
        "title": _("All {count:,} hold-outs of {kind}").format(count=len(held[0]), kind=kind),
        "kind": kind,
        "split": HOLDOUT,
        "digest": "",
        "protocol": held[0][0]["protocol"],
        "headline": result,
        "sizes": {},
        "results": {result: row},
    }


def _unpaired(*, baseline: Mapping[str, Any], other: Mapping[str, Any]) -> "Interval":
    from wukong.evaluate.interval import Interval
    from wukong.evaluate.paired import unpaired

    return unpaired(baseline=Interval(**baseline), other=Interval(**other))


def _entry(value: Mapping[str, Any] | None, verdict: Verdict, note: str = "") -> dict[str, Any]:
    ends = {key: value[key] if value else None for key in ("value", "low", "high", "units")}
    return {**ends, "difference": None, "verdict": verdict, "note": note}


def _with(value: Mapping[str, Any], difference: "Interval", *, paired: bool, note: str = "") -> dict[str, Any]:
    verdict: Verdict = "better" if difference.low > 0 else "worse" if difference.high < 0 else "noise"
    if not math.isfinite(difference.low + difference.high):  # no comparison with NaN is true
        return _entry(value, "incomparable", _("not comparable: the difference is not a number"))
    note = note if paired else _("unpaired: a run has stored no answers")
    return _entry(value, verdict, note) | {"difference": {**asdict(difference), "paired": paired}}
