"""What was decided about the model of a run, and what changed against the run whose model held the alias.

The register stage decides (``wukong.registry.aliases``). The report stage stores the verdict in the run's folder, with
the comparison of the two runs, so that nobody has to ask for them.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from wukong.config.experiment import Experiment
from wukong.runtime.language import _, chinese_of, restored
from wukong.stages import run_paths
from wukong.store import storage

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


def store(experiment: Experiment, run: str, verdict: Verdict, document: Mapping[str, Any] | None) -> None:
    """Store a verdict and a comparison in the folder of their run (``Run.verdict``)."""
    value = {"verdict": verdict.model_dump(mode="json"), "comparison": document, "chinese": chinese_of(document)}
    storage.write_json(run_paths.uri_of(experiment, run, FILE), value)
