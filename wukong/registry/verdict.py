"""What was decided about the model of a run, and what changed against the run whose model held the alias.

The register stage decides (``wukong.registry.aliases``). The report stage stores the verdict in the run's folder, with
the comparison of the two runs, so that nobody has to ask for them.
"""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from wukong.config.experiment import Experiment
from wukong.registry import comparison
from wukong.registry.aliases import DECISION, ModelRegistry
from wukong.stages import run_paths
from wukong.store import storage
from wukong.tracking.mlflow_rest import Server
from wukong.tracking.mlflow_runs import pipeline_run

FILE = "verdict.json"
"""In the folder of a run."""


class Verdict(BaseModel):
    """What was decided about a run's model.

    Attributes:
        model: name of the registered model.
        alias: the alias that the gate gives.
        version: the run's model.
        promoted: whether it took the alias, or held it before.
        says: the reasons, in sentences.
        holder: the version that held the alias when it was decided; empty if none did.
        against: the run that made that version; empty if there is none, or if it is this run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str
    alias: str
    version: str
    promoted: bool
    says: str
    holder: str = ""
    against: str = ""

    @property
    def heading(self) -> str:
        """The outcome in a sentence."""
        if not self.promoted:
            stays = f"stays with version {self.holder}" if self.holder else "is given to nobody"
            return f"Version {self.version} does not take @{self.alias}, which {stays}."
        if self.holder in ("", self.version):
            return f"Version {self.version} holds @{self.alias}."
        return f"Version {self.version} takes @{self.alias} from version {self.holder}."


def of_run(experiment: Experiment, run: str, version: str) -> tuple[Verdict, dict[str, Any] | None] | None:
    """Read what was decided about a run's model, and compare the run with the one whose model held the alias.

    Args:
        experiment: names the registered model and the alias.
        run: name of the pipeline run.
        version: the run's model.

    Returns:
        The verdict, and what ``wukong.registry.comparison.compare`` returns, or None if there is nothing to compare
        with. None for a version about which nothing is known.

    Raises:
        ConfigError: MLflow has no such version, or the other run is gone.
        MlflowError: MLflow answers with an error.
    """
    server, registry = Server(), experiment.registry
    registered = ModelRegistry(server, registry.model_name, registry.alias)
    known = registered.version(version)["tags"].get(DECISION)
    if known is None:
        return None
    decided = json.loads(known)
    verdict = Verdict(model=registry.model_name, alias=registry.alias, version=version, **decided)
    if verdict.holder in ("", version):
        return verdict, None
    own = pipeline_run(server, experiment, run)
    other, ours = comparison.find(server, [registered.version(verdict.holder)["run_id"], own.run_id])
    document = comparison.compare(comparison.read(server, [other, ours]))
    return verdict.model_copy(update={"against": other.name}), document


def store(experiment: Experiment, run: str, verdict: Verdict, document: Mapping[str, Any] | None) -> None:
    """Store a verdict and a comparison in the folder of their run, where ``read`` finds them."""
    value = {"verdict": verdict.model_dump(mode="json"), "comparison": document}
    storage.write_json(run_paths.uri_of(experiment, run, FILE), value)


def read(experiment: Experiment, run: str) -> tuple[Verdict, dict[str, Any] | None] | None:
    """Read the verdict of a run; None if it has none, because nothing was registered."""
    uri = run_paths.uri_of(experiment, run, FILE)
    if not storage.exists(uri):
        return None
    value = storage.read_json(uri)
    return Verdict.model_validate(value["verdict"]), value["comparison"]
