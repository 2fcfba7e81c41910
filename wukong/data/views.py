"""Views of image files, as loader processes of torch make them.

The processes hand over their batches in shared memory, which is a file system of its own: ``/dev/shm``, with 64 MiB in
many containers.
"""

import errno
import multiprocessing.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from wukong.config.model import ImageEncoder
from wukong.data import images
from wukong.data.shared_memory import PREFETCHED, handed_over
from wukong.errors import ConfigError, DataError, StorageError

Encoded = tuple[bytes, str, int, str]
"""An image file, its key, the number of its view, and its name for messages."""

_SHARED = Path("/dev/shm")  # noqa: S108 - where Linux has shared memory
_MIB = 2**20

_Joined = TypeVar("_Joined")
_Order = TypeVar("_Order")
_Order_contra = TypeVar("_Order_contra", contravariant=True)


class Source(Protocol[_Order_contra]):
    """A data set of views.

    Attributes:
        bytes_each: bytes of a view.
    """

    bytes_each: int

    def __getitem__(self, order: _Order_contra, /) -> "Tensor | str":
        """Make a view."""
        ...


class Views(Dataset["Tensor | str"]):
    """A data set whose index is an image file; the text of the error stands in the place of a broken image.

    Args:
        tower: settings of the image encoder; ``image_size`` and ``view`` are used.
        augmentations: names for all views but view 0, which is the evaluation view; none for only evaluation views.
        skip_broken: whether a broken image gives a text; else it is an error.

    Attributes:
        bytes_each: bytes of a view.
    """

    def __init__(self, tower: ImageEncoder, augmentations: Sequence[str], *, skip_broken: bool = False) -> None:
        self._tower, self._augmentations, self._skip_broken = tower, augmentations, skip_broken
        self.bytes_each = 3 * tower.image_size**2

    def __getitem__(self, encoded: Encoded) -> "Tensor | str":
        """Return one view of an image, uint8 [3, size, size].

        Raises:
            DataError: the image cannot be decoded.
        """
        data, key, view, name = encoded
        try:
            picture = images.decode(data, name)
        except DataError as error:
            if not self._skip_broken:
                raise
            return str(error)
        side = self._tower.image_size
        if view and self._augmentations:
            seed = images.view_seed(key, view)
            shown = images.augmented_view(picture, side, seed, self._augmentations, self._tower.view)
        else:
            shown = images.evaluation_view(picture, side, self._tower.view)
        return images.to_tensor([shown])[0]


class Loaders(Generic[_Order, _Joined]):
    """Loader processes that make batches of views, in the order in which they are asked for; they live as long as this.

    Args:
        views: makes each view.
        join: makes a batch, a tensor or a tuple that begins with one, of its views; it is called where they are made.
        most: largest number of images of a batch.
        processes: number of loader processes; 0 to make the views in this process when they are needed.
        pin: whether the batches are to lie in pinned memory, for a GPU.
    """

    def __init__(
        self,
        views: Source[_Order],
        join: Callable[[Sequence["Tensor | str"]], _Joined],
        most: int,
        processes: int,
        *,
        pin: bool = False,
    ) -> None:
        self.processes, self._most = processes, most
        self._needed = handed_over(processes, most, views.bytes_each)
        self._orders = _Orders[_Order]()
        self._loader = DataLoader(
            cast("Dataset[Tensor | str]", views),
            batch_sampler=self._orders,
            num_workers=processes,
            collate_fn=_Handed(join),
            generator=torch.Generator(),  # not the global generator, which dropout uses
            multiprocessing_context="spawn" if processes else None,
            prefetch_factor=PREFETCHED if processes else None,
            persistent_workers=processes > 0,
            pin_memory=pin,
        )

    def batches(self, orders: Iterable[list[_Order]]) -> Iterator[_Joined]:
        """Make batches, all of them before others are asked for.

        Args:
            orders: what each batch is of, as image files; they are asked for in this process, some batches ahead.

        Raises:
            ConfigError: the shared memory is too small or full. It is looked at before the processes are started.
            DataError: an image cannot be decoded.
            StorageError: the disk for temporary files is full.
        """
        processes, needed = self.processes, self._needed
        if processes:
            _check_shared_memory(needed, processes, self._most)
        self._orders.asked = orders
        try:
            if processes:
                # The processes have sockets there. Where one of them cannot make the folder, its batches never come.
                multiprocessing.util.get_temp_dir()
            yield from self._loader
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            # The locks between the processes lie in shared memory, too.
            if processes and shutil.disk_usage(_SHARED).free < os.sysconf("SC_PAGE_SIZE"):
                raise _too_small(needed, processes, self._most) from error
            raise StorageError(
                f"there is no room for temporary files of the loader processes in {tempfile.gettempdir()} ({error}): "
                "free space there, or name another folder by TMPDIR"
            ) from error
        except RuntimeError as error:
            text = str(error)
            if "shared memory" in text or "Bus error" in text:
                raise _too_small(needed, processes, self._most) from error
            raise


class _Orders(Generic[_Order]):
    asked: Iterable[list[_Order]] = ()

    def __iter__(self) -> Iterator[list[_Order]]:
        return iter(self.asked)


@dataclass(frozen=True)
class _Handed(Generic[_Joined]):
    """Joins a batch, and in a loader process puts it into shared memory.

    Else torch does so in a thread, after this: if that fails, nobody gets the error, and the training waits for ever.
    """

    join: Callable[[Sequence["Tensor | str"]], _Joined]

    def __call__(self, shown: Sequence["Tensor | str"]) -> _Joined:
        joined = self.join(shown)
        first = joined[0] if isinstance(joined, tuple) else joined
        if get_worker_info() is not None and isinstance(first, Tensor):
            first.share_memory_()
        return joined


def _check_shared_memory(needed: int, processes: int, most: int) -> None:
    """Check that the shared memory has room for a training worker's batches, and in all for those of its neighbours."""
    if _SHARED.is_dir():
        room = shutil.disk_usage(_SHARED)
        if needed > room.free or needed * _neighbours() > room.total:
            raise _too_small(needed, processes, most)


def _neighbours() -> int:
    """Return the number of workers on this machine, as torch's launchers and Ray Train tell it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or 1)


def _too_small(needed: int, processes: int, most: int) -> ConfigError:
    room = shutil.disk_usage(_SHARED)
    workers = _neighbours()
    return ConfigError(
        f"{_SHARED} has {room.total / _MIB:,.0f} MiB, of which {room.free / _MIB:,.0f} MiB are free. {processes} "
        f"loader processes hand over batches of up to {most:,} images there, for which {needed / _MIB:,.0f} MiB are "
        f"needed{f' by each of {workers} workers on this machine' if workers > 1 else ''}. Make it larger (in "
        "Kubernetes an emptyDir with medium: Memory, which is shared_memory in the ConfigMap ray-job; in Docker "
        "--shm-size), or set loader_workers lower: 0 needs none"
    )
