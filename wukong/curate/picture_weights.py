"""Weights of picture models: whether they are there, and whether they are those that the settings expect."""

import hashlib

from wukong.config.picture_model import PictureModel
from wukong.errors import ConfigError

FILES = ("config.json", "model.safetensors")
"""What a folder of weights holds."""

_READ_AT_ONCE = 2**22


def missing(uri: str) -> str:
    """Return why there are no weights at a URI, in words that name it; empty if there are."""
    from wukong.store import storage

    if uri.endswith(".onnx"):
        return "" if storage.exists(uri) else f"{uri} does not exist; name a file that is there"
    if lacks := [name for name in FILES if not storage.exists(storage.join(uri, name))]:
        return f"{uri} lacks {', '.join(lacks)}; name an ONNX file, or a folder with {', '.join(FILES)}"
    return ""


def verify(model: PictureModel) -> None:
    """Read the weights whole, and compare their digest with the one that is expected; nothing is run.

    Raises:
        ConfigError: it is another one.
        StorageError: they cannot be read.
    """
    from wukong.store import storage

    digest = hashlib.sha256()
    with storage.open_input(model.file) as stream:
        while data := stream.read(_READ_AT_ONCE):
            digest.update(data)
    _refuse_others(model, digest.hexdigest())


def read(model: PictureModel) -> bytes:
    """Return the weights.

    Raises:
        ConfigError: they are not those that are expected.
        StorageError: they cannot be read.
    """
    from wukong.store import storage

    weights = storage.read_bytes(model.file)
    _refuse_others(model, hashlib.sha256(weights).hexdigest())
    return weights


def _refuse_others(model: PictureModel, found: str) -> None:
    if found != model.sha256:
        raise ConfigError(
            f"{model.file} has the SHA-256 {found}, and {model.sha256} is expected: bring the file that the licence is "
            "of, or set sha256 to the new one after a look at where it comes from"
        )
