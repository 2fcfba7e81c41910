"""What a target of an export is, and what is said of how equal an exported model is to the one it came from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from wukong.errors import ConfigError
from wukong.export.card import About
from wukong.model.saved_model import SavedModel
from wukong.runtime.installed import command_for


@dataclass(frozen=True)
class Check:
    """One comparison of an exported model with the model it came from.

    Attributes:
        of: what was compared, for instance ``vectors of 16 pictures, equal pixels``.
        measure: what the value is: ``largest difference``, ``lowest cosine``, or another.
        value: the value.
        by: what computed the exported side, with its version, for instance ``onnxruntime 1.32.0``.
    """

    of: str
    measure: str
    value: float
    by: str


@dataclass(frozen=True)
class Options:
    """What a user asks of an export besides the target.

    Attributes:
        name: what the model is called where a target writes a name.
        measure_on: URI of pictures with captions, on which what a target loses is measured: the output of a filter
            stage, a folder, or a list; None to measure nothing. A target that would lose something is then refused.
        about: what the user says of the model for its card.
        folder: where the export will lie, an absolute path, for files that name it; ``wukong.export.run`` gives it.
        hub: name of the repository on the Hub, OWNER/NAME, that the folder will be; files name it instead.
        int8: whether files in int8 are written too, by the target ``onnx``.
        targets: all targets by name, for one that puts others together; ``wukong.export.run`` gives them.
    """

    name: str = "wukong"
    measure_on: str | None = None
    about: About = field(default_factory=About)
    folder: Path | None = None
    hub: str | None = None
    int8: bool = False
    targets: "Mapping[str, Target]" = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """A layout that another project's loader opens.

    Attributes:
        name: what ``--to`` calls it.
        about: what it is and who opens it, in one line, for ``--help``.
        needs: modules that must be importable to write and check it; they are in the extra ``export``.
        refuse: gives the reason why this target cannot hold a model, and what can be done instead; None if it can.
        write: writes the files into an empty folder, opens them with the consumer's own loader where that is Python,
            and returns what was compared. It raises DataError if the exported model is not equal.
    """

    name: str
    about: str
    needs: tuple[str, ...]
    refuse: Callable[[SavedModel, Options], str | None]
    write: Callable[[SavedModel, Path, Options], list[Check]]

    def refuse_missing(self) -> None:
        """Raise ConfigError if a module that it needs is not installed."""
        if missing := [name for name in self.needs if find_spec(name) is None]:
            raise ConfigError(
                f"{self.name} needs packages that are not installed ({', '.join(missing)}): run "
                f"`{command_for('export')}`"
            )


def always(saved: SavedModel, options: Options) -> None:
    """Refuse no model: the ``refuse`` of a target that holds every model."""
