"""A saved model as an MLflow model from code: MLflow stores this file with the model and runs it; nothing is pickled.

The MLflow model also holds the library code that it imports, and its requirements are what that code needs. So it can
be loaded where this project is not installed, and no package index has to offer the project. ``save`` needs no torch
and does not load the model.
"""

import io
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import mlflow.pyfunc
import pandas as pd
from mlflow.models import ModelSignature, set_model
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array

REQUIRED = (
    "numpy",
    "pandas",
    "pillow",
    "pydantic",
    "pydantic-core",
    "pyyaml",
    "safetensors",
    "timm",
    "tokenizers",
    "torch",
    "torchvision",
)
"""The distributions that loading a model imports, by their names on PyPI."""

_PAIRS = 64
_ARTIFACT = "model"
"""Name of the saved model among the artifacts of the MLflow model."""


class DualEncoderModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Encode captions and images. A row holds a pair, or only a caption, or only an image.

    ``mlflow.pyfunc.load_model(uri, model_config={"device": "cuda"})`` loads it on a GPU; a device that does not exist
    is an error.
    """

    def load_context(self, context: Any) -> None:
        """Load the saved model that is stored with this file."""
        from wukong.model import saved_model

        device = (context.model_config or {}).get("device", "cpu")
        self.saved = saved_model.load(Path(context.artifacts[_ARTIFACT]), device)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Encode each row.

        Args:
            context: MLflow's context; unused.
            model_input: the columns ``caption`` (text) and ``image`` (the bytes of an image file), or one of them. A
                value may be missing; an image without bytes is one, because MLflow's server refuses null there.
            params: unused.

        Returns:
            A table with as many rows. ``caption_vector`` and ``image_vector`` are unit vectors; for a token-wise model
            there is one vector for each token that counts and one for each patch. ``similarity`` is that of the image
            to the caption. A result is None where a value it needs is missing.

        Raises:
            DataError: both columns are missing, or ``SavedModel`` refuses a caption or an image.
        """
        from wukong.errors import DataError
        from wukong.model.dual import Texts

        captions, pictures = _present(model_input, "caption"), _present(model_input, "image")
        if captions is None and pictures is None:
            raise DataError(f"neither caption nor image among the columns {', '.join(map(str, model_input.columns))}")
        rows: list[dict[str, Any]] = [
            {"caption_vector": None, "image_vector": None, "similarity": None} for _ in range(len(model_input))
        ]
        captions, pictures = captions or {}, pictures or {}
        text = self.saved.encode_text(list(captions.values()))
        image = self.saved.encode_image(list(pictures.values()))
        for row_number, row in enumerate(captions):
            vector = text.vectors[row_number]
            rows[row]["caption_vector"] = (vector[text.counted[row_number]] if vector.ndim == 2 else vector).tolist()
        for row_number, row in enumerate(pictures):
            rows[row]["image_vector"] = image[row_number].tolist()
        caption_places, picture_places = ({row: n for n, row in enumerate(side)} for side in (captions, pictures))
        both = [row for row in captions if row in pictures]
        for start in range(0, len(both), _PAIRS):
            part = both[start : start + _PAIRS]
            chosen = [caption_places[row] for row in part]
            texts = Texts(text.vectors[chosen], text.counted[chosen])
            scores = self.saved.similarity(image[[picture_places[row] for row in part]], texts).diagonal()
            for row, score in zip(part, scores.tolist(), strict=True):
                rows[row]["similarity"] = score
        # As objects, so that None stays: MLflow's server would write NaN, which is no JSON.
        return pd.DataFrame(rows, index=model_input.index, dtype=object)


def signature(similarity: Literal["global", "token"]) -> ModelSignature:
    """Return the MLflow signature: the columns of input and output; see ``DualEncoderModel.predict``."""
    vector = Array(DataType.float) if similarity == "global" else Array(Array(DataType.float))
    return ModelSignature(
        inputs=Schema(
            [ColSpec(DataType.string, "caption", required=False), ColSpec(DataType.binary, "image", required=False)]
        ),
        outputs=Schema(
            [
                ColSpec(vector, "caption_vector", required=False),
                ColSpec(vector, "image_vector", required=False),
                ColSpec(DataType.double, "similarity", required=False),
            ]
        ),
    )


def example() -> pd.DataFrame:
    """Return a row of input: a caption, and the bytes of the JPEG that it describes."""
    from PIL import Image  # not needed to load this file

    picture = io.BytesIO()
    Image.new("RGB", (32, 32), (220, 20, 30)).save(picture, "JPEG")
    return pd.DataFrame({"caption": ["红色的方块"], "image": [picture.getvalue()]})


def save(folder: Path, saved: Path, similarity: Literal["global", "token"]) -> None:
    """Write a saved model as an MLflow model.

    Args:
        folder: where the MLflow model is written; it must not exist.
        saved: folder of the saved model, which is copied.
        similarity: the similarity that the model computes.
    """
    from wukong.runtime import installed

    with tempfile.TemporaryDirectory() as scratch:
        code = Path(scratch, "wukong")
        shutil.copytree(_LIBRARY, code, ignore=_not_needed)
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(Path(__file__)),
            artifacts={_ARTIFACT: str(saved)},
            signature=signature(similarity),
            input_example=example(),
            # MLflow accepts only the keys named here: without this one, load_model would ignore a device.
            model_config={"device": "cpu"},
            code_paths=[str(code)],
            pip_requirements=installed.pinned(REQUIRED),
        )


def _not_needed(folder: str, names: list[str]) -> set[str]:
    """Return the names in a folder that loading a model does not need: other stages' code and word lists."""
    if Path(folder) == _LIBRARY:
        return {name for name in names if Path(folder, name).is_dir() and name not in _CODE}
    return {name for name in names if name == "__pycache__"}


_LIBRARY = Path(__file__).parents[1]
_CODE = ("config", "data", "model", "runtime", "store")
"""Packages from which ``wukong.load`` imports."""


def _present(table: pd.DataFrame, column: str) -> dict[int, Any] | None:
    """Return the values of a column by row number, without missing values; None if there is no such column."""
    if column not in table.columns:
        return None
    given = enumerate(table[column])
    return {row: value for row, value in given if value is not None and value == value and value != b""}  # noqa: PLR0124 - not NaN


set_model(DualEncoderModel())
