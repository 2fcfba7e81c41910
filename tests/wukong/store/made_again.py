"""What a person does who is told by a message how a damaged file is made again."""

import random
import re
from collections.abc import Callable

import pytest

from wukong.errors import WukongError
from wukong.store import damage, manifest, storage
from wukong.store.manifest import Manifest


def cut(uri: str) -> None:
    """Leave the first half of a file, as a disk that was full did."""
    data = storage.read_bytes(uri)
    storage.write_bytes(uri, data[: len(data) // 2])


def flipped(uri: str, place: float = 0.5) -> None:
    """Flip a bit of a file."""
    data = bytearray(storage.read_bytes(uri))
    data[int(place * len(data))] ^= 16
    storage.write_bytes(uri, bytes(data))


def listing(made: Manifest, uri: str) -> Manifest:
    """Store and return a manifest that lists a file as it lies there now, as if its stage had written it so."""
    path = uri.removeprefix(f"{made.uri}/")
    part = manifest.describe(made.uri, path, made.parts.named([path]).rows)
    changed = made.model_copy(update={"parts": made.parts.replaced({path: part})})
    manifest.save(changed, storage.join(made.uri, "manifest.json"))
    return changed


def obey(error: BaseException) -> list[str]:
    """Delete what a message says is to be deleted, if that is there; return it."""
    named = re.findall(r"(?:file|s3)://[^\s;,:]+", str(error))
    assert "delete it" in str(error), error
    assert re.search(r"run (the|its) stage again", str(error)), error
    listed_in = re.search(r"delete it, and (\S+) if that is there, and run", str(error))
    told = [named[0], *([listed_in[1]] if listed_in else [])]
    for uri in told:
        storage.delete(uri)
    return told


def made_again(run: Callable[[], Manifest], most: int = 3) -> tuple[Manifest, list[str]]:
    """Run stages, and obey their messages, until they end; return what they made, and what was deleted."""
    told: list[str] = []
    for _ in range(most):
        try:
            return run(), told
        except WukongError as error:
            told += obey(error)
    raise AssertionError(f"it does not end: {told}")


def refused_wherever_a_bit_is_flipped(uri: str, read: Callable[[], object], places: int) -> None:
    """Check that a reader refuses a file with a flipped bit, and says which file it is and where its manifest lies."""
    whole = storage.read_bytes(uri)
    for place in [0.0, 0.999999, *(random.Random(0).random() for _ in range(places))]:
        flipped(uri, place)
        with pytest.raises(WukongError) as refused:
            read()
        assert uri in str(refused.value), place
        assert f"{damage.output_of(uri)}/manifest.json" in str(refused.value)
        storage.write_bytes(uri, whole)
