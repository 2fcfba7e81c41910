"""The ``wukong`` command: the library's commands, and in a checkout or an image those of the platform (``cli``) too."""

import gettext
import sys
from importlib import import_module
from pathlib import Path

from wukong.runtime import language
from wukong.runtime.language import message, translated

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
        problem = message("the command line reads runs with pyarrow, which is not installed: run `pip install pyarrow`")
        sys.exit(translated(f"error: {problem}"))

    beside = Path(__file__).parents[2]
    if all((beside / name / "__init__.py").is_file() for name in _PLATFORM):
        import_module("cli.main")
    run_app()
