"""What commands print: text for people in their language, or with ``--json`` one JSON value for programs."""

import json
from typing import Annotated, Any

import rich.console
import rich.table
import typer
from rich.console import RenderableType

from wukong.runtime.language import translated

_WIDE = 1_000  # characters, more than any table here has

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program, instead of text for people.")]


class Console(rich.console.Console):
    """Prints texts in the language of its user."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as Rich does, with strings translated."""
        super().print(*(translated(each) if isinstance(each, str) else each for each in objects), **options)


class Table(rich.table.Table):
    """A table with title, headers and sentences in the language of its user; a cell of one word stays as it is."""

    def __init__(self, *headers: str, title: str | None = None, **options: Any) -> None:
        super().__init__(*headers, title=title and translated(title), **options)

    def add_column(self, header: RenderableType = "", *arguments: Any, **options: Any) -> None:
        """Add a column, its header translated."""
        super().add_column(translated(header) if isinstance(header, str) else header, *arguments, **options)

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Add a row, its sentences translated."""
        super().add_row(*(translated(c) if isinstance(c, str) and " " in c.strip() else c for c in cells), **options)


def echo(text: str = "", *, err: bool = False) -> None:
    """Print a line in the language of its user.

    Args:
        text: in English.
        err: to standard error.
    """
    typer.echo(translated(text), err=err)


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
