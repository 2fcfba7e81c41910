"""``wukong sweep``: train an experiment with several settings and compare the results."""

import itertools
import json
import math
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Annotated, cast

import typer

from cli import own_data
from ray_jobs.trials import STAGES
from wukong import stages
from wukong.commands.compare import keep_page, print_comparison
from wukong.commands.output import Console, echo, print_data
from wukong.config import stored
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError, WukongError
from wukong.registry import choices, comparison
from wukong.registry.over_seeds import SEED
from wukong.registry.sweep import Result, Sweep, Trial, by_configuration, load, mean_of, run
from wukong.runs import run_records
from wukong.runtime import environment
from wukong.runtime.cancel import ENDS_WITH, end_on_signal
from wukong.runtime.language import _, ngettext, translated
from wukong.stages import places, start
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest
from wukong.tracking import availability, mlflow_runs
from wukong.tracking.mlflow_rest import Run, Server

_GRACE = 6.0  # seconds that a worker has to end its job and its runs


class SweepError(WukongError):
    """Trials of a sweep failed; the message has their errors."""


def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The sweep, a YAML file; docs/comparing.md shows one.")],
    parallel: Annotated[
        int, typer.Option("--parallel", min=1, help="Trials that run side by side, of those chosen at once.")
    ] = 1,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write the page to a file.")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="FOLDER_OR_LIST",
            help="The pictures that `wukong run --data` was given; the sweep's `experiment` is then what --config was.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the first trials and what is finished.")] = False,
) -> None:
    """Train an experiment with several settings or seeds, on one cache of features, and compare the results.

    The data must be there: `wukong run` with the same experiment makes them. A sweep that was killed goes on when it is
    started again; what is finished is not trained twice. It ends in a page that compares all trials with the best one,
    in MLflow's run of the sweep. Example:

        wukong sweep configs/sweeps/demo.yaml

        wukong sweep my-sweep.yaml --data ~/pictures
    """
    settings, base = load(file, partial(own_data.experiment_of, data) if data else None)
    makes_pairs = ["wukong", "run"]
    makes_pairs += ["--data", data] if data else []
    makes_pairs += ["--config", str(file.parent / settings.experiment)] if settings.experiment else []
    with end_on_signal():
        _connect(base)
        base = start.as_it_begins(base, stages.needed_for("validate"))
        filtered = _data(base, shlex.join(makes_pairs))
        if dry_run:
            run(settings, base, lambda trials: _print_plan(trials, filtered))
            return
        _run(settings, base, filtered, parallel, html)


def _connect(base: Experiment) -> None:
    """Set the variables of this machine's stack where none name another one."""
    environment.use_for("models:/")
    if base.storage.startswith("s3://"):
        environment.use_for("s3://")


def _data(base: Experiment, makes: str) -> Manifest:
    """Return the filtered pairs, which a command makes."""
    crawled = run_records.latest(base, "crawl")
    filtered = places.filtering(base, manifest.load(crawled.uri)).finished() if crawled else None
    if crawled is None or filtered is None or places.validation(base, filtered).finished() is None:
        raise ConfigError(
            f"no run of {base.name} has filtered pairs that passed the gate for this experiment at "
            f"{base.root}: `{makes}` makes them once, for all sweeps{run_records.of_other_images(base)}"
        )
    echo(f"Trains on {filtered.uri}, of the crawl of the run {crawled.run} on {base.crawl.endpoint}", err=True)
    return filtered


def _run(settings: Sweep, base: Experiment, filtered: Manifest, parallel: int, html: Path | None) -> None:
    console = Console(file=sys.stdout)
    metric = settings.metric or base.registry.metric
    tracked = _Tracked(settings, base) if availability.enabled() else None
    if tracked is None:
        console.print("MLFLOW_TRACKING_URI is not set: the sweep is not tracked", style="yellow")
    with ExitStack() as ends:
        log = ends.enter_context(_log_file(settings).open("a", encoding="utf-8"))
        workers = _Workers(filtered, parallel, log)
        ends.callback(workers.close)

        def execute(trials: Sequence[Trial]) -> list[Result]:
            waiting, ended = [], []
            for trial in _begun(trials):
                run_records.claim(trial.experiment, trial.run)
                known = _recorded(trial, filtered)
                if (tracked is None or tracked.begin(trial)) and known:
                    ended.append((trial, {"run": trial.run, "manifest": known, "error": ""}))
                else:
                    waiting.append(trial)
            results = []
            for trial, answer in itertools.chain(ended, workers.work(waiting, filtered)):
                result = _result(settings, trial, answer, metric)
                if tracked is not None:
                    tracked.open.pop(trial.run, None)
                shown = f"{result.value:.4f}" if result.value is not None else translated(_("failed"))
                values = " ".join(f"{key}={value}" for key, value in trial.values.items())
                console.out(f"{trial.run}  {values}  {shown}", highlight=False)
                if result.error and tracked is not None:
                    mlflow_runs.end_open_runs(trial.experiment, trial.run, "FAILED")
                results.append(result)
            return sorted(results, key=lambda result: result.trial.number)

        try:
            results = run(settings, base, execute)
        except BaseException as error:
            if tracked is not None:
                tracked.end("FAILED" if isinstance(error, Exception) else "KILLED")
            raise
    ranked = by_configuration(results)
    failed = [result for result in results if result.error]
    if ranked:
        console.print(_best(ranked, metric), highlight=False, soft_wrap=True)
    if tracked is not None:
        if ranked:
            tracked.finish(console, ranked, metric, html)
        tracked.end("FAILED" if failed else "FINISHED")
    if failed:
        lines = "\n".join(f"  {result.trial.run}: {result.error}" for result in failed)
        raise SweepError(f"{len(failed)} of {len(results)} trials failed; another start repeats them:\n{lines}")


def _best(ranked: Sequence[Sequence[Result]], metric: str) -> str:
    """Say which configuration is the best, and its value or its mean over seeds."""
    top = ranked[0]
    values = ", ".join(f"{key} = {value}" for key, value in top[0].trial.values.items() if key != SEED)
    said = f"{metric} {mean_of(top):.4f}"
    if SEED in top[0].trial.values:
        seeds = ngettext("{said}, the mean of {count} seed", "{said}, the mean of {count} seeds", len(top))
        mean = seeds.format(said=said, count=len(top))
        return _("Best: {values}: {mean}").format(values=values, mean=mean) if values else mean
    return _("Best: {run} with {values}: {said}").format(run=top[0].trial.run, values=values, said=said)


def _result(settings: Sweep, trial: Trial, answer: dict[str, str], metric: str) -> Result:
    if answer["error"]:
        return Result(trial, None, answer["error"])
    evaluated = manifest.load(answer["manifest"])
    measured = evaluated.metrics
    if metric not in measured:
        known = ", ".join(sorted(measured))
        return Result(trial, None, f"metric {metric!r} was not measured; measured were {known}")
    if not math.isfinite(measured[metric]):
        return Result(trial, None, f"metric {metric!r} is {measured[metric]}, which is no result")
    choices.record_trial(trial.experiment.root, settings.name, metric, trial.run, evaluated)
    return Result(trial, measured[metric])


def _log_file(settings: Sweep) -> Path:
    path = environment.make(environment.home()) / "sweeps" / f"{settings.name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _print_plan(trials: Sequence[Trial], filtered: Manifest) -> list[Result]:
    """Print what a batch would do; a search's later batches depend on results, so it is asked for with none."""
    for trial in _begun(trials):
        state = translated(_("finished") if _finished(trial, filtered) else _("to do"))
        values = " ".join(f"{key}={value}" for key, value in trial.values.items())
        print_data(f"{trial.run}  {values}  {state}")
    return [Result(trial, None) for trial in trials]


def _begun(trials: Sequence[Trial]) -> list[Trial]:
    """Return trials as they begin; what their models' addresses hold is looked at here, for a trial may set them."""
    return [replace(trial, experiment=start.as_it_begins(trial.experiment, STAGES)) for trial in trials]


def _recorded(trial: Trial, filtered: Manifest) -> str:
    """Return the URI of the manifest that a trial's run has recorded, if the trial has finished; else an empty text."""
    record = run_records.read(trial.experiment, trial.run, STAGES[-1])
    finished = _finished(trial, filtered) if record and record.manifest else None
    same = (
        finished is not None and record is not None and record.manifest == storage.join(finished.uri, "manifest.json")
    )
    return record.manifest if record and same else ""


def _finished(trial: Trial, filtered: Manifest) -> Manifest | None:
    """Return the manifest of a trial's evaluation if it has finished."""
    made = {"filter": filtered}
    for stage in STAGES:
        if (found := places.finished(stage, trial.experiment, made)) is None:
            return None
        made[stage] = found
    return made["evaluate"]


class _Tracked:
    """The sweep's run in MLflow, with a nested run for each trial."""

    def __init__(self, settings: Sweep, base: Experiment) -> None:
        self._server = Server()
        self._run: Run = mlflow_runs.sweep_run(self._server, base, settings.name, settings.model_dump(mode="json"))
        self._trials: dict[str, Run] = {}
        self.open: dict[str, Trial] = {}

    def begin(self, trial: Trial) -> bool:
        """Open the run of a trial below the sweep's, unless it is there; return whether it has finished."""
        tracked = mlflow_runs.trial_run(self._server, self._run, trial.experiment, trial.run)
        self._trials[trial.run], self.open[trial.run] = tracked, trial
        return tracked.status == "FINISHED"

    def end(self, status: str) -> None:
        """End the sweep's run, and the runs of trials that have not ended."""
        for trial in self.open.values():
            mlflow_runs.end_open_runs(trial.experiment, trial.run, status)
        self._server.end(self._run.run_id, status)

    def finish(self, console: Console, ranked: Sequence[Sequence[Result]], metric: str, html: Path | None) -> None:
        """Compare all trials with the best configuration, print it and log its page to the sweep's run."""
        first = ranked[0][0].trial
        values = {key: value for key, value in first.values.items() if key != SEED}
        mlflow_runs.log_best(self._server, self._run, first.run, metric, mean_of(ranked[0]), values)
        ordered = list(itertools.chain.from_iterable(ranked))
        if len(ordered) < 2:
            return
        runs = [self._server.run(self._trials[result.trial.run].run_id) for result in ordered]
        document = comparison.compare(comparison.read(self._server, runs))
        print_comparison(console, document)
        keep_page(self._server, self._run, document, html)


@dataclass
class _Worker:
    process: "subprocess.Popen[str]"
    asked: IO[str]
    answers: IO[str]
    log: str

    def __call__(self, trial: Trial) -> dict[str, str]:
        """Run a trial and return the worker's answer."""
        try:
            print(trial.run, stored.store(trial.experiment), file=self.asked, flush=True)
            while answer := self.answers.readline():
                if answer.startswith('{"run": '):  # a library may write there too
                    return dict(json.loads(answer))
        except OSError:
            pass  # it has ended
        status = self.wait()
        ended = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        error = f"its process {ended}, {self.log} may say why; start the sweep again"
        return {"run": trial.run, "manifest": "", "error": error}

    def wait(self) -> int:
        """Wait until the process has ended, kill it if that takes long, and return its status."""
        try:
            return self.process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class _Workers:
    """Processes that run trials, one trial after the other; they are started when the first trial needs them."""

    def __init__(self, filtered: Manifest, count: int, log: IO[str]) -> None:
        self._data = storage.join(filtered.uri, "manifest.json")
        self._count = count
        self._log = log
        self._workers: list[_Worker] = []
        self._caches: set[str] = set()

    def work(self, trials: Sequence[Trial], filtered: Manifest) -> Iterator[tuple[Trial, dict[str, str]]]:
        """Yield the trials with their answers, as they end. The first trial of each cache of features runs alone."""
        waiting: list[Trial] = []
        for trial in trials:
            key = places.features(trial.experiment, filtered).key
            if self._count > 1 and key in self._caches:
                waiting.append(trial)
                continue
            self._caches.add(key)
            yield trial, self._worker(0)(trial)
        pending: SimpleQueue[Trial] = SimpleQueue()
        done: SimpleQueue[tuple[Trial, dict[str, str]]] = SimpleQueue()
        for trial in waiting:
            pending.put(trial)

        def serve(number: int) -> None:
            with suppress(Empty):
                while True:
                    trial = pending.get_nowait()
                    done.put((trial, self._worker(number)(trial)))

        several = range(min(self._count, len(waiting)))
        for number in several:
            self._worker(number)  # all are in the list before threads replace one that was killed
        for number in several:
            threading.Thread(target=serve, args=(number,), daemon=True).start()
        for _trial in waiting:
            yield done.get()

    def close(self) -> None:
        """End the workers: in order, or by killing."""
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.wait()

    def _worker(self, number: int) -> _Worker:
        """Return a worker that is alive; one that was killed is started anew."""
        while len(self._workers) <= number:
            self._workers.append(self._start())
        if self._workers[number].process.poll() is not None:
            self._workers[number] = self._start()
        return self._workers[number]

    def _start(self) -> _Worker:
        variables = {**os.environ, ENDS_WITH: str(os.getpid())}
        command = [sys.executable, "-m", "ray_jobs.trials", "--data", self._data]
        process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=variables
        )
        return _Worker(process, cast("IO[str]", process.stdin), cast("IO[str]", process.stdout), self._log.name)
