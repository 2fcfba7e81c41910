"""What a person does who is told by a message how a damaged file is made again."""

import random
import re
from collections.abc import Callable, Sequence

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
    text, named = str(error), re.findall(r"(?:file|s3)://[^\s;,:]+", str(error))
    if found := re.search(r"Delete (\S+)(?: and (\S+))?: `wukong search --encode` makes", text):
        told = [uri for uri in found.groups() if uri]
    elif found := re.search(r"delete (\S+) and run its stage again", text):
        told = [named[0] if found[1] == "it" else found[1]]
    else:
        found = re.search(
            r"delete it, and (\S+)(?: and (\S+))? if (?:that is|they are) there, and run its stage again", text
        )
        assert found, text
        told = [named[0], *(uri for uri in found.groups() if uri)]
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


def is_made_again(
    damaged: str,
    run: Callable[[], Manifest],
    ways: Sequence[Callable[[str], None]] = (cut, flipped),
) -> None:
    """Check that a damaged file is refused, and is made again to the same bytes by doing what the messages say.

    Args:
        damaged: the file's URI.
        run: makes the stages and reads what they made.
        ways: how the file is damaged.
    """
    whole, first = storage.read_bytes(damaged), run()
    for way in ways:
        way(damaged)
        again, told = made_again(run)
        assert any(f"{damaged}/".startswith(f"{each}/") for each in told), (way, told)
        assert again.digest == first.digest
        assert storage.read_bytes(damaged) == whole, way


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
