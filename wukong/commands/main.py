"""The ``wukong`` command: the library's commands, and in a checkout or an image those of the platform (``cli``) too."""

import gettext
import sys
from importlib import import_module
from pathlib import Path

from wukong.runtime import language
from wukong.runtime.language import _

_OF_TYPER = (
    *(_("Arguments"), _("Options"), _("Commands"), _("[default: {}]"), _("[env var: {}]"), _("[required]")),
    *(_("Show this message and exit."), _("Install completion for the current shell.")),
    _("Show completion for the current shell, to copy it or customize the installation."),
)
"""Words of Typer's help, which it looks up in the catalogue itself; its errors stay English."""

_PLATFORM = ("cli", "components", "infra", "pipelines", "ray_jobs")
"""Packages beside the library in a checkout and in images. The wheel lacks them: their names may be others' too."""


def main() -> None:
    """Run the command, with the platform's commands where its packages are beside the library."""
    if language.chosen() == "zh":  # before Typer is imported: it translates its own words then
        gettext.bindtextdomain("messages", str(language.places()))
    try:
        from wukong.commands.app import run_app
    except ModuleNotFoundError as error:
        if error.name != "pyarrow":
            raise
        problem = "error: the command line reads runs with pyarrow, which is not installed: run `pip install pyarrow`"
        sys.exit(problem)

    beside = Path(__file__).parents[2]
    if all((beside / name / "__init__.py").is_file() for name in _PLATFORM):
        import_module("cli.main")
    run_app()
