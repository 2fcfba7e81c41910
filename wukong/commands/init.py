"""``wukong init``: write the file of a new experiment."""

from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from wukong.commands.output import echo, print_data
from wukong.config import documents
from wukong.errors import ConfigError

_NAME = "my-experiment"


class Kind(StrEnum):
    """Where an experiment's pictures come from: the templates in ``wukong/config/templates``."""

    SEARCH = "search"
    PICTURES = "pictures"


def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where it is written; its stem becomes the name.")],
    kind: Annotated[
        Kind, typer.Option("--from", help="What a search engine finds, or pictures of your own.")
    ] = Kind.SEARCH,
) -> None:
    """Write the file of a new experiment, with the keys that people change first, and say what to do next.

    A file that is there stays as it is. Example:

        wukong init cats.yaml

        wukong init --from pictures mine.yaml
    """
    text = resources.files("wukong.config").joinpath("templates", f"{kind}.yaml").read_text(encoding="utf-8")
    text = text.replace(_NAME, file.stem)
    if kind is Kind.SEARCH:
        documents.loads(text, where=f"{file}, whose stem is the experiment's name,")
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError as error:
        raise ConfigError(f"{file} is there already, and stays as it is: choose another name") from error
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error}") from error
    given = f"--data FOLDER --config {file}" if kind is Kind.PICTURES else f"--config {file}"
    echo(f"{file} is written. Edit it, then:")
    if kind is Kind.SEARCH:
        echo(f"  wukong config {given}            # checks it")
    echo(f"  wukong run {given} --dry-run     # says what a run would do")
    print_data(f"  wukong run {given}")
