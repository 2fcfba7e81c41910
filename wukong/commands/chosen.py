"""The experiment that a command is told of: by its file, or by one of its runs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from wukong.commands.runs import STORAGE
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.errors import DataError
from wukong.runs import run as runs
from wukong.runs import run_records
from wukong.runs.run import Run
from wukong.runs.run_records import Output
from wukong.runtime import environment

DEMO = Path("configs/demo.yaml")
ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="The experiment, a YAML file; by default configs/demo.yaml.")
]
RunOption = Annotated[
    str | None,
    typer.Option(
        "--run",
        metavar="RUN",
        help="A run, by its name or its folder's URI, which names the experiment where no other option does. A command "
        "that reads what one run has made takes the newest without it.",
    ),
]


class Chosen(NamedTuple):
    """An experiment, and the name of the run of it that was asked for; None for the newest."""

    experiment: Experiment
    run: str | None = None

    def output(self, stage: str, what: str) -> Output:
        """Return what a stage of the run, or of the newest run, has left.

        Args:
            stage: name of the stage.
            what: what it leaves, for the message.

        Raises:
            DataError: there is none; the message names runs of other images.
        """
        experiment = self.experiment
        environment.use_for(experiment.storage)
        if (found := run_records.latest(experiment, stage, self.run)) is not None:
            return found
        who = f"run {self.run} of {experiment.name} has no" if self.run else f"no run of {experiment.name} has"
        raise DataError(
            f"{who} {what} of the images of {experiment.crawl.endpoint} at {experiment.root}: "
            f"`wukong run` makes them{run_records.of_other_images(experiment)}"
        )


def chosen(
    config_file: Path | None, run: str | None, overrides: Sequence[str] = (), given: Experiment | None = None
) -> Chosen:
    """Return what a command is told of.

    Args:
        config_file: the experiment's file; None if another option names the experiment.
        run: value of ``--run``, which names the experiment if there is no file.
        overrides: ``key.path=value`` entries.
        given: the experiment, where another option names it.

    Raises:
        ConfigError: the experiment is not valid.
        DataError: there is no such run.
    """
    name = run.rstrip("/").rpartition("/")[2] if run else None
    if given is not None:
        return Chosen(given, name)
    if run is None or config_file is not None:
        return Chosen(documents.load(config_file or DEMO, [*overrides]), name)
    uri = run.rstrip("/")
    environment.use_for(uri if "://" in uri else STORAGE)
    experiment = (Run(uri) if "://" in uri else runs.find(uri, STORAGE)).experiment
    value = json.dumps(experiment.model_dump(mode="json"), ensure_ascii=False)
    return Chosen(documents.loads(value, [*overrides], where=uri), name)
