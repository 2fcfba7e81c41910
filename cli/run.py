"""``wukong run``: run the pipeline on this machine and show each stage."""

import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TextIO

from rich.markup import escape

from cli import begin, hold, own_data, summary
from cli.watch import Watch, waiting
from ray_jobs import plan
from wukong import stages
from wukong.commands.output import Console
from wukong.commands.runs import fetch_report
from wukong.config import stored
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError, WukongError
from wukong.runs import run_records
from wukong.runs.run import Run
from wukong.runtime import environment, events
from wukong.runtime.cancel import end_on_signal
from wukong.runtime.language import _
from wukong.stages import prices, start
from wukong.store import patience
from wukong.tracking import mlflow_runs, run_links

_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class RunError(WukongError):
    """A stage of the run failed; the message is that stage's own."""


def run_local(
    experiment: Experiment,
    name: str | None,
    corpus_size: int | None,
    retry_failed: bool = False,
    containers: bool = False,
    dry_run: bool = False,
) -> None:
    """Run the workflow with the embedded stack and print its summary.

    Args:
        experiment: the experiment.
        name: name of the run, or None for the experiment's name and the time.
        corpus_size: serve a fixed sample of the demo corpus of about this size, or None for all of it.
        retry_failed: crawl again what failed in this experiment's last crawl, and take the rest from that crawl.
        containers: run components and Ray in containers of their images, not as processes of this environment.
        dry_run: check everything and print the plan. Services that hold what is finished are started for it where they
            do not run, and stopped again; where there is no stack yet, a temporary folder is their home.

    Raises:
        ConfigError: before the first stage: the experiment cannot be run; the run's name belongs to another experiment;
            or nothing was crawled yet, so there is nothing to retry.
        RunError: a stage failed; the message is that stage's own.
        StackError: the embedded stack could not be started, or an image is missing.
    """
    from components.container_image import DATA_IMAGE
    from infra import containers as docker
    from infra import corpus, stack

    run = name or f"{experiment.name}-{datetime.now():%Y%m%d-%H%M%S}"
    begin.check_experiment(experiment, run, containers=containers)
    if containers:
        docker.check_images(DATA_IMAGE, docker.RAY_IMAGE)
    console = Console(file=sys.stdout)  # the present stream: during the run, sys.stdout is another
    started = time.monotonic()
    home = disk = environment.home()
    others = [] if environment.is_home(home) else environment.other_homes(home)
    with end_on_signal(), ExitStack() as ends:
        if dry_run:
            home = ends.enter_context(_looked_at(home))
        # An earlier run's home may hold all that this run would make: then neither Ray, the site nor torch is started.
        looks_first = environment.is_home(home) and not (containers or dry_run)
        with waiting(console) as tell, ExitStack() as checks:
            known_model = not experiment.pretrain.from_model  # else the registry of the stack may say which it is
            checked = (
                None if looks_first or not known_model else checks.enter_context(begin.model_being_checked(experiment))
            )
            demo = corpus.prepare(limit=corpus_size) if corpus.serves(experiment.crawl.endpoint) else None
            own = demo is not None and (corpus_size is not None or stack.serves_another(home, demo.catalogue))
            catalogue = demo.catalogue if demo and not own else None
            only = stack.LOOKED_AT if dry_run else stack.STORES if looks_first else None
            tell(_("Starting the services of the stack that do not run"))
            services = stack.up(home, catalogue, only=only, remember=not dry_run)
            variables = services.environment()
            os.environ.update(variables)
            experiment = start.as_it_begins(experiment)
            notes = [_of_other_homes(disk, others)] if others else []
            if demo is not None:
                experiment, of_demo = begin.on_the_demo(experiment, demo, of_sample=own)
                notes += of_demo
            if retry_failed:
                experiment = retrying(experiment, run)
                notes.append(f"--retry-failed goes on from {experiment.crawl.previous}")
            hold.check(home, run, experiment)  # before what takes long
            tell(_("Looking which stages have finished"))
            reused = looks_first and plan.finished_jobs(experiment) is not None
            if not reused:
                tell(_("Checking the model and the experiment's files"))
            if checked is None and not reused:
                checked = checks.enter_context(begin.model_being_checked(experiment))
                if looks_first:
                    services = stack.up(home, catalogue)
                    variables = services.environment()
            size = checked.result() if checked else None
        if demo is not None and own and not reused:
            address = ends.enter_context(stack.sample_site(services, demo.catalogue))
            variables["WUKONG_CONNECT_TO"] += f",{address}"  # of two entries for a host, the last counts
        os.environ.update(variables)
        notes += own_data.check(experiment)
        for note in notes:
            console.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True, markup=True)
        if size is not None:
            known = len(demo.entries) if demo else None
            planned = begin.check_and_plan(experiment, disk, size, known)
            if dry_run:
                begin.print_plan(console, experiment, planned, begin.free_at(experiment, disk), known)
                return
        for each in hold.killed(home):
            console.print(f"[yellow]note:[/] {escape(hold.explain(each))}", soft_wrap=True, markup=True)
        folder = ends.enter_context(hold.hold(home, run, experiment))
        ends.callback(shutil.rmtree, folder / "kfp", ignore_errors=True)
        # In the folder that KFP mounts into each component's container, at the same path.
        reader = ends.enter_context(events.received(folder / "kfp" / "events.jsonl"))
        inside = None
        if containers:
            head = ends.enter_context(docker.ray_head(variables, folder, reader.path.parent))
            charged = {name: os.environ[name] for name in (prices.VARIABLE, prices.CURRENCY) if name in os.environ}
            inside = variables | charged | {"RAY_ADDRESS": head, events.VARIABLE: str(reader.path)}
        log = ends.enter_context((folder / "log.txt").open("a", encoding="utf-8", buffering=1))
        ends.enter_context(Watch(console, reader).shown())
        patience.set_default(patience.STAGES)  # from here on nobody waits for an answer
        prepared = time.monotonic()
        with _ended_in_order(experiment, run, folder):
            _run_pipeline(stored.store(experiment), run, folder, log, inside)
        ended = time.monotonic()
    ended_run = Run.of(experiment, run)
    page = fetch_report(ended_run, folder)
    summary.print_run(console, ended_run, total=ended - prepared, setup=prepared - started)
    summary.print_verdict(console, ended_run)
    summary.print_pages(console, page, run_links.pages(experiment, run))
    summary.print_tables(console, experiment, run)
    console.print(_("The stack keeps running, so that you can look around; `wukong down` ends it."), style="dim")


def _of_other_homes(home: Path, others: Sequence[Path]) -> str:
    """Say that a run is the first of its home, although other homes have runs."""
    return (
        f"{home} is a new home, with a stack of its own, and sees no run of {', '.join(map(str, others))}; "
        f"WUKONG_HOME={others[0]} uses that one"
    )


@contextmanager
def _looked_at(home: Path) -> Iterator[Path]:
    """Give a dry run a home whose services it may start, and afterwards stop those that did not run before.

    Args:
        home: where a run's stack would be.

    Yields:
        This home, or a temporary one if no stack was started in it.
    """
    from infra import stack

    with ExitStack() as ends:
        if not environment.is_home(home):
            home = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="wukong-dry-run-")))
        if not any(running for _, running, _ in stack.status(home)):
            ends.callback(stack.down, home)
        yield home


def retrying(experiment: Experiment, run: str) -> Experiment:
    """Return the experiment with a crawl that takes over its last crawl and fetches again what failed there.

    A run of this name that did so before and now continues takes over the same crawl as before.

    Raises:
        ConfigError: nothing of this experiment was crawled yet.
    """
    begun = run_records.claimed(experiment, run)
    before = begun.experiment["crawl"] if begun else {}
    previous: str | None = before.get("previous") if before.get("retry_failed") else None
    if previous is None:
        if (newest := run_records.latest(experiment, "crawl")) is None:
            raise ConfigError(
                f"--retry-failed: no crawl of the experiment {experiment.name!r} has finished at {experiment.root} on "
                f"the images of {experiment.crawl.endpoint}, so there is nothing to try again; run it without the "
                "option first"
            )
        previous = newest.uri
    crawl = experiment.crawl.model_copy(update={"previous": previous, "retry_failed": True})
    return experiment.model_copy(update={"crawl": crawl})


def _run_pipeline(experiment: str, run: str, folder: Path, log: TextIO, containers: Mapping[str, str] | None) -> None:
    from pipelines import local

    if containers is None:
        local.run(stages.WHOLE_RUN, experiment, run, folder / "kfp", log)
        return
    from pipelines.training import training

    given = {"experiment": experiment, "run": run}
    local.run_in_containers(training, given, folder / "kfp", log, containers)


@contextmanager
def _ended_in_order(experiment: Experiment, run: str, folder: Path) -> Iterator[None]:
    """End the run's MLflow runs when the block is interrupted or fails, and say what happened and what goes on.

    Raises:
        RunError: a stage failed.
        SystemExit: a signal came.
    """
    from pipelines import local

    try:
        yield
    except SystemExit as error:
        mlflow_runs.end_open_runs(experiment, run, "KILLED")
        name = signal.Signals(_signal_of(error)).name
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            f"interrupted by {name}; its runs in MLflow are ended as KILLED. {hold.outlook(experiment, run)}",
            markup=False,
        )
        raise
    except local.PipelineError as error:
        mlflow_runs.end_open_runs(experiment, run, "FAILED")
        failed = [record for record in Run.of(experiment, run).records.values() if record.state == "failed"]
        log = folder / "log.txt"
        if failed:
            more = f"\n`wukong show {run} --failed` lists what it did not get."
            more = more if failed[0].stage == "crawl" else ""
            ended = RunError(f"the {failed[0].stage} stage failed: {failed[0].error}\nThe whole log: {log}{more}")
            written = failed[0].traceback
        else:
            ended = RunError(f"{error}\nThe whole log: {log}\nIts last lines:")
            written = _last_lines(log)
        if written:
            ended.add_note(written)
        raise ended from error


def _last_lines(log: Path) -> str:
    """The last thirty lines of a log that say something, without colours."""
    with log.open(encoding="utf-8", errors="replace") as lines:
        return "\n".join(deque(filter(None, (_ANSI.sub("", line).strip() for line in lines)), maxlen=30))


def _signal_of(ended: SystemExit) -> int:
    """The signal that ``cancel.end_on_signal`` has made this exit of."""
    return ended.code - 128 if isinstance(ended.code, int) and ended.code > 128 else signal.SIGTERM
