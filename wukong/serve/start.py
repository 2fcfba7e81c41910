"""Load a model, open or make the index, and make the application: what ``wukong serve`` and Ray Serve share."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import wukong
from wukong import environment, storage
from wukong.evaluate.model import OwnModel
from wukong.serve import collection, index
from wukong.serve.service import Service
from wukong.serve.uploads import Limits

if TYPE_CHECKING:
    from fastapi import FastAPI


def service(
    model: str,
    data: str,
    root: str | None = None,
    device: str = "cpu",
    limits: Limits | None = None,
    cores: int | None = None,
) -> Service:
    """Load what a server needs; the collection is encoded first if its index is not finished.

    Args:
        model: URI of the model; see ``wukong.load``.
        data: URI of the collection; see ``wukong.serve.collection.of``.
        root: URI under which indexes are kept; None for ``indexes`` in the stack's home.
        device: the device that the model computes on.
        limits: what a request may hold; None for the usual limits.
        cores: processor cores to compute with; None for all of this machine.

    Raises:
        DataError: model, collection or index is damaged.
        StorageError: there is nothing at a URI.
        ConfigError: this machine has no such device.
    """
    # Texts and pictures have a thread each, and each of them computes with its share of the cores.
    torch.set_num_threads(max(1, (cores or os.cpu_count() or 2) // 2))
    found = collection.of(data)
    loaded = OwnModel(wukong.load(model, device), model)
    place = storage.from_path(environment.home() / "indexes") if root is None else _uri(root)
    made = index.build(found, loaded, place)
    return Service(found, loaded, made, limits or Limits())


def application(answers: Service, hosts: Sequence[str] = ("*",)) -> "FastAPI":
    """Make the ASGI application; see ``wukong.serve.app.create_app``."""
    from wukong.serve.app import create_app

    return create_app(answers, hosts)


def _uri(place: str) -> str:
    return place if "://" in place else storage.from_path(Path(place))
