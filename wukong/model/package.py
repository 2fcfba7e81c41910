"""A trained model as a folder: ``model.safetensors`` (the image tower too), ``config.json``, ``vocab.txt``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from wukong import storage
from wukong.config import Model as Settings
from wukong.data import images
from wukong.data.tokenizer import Tokenizer
from wukong.errors import DataError
from wukong.model.dual import DualEncoder, Texts
from wukong.model.image import ImageEncoder

FORMAT = 1
FILES = ("config.json", "model.safetensors", "vocab.txt")
_TOWER = "image."


@dataclass(frozen=True)
class Package:
    """A model ready to use.

    Attributes:
        model: in evaluation mode, with its image tower.
        tokenizer: of the captions.
    """

    model: DualEncoder
    tokenizer: Tokenizer

    @torch.inference_mode()
    def encode_image(self, pictures: Sequence[Image.Image | npt.NDArray[np.uint8]], batch_size: int = 32) -> Tensor:
        """Unit vectors of pictures, float32 [pictures, d], or [pictures, tokens, d] for a token-wise model.

        Args:
            pictures: PIL pictures of any mode and size, or uint8 arrays of height x width (x 1, 3 or 4 channels).
            batch_size: how many are encoded at a time.

        Raises:
            DataError: an array of another type or shape.
        """
        size = self.model.settings.image.image_size
        parts = []
        for start in range(0, len(pictures), batch_size):
            batch = [
                images.evaluation_view(
                    images.from_array(picture, f"picture {number}")
                    if isinstance(picture, np.ndarray)
                    else images.to_rgb(picture),
                    size,
                )
                for number, picture in enumerate(pictures[start : start + batch_size], start)
            ]
            parts.append(self.model.embed_pixels(images.to_tensor(batch)))
        return torch.cat(parts) if parts else torch.empty(0)

    @torch.inference_mode()
    def encode_text(self, captions: Sequence[str], batch_size: int = 256) -> Texts:
        """Unit vectors of captions, float32 [captions, d], or [captions, tokens, d] for a token-wise model.

        Captions longer than the text encoder reads are cut.

        Args:
            captions: of any length.
            batch_size: how many are encoded at a time.
        """
        ids = self.tokenizer(captions)
        parts = [self.model.embed_text(ids[start : start + batch_size]) for start in range(0, len(ids), batch_size)]
        return Texts(torch.cat([part.vectors for part in parts]), torch.cat([part.counted for part in parts]))

    @torch.inference_mode()
    def similarity(self, image: Tensor, text: Texts) -> Tensor:
        """Similarity of each encoded picture to each encoded caption, [pictures, captions], higher is more alike."""
        return self.model.similarity(image, text).image_to_text


def save(uri: str, model: DualEncoder, tokenizer: Tokenizer) -> list[str]:
    """Write a model under a prefix and give the names of its files.

    Args:
        uri: prefix of the folder.
        model: with its image tower, not ``for_inference``.
        tokenizer: the model's.
    """
    if model.image is None:
        raise ValueError("a package holds the image tower: give the model one")
    state = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    storage.write_bytes(storage.join(uri, "model.safetensors"), save_safetensors(state))
    storage.write_bytes(storage.join(uri, "vocab.txt"), tokenizer.vocabulary.encode("utf-8"))
    config = {"format": FORMAT, "model": model.settings.model_dump(mode="json")}
    storage.write_json(storage.join(uri, "config.json"), config)
    return list(FILES)


def load(uri: str) -> Package:
    """Read a model from its folder, ready to encode.

    Raises:
        DataError: a file is missing, or the files do not belong together.
    """
    settings, tokenizer = _read_settings(uri)
    model = DualEncoder(settings, tokenizer, ImageEncoder(settings.image, with_weights=False))
    _fill(model, _read_state(uri), uri)
    return Package(model.eval().requires_grad_(requires_grad=False), tokenizer)


def load_for_features(uri: str) -> Package:
    """Read a model without its image tower, to be given features of it; see ``load``."""
    settings, tokenizer = _read_settings(uri)
    state = {name: value for name, value in _read_state(uri).items() if not name.startswith(_TOWER)}
    try:
        width = state["image_head.weight"].shape[1]
    except KeyError as error:
        raise DataError(f"{uri}/model.safetensors lacks {error}: it is not a model of this project") from None
    model = DualEncoder(settings, tokenizer, feature_width=width)
    _fill(model, state, uri)
    return Package(model.eval(), tokenizer)


def _read_settings(uri: str) -> tuple[Settings, Tokenizer]:
    config: Any = storage.read_json(storage.join(uri, "config.json"))
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise DataError(f"{uri}/config.json is not of a model in format {FORMAT}")
    try:
        settings = Settings.model_validate(config["model"])
    except (KeyError, ValidationError) as error:
        raise DataError(f"{uri}/config.json does not describe a model: {error}") from error
    vocabulary = storage.read_bytes(storage.join(uri, "vocab.txt")).decode("utf-8")
    return settings, Tokenizer(vocabulary, settings.text.max_tokens)


def _read_state(uri: str) -> dict[str, Tensor]:
    try:
        return load_safetensors(storage.read_bytes(storage.join(uri, "model.safetensors")))  # type: ignore[no-any-return]
    except SafetensorError as error:
        raise DataError(f"{uri}/model.safetensors is damaged ({error}): train the model again") from error


def _fill(model: DualEncoder, state: dict[str, Tensor], uri: str) -> None:
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise DataError(f"{uri}/model.safetensors and config.json do not belong together: {error}") from error
