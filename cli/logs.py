"""``wukong logs``: what the stages of a run on this machine wrote, without what surrounds it."""

import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from wukong import stages
from wukong.commands.output import echo, print_data
from wukong.errors import ConfigError, DataError
from wukong.runtime import environment

RUN = "run"
"""Stands for the run itself beside the names of stages."""

_PAUSE = 0.5  # seconds
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_BEGINS = re.compile(r"([-|]) INFO \1 Executing task '([\w-]+)'")
_ENDS = re.compile(r"([-|]) INFO \1 Task '[\w-]+' finished")
_OWN = re.compile(r"\s*(\d\d:\d\d:\d\d \| |Traceback \(most recent call last\):)")
"""How a line begins that a job wrote. What follows belongs to it, up to a line of KFP."""
_OF_KFP = re.compile(r"\s*\[KFP Executor \S+ ([\d:]{8}),\d+ (\w+)\]: (.*)")
"""A line that a component wrote, or KFP itself."""
_STAGES = {entry.function.replace("_", "-"): entry.name for entry in stages.TABLE}
"""The stage of each task of KFP."""
_KFPS = ("Looking for component ", "Loading KFP component ", "Got executor_input:", "Wrote executor output file ")
"""How KFP's own lines begin."""


def logs(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="The run's name; by default the run that wrote last.")
    ] = None,
    stage: Annotated[
        str | None, typer.Argument(metavar="STAGE", help="Only this stage, or `run` for what no stage wrote.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is written until the run ends.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="Print the whole file, with what KFP writes.")] = False,
) -> None:
    """Print what the stages of a run on this machine logged.

    On a cluster the KFP UI shows the log of each step. Example:

        wukong logs demo-20261126-072750 pretrain
    """
    file = file_of(run)
    if everything and stage:
        raise ConfigError("--all prints the whole file: leave out STAGE, or --all")
    lines = lines_of(file, follow)
    if everything:
        for line in lines:
            print_data(_COLOUR.sub("", line), newline=False)
        return
    written = False
    names, last = (*stages.WHOLE_RUN, RUN), ""
    if stage is not None and stage not in names:
        raise ConfigError(f"STAGE is {stage!r}; it must be one of: {', '.join(names)}")
    for name, text in of_stages(lines):
        if stage in (None, name):
            if name != last and stage is None:
                print_data(f"{name}:")
            print_data(f"  {text}" if stage is None else text)
            last, written = name, True
    if not written:
        echo(f"Nothing of {stage or 'a stage'} is in {file}: it has not begun, or its output was reused.", err=True)


def file_of(run: str | None) -> Path:
    """Return the log of a run of this machine.

    Args:
        run: the run's name; None for the run that wrote last.

    Raises:
        DataError: no run of that name, or none at all, has a log in the home.
    """
    folder = environment.home() / "runs"
    logs = {file.parent.name: file for file in folder.glob("*/log.txt")}
    if run is None and logs:
        return max(logs.values(), key=lambda file: file.stat().st_mtime)
    if run in logs:
        return logs[run]
    known = ", ".join(sorted(logs)) or "none"
    raise DataError(
        f"{f'no run {run!r}' if run else 'no run'} has a log in {folder}; there are logs of: {known}. On a cluster the "
        f"logs are in the KFP UI, beside each step{environment.elsewhere()}"
    )


def of_stages(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield what was written: the name of the stage, ``run`` for the run itself, and a line without its indentation.

    Args:
        lines: lines of a log, of one attempt or of several.
    """
    stage, own, indentation = RUN, False, 0
    for line in lines:
        plain = _COLOUR.sub("", line.rstrip("\n"))
        if begins := _BEGINS.search(plain):
            stage, own = _STAGES.get(begins[2], begins[2]), False
        elif _ENDS.search(plain):
            stage, own = RUN, False
        elif of_kfp := _OF_KFP.match(plain):
            own = not of_kfp[3].startswith(_KFPS)
            plain, indentation = " | ".join(of_kfp.groups()), 4
        elif _OWN.match(plain):
            own, indentation = True, len(plain) - len(plain.lstrip())
        if own and plain.strip():
            yield stage, plain[indentation:] if plain[:indentation].isspace() else plain


def lines_of(file: Path, follow: bool = False) -> Iterator[str]:
    """Yield the lines of a log; to follow it, also those that are written until its run has ended."""
    from cli import hold  # its libraries are of local runs: the image from which runs are submitted lacks them

    with file.open(encoding="utf-8", errors="replace") as log:
        partial = ""
        while True:
            works = follow and hold.works(file.parent)
            for line in log:
                partial += line
                if partial.endswith("\n"):
                    yield partial
                    partial = ""
            if not works:
                break
            time.sleep(_PAUSE)
        if partial:
            yield partial
