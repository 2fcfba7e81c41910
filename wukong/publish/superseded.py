"""Where the indexes of a search lie, and which of them are of pictures that are not what they were.

An index names what it was made of in ``collection.json``, which is written before all else and deleted last. Its
vectors, captions and tables are in shards beside it, ``index-shard/KEY``, which ``shards.json`` lists before any of
them is made. Several indexes may list a shard. One that none lists any more is deleted.
"""

import logging
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict

from wukong import stages
from wukong.store import manifest, storage

STAGE, SHARD = "index", "index-shard"
COLLECTION, SHARDS = "collection.json", "shards.json"

log = logging.getLogger(__name__)


class Listed(BaseModel):
    """What ``shards.json`` says.

    Attributes:
        model: digest of the model.
        width: numbers of a vector.
        token_wise: whether the model has a vector for each token.
        keys: the shards' keys, in their order.
        pieces: names of the pieces of the collection that each shard is of.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    width: int
    token_wise: bool
    keys: tuple[str, ...]
    pieces: tuple[tuple[str, ...], ...]


def listed(folder: str, sha256: str = "") -> Listed:
    """Return which shards an index has.

    Args:
        folder: URI of the index.
        sha256: digest that ``shards.json`` must have; empty for any.

    Raises:
        StorageError: ``shards.json`` cannot be read, or was altered.
    """
    return Listed.model_validate(storage.read_json(storage.join(folder, SHARDS), sha256))


def shard_uri(folder: str, key: str) -> str:
    """Return the URI of a shard that an index lists."""
    return storage.join(folder.rstrip("/").rsplit("/", 2)[0], SHARD, key)


def made_of(root: str) -> dict[str, tuple[str, str]]:
    """Return what each index was made of: by its folder, the URI of the collection and its digest at that time.

    Args:
        root: URI under which indexes are kept.
    """
    files = storage.list_files(storage.join(root, STAGE), f"/{COLLECTION}")
    named = {uri.removesuffix(f"/{COLLECTION}"): storage.read_json(uri) for uri in files}
    return {folder: (each["uri"].rstrip("/"), each["digest"]) for folder, each in named.items()}


def lists_shards(folder: str) -> bool:
    """Return whether an index has a list of shards; those of some killed builds have none."""
    return storage.exists(storage.join(folder, SHARDS))


def withdraw(folders: Iterable[str]) -> None:
    """Make indexes unfinished, so that nothing opens them any more; their shards stay for a while."""
    for folder in folders:
        storage.delete(storage.join(folder, "manifest.json"))


def delete(root: str, folders: Sequence[str]) -> None:
    """Delete indexes, finished or not, and the shards that no other lists.

    Args:
        root: URI under which they are kept.
        folders: URIs of their folders.
    """
    withdraw(folders)
    for folder in folders:
        log.info("%s is deleted: what it was made of has changed since", folder)
        # Last: a deletion that is killed goes on at the next start.
        for file in [
            file for file in storage.list_files(folder) if not file.endswith((f"/{COLLECTION}", f"/{SHARDS}"))
        ]:
            storage.delete(file)
    gone = {*folders}
    kept = {
        key for folder in made_of(root) if folder not in gone and lists_shards(folder) for key in listed(folder).keys
    }
    for key in storage.list_names(storage.join(root, SHARD)):
        if key not in kept:
            shard = storage.join(root, SHARD, key)
            storage.delete(storage.join(shard, "manifest.json"))
            storage.delete(shard)
    for folder in folders:
        storage.delete(folder)


def changed_below(root: str, place: str) -> list[str]:
    """Return the folders of the indexes of the stages' outputs at a place that have changed or are gone.

    Args:
        root: URI under which indexes are kept.
        place: URI of an experiment, or of one output.
    """
    outputs = ("", *(entry.name for entry in stages.TABLE))

    def changed(uri: str, digest: str) -> bool:
        if not f"{uri}/".startswith(f"{place}/") or uri[len(place) + 1 :].partition("/")[0] not in outputs:
            return False
        return not storage.exists(storage.join(uri, "manifest.json")) or manifest.load(uri).digest != digest

    return [folder for folder, (uri, digest) in made_of(root).items() if changed(uri, digest)]
