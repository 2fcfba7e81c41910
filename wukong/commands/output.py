"""What commands print: text for people in their language, or with ``--json`` one JSON value for programs.

``Console``, ``Table`` and ``echo`` show the texts of the catalogue (``_``) in the language of the user, and all else as
it is. What is not for people, such as shell code, is printed by ``print_data`` or ``Console.out``.
"""

import functools
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, TypeVar, get_type_hints

import rich.console
import rich.table
import typer
from rich.cells import cell_len
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from wukong.runtime.language import Text as Marked
from wukong.runtime.language import _, joined, translated
from wukong.runtime.logs import harmless

_WIDE = 1_000  # characters, more than any table here has

_COUNTED = {
    "images": _("{count:,} images"),
    "captions": _("{count:,} captions"),
    "classes": _("{count:,} classes"),
    "pairs": _("{count:,} pairs"),
    "captions_cut": _("{count:,} captions cut"),
}
"""What most sets have, in words; a set of another kind may have other things, whose names stay as they are."""

T = TypeVar("T")

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program, instead of text for people.")]


def taking(kind: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of a function: the fields of a dataclass are options in the place of its first parameter."""

    def made(function: Callable[..., None]) -> Callable[..., None]:
        fields, (_first, *others) = inspect.signature(kind).parameters, inspect.signature(function).parameters.values()

        @functools.wraps(function)
        def command(**given: Any) -> None:
            function(kind(**{name: given.pop(name) for name in fields}), **given)

        vars(command)["__signature__"] = inspect.Signature([*fields.values(), *others])
        command.__annotations__ = get_type_hints(kind, include_extras=True) | function.__annotations__
        return command

    return made


class Console(rich.console.Console):
    """Prints texts in the language of its user.

    What it prints may be a stranger's: Rich's markup is none where it is not asked for, and no control character is
    printed.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, **options})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Render as Rich does, without control characters in what is no markup of Rich's own."""
        for each in super().render(renderable, options):
            yield each if each.control else Segment(harmless(each.text), each.style)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as Rich does, with texts of the catalogue translated."""
        super().print(*map(_shown, objects), **options)

    def out(self, *objects: Any, sep: str = " ", **options: Any) -> None:
        """Print data as they are, in a line that is not broken."""
        text = sep.join(map(str, objects))
        super().print(harmless(text), no_wrap=True, overflow="ignore", crop=False, **options)

    def print_titled(self, title: str, value: str | Text, width: int) -> None:
        """Print a line, which is not broken: a value behind its title.

        Args:
            title: of the catalogue, or empty.
            value: translated if it is of the catalogue.
            width: of the title, in cells of the terminal, of which a Chinese character takes two.
        """
        shown = translated(title)
        self.out(shown, " " * max(width - cell_len(shown), 1), _shown(value), sep="", highlight=False)


class Table(rich.table.Table):
    """A table with title, headers and cells of the catalogue in the language of its user.

    What is too long for its column goes on in the next line: a Chinese sentence has no spaces, and would be cut off.
    """

    def __init__(self, *headers: str, title: str | None = None, **options: Any) -> None:
        super().__init__(*headers, title=title and str(_shown(title)), **options)

    def add_column(self, header: RenderableType = "", *arguments: Any, **options: Any) -> None:
        """Add a column."""
        super().add_column(_shown(header), *arguments, **options)

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Add a row."""
        super().add_row(*map(_shown, cells), **options)
        for column in self.columns:
            if column.overflow == "ellipsis" and not column.no_wrap:
                column.overflow = "fold"


def _shown(text: T) -> T | str:
    """Return a text in the language of its user, without control characters, so that its width is what is shown."""
    if isinstance(text, Text) and (plain := harmless(text.plain)) != text.plain:
        return plain
    return harmless(translated(text) if isinstance(text, Marked) else text) if isinstance(text, str) else text


def echo(text: str = "", *, err: bool = False) -> None:
    """Print a line; with ``err``, to standard error."""
    typer.echo(_shown(text), err=err)


def print_data(data: object, *, newline: bool = True) -> None:
    """Print what no language has, as it is but for control characters, and a line end."""
    typer.echo(harmless(str(data)), nl=newline)


def print_json(value: Any) -> None:
    """Print a value as JSON, Chinese as it is; what JSON does not know, such as a time, as text."""
    print_data(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def wide(console: Console) -> Console:
    """Return a console that writes where another does and breaks no line of a table, however narrow that one is."""
    return Console(width=_WIDE, file=console.file, force_terminal=console.is_terminal)


def sizes(of: Mapping[str, int]) -> str:
    """Return the sizes of an evaluation set for people, for instance ``10,000 images, 10 classes``."""
    known = [said.format(count=of[what]) for what, said in _COUNTED.items() if what in of]
    return joined([*known, *(f"{count:,} {what}" for what, count in of.items() if what not in _COUNTED)], ", ")
