"""Encode images of an evaluation set by several models; those that share an image tower run it once."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from wukong.config.model import ImageEncoder
from wukong.data import images, views
from wukong.evaluate.data_set import Data
from wukong.evaluate.model import Model, OwnModel, square
from wukong.evaluate.protocol import Protocol
from wukong.model.saved_model import open_picture

log = logging.getLogger(__name__)

_BATCH, _BATCH_ON_GPU, _PICTURES = 32, 256, 64
"""Images of a forward pass, and pictures that models of others get at a time."""


def share_towers(models: Iterable[Model]) -> None:
    """Let models of this project whose image towers are equal have one: a locked tower stays as it was (LiT)."""
    own = [model for model in models if isinstance(model, OwnModel)]
    for number, model in enumerate(own):
        for other in own[:number]:
            model.share_tower(other)


def encode(
    models: Mapping[str, Model], data: Data, protocol: Protocol, rows: slice, loaders: int = 0
) -> dict[str, Tensor]:
    """Encode some images of a set: by each model unit vectors on the CPU, float32 [images, (tokens,) d].

    Args:
        models: the models, by any names.
        data: the set.
        protocol: how images are transformed.
        rows: which images.
        loaders: number of processes that decode images beside a tower; 0 to decode between its batches.

    Raises:
        DataError: an image cannot be decoded, or a vector is not finite.
    """
    sharing: dict[int, list[str]] = {}
    for name, model in models.items():
        sharing.setdefault(id(model.saved.model.image if isinstance(model, OwnModel) else model), []).append(name)
    parts: dict[str, list[Tensor]] = {name: [] for name in models}
    for names in sharing.values():
        first = models[names[0]]
        if not isinstance(first, OwnModel):
            for start in range(rows.start, rows.stop, _PICTURES):
                pictures = [data.image(i) for i in range(start, min(start + _PICTURES, rows.stop))]
                parts[names[0]].append(first.encode_images(pictures, protocol))
            continue
        on_gpu = first.saved.device.type != "cpu"
        size = _BATCH_ON_GPU if on_gpu else _BATCH
        orders = ([*range(start, min(start + size, rows.stop))] for start in range(rows.start, rows.stop, size))
        shown = _Shown(data, protocol, first.saved.model.settings.image)
        for pixels in views.batches(shown, orders, _joined, size, loaders, pin=on_gpu and torch.cuda.is_available()):
            features = first.run_tower(pixels)
            for name in names:
                model = models[name]
                assert isinstance(model, OwnModel)  # noqa: S101 - for mypy
                parts[name].append(model.encode_features(features))
    log.info("%s: images %d to %d of %d encoded", data.name, rows.start + 1, rows.stop, len(data))
    return {name: torch.cat(each) for name, each in parts.items()}


class _Shown(Dataset[Tensor]):
    """What an image tower sees of the images of a set: uint8 [3, size, size]."""

    def __init__(self, data: Data, protocol: Protocol, tower: ImageEncoder) -> None:
        self._images, self._tower = data.images, tower
        self._protocol = replace(protocol, splits={})  # a read-only mapping cannot be sent to a process
        self.bytes_each = 3 * tower.image_size**2

    def __getitem__(self, i: int) -> Tensor:
        picture, size = open_picture(self._images.image(i), f"picture {i}"), self._tower.image_size
        if self._protocol.transform != "model":
            # A square of the encoder's size passes through either of the model's own views unchanged.
            picture = square(picture, size, self._protocol)
        return images.to_tensor([images.evaluation_view(picture, size, self._tower.view)])[0]


def _joined(shown: Sequence[Tensor | str]) -> Tensor:
    return torch.stack([view for view in shown if isinstance(view, Tensor)])
