"""Compute the features of a locked image tower, once for each image and view (``wukong.data.feature_files``)."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from functools import lru_cache
from itertools import groupby, islice

import torch
from torch import Tensor

from wukong.config.features import Dtype
from wukong.config.model import Model
from wukong.data import shards
from wukong.data.feature_files import File, Target, differs, table_of
from wukong.data.views import Encoded, Loaders, Views
from wukong.errors import DataError
from wukong.model import saved_model
from wukong.model.image_encoder import ImageEncoder
from wukong.store import damage, fence, storage
from wukong.train.gradients import autocast

_BATCH = 32
"""Images of a forward pass on processors; on GPUs more, see ``compute``."""
_BATCH_ON_GPU = 256
_PROCESSOR = torch.device("cpu")
_AUGMENTATIONS = ("crop", "flip", "autoaugment")
"""Augmentations of all views but the first (section 5.1)."""
_Read = tuple[int, File, list[str]]
"""What a batch of images is of: the number of its file, the file, and the keys of all images of the file."""


def compute(
    files: Iterable[File],
    model: Model,
    dtype: Dtype = "float16",
    precision: str = "float32",
    tower: str | None = None,
    device: torch.device = _PROCESSOR,
    decoders: int = 0,
) -> Iterator[tuple[File, int]]:
    """Compute files of features one after another; images are read, decoded and encoded as a stream.

    In memory is no more than a few batches, however large a shard is. View 0 is the evaluation view. The others are
    random views, determined by the image's key and the view's number. On a device the same bytes come out in every run,
    also with another number of decoders.

    Args:
        files: the files to compute.
        model: the architecture; its image encoder and its similarity are used.
        dtype: type of the numbers that are stored.
        precision: precision of the tower's arithmetic, as in the settings of a training.
        tower: URI of a saved model whose image tower to use, instead of the weights that ``model`` names.
        device: device on which the tower runs.
        decoders: number of processes that decode beside the tower; 0 to decode between its batches.

    Yields:
        Each file when it is complete, and the number of its images.

    Raises:
        ConfigError: the image encoder or its weights cannot be found.
        DataError: a shard is damaged, empty or differs from its table, or a feature is not finite.
        StorageError: a shard was altered.
    """
    encoder = _encoder(model.image.model_dump_json(), tower, device)
    size = _BATCH if device.type == "cpu" else _BATCH_ON_GPU
    read: deque[_Read] = deque()
    pin = device.type == "cuda"
    orders = _orders(files, size, read)
    loader = Loaders(Views(model.image, _AUGMENTATIONS), _joined, size, decoders, pin=pin).batches(orders)
    encoded = ((*read.popleft(), _features(encoder, shown, model, precision, device)) for shown in loader)
    with closing(encoded):
        for (_, file, keys), parts in groupby(encoded, lambda part: part[:3]):
            with fence.output(file.target) as stream:
                target = Target(stream, keys, dtype)
                for *_, features in parts:
                    target.write(features, file.tar)
                target.finish()
            yield file, len(keys)


def _orders(files: Iterable[File], size: int, read: deque[_Read]) -> Iterator[list[Encoded]]:
    """Read the images of files, in batches of at most ``size``; append to ``read`` what each batch is of.

    Raises:
        DataError: a shard is empty or differs from its table.
    """
    for number, file in enumerate(files):
        keys: list[str] = storage.read_table(table_of(file), ["key"], file.table_sha256)["key"].to_pylist()
        seen = 0
        pictures = shards.pictures(file.tar, file.tar_sha256)
        while batch := list(islice(pictures, size)):
            if [key for key, _ in batch] != keys[seen : seen + len(batch)]:
                raise differs(file)
            seen += len(batch)
            read.append((number, file, keys))
            yield [(data, key, file.view, f"{key}.jpg of {file.tar}") for key, data in batch]
        if not seen:
            raise DataError(f"{file.tar} holds no picture: {damage.remedy(file.tar)}")
        if seen < len(keys):
            raise differs(file)


def _joined(shown: Sequence[Tensor | str]) -> Tensor:
    return torch.stack([view for view in shown if isinstance(view, Tensor)])


def _features(encoder: ImageEncoder, views: Tensor, model: Model, precision: str, device: torch.device) -> Tensor:
    with torch.inference_mode(), autocast(device, precision):
        pooled, tokens = encoder.in_pieces(views.to(device, non_blocking=True))
        features: Tensor = tokens if model.is_token_wise else pooled
        return features.to(torch.float16).cpu()


@lru_cache(maxsize=1)
def _encoder(settings: str, tower: str | None, device: torch.device) -> ImageEncoder:
    # Cached because one process computes many shards.
    from wukong.config.model import ImageEncoder as Settings

    if tower is None:
        return ImageEncoder(Settings.model_validate_json(settings)).for_inference().to(device)
    trained = saved_model.load(tower).model.image
    if trained is None:
        raise DataError(f"{tower} holds no image tower: train the model again")
    return trained.for_inference().to(device)
