"""Find what looks like an example by vectors: the features that trainings stored, and the indexes of a search.

An example is encoded with the tower that made the vectors, so both the tower and its weights must still be there. What
cannot be compared is said, and not passed over in silence. Vectors are read block by block.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

import wukong
from wukong import stages
from wukong.config.model import ImageEncoder as Tower
from wukong.data import feature_files, images
from wukong.errors import WukongError
from wukong.evaluate.model import OwnModel
from wukong.model import saved_model
from wukong.model.image_encoder import ImageEncoder
from wukong.publish import superseded
from wukong.publish.alike import Example, Hit
from wukong.publish.takedown_plan import finished
from wukong.runtime import progress
from wukong.runtime.language import _
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest

NEAREST = 20
"""Stored pictures that are shown for each example."""

_BYTES_AT_ONCE = 64 << 20
_INDEX_ROWS = 65_536
_EVALUATION_VIEW = ".view00.safetensors"

Blocks = Iterator[tuple[Sequence[str], Tensor]]


class _Stored(NamedTuple):
    """Vectors that are compared: the examples' [examples, d], blocks of keys and [keys, d], and how many keys."""

    examples: Tensor
    blocks: Blocks
    pictures: int


def near(
    place: str,
    outputs: Sequence[Manifest],
    examples: Sequence[Example],
    roots: Iterable[str],
    models: Sequence[str],
    at_least: float,
) -> tuple[list[Hit], list[str]]:
    """Find the stored pictures whose vector is near an example's.

    Args:
        place: URI of the experiment.
        outputs: the manifests of what holds pairs there.
        examples: what is looked for.
        roots: URIs under which indexes of a search are kept.
        models: addresses of models that indexes may have been made with, besides those of the experiment.
        at_least: the least cosine.

    Returns:
        The nearest hits of each example, ``NEAREST`` at most; and for each store that was not compared, why.
    """
    best: dict[tuple[str, str], float] = {}
    left_out: list[str] = []
    for stored in _stored(place, outputs, examples, roots, models, left_out):
        wanted = F.normalize(stored.examples, dim=-1)
        with progress.track(_("compare vectors"), stored.pictures, _("pictures")) as advance:
            for keys, vectors in stored.blocks:
                cosines = F.normalize(vectors.float(), dim=-1) @ wanted.T
                for row, column in (cosines >= at_least).nonzero().tolist():
                    named = keys[row], examples[column].name
                    best[named] = max(best.get(named, -1.0), float(cosines[row, column]))
                best = _nearest(best)
                advance(len(keys))
    return [Hit(key, "vector", max(0.0, 1 - cosine), example) for (key, example), cosine in best.items()], left_out


def _nearest(found: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """Return the nearest of each example."""
    kept: dict[tuple[str, str], float] = {}
    for example in {name for _place, name in found}:
        mine = [(cosine, key) for (key, name), cosine in found.items() if name == example]
        kept |= {(key, example): cosine for cosine, key in heapq.nlargest(NEAREST, mine)}
    return kept


def _stored(
    place: str,
    outputs: Sequence[Manifest],
    examples: Sequence[Example],
    roots: Iterable[str],
    models: Sequence[str],
    left_out: list[str],
) -> Iterator[_Stored]:
    current = {stage.uri: stage.digest for stage in outputs if stage.parts}
    for uri in finished(place, ["features"]):
        made = manifest.load(uri)
        try:
            queries = _through_tower(made, examples)
        except WukongError as error:
            left_out.append(f"the features at {made.uri} were not compared, for their tower is gone ({error})")
            continue
        parts = made.parts.below(suffix=_EVALUATION_VIEW)
        yield _Stored(
            queries, _of_features((storage.join(made.uri, part.path), part.rows) for part in parts), parts.rows
        )
    indexes = [
        (folder, manifest.load(folder))
        for root in roots
        for folder, (uri, digest) in superseded.made_of(root).items()
        if current.get(uri) == digest and storage.exists(storage.join(folder, "manifest.json"))
    ]
    known = _Models(place, models)
    for folder, found in indexes:
        model = known.of(found.config["model"])
        if model is None:
            left_out.append(
                f"the index at {folder} is of a model that is not here, so it was not compared: name it by --model"
            )
            continue
        vectors = model.saved.encode_image([example.open() for example in examples])
        queries = vectors.mean(1) if model.token_wise else vectors
        shards = [superseded.shard_uri(folder, key) for key in superseded.listed(folder).keys]
        yield _Stored(queries, _of_index(shards, queries.shape[1]), found.counts["pictures"])


def _through_tower(made: Manifest, examples: Sequence[Example]) -> Tensor:
    """Encode the examples with the tower of stored features, as its evaluation view; patches are averaged."""
    settings = Tower.model_validate(made.config["image"])
    trained = next((parent.uri for parent in made.parents if parent.stage != "filter"), None)
    tower = saved_model.load(storage.join(trained, "model")).model.image if trained else ImageEncoder(settings)
    if tower is None:
        raise WukongError(f"{trained} holds no image tower")
    views = [images.evaluation_view(example.open(), settings.image_size, settings.view) for example in examples]
    with torch.inference_mode():
        features = tower.eval()(images.to_tensor(views))
    vectors: Tensor = features.tokens.mean(1) if made.config["kind"] == "tokens" else features.pooled
    return vectors


def _of_features(parts: Iterable[tuple[str, int]]) -> Blocks:
    for uri, rows in parts:
        start = 0
        while start < rows:
            keys, vectors = feature_files.read_rows(uri, start, start + 1, _BYTES_AT_ONCE)
            yield keys, vectors.float().mean(1) if vectors.ndim == 3 else vectors
            start += len(keys)


def _of_index(shards: Iterable[str], width: int) -> Blocks:
    for uri in shards:
        with (
            storage.open_input(storage.join(uri, "pictures.arrow")) as table,
            storage.open_input(storage.join(uri, "pictures.f16")) as halves,
        ):
            keys = pa.ipc.open_file(table).read_all()["key"]
            for start in range(0, len(keys), _INDEX_ROWS):
                some = keys.slice(start, _INDEX_ROWS).to_pylist()
                block = np.frombuffer(halves.read(2 * width * len(some)), np.float16).reshape(-1, width)
                yield some, torch.from_numpy(block.astype(np.float32))


class _Models:
    """The models that an index may have been made with, loaded one by one until one has the digest that is asked for.

    Args:
        place: URI of the experiment, whose trained models are tried last.
        named: addresses that are tried first, and must be there.
    """

    def __init__(self, place: str, named: Sequence[str]) -> None:
        trained = [uri.rpartition("/")[0] for uri in finished(place, stages.TRAININGS)]
        self._left = [*named, *(storage.join(uri, "model") for uri in reversed(trained))]
        self._named = frozenset(named)
        self._loaded: dict[str, OwnModel] = {}

    def of(self, digest: str) -> OwnModel | None:
        """Return the model of a digest; None if it is not among them, or cannot be loaded."""
        while digest not in self._loaded and self._left:
            address = self._left.pop(0)
            try:
                model = OwnModel(wukong.load(address), address)
            except WukongError:
                if address in self._named:
                    raise
                continue
            self._loaded[model.digest] = model
        return self._loaded.get(digest)
