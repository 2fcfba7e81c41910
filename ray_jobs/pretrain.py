"""The pretrain job: locked-image text tuning (section 4.4)."""

from collections.abc import Mapping

from ray_jobs import training
from wukong.config.experiment import Experiment
from wukong.stages import start
from wukong.store.manifest import Manifest


def run(experiment: Experiment, parents: Mapping[str, Manifest]) -> Manifest:
    """Train a text encoder and both heads against the locked image encoder's features, or take another model.

    Writes ``model/`` (``wukong.model.saved_model``), ``history.json`` and, outside the digest, ``measured.json``.

    Args:
        experiment: its ``model`` and ``pretrain`` sections and seed decide the output.
        parents: the filter's manifest under ``filter``; under ``pretrain`` that of an earlier pre-training whose model
            this one starts from, if it goes on from one. Where ``pretrain.from_model`` names a model, nothing is
            trained.

    Returns:
        The manifest. ``counts`` has the ``pairs`` trained on, ``metrics`` the last epoch's loss and temperature.

    Raises:
        ConfigError: the model cannot be built, or the batch does not fit the data.
        DataError: a shard is damaged, or the loss is not finite.
    """
    if experiment.pretrain.from_model:
        return start.take(experiment)
    return training.run("pretrain", experiment, parents["filter"], start=parents.get("pretrain"))
