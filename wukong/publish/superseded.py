"""Delete the indexes of a search whose pictures are not what they were: they hold captions and vectors of what is gone.

An index names what it was made of in ``collection.json``, which is written before all else and deleted last.
"""

import logging
from collections.abc import Callable

from wukong import stages
from wukong.store import manifest, storage

STAGE = "index"
COLLECTION = "collection.json"

log = logging.getLogger(__name__)


def made_of(root: str) -> dict[str, tuple[str, str]]:
    """Return what each index was made of: by its folder, the URI of the collection and its digest at that time.

    Args:
        root: URI under which indexes are kept.
    """
    files = storage.list_files(storage.join(root, STAGE), f"/{COLLECTION}")
    named = {uri.removesuffix(f"/{COLLECTION}"): storage.read_json(uri) for uri in files}
    return {folder: (each["uri"].rstrip("/"), each["digest"]) for folder, each in named.items()}


def delete(root: str, changed: Callable[[str, str], bool]) -> list[str]:
    """Delete indexes, finished or not.

    Args:
        root: URI under which they are kept.
        changed: tells by the URI and the digest of its collection whether an index goes.

    Returns:
        The URIs of their folders.
    """
    gone = [folder for folder, (uri, digest) in made_of(root).items() if changed(uri, digest)]
    for folder in gone:
        log.info("%s is deleted: what it was made of has changed since", folder)
        storage.delete(storage.join(folder, "manifest.json"))  # first: a part of an index must not look finished
        # Last: a deletion that is killed goes on at the next start.
        for file in [file for file in storage.list_files(folder) if not file.endswith(f"/{COLLECTION}")]:
            storage.delete(file)
        storage.delete(folder)
    return gone


def delete_below(root: str, place: str) -> list[str]:
    """Delete the indexes of the stages' outputs at a place that have changed or are gone; else as ``delete``.

    Args:
        root: URI under which indexes are kept.
        place: URI of an experiment, or of one output.
    """
    outputs = ("", *(entry.name for entry in stages.TABLE))

    def changed(uri: str, digest: str) -> bool:
        if not f"{uri}/".startswith(f"{place}/") or uri[len(place) + 1 :].partition("/")[0] not in outputs:
            return False
        return not storage.exists(storage.join(uri, "manifest.json")) or manifest.load(uri).digest != digest

    return delete(root, changed)
