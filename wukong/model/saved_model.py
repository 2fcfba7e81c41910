"""A trained model as a folder: ``model.safetensors`` (the image tower too), ``config.json``, ``vocab.txt``."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save as save_safetensors
from torch import Tensor

from wukong import environment, storage
from wukong.config import Model as Settings
from wukong.data import images
from wukong.data.tokenizer import Tokenizer
from wukong.errors import ConfigError, DataError, StorageError
from wukong.model import weights
from wukong.model.dual import DualEncoder, Texts
from wukong.model.image_encoder import ImageEncoder

FORMAT = 1
FILES = ("config.json", "model.safetensors", "vocab.txt")
_TOWER = "image."
_BLOCK_IMAGES, _BLOCK_TEXTS = 256, 1024
_SHOWN = 20

Picture: TypeAlias = Image.Image | npt.NDArray[np.uint8] | bytes | Path | str
"""A PIL picture of any mode and size, a uint8 array of height x width (x 1, 3 or 4 channels), an encoded picture, or
the path or URI of one."""


@dataclass(frozen=True)
class Package:
    """A model ready to use.

    Attributes:
        model: in evaluation mode, with its image tower.
        tokenizer: of the captions.
    """

    model: DualEncoder
    tokenizer: Tokenizer

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.log_scale.device

    @torch.no_grad()
    def encode_image(self, pictures: Picture | Sequence[Picture], batch_size: int = 32) -> Tensor:
        """Unit vectors of pictures, float32 [pictures, d], or [pictures, tokens, d] for a token-wise model, on the CPU.

        A picture is shown as the model's ``image.view`` says, whole on a white square or cut to the square in its
        middle; grey ones and those with transparency become RGB.

        Args:
            pictures: one or several.
            batch_size: how many are encoded at a time.

        Raises:
            DataError: a picture is broken, of less than two pixels on a side, or an array of another type or shape; or
                the model gives numbers that are not finite. The message names the picture.
            StorageError: there is nothing at a path or URI.
        """
        given = pictures if isinstance(pictures, Sequence) and not isinstance(pictures, str | bytes) else [pictures]
        if self.model.image is None:
            raise ValueError("this model holds no image tower: load it with wukong.load")
        tower = self.model.settings.image
        # For no pictures, their vectors' shape.
        shape = (self.model.image.token_count,) if self.model.token_wise else ()
        parts = [torch.empty(0, *shape, self.model.width)]
        for start in range(0, len(given), batch_size):
            batch = [
                images.evaluation_view(_opened(picture, f"picture {number}"), tower.image_size, tower.view)
                for number, picture in enumerate(given[start : start + batch_size], start)
            ]
            vectors = self.model.embed_pixels(images.to_tensor(batch).to(self.device)).float().cpu()
            _refuse_not_finite(vectors, "picture", start)
            parts.append(vectors)
        return torch.cat(parts)

    @torch.no_grad()
    def encode_text(self, captions: str | Sequence[str], batch_size: int = 256, strict: bool = True) -> Texts:
        """Unit vectors of captions, float32 [captions, d], or [captions, tokens, d] for a token-wise model, on the CPU.

        Args:
            captions: one or several.
            batch_size: how many are encoded at a time.
            strict: refuse captions that say nothing to the model or are longer than it reads; otherwise those are
                encoded all the same, and the longer ones cut.

        Raises:
            DataError: a caption is no text, or, if ``strict``, it is empty, has no character that the vocabulary knows,
                or is too long; or the model gives numbers that are not finite. The message names the caption.
        """
        given = [captions] if isinstance(captions, str) else list(captions)
        for number, caption in enumerate(given):
            if not isinstance(caption, str):
                raise DataError(f"caption {number} is a {type(caption).__name__} ({caption!r}): give text")
        if strict:
            self._refuse_mute(given)
        ids = self.tokenizer(given)
        parts = [Texts(torch.empty(0, *ids.shape[1:][: self.model.token_wise], self.model.width), ids[:0].bool())]
        for start in range(0, len(given), batch_size):
            vectors, counted = self.model.embed_text(ids[start : start + batch_size].to(self.device))
            _refuse_not_finite(vectors, "caption", start)
            parts.append(Texts(vectors.float().cpu(), counted.cpu()))
        return Texts(torch.cat([part.vectors for part in parts]), torch.cat([part.counted for part in parts]))

    @torch.no_grad()
    def similarity(self, image: Tensor, text: Texts, side: Literal["image", "text"] = "image") -> Tensor:
        """Similarity of each encoded picture to each encoded caption, float32 [pictures, captions], on the CPU.

        It is computed block by block, so that neither side need fit on the model's device. Higher is more alike; it is
        not divided by the temperature, ``1 / model.scale``.

        Args:
            image: from ``encode_image``.
            text: from ``encode_text``.
            side: of a token-wise model, the picture's similarity to the captions, s^I, or the caption's to the
                pictures, s^T; for a global one they are the same.

        Raises:
            DataError: a vector is not finite; the message names it.
        """
        _refuse_not_finite(image, "picture", 0)
        _refuse_not_finite(text.vectors, "caption", 0)
        scores = torch.empty(len(image), len(text.vectors))
        for column in range(0, len(text.vectors), _BLOCK_TEXTS):
            texts = Texts(*(part[column : column + _BLOCK_TEXTS].to(self.device) for part in text))
            for row in range(0, len(image), _BLOCK_IMAGES):
                block = self.model.similarity(image[row : row + _BLOCK_IMAGES].to(self.device), texts)
                scores[row : row + _BLOCK_IMAGES, column : column + _BLOCK_TEXTS] = (
                    block.image_to_text if side == "image" else block.text_to_image
                )
        return scores

    def _refuse_mute(self, captions: Sequence[str]) -> None:
        lengths, longest = self.tokenizer.lengths(captions), self.tokenizer.max_tokens
        special = {self.tokenizer.cls, self.tokenizer.sep}
        for number, (length, ids) in enumerate(zip(lengths, self.tokenizer.encode(captions), strict=True)):
            caption = captions[number]
            shown = repr(caption if len(caption) <= _SHOWN else f"{caption[:_SHOWN]}…")
            if length > longest:
                raise DataError(
                    f"caption {number}, {shown}, has {length} tokens and the model reads {longest}: shorten it, or "
                    "pass strict=False to have it cut"
                )
            words = set(ids) - special
            if not words:
                raise DataError(f"caption {number}, {shown}, is empty: give it a word")
            if words == {self.tokenizer.unknown}:
                raise DataError(f"caption {number}, {shown}, has no character that the model's vocabulary knows")


def save(uri: str, model: DualEncoder, tokenizer: Tokenizer) -> list[str]:
    """Write a model under a prefix and give the names of its files.

    Args:
        uri: prefix of the folder.
        model: with its image tower, not ``for_inference``.
        tokenizer: the model's.
    """
    if model.image is None:
        raise ValueError("a package holds the image tower: give the model one")
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    storage.write_bytes(storage.join(uri, "model.safetensors"), save_safetensors(state))
    storage.write_bytes(storage.join(uri, "vocab.txt"), tokenizer.vocabulary.encode("utf-8"))
    config = {"format": FORMAT, "model": model.settings.model_dump(mode="json")}
    storage.write_json(storage.join(uri, "config.json"), config)
    return list(FILES)


def load(uri: str | Path, device: str | torch.device = "cpu") -> Package:
    """Read a model from its folder, ready to encode.

    Args:
        uri: of the folder, or its path; or of a model that MLflow has, for instance ``models:/demo@champion``. What
            lies in this machine's embedded stack is found without a word about where that is.
        device: where it computes, for instance ``cuda``.

    Raises:
        StorageError: a file is missing, or MLflow does not give the model.
        DataError: a file is damaged, or the files do not belong together.
        ConfigError: there is no such device here.
    """
    place = device_of(device)
    if isinstance(uri, str) and uri.startswith(("models:/", "runs:/")):
        with tempfile.TemporaryDirectory() as scratch:
            return _load(storage.from_path(_fetched(uri, scratch)), place)
    return _load(_uri(uri), place)


def device_of(name: str | torch.device) -> torch.device:
    """The device of a name.

    Raises:
        ConfigError: it is no device's name, or the device is not here; the message says which there are.
    """
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    here = ", ".join(kind if kind != "cuda" else f"cuda:0 to cuda:{n - 1}" for kind, n in counts.items() if n)
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device: {name!r} is the name of no device; allowed here: {here}") from error
    if (device.index or 0) >= counts.get(device.type, 0):
        raise ConfigError(f"device: {str(device)!r} is not here; allowed here: {here}")
    return device


def _fetched(uri: str, scratch: str) -> Path:
    """Fetch an MLflow model and give the folder in it that is ours."""
    environment.use_for(uri)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowException, artifacts

    try:
        folder = Path(artifacts.download_artifacts(artifact_uri=uri, dst_path=scratch))
    except (MlflowException, OSError) as error:
        raise StorageError(
            f"MLflow does not give {uri} ({error}); `wukong status` shows the embedded server, MLFLOW_TRACKING_URI "
            "names another"
        ) from error
    ours = folder / "artifacts" / "model"
    if not (ours / "config.json").is_file():
        raise DataError(
            f"{uri} is not a model that this project has registered: it holds no artifacts/model/config.json"
        )
    return ours


def _load(folder: str, device: torch.device) -> Package:
    settings, tokenizer = _read_settings(folder)
    tower = ImageEncoder(settings.image, with_weights=False)
    model = DualEncoder(settings, tokenizer, tower, with_weights=False)
    state = storage.join(folder, "model.safetensors")
    weights.fill(model, weights.read(state), state)
    return Package(model.eval().requires_grad_(requires_grad=False).to(device), tokenizer)


def load_for_features(uri: str) -> Package:
    """Read a model without its image tower, to be given features of it; see ``load``."""
    settings, tokenizer = _read_settings(uri)
    source = storage.join(uri, "model.safetensors")
    state = {name: value for name, value in weights.read(source).items() if not name.startswith(_TOWER)}
    width = settings.text.width
    if settings.embedding is not None:
        if "image_head.weight" not in state:
            raise DataError(f"{source} lacks image_head.weight: it is not a model of this project")
        if state["image_head.weight"].ndim != 2:
            raise DataError(f"{source}: image_head.weight is no matrix: it is not a model of this project")
        width = state["image_head.weight"].shape[1]
    model = DualEncoder(settings, tokenizer, feature_width=width, with_weights=False)
    weights.fill(model, state, source)
    return Package(model.eval(), tokenizer)


def _uri(place: str | Path) -> str:
    return place if isinstance(place, str) and "://" in place else storage.from_path(Path(place))


def _read_settings(uri: str) -> tuple[Settings, Tokenizer]:
    config: Any = storage.read_json(storage.join(uri, "config.json"))
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise DataError(f"{uri}/config.json is not of a model in format {FORMAT}")
    try:
        described = config["model"]
        if isinstance(described, dict):
            # A model from before there was the setting was trained so.
            described = {"match_text_cls": False, **described}
        settings = Settings.model_validate(described)
    except (KeyError, ValidationError) as error:
        raise DataError(f"{uri}/config.json does not describe a model: {error}") from error
    vocabulary = storage.read_bytes(storage.join(uri, "vocab.txt")).decode("utf-8")
    return settings, Tokenizer(vocabulary, settings.text.max_tokens)


def _opened(picture: Picture, name: str) -> Image.Image:
    if isinstance(picture, str | Path):
        uri = _uri(picture)
        opened = images.decode(storage.read_bytes(uri), f"{name}, {uri},")
    elif isinstance(picture, bytes):
        opened = images.decode(picture, name)
    elif isinstance(picture, np.ndarray):
        opened = images.from_array(picture, name)
    elif isinstance(picture, Image.Image):
        opened = images.to_rgb(picture)
    else:
        raise DataError(f"{name} is a {type(picture).__name__}: give a PIL picture, a uint8 array, bytes or a path")
    if min(opened.size) < 2:
        width, height = opened.size
        raise DataError(f"{name} is {width} x {height} pixels: there is nothing to see in less than 2 x 2")
    return opened


def _refuse_not_finite(vectors: Tensor, what: str, first: int) -> None:
    finite = torch.isfinite(vectors).flatten(1).all(1)
    if not finite.all():
        number = first + int((~finite).nonzero()[0])
        raise DataError(f"the vector of {what} {number} is not finite: the model's weights or its features are damaged")
