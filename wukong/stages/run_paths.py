"""Names of runs, and the addresses of a run's files."""

import re

from wukong.config.experiment import Experiment
from wukong.errors import ConfigError
from wukong.store import storage

# What a folder and, on a cluster, a label's value may be.
_NAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9._-]{0,61}[a-zA-Z0-9])?")


def uri_of(experiment: Experiment, run: str, name: str) -> str:
    """URI of a file in a run's folder.

    Raises:
        ConfigError: the run's name cannot be part of a URI.
    """
    check_name(run)
    return storage.join(experiment.root, "runs", run, name)


def check_name(run: str) -> None:
    """Check that a run's name can be the name of a folder.

    Raises:
        ConfigError: it cannot.
    """
    if not is_name(run):
        raise ConfigError(
            f"run name {run!r}: use up to 63 letters, digits, '.', '_' and '-', of which the first and the last are "
            "letters or digits"
        )


def is_name(text: str) -> bool:
    """Return whether a text can be a run's name."""
    return _NAME.fullmatch(text) is not None
