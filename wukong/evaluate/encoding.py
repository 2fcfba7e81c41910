"""Encode images of an evaluation set by several models; those that share an image tower run it once."""

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from wukong.config.model import ImageEncoder
from wukong.data import images
from wukong.data.views import Loaders
from wukong.evaluate.data_set import Data
from wukong.evaluate.model import Model, OwnModel, square
from wukong.evaluate.protocol import Protocol
from wukong.evaluate.published import Images
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


def loaders(models: Mapping[str, Model], processes: int) -> Loaders[Any, Tensor]:
    """Return loader processes for ``encode``, of whatever set by these models.

    Args:
        models: the models, by any names.
        processes: number of processes that decode images beside a tower; 0 to decode between its batches.
    """
    own = [model.saved for model in models.values() if isinstance(model, OwnModel)]
    side = max((saved.model.settings.image.image_size for saved in own), default=0)
    pin = torch.cuda.is_available() and any(saved.device.type != "cpu" for saved in own)
    return Loaders(_Views(side), _joined, _BATCH_ON_GPU, processes, pin=pin)


def encode(
    models: Mapping[str, Model],
    data: Data,
    protocol: Protocol,
    rows: slice,
    loading: Loaders[Any, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Encode some images of a set: by each model unit vectors on the CPU, float32 [images, (tokens,) d].

    Args:
        models: the models, by any names.
        data: the set.
        protocol: how images are transformed.
        rows: which images.
        loading: what ``loaders`` gives for the models; None to decode between a tower's batches.

    Raises:
        DataError: an image cannot be decoded, or a vector is not finite.
    """
    loading = loading or loaders(models, 0)
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
        size = _BATCH if first.saved.device.type == "cpu" else _BATCH_ON_GPU
        # A read-only mapping cannot be sent to a process.
        shown = _Shown(data.images, replace(protocol, splits={}), first.saved.model.settings.image)
        starts = range(rows.start, rows.stop, size)
        orders = ([(shown, row) for row in range(start, min(start + size, rows.stop))] for start in starts)
        for pixels in loading.batches(orders):
            features = first.run_tower(pixels)
            for name in names:
                model = models[name]
                assert isinstance(model, OwnModel)  # noqa: S101 - for mypy
                parts[name].append(model.encode_features(features))
    log.info("%s: images %d to %d of %d encoded", data.name, rows.start + 1, rows.stop, len(data))
    return {name: torch.cat(each) for name, each in parts.items()}


@dataclass(frozen=True)
class _Shown:
    """Images of a set, as an image tower sees them. A process gets them with each batch, and keeps the first copy."""

    images: Images
    protocol: Protocol
    tower: ImageEncoder
    number: int = field(default_factory=itertools.count().__next__)

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (self.number, self.images, self.protocol, self.tower)

    def view(self, i: int) -> Tensor:
        """uint8 [3, size, size]."""
        picture, size = open_picture(self.images.image(i)), self.tower.image_size
        if self.protocol.transform != "model":
            # A square of the encoder's size passes through either of the model's own views unchanged.
            picture = square(picture, size, self.protocol)
        return images.to_tensor([images.evaluation_view(picture, size, self.tower.view)])[0]


_last_received: list[_Shown] = []
"""What this process got last: its images may keep what they have read, as a table or the places in a shard."""


def _received(number: int, images: Images, protocol: Protocol, tower: ImageEncoder) -> _Shown:
    if not _last_received or _last_received[0].number != number:
        _last_received[:] = [_Shown(images, protocol, tower, number)]
    return _last_received[0]


class _Views(Dataset[Tensor]):
    """The views of whatever set is sent with an order, so that processes need not be started for each set."""

    def __init__(self, side: int) -> None:
        self.bytes_each = 3 * side**2

    def __getitem__(self, order: tuple[_Shown, int]) -> Tensor:
        shown, i = order
        return shown.view(i)


def _joined(shown: Sequence[Tensor | str]) -> Tensor:
    return torch.stack([view for view in shown if isinstance(view, Tensor)])
