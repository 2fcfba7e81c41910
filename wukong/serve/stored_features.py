"""The features of a collection's pictures that trainings and evaluations have stored: no tower runs for these again."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from torch import Tensor

from wukong.data import feature_files
from wukong.errors import DataError, WukongError
from wukong.evaluate.model import OwnModel
from wukong.model import saved_model
from wukong.model.image_encoder import ImageEncoder
from wukong.serve.collection import Collection
from wukong.stages import places
from wukong.store import damage, storage
from wukong.store.manifest import Manifest

_BYTES_AT_ONCE = 64 << 20
_EVALUATION_VIEW = 0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureFile:
    """The features of one shard's pictures, in the order of its tar.

    Attributes:
        stage: URI of the stage's output that it belongs to.
        path: its path below that.
        rows: how many pictures it has.
    """

    stage: str
    path: str
    rows: int

    def read(self) -> "Rows":
        """Open it."""
        return Rows(self)


class Rows:
    """Reads features of some pictures of a file, which are asked for in the file's order; a block is in memory."""

    def __init__(self, file: FeatureFile) -> None:
        self._uri = storage.join(file.stage, file.path)
        self._rows = self._stream(file.rows)

    def of(self, key: str) -> Tensor:
        """Return the features of a picture, float16 [width] or [patches, width].

        Raises:
            DataError: the file is damaged, or does not have the picture where it should be.
        """
        found = next((features for each, features in self._rows if each == key), None)
        if found is None:
            raise DataError(f"{self._uri} lacks the picture {key}: {damage.remedy(self._uri)}")
        return found

    def _stream(self, rows: int) -> Iterator[tuple[str, Tensor]]:
        start = 0
        while start < rows:
            keys, features = feature_files.read_rows(self._uri, start, start + 1, _BYTES_AT_ONCE)
            yield from zip(keys, features, strict=True)
            start += len(keys)


def find(collection: Collection, model: OwnModel) -> dict[str, FeatureFile]:
    """Find the stored features of a collection's pictures, by the path of the shard's tar below the collection's URI.

    They are of the same pictures, of the view that the model sees of a picture that is not augmented, and of a tower
    whose settings and weights are the model's, bit by bit.

    Args:
        collection: what is searched.
        model: the model with its image tower.
    """
    tars = [PurePosixPath(piece.tar) for piece in collection.pieces if piece.tar]
    found: dict[str, FeatureFile] = {}
    if not tars:
        return found
    for made in places.stored_features(collection.uri, collection.digest, model.saved.model.settings):
        if _is_of_tower(made, model):
            rows = {part.path: part.rows for part in made.parts}
            for tar in tars:
                path = feature_files.path_of(str(tar.parent), tar.stem, _EVALUATION_VIEW)
                if path in rows:
                    found.setdefault(str(tar), FeatureFile(made.uri, path, rows[path]))
    return found


def _is_of_tower(made: Manifest, model: OwnModel) -> bool:
    """Whether features are of the model's own tower. Its settings name the weights with which its training began."""
    trained = next((parent.uri for parent in made.parents if parent.stage != "filter"), None)
    try:
        if trained is None:
            tower: ImageEncoder | None = ImageEncoder(model.saved.model.settings.image)
        else:
            tower = saved_model.load(storage.join(trained, "model")).model.image
    except WukongError as error:
        log.warning("the features at %s are not used, because their tower is not there: %s", made.uri, error)
        return False
    if tower is not None and model.has_tower(tower):
        return True
    log.info("the features at %s are of other weights than the model's and are not used", made.uri)
    return False
