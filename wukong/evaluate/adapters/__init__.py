"""Kinds of models of others, one file each: every module of this folder assigns a ``Kind`` to ``KIND``.

To add a kind, add a file, and its name to ``wukong.config.model_kinds.KINDS``. ``load`` takes what ``wukong evaluate
--model`` takes.
"""

import pkgutil
from importlib import import_module

from wukong.config import model_kinds
from wukong.evaluate.foreign import Kind
from wukong.evaluate.model import Model, OwnModel
from wukong.model import saved_model

__all__ = ["REGISTRY", "load"]


def _registered() -> dict[str, Kind]:
    """The kind of every module of this folder by its name.

    Raises:
        TypeError: a module has no ``KIND``, or its name is not the module's.
    """
    registered: dict[str, Kind] = {}
    for module in pkgutil.iter_modules(__path__):
        kind = getattr(import_module(f"{__name__}.{module.name}"), "KIND", None)
        if not isinstance(kind, Kind) or kind.name != module.name or kind.name not in model_kinds.KINDS:
            raise TypeError(
                f"wukong/evaluate/adapters/{module.name}.py assigns no Kind with the name {module.name!r} to KIND, or "
                "wukong/config/model_kinds.py does not name it: each file here is one kind of models"
            )
        registered[kind.name] = kind
    return registered


REGISTRY = _registered()
"""All kinds by what stands before the colon of their URIs."""


def load(uri: str, device: str = "cpu") -> Model:
    """Load a model by what stands before the colon of its URI.

    ``open_clip:NAME/WEIGHTS``, ``open_clip:hf-hub:OWNER/NAME`` or ``open_clip:local-dir:FOLDER``, and, with code of its
    own, ``open_clip:with-code:local-dir:FOLDER``; ``cn_clip:NAME`` or ``cn_clip:NAME/WEIGHTS``;
    ``transformers:FOLDER``, ``transformers:OWNER/NAME`` or, with code of its own, ``transformers:with-code:FOLDER``;
    ``onnx:FOLDER``; ``wukong_release:NAME/WEIGHTS`` for a model that the authors released. Anything else is a model of
    this project: a folder, a URI, or ``models:/NAME@ALIAS``.

    Args:
        uri: the URI.
        device: where it computes.

    Raises:
        ConfigError: the model's package is not installed, or has no such model.
        DataError: the model is damaged, or is another one than its name says.
        StorageError: it is not there.
    """
    kind, _, name = uri.partition(":")
    if kind in REGISTRY:
        return REGISTRY[kind].load(name, uri, saved_model.device_of(device))
    return OwnModel(saved_model.load(uri, device), uri)
