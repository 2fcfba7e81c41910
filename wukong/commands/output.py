"""Output for programs: ``--json`` prints one JSON value on standard output, and nothing else there."""

import json
from typing import Annotated, Any

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program, instead of text for people.")]


def print_json(value: Any) -> None:
    """Print a value as JSON, Chinese as it is; what JSON does not know, such as a time, as text."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2, default=str))
