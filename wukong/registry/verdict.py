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
from wukong.runtime.language import _, chinese_of, restored
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
        chinese: the reasons in Chinese, by the English.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str
    alias: str
    version: str
    promoted: bool
    says: str
    holder: str = ""
    chinese: dict[str, str] = {}

    @property
    def said(self) -> str:
        """The reasons, which know their Chinese."""
        said: str = restored(self.says, self.chinese)
        return said

    @property
    def heading(self) -> str:
        """The outcome in a sentence."""
        if not self.promoted and not self.holder:
            text = _("Version {version} does not take @{alias}, which is given to nobody.")
        elif not self.promoted:
            text = _("Version {version} does not take @{alias}, which stays with version {holder}.")
        elif self.holder in ("", self.version):
            text = _("Version {version} holds @{alias}.")
        else:
            text = _("Version {version} takes @{alias} from version {holder}.")
        return text.format(version=self.version, alias=self.alias, holder=self.holder)


def of_version(experiment: Experiment, version: str) -> Verdict | None:
    """Read what was decided about a version of an experiment's model; None if nothing is known of it.

    Raises:
        ConfigError: MLflow has no such version.
        MlflowError: MLflow answers with an error.
    """
    registry = experiment.registry
    tags = ModelRegistry(Server(), registry.model_name, registry.alias).version(version)["tags"]
    if DECISION not in tags:
        return None
    return Verdict(model=registry.model_name, alias=registry.alias, version=version, **json.loads(tags[DECISION]))


def compare(experiment: Experiment, run: str, verdict: Verdict) -> dict[str, Any] | None:
    """Compare a run with the one whose model held the alias: what ``wukong.registry.comparison.compare`` returns.

    Returns:
        None if no other model held it.

    Raises:
        ConfigError: MLflow no longer knows the other run or its version.
        DataError: the evaluation of a run is damaged.
        StorageError: the evaluation of a run is gone, or cannot be read.
        MlflowError: MLflow answers with an error.
    """
    if verdict.holder in ("", verdict.version):
        return None
    server = Server()
    holder = ModelRegistry(server, verdict.model, verdict.alias).version(verdict.holder)
    runs = comparison.find(server, [holder["run_id"], pipeline_run(server, experiment, run).run_id])
    return comparison.compare(comparison.read(server, runs))


def store(experiment: Experiment, run: str, verdict: Verdict, document: Mapping[str, Any] | None) -> None:
    """Store a verdict and a comparison in the folder of their run, where ``read`` finds them."""
    value = {"verdict": verdict.model_dump(mode="json"), "comparison": document, "chinese": chinese_of(document)}
    storage.write_json(run_paths.uri_of(experiment, run, FILE), value)


def read(experiment: Experiment, run: str) -> tuple[Verdict, dict[str, Any] | None] | None:
    """Read the verdict of a run; None if it has none, because nothing was registered."""
    uri = run_paths.uri_of(experiment, run, FILE)
    if not storage.exists(uri):
        return None
    value = storage.read_json(uri)
    return Verdict.model_validate(value["verdict"]), restored(value["comparison"], value["chinese"])
