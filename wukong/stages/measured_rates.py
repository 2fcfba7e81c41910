"""Rates of the stages, which ``make bench NAME=scale`` measures and the plan of a run is computed from.

Those in the home of the embedded stack (``rates.json``) are used where they are there, otherwise those that are
packaged (``measured_rates.json``). Both say on which machine they were measured, and up to which number of items.
"""

from importlib import resources
from pathlib import Path

from pydantic import ValidationError

from wukong.config.section import Strict
from wukong.errors import ConfigError
from wukong.runtime import environment

FILE = "rates.json"
"""Name in the stack's home."""


class StageRate(Strict):
    """What a stage takes.

    Attributes:
        start: seconds that it takes for no item at all, the start of Ray among them.
        core_seconds: seconds of a core for each item (a URL, of validate a pair); 0 where the plan computes them from
            the speeds of a core.
        driver_mib: MiB of the driver.
        driver_mib_per_million: what a million items add to them.
        task_mib: MiB of the largest task.
        task_mib_per_million: what a million items add to them.
        largest: the largest number of items that were measured.
    """

    start: float
    core_seconds: float = 0.0
    driver_mib: float = 0.0
    driver_mib_per_million: float = 0.0
    task_mib: float = 0.0
    task_mib_per_million: float = 0.0
    largest: int = 0


class Speeds(Strict):
    """How fast one core is, in one thread.

    Attributes:
        step_flops: operations a second of a training step on stored features.
        tower_flops: operations a second of the image tower's forward pass.
        decode: pictures a second, to the evaluation view.
        augment: pictures a second, to an augmented view.
        gpu_flops: operations a second of a GPU, of a step and of the tower.
    """

    step_flops: float
    tower_flops: float
    decode: float
    augment: float
    gpu_flops: float


class Rates(Strict):
    """All rates.

    Attributes:
        machine: where they were measured.
        measured: the date.
        command: what measured them.
        speeds: those of a core and of a GPU.
        stages: by stage.
    """

    machine: str
    measured: str
    command: str
    speeds: Speeds
    stages: dict[str, StageRate]

    def of(self, stage: str) -> StageRate:
        """The rate of a stage.

        Raises:
            ConfigError: there is none.
        """
        if stage not in self.stages:
            raise ConfigError(
                f"the rates of {self.machine} have no stage {stage!r}: `make bench NAME=scale` measures them"
            )
        return self.stages[stage]


def load(file: Path | None = None) -> Rates:
    """Return the rates of a file; without one those of the stack's home, or else the packaged ones.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    if file is None:
        home = environment.find_home()
        if home is not None and (home / FILE).is_file():
            file = home / FILE
    try:
        source = resources.files("wukong.stages").joinpath("measured_rates.json") if file is None else file
        return Rates.model_validate_json(source.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)
        raise ConfigError(
            f"{file}: these rates cannot be read ({why}): `make bench NAME=scale` writes them, or delete the file"
        ) from error
