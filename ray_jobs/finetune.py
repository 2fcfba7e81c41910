"""The finetune job: the pre-trained model trained on for retrieval (section 5.3)."""

from collections.abc import Mapping

from ray_jobs import training
from wukong.config.experiment import Experiment
from wukong.stages import start
from wukong.store.manifest import Manifest


def run(experiment: Experiment, parents: Mapping[str, Manifest]) -> Manifest:
    """Go on from the pre-trained model with the ``finetune`` section; with ``epochs: 0``, hand that model on.

    Writes ``model/`` and ``history.json``, like ``ray_jobs.pretrain``.

    Args:
        experiment: its ``finetune`` section and seed decide the output.
        parents: the manifests of ``filter`` and ``pretrain``.

    Raises:
        ConfigError: the batch does not fit the data.
        DataError: a shard is damaged, or the loss is not finite.
    """
    if not experiment.finetune.epochs:
        return start.hand_on(experiment, parents["pretrain"])
    return training.run("finetune", experiment, parents["filter"], start=parents["pretrain"])
