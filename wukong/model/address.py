"""What a model is named by: a path, a URI, or an address in MLflow; and copies of the files that are there."""

import os
from pathlib import Path

from wukong.errors import DataError, StorageError
from wukong.model.signature import MLFLOW_NOTE
from wukong.runtime import environment
from wukong.store import storage

INSIDE = "artifacts/model"
"""Where the saved model lies in the MLflow model that ``wukong.model.pyfunc`` writes."""


def to_uri(place: str | Path) -> str:
    """Return the URI of a file or folder that is named by a path or a URI."""
    return place if isinstance(place, str) and "://" in place else storage.from_path(Path(place))


def in_mlflow(place: str | Path) -> bool:
    """Return whether a model is named by its address in MLflow."""
    return isinstance(place, str) and place.startswith(("models:/", "runs:/"))


def fetch(place: str | Path, scratch: Path) -> Path:
    """Copy the files of a model into an empty folder, and return the folder that they are in.

    They are what a signature covers: the files of the saved model, or those of the whole MLflow model, whose code
    MLflow runs, with the saved model in its folder ``INSIDE``.

    Raises:
        StorageError: there are no files, or MLflow does not give the model.
        DataError: it is no model of this project, or the name of a file leads out of its folder.
    """
    return _download(str(place), scratch) if in_mlflow(place) else _copy(to_uri(place), scratch)


def _copy(uri: str, folder: Path) -> Path:
    files = storage.list_files(uri)
    if not files:
        raise StorageError(f"there are no files at {uri}")
    for file in files:
        storage.download(file, folder, file.removeprefix(storage.join(uri, "")))
    return folder


def _download(uri: str, scratch: Path) -> Path:
    environment.use_for(uri)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        from mlflow import MlflowException, artifacts
    except ModuleNotFoundError as error:
        raise StorageError(
            f"cannot open {uri}: it is opened with mlflow, which is not installed: run `pip install mlflow-skinny`"
        ) from error
    try:
        folder = Path(artifacts.download_artifacts(artifact_uri=uri, dst_path=str(scratch)))
    except (MlflowException, OSError) as error:
        if "@" in uri and "not found" in str(error):
            name, _, alias = uri.partition("@")
            raise StorageError(
                f"no version holds {uri}: MLflow has no model of this name, or the gate gave @{alias} to none of its "
                f"versions. `wukong models` lists them; take one by its number, {name}/1"
            ) from error
        raise StorageError(
            f"MLflow does not give {uri} ({error}); `wukong status` shows the embedded server, MLFLOW_TRACKING_URI "
            "names another"
        ) from error
    if not (folder / INSIDE / "config.json").is_file():
        raise DataError(
            f"{uri} is not a model that this project has registered: it holds no artifacts/model/config.json"
        )
    (folder / MLFLOW_NOTE).unlink(missing_ok=True)  # others' signatures may not leave it out
    return folder
