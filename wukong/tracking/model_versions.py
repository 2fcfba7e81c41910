"""Registered models in MLflow: new versions, and where their files are."""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from wukong.config.experiment import Experiment
from wukong.errors import ConfigError, DataError
from wukong.runtime import environment
from wukong.store import storage
from wukong.store.manifest import Manifest, code_revision, digest_of
from wukong.tracking.availability import MLFLOW, page, refuse_untracked
from wukong.tracking.mlflow_rest import Server, mlflow_client
from wukong.tracking.tags import EVALUATION_TAG, PARENT_TAG

_DIGEST_TAG = "wukong.evaluation"
_ADDRESS = re.compile(r"models:/([^/@]+)(?:/(\d+)|(@[\w-]+))")


def register(
    experiment: Experiment, run_id: str, model: Manifest, evaluation: Manifest, tags: Mapping[str, str]
) -> str:
    """Register a model as a new version and return its number. ``wukong.registry.aliases`` gives it the alias.

    The version is an MLflow model (``wukong.model.pyfunc``) with the saved model among its artifacts. A version with
    the same evaluation digest is used again; no second one is made.

    Args:
        experiment: names the model and the metric that decides.
        run_id: the stage's MLflow run. The artifacts of the pipeline's run, its parent, hold the saved model.
        model: manifest of the stage whose ``model/`` folder is registered.
        evaluation: manifest of the evaluation of that model.
        tags: further tags of the version.

    Raises:
        DataError: the evaluation did not measure the metric that decides.
    """
    registry = experiment.registry
    if registry.metric not in evaluation.metrics:
        known = ", ".join(sorted(evaluation.metrics))
        raise DataError(f"registry.metric is {registry.metric!r}, but the evaluation measured only: {known}")
    own = {
        _DIGEST_TAG: evaluation.digest,
        "wukong.origin": digest_of([*experiment.origin])[:16],  # which models are compared
        "wukong.data": next((p.digest for p in evaluation.parents if p.stage == "filter"), ""),
        "wukong.model": model.uri,
        "wukong.metric": registry.metric,
        "wukong.value": repr(evaluation.metrics[registry.metric]),
        "wukong.revision": code_revision(),
    }
    said, name = {**own, **tags}, registry.model_name
    return MLFLOW.until_answered(lambda: _register(Server(), name, run_id, model, said))


def _register(server: Server, name: str, run_id: str, model: Manifest, tags: Mapping[str, str]) -> str:
    server.register_model(name, "Chinese dual encoders trained by Wukong")
    measured = {"key": _DIGEST_TAG, "value": tags[_DIGEST_TAG]}
    for known in server.registered("model-versions", name):
        if measured in known.get("tags", ()):
            return str(known["version"])
    # MLflow shows a version on the page of the run that it belongs to: that of the pipeline.
    owner = server.run(run_id).tags.get(PARENT_TAG, run_id)
    _log_model(owner, model)
    return server.register_version(name, f"runs:/{owner}/model", owner, tags)


def versions_of(server: Server) -> dict[str, tuple[str, ...]]:
    """Return the registered versions, ``models:/NAME/VERSION``, by the URI of the stage that trained each."""
    found: dict[str, tuple[str, ...]] = {}
    for version in server.registered("model-versions"):
        tags = {tag["key"]: tag["value"] for tag in version.get("tags", ())}
        if uri := tags.get("wukong.model"):
            found[uri] = (*found.get(uri, ()), f"models:/{version['name']}/{version['version']}")
    return found


def folder_of(model: str) -> str:
    """Return the URI of the folder of a registered model.

    Args:
        model: ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``.

    Raises:
        ConfigError: the address is no such address, or no tracking server is configured.
        DataError: the model was not registered by Wukong.
        MlflowError: the server has no such model or version.
    """
    if uri := _tags_of(model).get("wukong.model"):
        return storage.join(uri, "model")
    raise DataError(f"{model} does not say where its files are: it was not registered by Wukong")


def evaluation_of(model: str) -> str:
    """Return the URI of the manifest of a registered model's evaluation; for argument and errors see ``folder_of``."""
    if uri := _tags_of(model).get(EVALUATION_TAG):
        return uri
    raise DataError(f"{model} does not say where its evaluation is: it was not registered by Wukong")


def _tags_of(model: str) -> dict[str, str]:
    server, name, version = _at(model)
    return server.model_tags(name, version)


def _at(model: str) -> tuple[Server, str, str]:
    """Return the server, the name, and the version or ``@ALIAS`` of a registered model's address."""
    parts = _ADDRESS.fullmatch(model)
    if parts is None:
        raise ConfigError(f"{model}: write models:/NAME/VERSION, for instance models:/demo/1, or models:/NAME@ALIAS")
    environment.use_for(model)
    refuse_untracked()
    return Server(), parts[1], parts[2] or parts[3]


def add_file(model: str, name: str, content: bytes) -> None:
    """Add a file to the files of a registered model, or replace it.

    Args:
        model: ``models:/NAME/VERSION``, ``models:/NAME@ALIAS``, or ``runs:/RUN/PATH``.
        name: the file's name.
        content: its bytes.

    Raises:
        ConfigError: the address is no such address, or no tracking server is configured.
        DataError: the model's files are not those of a run: it was not registered by Wukong.
        MlflowError: the server has no such model or version.
    """
    source = model
    if not model.startswith("runs:/"):
        server, found, version = _at(model)
        source = str(server.model_version(found, version).get("source", ""))
    run_id, _, folder = source.removeprefix("runs:/").partition("/")
    if source == run_id or not folder:
        raise DataError(f"the files of {model} are at {source}, and in no run: it was not registered by Wukong")
    server = Server()
    server.write_file(server.run(run_id), f"{folder}/{name}", content)


def model_url(name: str, version: int | None = None) -> str:
    """Address of a registered model's page in MLflow, or of the page of one version."""
    return page(f"models/{name}" + (f"/versions/{version}" if version is not None else ""))


def _log_model(run_id: str, manifest: Manifest) -> None:
    """Log a stage's ``model/`` folder as an MLflow model, which ``mlflow.pyfunc.load_model`` loads.

    It is signed if the environment names a key (``wukong.model.signature``).
    """
    from wukong.model import pyfunc, signature

    with tempfile.TemporaryDirectory() as folder:
        for part in manifest.parts.below("model/"):
            storage.download(storage.join(manifest.uri, part.path), Path(folder), part.path, part.sha256)
        similarity = storage.read_json(storage.from_path(Path(folder, "model/config.json")))["model"]["similarity"]
        made = Path(folder, "mlflow")
        pyfunc.save(made, Path(folder, "model"), similarity)
        if (signer := signature.Signer.of_environment()) is not None:
            (made / signature.FILE).write_bytes(signature.sign(made, signer))
        mlflow_client().log_artifacts(run_id, str(made), "model")
