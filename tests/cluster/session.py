"""What earlier phases and sessions have done on this cluster, so that each phase can be tried by itself."""

import json
import time
from dataclasses import dataclass
from typing import Any

import runs
import table

from wukong.config.experiment import Experiment
from wukong.store import manifest, storage

STATE = table.FOLDER / "state.json"
TRAINING_SECONDS = 210.0
"""That the longer training lasts, so that six things can be deleted while it goes on."""


class State:
    """What an earlier phase or session has done on this cluster; in ``build/cluster-test/state.json``."""

    def __init__(self, cluster: str) -> None:
        stored = json.loads(STATE.read_text(encoding="utf-8")) if STATE.exists() else {}
        self.values: dict[str, Any] = stored if stored.get("cluster") == cluster else {"cluster": cluster}

    def begin(self) -> None:
        """Forget it, and take an experiment's name that no session has had."""
        self.values = {"cluster": self.values["cluster"], "experiment": f"cluster-test-{time.strftime('%m%d-%H%M%S')}"}
        self.save()

    def save(self, **values: Any) -> None:
        self.values |= values
        STATE.parent.mkdir(parents=True, exist_ok=True)
        STATE.write_text(json.dumps(self.values, indent=1), encoding="utf-8")


def first_run(services: runs.Services, kept: State) -> runs.Run:
    """Run the workflow from the search to the report under a new experiment's name."""
    kept.begin()
    made = runs.experiment(kept.values["experiment"])
    run = runs.complete(services, made, f"first-{time.strftime('%H%M%S')}")
    kept.save(first=vars(run))
    return run


def experiment_of(kept: State, *overrides: str) -> Experiment:
    """The session's experiment, as a run with these values stores it."""
    return runs.experiment(kept.values["experiment"], *overrides)


def undisturbed(services: runs.Services, kept: State, stamp: str) -> tuple[runs.Run, int]:
    """A run of the first run's experiment with more epochs: of an earlier phase, or made now."""
    made = experiment_of(kept)
    if not (epochs := kept.values.get("epochs")):
        epochs = epochs_for(made, runs.Run(**kept.values["first"]), TRAINING_SECONDS)
        kept.save(epochs=epochs)
    if stored := kept.values.get("clone"):
        return runs.Run(**stored), epochs
    run = runs.complete(services, made, f"clone-{stamp}", f"epochs={epochs}")
    kept.save(clone=vars(run), clone_digests=runs.digests(clone_of(kept, epochs), run))
    return run, epochs


@dataclass
class Again:
    """A training that was done before, undisturbed, and begins anew.

    Attributes:
        run: the run that trains.
        made: its experiment, as it is stored.
        epochs: of pre-training.
        expected: the digests of the undisturbed run, by stage.
    """

    run: runs.Run
    made: Experiment
    epochs: int
    expected: dict[str, str]


def train_again(services: runs.Services, kept: State, name: str, stamp: str, pipeline: str = "training") -> Again:
    """Delete what the undisturbed run has trained, and start a run that trains it again; ``pipeline`` as of a run."""
    calm, epochs = undisturbed(services, kept, stamp)
    made = clone_of(kept, epochs)
    forget_trained(made, calm)
    run = runs.start(services, experiment_of(kept), name, f"epochs={epochs}", pipeline=pipeline)
    return Again(run, made, epochs, kept.values["clone_digests"])


def forget_trained(made: Experiment, run: runs.Run) -> None:
    """Delete what a run has trained and measured."""
    for stage in ("pretrain", "finetune", "evaluate"):
        record = runs.records(made, run).get(stage)
        if record is not None and record.manifest and storage.exists(record.manifest):
            storage.delete(record.manifest.rpartition("/")[0])


def epochs_for(made: Experiment, run: runs.Run, seconds: float) -> int:
    """The number of epochs that take some seconds, by what the first run measured."""
    record = runs.records(made, run)["pretrain"]
    trained = manifest.load(record.manifest)
    measured = storage.read_json(storage.join(trained.uri, "measured.json"))
    fastest = max(float(entry["pairs_per_second"]) for entry in measured)
    pairs, batch = int(trained.counts["pairs"]), made.pretrain.batch_size
    return round(seconds * fastest / (pairs // batch * batch))


def clone_of(kept: State, epochs: int) -> Experiment:
    """The experiment of the run with more epochs."""
    return experiment_of(kept, f"pretrain.epochs={epochs}")
