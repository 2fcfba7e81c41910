"""Output for programs, ``--json``: one JSON value on standard output and nothing else there; tables without breaks."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console

_WIDE = 1_000  # characters, more than any table here has

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program, instead of text for people.")]


def print_json(value: Any) -> None:
    """Print a value as JSON, Chinese as it is; what JSON does not know, such as a time, as text."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def wide(console: Console) -> Console:
    """Return a console that writes where another does and breaks no line of a table, however narrow that one is."""
    return Console(width=_WIDE, file=console.file, force_terminal=console.is_terminal)


def size(count: int) -> str:
    """Return a number of bytes for people, for instance ``338.7 KiB``."""
    for unit, bytes_of_it in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= bytes_of_it:
            return f"{count / bytes_of_it:,.1f} {unit}"
    return f"{count:,} bytes"
