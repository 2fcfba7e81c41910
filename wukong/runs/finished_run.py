"""Open what a finished run on this machine left: its experiment, and the manifests of its stages."""

from dataclasses import dataclass
from pathlib import Path

from wukong import stages
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError
from wukong.runs.run import Run
from wukong.runtime import environment
from wukong.store import storage
from wukong.store.manifest import Manifest

_REPORT = "report.html"  # of the run's folder below the home; it is written last


@dataclass(frozen=True)
class FinishedRun:
    """A run whose report is written.

    Attributes:
        name: the run's name.
        experiment: what was run.
        folder: its folder on this machine, with the report.
        manifests: by stage, of the stages that leave one.
    """

    name: str
    experiment: Experiment
    folder: Path
    manifests: dict[str, Manifest]

    def uri(self, stage: str, path: str) -> str:
        """Return the URI of a file that a stage left.

        Raises:
            ConfigError: the run has no such stage; the message lists those that it has.
        """
        if stage not in self.manifests:
            raise ConfigError(f"the run {self.name} has no stage {stage!r}; it has {', '.join(self.manifests)}")
        return storage.join(self.manifests[stage].uri, path)


def find(name: str = "", home: Path | None = None) -> FinishedRun:
    """Open a finished run of this machine's stack, and connect this process to the stack.

    Args:
        name: name of the run; empty for the one that finished last.
        home: home folder of the stack; None for the stack that ``wukong status`` shows.

    Raises:
        ConfigError: there is no stack, or no finished run of that name.
        DataError: the run is of another version of Wukong.
        StorageError: the store does not answer.
    """
    chosen = home or environment.find_home()
    if chosen is None:
        raise ConfigError("no stack is found from here: `wukong run` starts one, WUKONG_HOME names its home")
    finished = sorted((chosen / "runs").glob(f"*/{_REPORT}"), key=lambda page: page.stat().st_mtime)
    folders = {page.parent.name: page.parent for page in finished}
    if not folders:
        raise ConfigError(
            f"no run has finished in {chosen}: `wukong run` makes one, WUKONG_HOME names another home"
            + environment.elsewhere(chosen)
        )
    run = name or finished[-1].parent.name
    if run not in folders:
        raise ConfigError(
            f"no run {run!r} has finished in {chosen}; finished are {', '.join(folders)} only"
            + environment.elsewhere(chosen)
        )
    environment.connect(chosen)
    experiment = Run(storage.from_path(folders[run])).experiment
    manifests = Run.of(experiment, run).manifests
    return FinishedRun(
        run, experiment, folders[run], {name: manifests[name] for name in stages.JOBS if name in manifests}
    )
