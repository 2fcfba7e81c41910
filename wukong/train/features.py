"""Features of a locked image tower. They are computed once for each image and view, and read in every epoch."""

import io
import json
from collections.abc import Sequence
from functools import lru_cache

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from wukong import storage
from wukong.config import Model
from wukong.data import images, shards
from wukong.errors import DataError
from wukong.model import saved_model
from wukong.model.image_encoder import ImageEncoder

_BATCH = 32


def path_of(split: str, shard: str, view: int) -> str:
    """Return the path of the features of one view of one shard, relative to the stage's output."""
    return f"{split}/{shard}.view{view:02d}.safetensors"


def compute(tar_uri: str, target_uri: str, settings: Model, view: int, tower: str | None = None) -> int:
    """Compute the features of one view of every image of a shard, and write them to a file.

    The file holds ``features``, float16 [images, width] or [images, tokens, width] in the tar's order, and the keys in
    its metadata. View 0 is the evaluation view. The others are random views, determined by the image's key and the
    view's number.

    Args:
        tar_uri: URI of the shard.
        target_uri: URI of the file to write.
        settings: the model; its image encoder and its similarity are used.
        view: number of the view.
        tower: URI of a saved model whose image tower to use, instead of the weights that ``settings`` names.

    Returns:
        The number of images.

    Raises:
        ConfigError: the image encoder or its weights cannot be found.
        DataError: the shard is damaged or empty, or a feature is not finite.
    """
    encoder = _encoder(settings.image.model_dump_json(), tower)
    size = settings.image.image_size
    keys: list[str] = []
    parts: list[Tensor] = []
    pending: list[Tensor] = []

    def flush() -> None:
        if pending:
            with torch.inference_mode():
                pooled, tokens = encoder(torch.cat(pending))
            parts.append((tokens if settings.similarity == "token" else pooled).to(torch.float16))
            pending.clear()

    for key, data in shards.pictures(tar_uri):
        image = images.decode(data, f"{key}.jpg of {tar_uri}")
        shown = (
            images.augmented_view(image, size, images.view_seed(key, view))
            if view
            else images.evaluation_view(image, size, settings.image.view)
        )
        keys.append(key)
        pending.append(images.to_tensor([shown]))
        if len(pending) == _BATCH:
            flush()
    flush()
    if not keys:
        raise DataError(f"{tar_uri} holds no picture: delete the filter's output and run it again")
    features = torch.cat(parts)
    if not torch.isfinite(features).all():
        raise DataError(f"the image encoder's output for {tar_uri} is not finite: its weights are damaged")
    storage.write_bytes(target_uri, save_safetensors({"features": features}, metadata={"keys": json.dumps(keys)}))
    return len(keys)


@lru_cache(maxsize=1)
def _encoder(settings: str, tower: str | None) -> ImageEncoder:
    # Cached because one process computes many shards.
    from wukong.config import ImageEncoder as Settings

    if tower is None:
        return ImageEncoder(Settings.model_validate_json(settings)).for_inference()
    trained = saved_model.load(tower).model.image
    if trained is None:
        raise DataError(f"{tower} holds no image tower: train the model again")
    return trained.for_inference()


def read(uri: str) -> tuple[list[str], Tensor]:
    """Read one file of features: the images' keys and float16 [images, ...]."""
    data = storage.read_bytes(uri)
    header = json.load(io.BytesIO(data[8 : 8 + int.from_bytes(data[:8], "little")]))
    return json.loads(header["__metadata__"]["keys"]), load_safetensors(data)["features"]


def read_rows(uri: str, start: int, stop: int) -> tuple[list[str], Tensor]:
    """Read consecutive rows of a file of features, and no other rows: their keys and float16 [rows, ...].

    Raises:
        DataError: the file is damaged or has fewer rows.
    """
    try:
        with storage.open_input(uri) as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
            keys = json.loads(header["__metadata__"]["keys"])[start:stop]
            rows, *shape = header["features"]["shape"]
            begin, end = header["features"]["data_offsets"]
            row_bytes = (end - begin) // rows
            stream.seek(8 + length + begin + start * row_bytes)
            data = bytearray(stream.read((stop - start) * row_bytes))
        # A file that is cut short gives fewer bytes than the shape takes.
        return keys, torch.frombuffer(data, dtype=torch.float16).reshape(stop - start, *shape)
    except (ValueError, KeyError, RuntimeError, OverflowError, MemoryError) as error:
        raise DataError(f"{uri} is damaged ({error}): delete the output of the features stage and run again") from error


def read_views(prefix: str, split: str, shard_names: Sequence[str], views: Sequence[int]) -> tuple[list[str], Tensor]:
    """Read several views of several shards.

    Returns:
        The images' keys, and their features, float16 [views, images, ...].

    Raises:
        DataError: two views of a shard do not hold the same images.
    """
    keys: list[str] = []
    by_shard = []
    for shard in shard_names:
        loaded = [read(storage.join(prefix, path_of(split, shard, view))) for view in views]
        if any(other != loaded[0][0] for other, _ in loaded):
            raise DataError(f"the views of {split}/{shard} differ in their pictures: delete {prefix} and run it again")
        keys += loaded[0][0]
        by_shard.append(torch.stack([features for _, features in loaded]))
    return keys, torch.cat(by_shard, 1)
