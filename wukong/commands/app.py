"""The commands of the library, as one program; ``cli`` adds those of the platform."""

import logging
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import typer.core
import typer.rich_utils
from rich.text import Text

from wukong.commands import (
    align,
    compare,
    diff,
    evaluate,
    gc,
    hashes,
    index,
    init,
    model,
    models,
    panels,
    paper,
    plan,
    promote,
    queries,
    runs,
    search,
    serve,
    show,
    weights,
)
from wukong.commands.output import Console, echo, print_data, print_json
from wukong.config import documents
from wukong.errors import StackError, WukongError
from wukong.model.cost import empty_tower
from wukong.runtime import installed, logs
from wukong.runtime.language import _, translated
from wukong.store import patience
from wukong.tracking import availability, mlflow_rest


class _InPanels(typer.core.TyperGroup):
    """Lists the commands panel by panel, and says where a command is that the library lacks."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the commands, in the order of ``panels.ORDER``."""
        return [name for name in panels.COMMANDS if name in self.commands]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a name, or None; a name that people look for ends in a hint at the right one.

        Raises:
            StackError: it is a command of the platform, which is not here.
        """
        if cmd_name in panels.COMMANDS and cmd_name not in self.commands:
            raise StackError(
                f"`wukong {cmd_name}` needs the platform, and only the library is installed: clone the repository, run "
                f"`make install` there, and then `.venv/bin/wukong {cmd_name}`"
            )
        if cmd_name in panels.INSTEAD:
            ctx.fail(f"There is no command {cmd_name}: {panels.INSTEAD[cmd_name]}.")
        return super().get_command(ctx, cmd_name)


app = typer.Typer(
    name="wukong",
    cls=_InPanels,
    epilog="These are the library's commands. The platform, with `wukong run`, is in a checkout of the repository. "
    "`wukong COMMAND --help` explains one command, with an example.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        print_data(f"wukong {installed.version()}")
        raise typer.Exit


@app.callback()
def wukong(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, and end."),
    ] = False,
) -> None:
    """From a list of Chinese words to an evaluated Chinese vision-language model."""


app.add_typer(queries.app, name="queries", rich_help_panel=panels.DATA)
app.add_typer(weights.app, name="weights", rich_help_panel=panels.DATA)
app.add_typer(model.app, name="model", rich_help_panel=panels.SERVE)
app.add_typer(index.app, name="index", rich_help_panel=panels.SERVE)

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The experiment, a YAML file.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one value, e.g. pretrain.epochs=3 (repeatable)."),
]
DEMO = Path("configs/demo.yaml")

app.command(rich_help_panel=panels.EVALUATE)(evaluate.evaluate)
app.command(rich_help_panel=panels.EVALUATE)(align.align)
app.command(rich_help_panel=panels.TRAIN)(init.init)
app.command(rich_help_panel=panels.TRAIN)(plan.plan)
app.command(rich_help_panel=panels.EVALUATE)(compare.compare)
app.command(rich_help_panel=panels.EVALUATE)(paper.paper)
app.command(rich_help_panel=panels.EVALUATE)(promote.promote)
app.command(rich_help_panel=panels.EVALUATE)(promote.rollback)
app.command(rich_help_panel=panels.LOOK)(runs.runs)
app.command(rich_help_panel=panels.LOOK)(runs.report)
app.command(rich_help_panel=panels.LOOK)(models.models)
app.command(rich_help_panel=panels.LOOK)(show.show)
app.command(rich_help_panel=panels.LOOK)(diff.diff)
app.command(rich_help_panel=panels.SERVE)(search.search)
app.command(rich_help_panel=panels.SERVE)(serve.serve)
app.command(rich_help_panel=panels.DATA)(hashes.hashes)
app.command(rich_help_panel=panels.DATA)(gc.gc)


@app.command("config", rich_help_panel=panels.TRAIN)
def show_config(config_file: ConfigOption = DEMO, overrides: SetOption = None) -> None:
    """Check an experiment and print it in full, as the JSON that the pipeline's `experiment` parameter takes.

    The encoders are built without their weights, where torch is installed. docs/configuration.md has all keys. Example:

        wukong config --config my.yaml --set pretrain.epochs=3
    """
    experiment = documents.load(config_file, overrides)
    if find_spec("timm"):
        empty_tower(experiment.model)
    else:
        echo("the encoders are not checked: pip install 'wukong-vlm[train]'", err=True)
    print_json(experiment.model_dump(mode="json"))


def run_app() -> None:
    """Run the command; a WukongError, or that MLflow is away, ends it with a message and a status that is not 0."""
    logs.start(level=logging.WARNING, formatter=logs.PLAIN)
    patience.set_default(patience.PEOPLE)
    command = typer.main.get_command(app)
    rich_utils: Any = typer.rich_utils
    rich_utils.Text = _Folded
    translate_help(command)
    try:
        command()
    except WukongError as error:
        _end(str(error), *getattr(error, "__notes__", ()), status=error.exit_status)
    except Exception as error:
        if not availability.is_away(error):
            raise
        _end(f"MLflow at {mlflow_rest.address()} does not answer ({type(error).__name__}): is it running?")


class _Folded(Text):
    """A help text. A Chinese sentence has no spaces: it goes on in the next line, where Typer would cut it off."""

    @classmethod
    def from_markup(cls, text: str, **options: Any) -> Text:
        """Make it of text with Rich's markup."""
        return super().from_markup(text, **{**options, "overflow": "fold"})


def translate_help(command: Any) -> None:
    """Bring the help texts of a command, its options and the commands below it into the language of the user."""
    for each in (command, *command.get_params(typer.Context(command))):
        for name in ("help", "short_help", "epilog", "rich_help_panel"):
            if text := getattr(each, name, None):
                setattr(each, name, translated(text))
    usage = command.get_usage
    command.get_usage = lambda ctx: usage(ctx).replace("Usage: ", translated(_("Usage: ")), 1)
    for below in getattr(command, "commands", {}).values():
        translate_help(below)


def _end(said: str, *written: str, status: int = 1) -> NoReturn:
    """End the command with a message and, below it, what a program has written: a log or a traceback."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print("error:", style="bold red", end=" ")
    console.print(said, markup=False)
    for each in written:
        console.out(each)
    sys.exit(status)
