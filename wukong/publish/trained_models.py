"""Which models were trained on pairs that a takedown removes: the manifests of their stages know.

Weights are not changed by a takedown. So the models are named, and people decide what becomes of them.
"""

from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict

from wukong.data.shards import matching
from wukong.errors import WukongError
from wukong.evaluate.trained_on import Pairs, pairs_of
from wukong.runs import located
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest


class TrainedModel(BaseModel):
    """A model that was trained on pairs that go, or of which that is not known.

    Attributes:
        uri: output of the stage that trained it; the model is in its folder ``model``.
        digest: digest of that stage's manifest.
        pairs: how many of the pairs it was trained on; None if a manifest that it was made from is gone.
        registered: its versions in MLflow, ``models:/NAME/VERSION``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    uri: str
    digest: str
    pairs: int | None
    registered: tuple[str, ...] = ()


def trained_on(models: Iterable[Manifest], keys: Sequence[str]) -> list[TrainedModel]:
    """Find the models that were trained on some pairs, directly or by the model that they started from.

    Args:
        models: manifests of training stages.
        keys: keys of the pairs, sorted.

    Raises:
        StorageError: a table cannot be read.
    """
    found = []
    seen: dict[Pairs, frozenset[str]] = {}
    for model in models:
        try:
            trained = pairs_of(model)
        except WukongError:
            found.append(TrainedModel(uri=model.uri, digest=model.digest, pairs=None))
            continue
        seen |= {pairs: _among(pairs, keys) for pairs in trained - seen.keys()}
        if gone := frozenset[str]().union(*(seen[pairs] for pairs in trained)):
            found.append(TrainedModel(uri=model.uri, digest=model.digest, pairs=len(gone)))
    return found


def _among(pairs: Pairs, keys: Sequence[str]) -> frozenset[str]:
    """Return those of some keys that training pairs have; only the shards are read that may have them."""
    tables = set(located.tables(manifest.load(pairs.uri), keys)) & set(pairs.tables)
    found: set[str] = set()
    for path in sorted(tables):
        rows = located.rows(storage.join(pairs.uri, path), keys, ["key", "url"])
        of_source = matching(rows["url"].to_list(), pairs.sources)
        found.update(key for key, is_read in zip(rows["key"], of_source, strict=True) if is_read)
    return frozenset(found)
