"""A trained model saved as a folder: ``model.safetensors`` (with the image tower), ``config.json``, ``vocab.txt``."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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

from wukong.config.model import Model as Settings
from wukong.data import images
from wukong.data.tokenizer import PACKAGED_DIGEST, Tokenizer
from wukong.errors import ConfigError, DataError, StorageError
from wukong.model import address, signature, weights
from wukong.model.dual import DualEncoder, Texts
from wukong.model.image_encoder import ImageEncoder
from wukong.store import damage, fence, storage

FORMAT = 1
FILES = ("config.json", "model.safetensors", "vocab.txt")
EXPORT_RECORD = "wukong_export.json"
"""In every folder that ``wukong.export`` has written for another project's loader."""
_TOWER = "image."
_PACKAGED = "package"
_BLOCK_IMAGES, _BLOCK_TEXTS = 256, 1024
_SHOWN = 20

Picture: TypeAlias = Image.Image | npt.NDArray[np.uint8] | bytes | Path | str
"""An image: a PIL image of any mode and size, a uint8 array of height x width (x 1, 3 or 4 channels), the bytes of an
image file, or the path or URI of one."""


@dataclass(frozen=True)
class SavedModel:
    """A saved model in memory, ready to use.

    Attributes:
        model: the dual encoder, in evaluation mode. It has its image tower unless ``load_for_features`` read it.
        tokenizer: the tokenizer for captions.
    """

    model: DualEncoder
    tokenizer: Tokenizer

    @property
    def device(self) -> torch.device:
        """The device on which the model computes."""
        return self.model.log_scale.device

    @torch.no_grad()
    def encode_image(self, pictures: Picture | Sequence[Picture], batch_size: int = 32, *, pool: bool = True) -> Tensor:
        """Encode images to unit vectors.

        The setting ``image.view`` of the model decides what the image encoder sees: the whole image on a white square,
        or the square in the middle of the image. Grey images and images with transparency are converted to RGB.

        Args:
            pictures: one image or several.
            batch_size: the number of images encoded at a time.
            pool: whether a token-wise model that pools patches (``image.tokens``) does so; without it each patch has a
                vector.

        Returns:
            Unit vectors on the CPU, float32 [images, d], or [images, tokens, d] for a token-wise model.

        Raises:
            DataError: an image is damaged, has a side of less than two pixels, or is an array of another type or
                shape; or the model's output is not finite. The message names the image.
            StorageError: there is nothing at a path or URI.
        """
        given = pictures if isinstance(pictures, Sequence) and not isinstance(pictures, str | bytes) else [pictures]
        if self.model.image is None:
            raise ValueError("this model holds no image tower: load it with wukong.load")
        tower = self.model.settings.image
        # The empty tensor gives the result its shape when there are no images.
        tokens = tower.tokens if pool and tower.tokens is not None else self.model.image.token_count
        shape = (tokens,) if self.model.token_wise else ()
        parts = [torch.empty(0, *shape, self.model.width)]
        for start in range(0, len(given), batch_size):
            batch = [
                images.evaluation_view(open_picture(picture, f"picture {number:d}"), tower.image_size, tower.view)
                for number, picture in enumerate(given[start : start + batch_size], start)
            ]
            vectors = self.model.embed_pixels(images.to_tensor(batch).to(self.device), pool=pool).float().cpu()
            _refuse_not_finite(vectors, start, of_pictures=True)
            parts.append(vectors)
        return torch.cat(parts)

    @torch.no_grad()
    def encode_text(self, captions: str | Sequence[str], batch_size: int = 256, strict: bool = True) -> Texts:
        """Encode captions to unit vectors.

        Args:
            captions: one caption or several.
            batch_size: the number of captions encoded at a time.
            strict: refuse a caption that is empty, has no character in the vocabulary, or has more tokens than the
                model reads. If False, such captions are encoded too, and those that are too long are cut.

        Returns:
            Unit vectors on the CPU, float32 [captions, d], or [captions, tokens, d] for a token-wise model; and which
            tokens count.

        Raises:
            DataError: a caption is not a string; ``strict`` is set and a caption is empty, has no character in the
                vocabulary, or is too long; or the model's output is not finite. The message names the caption.
        """
        given = [captions] if isinstance(captions, str) else list(captions)
        for number, caption in enumerate(given):
            if not isinstance(caption, str):
                raise DataError(f"caption {number} is a {type(caption).__name__} ({caption!r}): give text")
        if strict:
            self._refuse_unreadable(given)
        ids = self.tokenizer(given)
        parts = [Texts(torch.empty(0, *ids.shape[1:][: self.model.token_wise], self.model.width), ids[:0].bool())]
        for start in range(0, len(given), batch_size):
            vectors, counted = self.model.embed_text(ids[start : start + batch_size].to(self.device))
            _refuse_not_finite(vectors, start, of_pictures=False)
            parts.append(Texts(vectors.float().cpu(), counted.cpu()))
        return Texts(torch.cat([part.vectors for part in parts]), torch.cat([part.counted for part in parts]))

    @torch.no_grad()
    def similarity(self, image: Tensor, text: Texts, side: Literal["image", "text"] = "image") -> Tensor:
        """Compute the similarity of each encoded image to each encoded caption.

        A higher value means more similar. The value is not divided by the temperature, ``1 / model.scale``. It is
        computed block by block, so the images and the captions need not fit on the model's device together.

        Args:
            image: the output of ``encode_image``.
            text: the output of ``encode_text``.
            side: for a token-wise model, ``image`` for the similarity of image to caption, s^I, or ``text`` for that of
                caption to image, s^T. For a global model both are the same.

        Returns:
            Similarities on the CPU, float32 [images, captions].

        Raises:
            DataError: a vector is not finite; the message names it.
        """
        _refuse_not_finite(image, 0, of_pictures=True)
        _refuse_not_finite(text.vectors, 0, of_pictures=False)
        scores = torch.empty(len(image), len(text.vectors))
        for column in range(0, len(text.vectors), _BLOCK_TEXTS):
            texts = Texts(*(part[column : column + _BLOCK_TEXTS].to(self.device) for part in text))
            for row in range(0, len(image), _BLOCK_IMAGES):
                block = self.model.similarity(image[row : row + _BLOCK_IMAGES].to(self.device), texts)
                scores[row : row + _BLOCK_IMAGES, column : column + _BLOCK_TEXTS] = (
                    block.image_to_text if side == "image" else block.text_to_image
                )
        return scores

    def _refuse_unreadable(self, captions: Sequence[str]) -> None:
        """Raise DataError for the first caption that is empty, unknown to the vocabulary, or too long."""
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
    """Save a model in a folder.

    Args:
        uri: URI of the folder.
        model: the model with its image tower, on which ``for_inference`` was not called.
        tokenizer: the model's tokenizer.

    Returns:
        The names of the files.

    Raises:
        FencedError: a newer attempt at the stage that saves it has begun (``wukong.store.fence``).
        ValueError: the model has no image tower, or was built for another tokenizer.
        DataError: the vocabulary is not the packaged one, and the settings say that it is.
    """
    if model.image is None:
        raise ValueError("a saved model needs its image tower, and this model has none: give it one")
    if tokenizer.digest != model.vocabulary:
        raise ValueError("the model was built for a tokenizer with another vocabulary: give the one it was built with")
    packaged = model.settings.text.vocabulary == _PACKAGED
    if packaged and tokenizer.digest != PACKAGED_DIGEST:
        raise DataError(
            f"the model was built with a vocabulary of its own (SHA-256 {tokenizer.digest[:8]}…), and its settings say "
            "'package': set model.text.vocabulary to the URI of its vocab.txt"
        )
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    fence.publish_bytes(storage.join(uri, "model.safetensors"), save_safetensors(state))
    fence.publish_bytes(storage.join(uri, "vocab.txt"), tokenizer.vocabulary.encode("utf-8"))
    config = {"format": FORMAT, "model": model.settings.model_dump(mode="json")}
    if not packaged:
        config["vocabulary_sha256"] = tokenizer.digest
    fence.publish(storage.join(uri, "config.json"), config)
    return list(FILES)


def load(uri: str | Path, device: str | torch.device = "cpu", *, public_key: str | Path | None = None) -> SavedModel:
    """Load a saved model, ready to encode images and captions.

    Args:
        uri: URI or path of the model's folder, or the URI of a model in MLflow, for instance
            ``models:/demo@champion``. Addresses in this machine's embedded stack work without any further settings.
        device: the device to compute on, for instance ``cuda``.
        public_key: the file of the key, or of the certificates, by which the model must be signed; by default that of
            the variable ``WUKONG_PUBLIC_KEY``. If neither is given, it need not be signed.

    Raises:
        StorageError: a file is missing or was altered, or MLflow does not give the model.
        DataError: a file is damaged, the files do not belong together, or the model is not signed as it must be.
        ConfigError: this machine has no such device, or the key cannot be used.
    """
    target = device_of(device)
    with _opened(uri, signature.required(public_key)) as folder:
        return _load(folder, target)


def device_of(name: str | torch.device) -> torch.device:
    """Return the torch device with this name.

    Raises:
        ConfigError: the name is not a device's, or this machine has no such device; the message lists its devices.
    """
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    numbered = {"cuda": f"cuda:0 to cuda:{counts['cuda'] - 1}"}
    here = ", ".join(numbered.get(kind, kind) for kind, n in counts.items() if n)
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device: {name!r} is the name of no device; allowed here: {here}") from error
    if (device.index or 0) >= counts.get(device.type, 0):
        raise ConfigError(f"device: {str(device)!r} is not here; allowed here: {here}")
    return device


@contextmanager
def _opened(uri: str | Path, public_key: Path | None) -> Iterator[str]:
    """Give the URI of a saved model's folder; if it must be signed, that of a copy that was checked."""
    if public_key is None and not address.in_mlflow(uri):
        yield address.to_uri(uri)
        return
    with tempfile.TemporaryDirectory() as scratch:  # which no other user can write to
        folder = address.fetch(uri, Path(scratch))
        if public_key is not None:
            signature.verify(folder, public_key, str(uri))
        yield storage.from_path(folder / address.INSIDE if address.in_mlflow(uri) else folder)


def _load(folder: str, device: torch.device) -> SavedModel:
    digests = _digests(folder)
    settings, tokenizer = _read_settings(folder, digests)
    tower = ImageEncoder(settings.image, with_weights=False)
    model = DualEncoder(settings, tokenizer, tower, with_weights=False)
    state = storage.join(folder, "model.safetensors")
    weights.fill(model, weights.read(state, digests.get(state, "")), state)
    return SavedModel(model.eval().requires_grad_(requires_grad=False).to(device), tokenizer)


def load_for_features(uri: str, device: str | torch.device = "cpu") -> SavedModel:
    """Load a saved model without its image tower, for image features that were computed before; see ``load``."""
    target = device_of(device)
    with _opened(uri, signature.required(None)) as folder:
        digests = _digests(folder)
        settings, tokenizer = _read_settings(folder, digests)
        source = storage.join(folder, "model.safetensors")
        read = weights.read(source, digests.get(source, ""))
        state = {name: value for name, value in read.items() if not name.startswith(_TOWER)}
    width = settings.text.width
    if settings.embedding is not None:
        if "image_head.weight" not in state:
            raise DataError(f"{source} lacks image_head.weight: it is not a model of this project")
        if state["image_head.weight"].ndim != 2:
            raise DataError(f"{source}: image_head.weight is not a matrix: it is not a model of this project")
        width = state["image_head.weight"].shape[1]
    model = DualEncoder(settings, tokenizer, feature_width=width, with_weights=False)
    weights.fill(model, state, source)
    return SavedModel(model.eval().to(target), tokenizer)


def _digests(folder: str) -> dict[str, str]:
    """Return the digests of a model's files, by URI, if the folder lies in the output of a stage; nothing if not.

    The manifest is read as it lies there: a model is loaded from a folder without what ``wukong.store.manifest`` needs.
    """
    output = damage.output_of(storage.join(folder, "model.safetensors"))
    try:
        parts = storage.read_json(storage.join(output, "manifest.json")).get("parts", []) if output else []
    except StorageError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        return {}
    return {storage.join(output, part["path"]): part["sha256"] for part in parts}


def _read_settings(uri: str, digests: Mapping[str, str]) -> tuple[Settings, Tokenizer]:
    source = storage.join(uri, "config.json")
    config: Any = storage.read_json(source, digests.get(source, ""))
    if not isinstance(config, dict):
        raise DataError(f"{uri}/config.json does not describe a model: it is no mapping")
    damage.refuse_other_format(config, FORMAT, f"{uri}/config.json")
    try:
        settings = Settings.model_validate(config["model"])
        digest = PACKAGED_DIGEST if settings.text.vocabulary == _PACKAGED else str(config["vocabulary_sha256"])
    except (KeyError, ValidationError) as error:
        raise DataError(f"{uri}/config.json does not describe a model: {error}") from error
    words = storage.join(uri, "vocab.txt")
    vocabulary = storage.read_bytes(words, digests.get(words, "")).decode("utf-8")
    tokenizer = Tokenizer(vocabulary, settings.text.max_tokens)
    if tokenizer.digest != digest:
        raise DataError(
            f"{uri} was trained with the vocabulary of SHA-256 {digest[:8]}…, and its vocab.txt, of "
            f"{len(tokenizer)} entries, has {tokenizer.digest[:8]}…: put the vocab.txt there that it was trained with"
        )
    return settings, tokenizer


def open_picture(picture: Picture, name: str = images.UNNAMED) -> Image.Image:
    """Decode an image of any of the accepted types to RGB; ``name`` stands for it in messages."""
    if isinstance(picture, str | Path):
        uri = address.to_uri(picture)
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


def _refuse_not_finite(vectors: Tensor, first: int, *, of_pictures: bool) -> None:
    """Raise DataError if a vector is not finite; ``first`` is the number of the first vector in the message."""
    finite = torch.isfinite(vectors).flatten(1).all(1)
    if not finite.all():
        number = first + int((~finite).nonzero()[0])
        raise DataError(
            f"the vector of {'picture' if of_pictures else 'caption'} {number} is not finite: the model's weights or "
            "its features are damaged"
        )
