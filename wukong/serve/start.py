"""Load a model, and open or make the index: the start of a server, by ``wukong serve`` or Ray Serve, or of a search."""

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

import wukong
from wukong.crawl.uploads import Limits
from wukong.errors import ConfigError, DataError
from wukong.evaluate.model import OwnModel
from wukong.runtime import environment
from wukong.serve import collection, encode
from wukong.serve.collection import Collection
from wukong.serve.embedder import Embedder
from wukong.serve.index import open_index
from wukong.serve.router import SECONDS
from wukong.serve.search import Searcher
from wukong.serve.served_shard import LocalShard, Shard
from wukong.serve.service import Service
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest
from wukong.tracking import model_versions

log = logging.getLogger(__name__)


def service(
    model: str,
    data: str,
    root: str | None = None,
    device: str = "cpu",
    limits: Limits | None = None,
    cores: int | None = None,
    *,
    encodes: bool = True,
    public_key: Path | None = None,
    connect: Callable[[Manifest], Sequence[Shard]] | None = None,
    seconds: float = SECONDS,
) -> Service:
    """Load what a server needs; the collection is encoded first if its index is not finished.

    Args:
        model: URI of the model; see ``wukong.load``.
        data: URI of the collection; see ``wukong.serve.collection.of``.
        root: URI under which indexes are kept; None for ``indexes`` in the stack's home.
        device: the device that the model computes on.
        limits: what a request may hold; None for the usual limits.
        cores: processor cores to compute with; None for all that this process may use.
        encodes: false to refuse a collection whose index is not finished.
        public_key: by which key the model must be signed; see ``wukong.load``.
        connect: makes what asks the shards of an index in other processes; None to open it in this one.
        seconds: how long an answer waits for a shard.

    Raises:
        DataError: model, collection or index is damaged, the model is not signed as it must be, or the index is not
            finished and may not be made.
        StorageError: there is nothing at a URI.
        ConfigError: this machine has no such device.
    """
    _share(cores)
    pictures, loaded, found = indexed(model, data, root, device, encodes=encodes, public_key=public_key)
    shards = None if connect is None else connect(found)
    return Service(pictures, loaded, found, limits or Limits(), shards, seconds)


def version(model: str, data: str) -> tuple[str, str]:
    """Say what model and data are at this moment, in little time: if it is another thing, ``service`` loads others.

    Args:
        model: as of ``service``; of an alias in MLflow the version that holds it.
        data: as of ``service``.

    Raises:
        DataError, StorageError, ConfigError: that cannot be said.
    """
    aliased = model.startswith("models:/") and "@" in model
    return model_versions.folder_of(model) if aliased else model, collection.of(data).digest


def shards(
    model: str, index: str, numbers: Sequence[int], cores: int | None = None
) -> dict[int, LocalShard | DataError]:
    """Load shards of an index.

    Args:
        model: URI of the model that the index was made with.
        index: URI of the index.
        numbers: the numbers of the shards.
        cores: processor cores to compute with; None for all that this process may use.

    Returns:
        The shards by their numbers; in the place of one that is missing or damaged, what is wrong with it.

    Raises:
        DataError: the index is not finished, or was made with another model.
        StorageError: there is nothing at a URI.
    """
    _share(cores)
    found, loaded = manifest.load(index), OwnModel(wukong.load(model), model)
    texts, pictures = (ThreadPoolExecutor(1, thread_name_prefix=name) for name in ("texts", "pictures"))
    opened: dict[int, LocalShard | DataError] = {}
    for number in numbers:
        try:
            searcher = Searcher(open_index(found, loaded, number), loaded)
            opened[number] = LocalShard(searcher, texts, pictures, Limits().waiting)
        except DataError as error:
            log.warning("%s", error)
            opened[number] = error
    return opened


def embedder(
    model: str,
    device: str = "cpu",
    limits: Limits | None = None,
    cores: int | None = None,
    *,
    public_key: Path | None = None,
) -> Embedder:
    """Load what a server needs that gives vectors and searches nothing; arguments as of ``service``.

    Raises:
        DataError: the model is damaged, or not signed as it must be.
        StorageError: there is nothing at its URI.
        ConfigError: the model is token-wise; this machine has no such device.
    """
    _share(cores)
    loaded = OwnModel(wukong.load(model, device, public_key=public_key), model)
    if loaded.token_wise:
        raise ConfigError(
            f"{model} has a vector for each token and each patch, so there is no vector of a text to serve: name by "
            "--data what is searched, or serve a model that was trained with model.similarity=global"
        )
    return Embedder(loaded, limits or Limits())


def indexed(
    model: str,
    data: str,
    root: str | None = None,
    device: str = "cpu",
    *,
    encodes: bool = True,
    public_key: Path | None = None,
) -> tuple[Collection, OwnModel, Manifest]:
    """Load a collection, a model, and the manifest of the index of both; arguments and errors as of ``service``."""
    pictures = collection.of(data)
    loaded = OwnModel(wukong.load(model, device, public_key=public_key), model)
    indexes = storage.from_path(environment.make(environment.home()) / "indexes") if root is None else _uri(root)
    if not encodes and encode.stage_of(pictures, loaded, indexes).finished() is None:
        raise DataError(
            f"the {pictures.pictures} pictures of {data} have no index by {model} at {indexes}: `wukong search` makes "
            "it with --encode, and so does `wukong serve`; each goes on where the other stopped"
        )
    return pictures, loaded, encode.build(pictures, loaded, indexes)


def _share(cores: int | None) -> None:
    """Let each of the two threads that compute, of texts and of pictures, have its share of the cores."""
    torch.set_num_threads(max(1, (cores or len(os.sched_getaffinity(0))) // 2))


def _uri(place: str) -> str:
    return place if "://" in place else storage.from_path(Path(place))
