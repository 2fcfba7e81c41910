"""What lies at an address, by its digest: an address stays the same when somebody replaces its file."""

import hashlib
from collections.abc import Sequence

from wukong.errors import DataError
from wukong.store import storage

_READ_BYTES = 1 << 20


def sha256(uri: str) -> str:
    """SHA-256, in hex, of a file."""
    sha = hashlib.sha256()
    with storage.open_input(uri) as stream:
        while chunk := stream.read(_READ_BYTES):
            sha.update(chunk)
    return sha.hexdigest()


def digest(uri: str, names: Sequence[str] = ()) -> str:
    """SHA-256, in hex, of a file, or of those files of a folder that have some names."""
    if not names:
        return sha256(uri)
    from wukong.store.manifest import digest_of  # which imports pyarrow; a model is loaded without it

    return digest_of({name: sha256(storage.join(uri, name)) for name in names})


def check(uri: str, expected: str | None, names: Sequence[str] = ()) -> None:
    """Check that an address holds what it held when the run began; call it after what it holds was read.

    Args:
        uri: the address.
        expected: its ``digest`` then; None if the run does not know it.
        names: see ``digest``.

    Raises:
        DataError: it holds something else; the message says what to do.
        StorageError: it cannot be read.
    """
    if expected is not None and (found := digest(uri, names)) != expected:
        raise DataError(
            f"{uri} was replaced: its SHA-256 is {found[:8]}…, and {expected[:8]}… is what the run began with, or what "
            "its model was trained with. Put that back; or start a run under another name, which makes all that "
            "depends on it anew"
        )
