"""A package as an MLflow model by code: MLflow copies this file beside the package and runs it; nothing is pickled.

The library's own code lies beside it too, and its requirements are those of that code: so a model can be loaded where
this project is not installed, and needs no index to have it. Saving needs neither torch nor the model's memory.
"""

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
    "pyarrow",
    "pydantic",
    "pyyaml",
    "safetensors",
    "timm",
    "tokenizers",
    "torch",
    "torchvision",
)
"""What loading a model imports, by the names that an index has."""

_PAIRS = 64
_PACKAGE = "model"


class DualEncoderModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Encode captions and pictures, a pair or one of the two a row.

    ``mlflow.pyfunc.load_model(uri, model_config={"device": "cuda"})`` puts it on a GPU; a device that is not there is
    refused.
    """

    def load_context(self, context: Any) -> None:
        """Read the package that lies beside this file."""
        import wukong

        device = (context.model_config or {}).get("device", "cpu")
        self.package = wukong.load(Path(context.artifacts[_PACKAGE]), device)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Encode each row.

        Args:
            context: MLflow's.
            model_input: the columns ``caption`` (text) and ``image`` (an encoded picture as bytes), or one of them; a
                value may be missing.
            params: none are known.

        Returns:
            As many rows: ``caption_vector`` and ``image_vector``, unit vectors, or for a token-wise model one for each
            token that counts and each patch; ``similarity`` of the picture to the caption. None where a value is
            missing.

        Raises:
            DataError: there is neither column; or a caption or picture that ``Package`` refuses.
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
        text = self.package.encode_text(list(captions.values()))
        image = self.package.encode_image(list(pictures.values()))
        for place, row in enumerate(captions):
            vector = text.vectors[place]
            rows[row]["caption_vector"] = (vector[text.counted[place]] if vector.ndim == 2 else vector).tolist()
        for place, row in enumerate(pictures):
            rows[row]["image_vector"] = image[place].tolist()
        caption_places, picture_places = ({row: n for n, row in enumerate(side)} for side in (captions, pictures))
        both = [row for row in captions if row in pictures]
        for start in range(0, len(both), _PAIRS):
            part = both[start : start + _PAIRS]
            chosen = [caption_places[row] for row in part]
            texts = Texts(text.vectors[chosen], text.counted[chosen])
            scores = self.package.similarity(image[[picture_places[row] for row in part]], texts).diagonal()
            for row, score in zip(part, scores.tolist(), strict=True):
                rows[row]["similarity"] = score
        return pd.DataFrame(rows, index=model_input.index)


def signature(similarity: Literal["global", "token"]) -> ModelSignature:
    """What the model reads and gives; see ``DualEncoderModel.predict``."""
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


def save(folder: Path, package: Path, similarity: Literal["global", "token"]) -> None:
    """Write a package as an MLflow model.

    Args:
        folder: is made; must not exist.
        package: folder of the package, which is copied.
        similarity: the model's.
    """
    from wukong import installed

    with tempfile.TemporaryDirectory() as scratch:
        code = Path(scratch, "wukong")
        shutil.copytree(Path(__file__).parents[1], code, ignore=_not_needed)
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(Path(__file__)),
            artifacts={_PACKAGE: str(package)},
            signature=signature(similarity),
            # MLflow takes over only what is among these: without it, a device asked for would be ignored.
            model_config={"device": "cpu"},
            code_paths=[str(code)],
            pip_requirements=installed.pinned(REQUIRED),
        )


def _not_needed(folder: str, names: list[str]) -> set[str]:
    """What of the library no model needs when it is loaded: whole stages, and their word lists."""
    if Path(folder) == Path(__file__).parents[1]:
        return {name for name in names if Path(folder, name).is_dir() and name not in _CODE}
    return {name for name in names if name == "__pycache__"}


_CODE = ("crawl", "data", "model")
"""Folders of the library that ``wukong.load`` imports from; of ``crawl`` the addresses."""


def _present(table: pd.DataFrame, column: str) -> dict[int, Any] | None:
    """The values of a column by their row, without those that are missing; None where the column is."""
    if column not in table.columns:
        return None
    return {row: value for row, value in enumerate(table[column]) if value is not None and value == value}  # noqa: PLR0124 - not NaN


set_model(DualEncoderModel())
