"""Take pictures out of the indexes of a search, within the takedown that removes them from the data."""

import logging

from wukong.errors import WukongError
from wukong.publish import superseded
from wukong.serve import collection, encode
from wukong.store import storage

log = logging.getLogger(__name__)


def update(root: str, place: str) -> list[str]:
    """Replace the indexes of the outputs at a place that have changed by indexes of what is left there.

    The pictures that are left keep their vectors, and shards without a change are not touched. An index that is not
    finished, or that cannot be replaced, is deleted: a search makes it anew. A call after one that was killed goes on.

    Args:
        root: URI under which indexes are kept.
        place: URI of an experiment, or of one output.

    Returns:
        The URIs of the folders that were deleted.
    """
    changed = superseded.changed_below(root, place)
    made_of = superseded.made_of(root)
    for folder in changed:
        uri, _ = made_of[folder]
        if not (superseded.lists_shards(folder) and storage.exists(storage.join(uri, "manifest.json"))):
            continue
        try:
            encode.rebuild(collection.of(uri, during_takedown=True), folder)
        except (WukongError, OSError) as error:
            log.warning("%s is deleted and not replaced: %s", folder, error)
    superseded.delete(root, [folder for folder in changed if folder in superseded.made_of(root)])
    return changed
