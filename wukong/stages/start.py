"""An experiment as a run begins with it: what its addresses hold then, and the model that it takes.

The digests of what the addresses hold (``CONTENTS``) stand in the experiment that a run stores. So they are the same in
every process of the run, are in the keys, and need no process that reads the files; whoever loads a file compares it.

A model may be taken in the place of pre-training (``pretrain.from_model``). Its copy is the experiment's ``pretrain``
stage, so that all that reads a pre-trained model reads it. Where the model lies beside the manifest of the stage that
trained it, that stage is the copy's parent: what it was trained on is known. ``finetune.epochs: 0`` hands the
pre-trained model on by such a copy, the ``finetune`` stage, so that all that reads a fine-tuned model reads it.
"""

from collections.abc import Collection
from functools import reduce
from typing import Any

from pydantic import BaseModel, ValidationError

from wukong import stages
from wukong.config.experiment import CONTENTS, Experiment
from wukong.config.model import Model
from wukong.config.section import flatten
from wukong.errors import ConfigError, WukongError
from wukong.store import contents, fence, manifest, storage
from wukong.store.manifest import Manifest, Stage

FILES = ("config.json", "model.safetensors", "vocab.txt")
"""The files of a saved model (``wukong.model.saved_model``, which needs torch)."""

_KEY = "pretrain.from_model"
_ELSEWHERE = {"image.weights", "text.weights", "text.vocabulary"}
"""Keys of ``model`` that say where something lies, which a saved model has in its folder."""


def as_it_begins(experiment: Experiment, names: Collection[str] = stages.WHOLE_RUN) -> Experiment:
    """Return the experiment with the model that it starts from, and with the digests of what its addresses hold.

    What is not there is left to the checks of ``wukong.stages.preflight``.

    Args:
        experiment: the experiment.
        names: names of the stages that will run; addresses that no stage reads are left out.

    Raises:
        ConfigError: there is no such model; the experiment has a section ``model`` that is of another one; or an
            address holds something else than the digest beside it says.
        StorageError: what an address holds cannot be read.
    """
    experiment, sections = with_its_model(experiment), stages.sections_of(names)
    for key, uri in experiment.uris().items():
        files = CONTENTS.get(key)
        if files is None or key.partition(".")[0] not in sections:
            continue
        if not all(storage.exists(storage.join(uri, name) if name else uri) for name in files or ("",)):
            continue
        *path, name = f"{key}_sha256".split(".")
        given: str | None = getattr(reduce(getattr, path, experiment), name)
        found = contents.digest(uri, files)
        if given not in (None, found):
            raise ConfigError(
                f"{key}_sha256 is {given}, and what lies at {uri} has {found}: put back what it was, or leave the "
                "digest out to take what is there now"
            )
        experiment = _with(experiment, [*path, name], found)
    return experiment


def _with(section: Any, path: list[str], value: str) -> Any:
    name, *rest = path
    inner: BaseModel | str = _with(getattr(section, name), rest, value) if rest else value
    return section.model_copy(update={name: inner})


def with_its_model(experiment: Experiment) -> Experiment:
    """Return the experiment with the section ``model`` of the model that it starts from; unchanged if there is none.

    A registered model is named by its folder from then on, so that an alias that moves changes no run that has begun.

    Raises:
        ConfigError: there is no such model, or the experiment has a section ``model`` that is of another one.
    """
    if not experiment.pretrain.from_model:
        return experiment
    folder = _folder(experiment.pretrain.from_model)
    settings = _settings(folder)
    if experiment.model != Model() and (differing := _differing(experiment.model, settings)):
        raise ConfigError(
            f"{_KEY}: {experiment.pretrain.from_model} is another model than the section `model` describes: "
            f"{'; '.join(differing)}. Leave that section out (--set model={{}}), which takes the model's own, or name "
            "a model that has these"
        )
    pretrain = experiment.pretrain.model_copy(update={"from_model": folder})
    return experiment.model_copy(update={"model": settings, "pretrain": pretrain})


def stage(experiment: Experiment) -> Stage:
    """The pretrain stage of an experiment that takes a model."""
    folder = _folder(experiment.pretrain.from_model)
    made_by = _made_by(folder)
    files = {name: _sha256(folder, name, made_by) for name in FILES}
    # It is not said what trained its image tower: features are computed by the tower of this stage.
    training = {"from_model": files, "lock": "none"}
    config = {"model": experiment.model.model_dump(mode="json"), "training": training}
    entry = stages.of("pretrain")
    return Stage(experiment.root, entry.name, config, [made_by] if made_by else [], entry.version)


def take(experiment: Experiment) -> Manifest:
    """Copy the model as the pretrain stage, without an epoch of training.

    Raises:
        StorageError: a file cannot be read.
    """
    folder = _folder(experiment.pretrain.from_model)
    return _copied(stage(experiment), folder, _made_by(folder))


def handed_on(experiment: Experiment, pretrained: Manifest) -> Stage:
    """The finetune stage of an experiment that trains no epoch there."""
    # A locked tower is that of pre-training.
    config = {"model": experiment.model.model_dump(mode="json"), "training": {"epochs": 0, "lock": "all"}}
    entry = stages.of("finetune")
    return Stage(experiment.root, entry.name, config, [pretrained], entry.version)


def hand_on(experiment: Experiment, pretrained: Manifest) -> Manifest:
    """Copy the pre-trained model as the finetune stage, without an epoch of training.

    Raises:
        StorageError: a file cannot be read.
    """
    return _copied(handed_on(experiment, pretrained), storage.join(pretrained.uri, "model"), pretrained)


def _copied(taken: Stage, folder: str, made_by: Manifest | None) -> Manifest:
    def copied() -> Manifest:
        for name in FILES:
            known = made_by.parts.sha256(f"model/{name}") if made_by else ""
            data = storage.read_bytes(storage.join(folder, name), known)
            fence.publish_bytes(taken.path(f"model/{name}"), data)
        fence.publish(taken.path("history.json"), {"history": [], "pairs": 0})
        parts = [taken.describe(name) for name in (*(f"model/{file}" for file in FILES), "history.json")]
        return taken.commit(parts, counts={"pairs": made_by.counts.get("pairs", 0) if made_by else 0})

    return taken.made(copied)


def _folder(uri: str) -> str:
    """Return the URI of the folder of a model."""
    if not uri.startswith("models:/"):
        return uri.rstrip("/")
    from wukong.tracking import model_versions

    return model_versions.folder_of(uri)


def _settings(folder: str) -> Model:
    try:
        described: Any = storage.read_json(storage.join(folder, "config.json"))
        return Model.model_validate(described["model"])
    except (KeyError, TypeError, ValidationError, WukongError) as error:
        raise ConfigError(
            f"{_KEY}: {folder} is no model of this project ({error}); name the folder `model` of a training, which "
            f"holds {', '.join(FILES)}, or models:/NAME@ALIAS"
        ) from error


def _differing(asked: Model, given: Model) -> list[str]:
    """Say in which keys two models differ that their weights depend on."""
    ours, theirs = (flatten(each.model_dump(mode="json")) for each in (asked, given))
    own_vocabulary = [each.text.vocabulary == "package" for each in (asked, given)]
    ignored = _ELSEWHERE - ({"text.vocabulary"} if own_vocabulary[0] != own_vocabulary[1] else set())
    ignored |= {f"{key}_sha256" for key in _ELSEWHERE}
    keys = sorted(key for key in ours.keys() - ignored if ours[key] != theirs.get(key))
    return [f"model.{key} is {ours[key]!r}, and the model's is {theirs.get(key)!r}" for key in keys]


def _made_by(folder: str) -> Manifest | None:
    beside = folder.rpartition("/")[0]
    return manifest.load(beside) if storage.exists(storage.join(beside, "manifest.json")) else None


def _sha256(folder: str, name: str, made_by: Manifest | None) -> str:
    """Return the SHA-256 of a model's file, which a manifest knows without a look at it."""
    known = made_by.parts.sha256(f"model/{name}") if made_by else ""
    return known or contents.sha256(storage.join(folder, name))
