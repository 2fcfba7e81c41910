"""The fingerprints of an evaluation set, or of a folder of pictures (``wukong.curate.hash_files``).

They tell which training pictures show a picture of the set, where the set itself cannot be had or passed on.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
from PIL import Image

from wukong.curate import pdq
from wukong.curate.hash_files import Fingerprints, caption_hashes
from wukong.data.decoding import decode
from wukong.errors import DataError
from wukong.evaluate.data_set import ClassificationData, Data
from wukong.runtime import progress
from wukong.runtime.language import _

Vectors = Callable[[Sequence[Image.Image]], npt.NDArray[np.float16]]
"""A model: one vector a picture."""

_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
_BATCH = 64
_NAMED = 5

log = logging.getLogger(__name__)


def of_set(data: Data, vectors: Vectors | None = None, made_by: str = "") -> Fingerprints:
    """Make the fingerprints of a split of an evaluation set.

    Args:
        data: the split.
        vectors: makes the vectors of pictures; without it there are none.
        made_by: digest of the model that makes them.

    Raises:
        DataError: no picture can be read.
    """
    texts = [] if isinstance(data, ClassificationData) else [caption.text for caption in data.captions]
    captions = caption_hashes(pl.Series(texts, dtype=pl.String))
    return _made(data.name, data.split, data.digest, data.ids, data.image, captions, vectors, made_by)


def of_folder(folder: Path, vectors: Vectors | None = None, made_by: str = "") -> Fingerprints:
    """Make the fingerprints of all pictures below a folder; a picture's id is its path in it.

    Args:
        folder: it may hold other files too.
        vectors: makes the vectors of pictures; without it there are none.
        made_by: digest of the model that makes them.

    Raises:
        DataError: there is no picture, or none can be read.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _PICTURES and path.is_file())
    ids = [path.relative_to(folder).as_posix() for path in files]
    if not ids:
        raise DataError(f"{folder} holds no picture; name a folder of pictures, or an evaluation set")
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    digest = hashlib.sha256(json.dumps(list(zip(ids, digests, strict=True)), ensure_ascii=False).encode()).hexdigest()
    no_captions = np.empty(0, np.uint64)

    def image(number: int) -> Image.Image:
        return decode(files[number].read_bytes(), str(files[number]))

    return _made(folder.resolve().name, "", digest, ids, image, no_captions, vectors, made_by)


def _made(
    name: str,
    split: str,
    digest: str,
    ids: Sequence[str],
    image: Callable[[int], Image.Image],
    captions: npt.NDArray[np.uint64],
    vectors: Vectors | None,
    made_by: str,
) -> Fingerprints:
    read: list[str] = []
    unread: list[str] = []
    hashes, qualities, rows = [], [], []
    with progress.track(_("hash pictures"), len(ids), _("pictures")) as advance:
        for start in range(0, len(ids), _BATCH):
            images = []
            for number in range(start, min(start + _BATCH, len(ids))):
                try:
                    images.append(image(number))
                    read.append(ids[number])
                except DataError as error:
                    unread.append(str(error))
            forms, quality = pdq.dihedral(images)
            hashes.append(forms)
            qualities.append(quality)
            if vectors is not None and images:
                rows.append(vectors(images))
            advance(min(_BATCH, len(ids) - start))
    for text in unread[:_NAMED]:
        log.warning("%s", text)
    if not read:
        raise DataError(f"none of the {len(ids):,} pictures of {name} can be read; the first: {unread[0]}")
    return Fingerprints(
        name,
        split,
        digest,
        read,
        np.concatenate(hashes),
        np.concatenate(qualities),
        np.concatenate(rows) if rows else None,
        made_by,
        captions,
        len(unread),
    )
