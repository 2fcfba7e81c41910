"""``wukong reproduce``: do a run again, apart from it, and compare each stage's output."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from cli.own_code import check_out
from ray_jobs.launch import launch
from wukong import stages
from wukong.commands.output import Console, JsonOption, Table, print_json
from wukong.commands.runs import STORAGE, StorageOption
from wukong.errors import DataError
from wukong.runs import reproduction
from wukong.runs import run as runs
from wukong.runs.reproduction import Compared
from wukong.runs.run import Run
from wukong.runtime import environment
from wukong.runtime.cancel import end_on_signal
from wukong.runtime.language import _, translated
from wukong.stages import start
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest


def reproduce(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's name.")],
    into: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where it is done; by default a new folder in the stack's home. What is finished there is not done "
            "again.",
        ),
    ] = None,
    from_crawl: Annotated[
        bool, typer.Option("--from-crawl", help="Crawl again too; by default the run's crawl is taken.")
    ] = False,
    own_code: Annotated[
        bool,
        typer.Option(
            "--own-code",
            help="Check out the run's revision, install its packages if they are others, and do it by that code.",
        ),
    ] = False,
    place: StorageOption = STORAGE,
    as_json: JsonOption = False,
) -> None:
    """Do a run again from its own config, in a storage of its own, and compare the outputs, stage by stage.

    Nothing of the run is reused but its crawl: sites change. It ends with status 0 if all digests are equal, otherwise
    with 1 and what differs in the first stage. No model is registered, and nothing is tracked. Example:

        wukong reproduce demo-20261126-072750
    """
    environment.use_for(place)
    found = runs.find(run, place)
    experiment = found.experiment
    before = _outputs(found)
    began = f"{run}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    folder = into or environment.make(environment.home()) / "reproduced" / began
    if own_code:
        options = [*(["--from-crawl"] if from_crawl else []), *(["--json"] if as_json else [])]
        raise typer.Exit(_by_own_code(before, folder.resolve(), [run, "--storage", place, *options]))
    begun = start.as_it_begins(experiment, [name for name in stages.JOBS if from_crawl or name != "crawl"])
    again = begun.model_copy(update={"storage": storage.from_path(folder.resolve())})
    notes = Console(stderr=True, highlight=False, soft_wrap=True)
    for line in reproduction.circumstances(list(before.values())[-1].provenance, manifest.provenance()):
        notes.print(f"note: {line}", markup=False, style="yellow")
    notes.print(f"{run} is done again in {folder}; the jobs write to log.txt there", markup=False)
    compared = []
    made = {} if from_crawl else {"crawl": before["crawl"]}
    with end_on_signal():
        for stage in (name for name in before if name not in made):
            parents = [storage.join(made[parent].uri, "manifest.json") for parent in stages.of(stage).parents]
            with _output_in(folder / "log.txt"):
                made[stage] = launch(stage, again, run, parents)
            compared.append(reproduction.compare(before[stage], made[stage]))
            notes.out(f"{'=' if compared[-1].is_equal else '≠'} {stage}")
    if as_json:
        print_json({"run": run, "folder": str(folder), "stages": [asdict(each) for each in compared]})
    else:
        _print(Console(highlight=False, soft_wrap=True), compared)
    if not all(each.is_equal for each in compared):
        raise typer.Exit(1)


def _by_own_code(before: Mapping[str, Manifest], folder: Path, arguments: Sequence[str]) -> int:
    """Do this command by the code that made the run's last output; return its exit status."""
    code = folder / "code"
    python = check_out(str(list(before.values())[-1].provenance.get("revision", "unknown")), code)
    variables = {**os.environ, "PYTHONPATH": str(code), environment.HOME: str(environment.home())}
    command = [str(python), "-m", "cli.main", "reproduce", *arguments, "--into", str(folder)]
    return subprocess.run(command, cwd=code, env=variables, check=False).returncode  # noqa: S603 - this project's code


@contextmanager
def _output_in(file: Path) -> Iterator[None]:
    """Append to a file what this process and those that it starts write to standard output while the block lasts."""
    file.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with file.open("ab") as log:
            os.dup2(log.fileno(), 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _outputs(run: Run) -> dict[str, Manifest]:
    """Return the outputs of a run's jobs, by stage, in the order of the table of stages.

    Raises:
        DataError: the run has not finished them.
    """
    wanted = [name for name in stages.JOBS if stages.of(name).in_whole_run]
    if missing := [name for name in wanted if not run.output(name)]:
        raise DataError(
            f"the run {run.name} has not finished {', '.join(missing)}: only a finished run can be done again"
        )
    return {name: run.manifests[name] for name in wanted}


def _print(console: Console, compared: Sequence[Compared]) -> None:
    table = Table(_("stage"), _("there"), _("now"), "", box=None, pad_edge=False)
    for each in compared:
        table.add_row(
            each.stage, each.before[:16], each.now[:16], translated(_("equal") if each.is_equal else _("differs"))
        )
    console.print(table)
    first = next((each for each in compared if not each.is_equal), None)
    if first is None:
        console.print("Every output is the same, byte for byte.")
        return
    console.print(f"{first.stage} is the first that differs:")
    for line in first.why:
        console.print(f"  {line}", markup=False)
