"""Kinds of models of others, one file each: every module of this folder assigns a ``Kind`` to ``KIND``.

To add a kind, add a file, and its name to ``wukong.config.model_kinds.KINDS``. ``load`` takes what ``wukong evaluate
--model`` takes.
"""

from wukong.evaluate.foreign import Kind
from wukong.evaluate.model import Model, OwnModel
from wukong.model import saved_model
from wukong.runtime.registered import registered

__all__ = ["REGISTRY", "load"]


REGISTRY = registered(__name__, "KIND", Kind)
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
