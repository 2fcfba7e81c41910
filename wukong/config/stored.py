"""Experiments in storage: each lies under the digest of its content; jobs and components get its URI."""

from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.store import storage
from wukong.store.manifest import digest_of


def store(experiment: Experiment) -> str:
    """Write an experiment to storage, unless it is there, and return its URI: ``{root}/experiments/DIGEST.json``.

    Raises:
        StorageError: the storage cannot be reached.
    """
    value = experiment.model_dump(mode="json")
    uri = storage.join(experiment.root, "experiments", f"{digest_of(value)[:16]}.json")
    if not storage.exists(uri):
        storage.write_json(uri, value)
    return uri


def load(uri: str) -> Experiment:
    """Read an experiment that ``store`` wrote.

    Raises:
        ConfigError: what is there is not valid for this version.
        StorageError: there is nothing, or the storage cannot be reached.
    """
    return documents.parse(storage.read_json(uri), where=uri)
