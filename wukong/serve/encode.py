"""Encode a collection once and keep the vectors: in a stream, block by block, and resumed after a kill.

Where a training or an evaluation has stored features of the same pictures by the same tower, the tower does not run
again (``wukong.serve.stored_features``). The vectors are the same up to the rounding of these features to float16.

An index names its collection in ``collection.json``, which is written first. When the collection has changed, for
instance by a takedown, its earlier indexes are deleted, the unfinished ones too: they hold captions and vectors of what
is not there any more.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from wukong.errors import DataError
from wukong.evaluate.model import OwnModel
from wukong.model.dual import Texts
from wukong.model.saved_model import open_picture
from wukong.publish import superseded
from wukong.publish.superseded import COLLECTION, STAGE
from wukong.runtime import progress
from wukong.serve import calibration, stored_features
from wukong.serve.collection import Collection, Piece, Place
from wukong.serve.index import CALIBRATION, CAPTIONS, PLACES, open_parts
from wukong.serve.query import search_forms
from wukong.serve.stored_features import FeatureFile
from wukong.store import storage
from wukong.store.manifest import Manifest, Part, Stage

log = logging.getLogger(__name__)

_VERSION = 1
_BLOCK = 2_048
_BATCH_PICTURES, _BATCH_TEXTS = 32, 256


def stage_of(collection: Collection, model: OwnModel, root: str) -> Stage:
    """Return the stage of an index, which says where it lies and whether it is finished; arguments as of ``build``."""
    return Stage(root, STAGE, {"data": collection.digest, "model": model.digest}, version=_VERSION)


def build(collection: Collection, model: OwnModel, root: str) -> Manifest:
    """Encode what is not encoded yet, and write the manifest; a finished index is found and not made again.

    Indexes of what the collection was before are deleted.

    Args:
        collection: what is searched.
        model: the model with its image tower.
        root: URI under which indexes are kept.

    Raises:
        DataError: a shard is damaged; no picture can be decoded; the model's vectors are not finite.
        StorageError: the collection cannot be read, or the index cannot be written.
    """
    stage = stage_of(collection, model, root)
    # First: what it may show of pairs that were taken down, nothing can use.
    superseded.delete(root, lambda uri, digest: uri == collection.uri.rstrip("/") and digest != collection.digest)
    return stage.made(lambda: _build(stage, collection, model))


def _build(stage: Stage, collection: Collection, model: OwnModel) -> Manifest:
    storage.write_json(stage.path(COLLECTION), {"uri": collection.uri, "digest": collection.digest})
    parts: list[Part] = []
    left_out = 0
    stored = stored_features.find(collection, model)
    sources: Counter[str] = Counter()
    with progress.track("index", collection.pictures, "pictures") as advance:
        for piece in collection.pieces:
            record = stage.finished_task(piece.name)
            if record is None:
                record = _encode_piece(stage, collection, piece, model, advance, stored.get(piece.tar))
                stage.commit_task(piece.name, record)
            else:
                advance(len(piece.captions))
            parts += map(Part.model_validate, record["parts"])
            left_out += record["left_out"]
            # Records of an earlier version do not have it: there all pictures were encoded.
            sources[record.get("features", "")] += len(piece.captions) - record["left_out"]
    for uri, count in sources.items():
        source = f"the features at {uri}" if uri else "the image tower"
        log.info("%d pictures have their vectors from %s", count, source)
    texts = _distinct(collection)
    pairs = list(texts.items())
    blocks = [pairs[start : start + _BLOCK] for start in range(0, len(pairs), _BLOCK)]
    with progress.track("index", len(texts), "captions") as advance:
        for number, block in enumerate(blocks):
            name = f"captions-{number:05d}"
            record = stage.finished_task(name)
            if record is None:
                record = {"parts": _encode_captions(stage, f"captions/{number:05d}", block, model)}
                stage.commit_task(name, record)
            advance(len(block))
            parts += map(Part.model_validate, record["parts"])
    pictures = sum(part.rows for part in parts if part.path.startswith("pictures/") and part.path.endswith(".parquet"))
    if not pictures:
        raise DataError(f"no picture of {collection.uri} can be decoded: give --data other pictures")
    counts = {"pictures": pictures, "captions": len(texts), "left_out": left_out}
    index = open_parts(stage.uri, parts, model)
    calibrated = calibration.calibrate(index, model)
    storage.write_json(stage.path(CALIBRATION), calibrated)
    parts += [stage.describe(CALIBRATION), stage.describe(COLLECTION)]
    return stage.commit(parts, counts=counts)


def _distinct(collection: Collection) -> dict[str, str]:
    """The distinct captions, in the order of the collection: the form that is searched, and the caption as shown."""
    found: dict[str, str] = {}
    for piece in collection.pieces:
        shown = [caption for captions in piece.captions.values() for caption in captions]
        for form, caption in zip(search_forms(shown), shown, strict=True):
            if form:
                found.setdefault(form, caption)
    return found


def _encode_piece(
    stage: Stage,
    collection: Collection,
    piece: Piece,
    model: OwnModel,
    advance: Callable[[int], None],
    stored: FeatureFile | None,
) -> dict[str, Any]:
    """Encode the pictures of a piece in blocks, from their features where those are stored.

    Pictures of a folder that cannot be decoded are left out and counted.
    """
    parts: list[Part] = []
    left_out = 0
    block: list[tuple[str, Place]] = []
    vectors: list[Tensor] = []
    batch: list[Any] = []
    features = stored.read() if stored else None

    def encode() -> None:
        if batch:
            found = model.encode_features(torch.stack(batch)) if features else model.saved.encode_image(batch)
            vectors.append(found.half() if model.token_wise else found)
            batch.clear()

    def write() -> None:
        encode()
        if not block:
            return
        name = f"pictures/{piece.name}-{len(parts) // 2:03d}"
        rows = [(key, place.file, place.offset, place.size, piece.captions[key]) for key, place in block]
        table = pa.table([list(column) for column in zip(*rows, strict=True)], PLACES)
        parts.extend(_written(stage, name, _means(torch.cat(vectors), model), table))
        block.clear()
        vectors.clear()

    for key, place, read in collection.read_piece(piece):
        advance(1)
        given = features.of(key) if features else read()
        try:
            batch.append(given if isinstance(given, Tensor) else open_picture(given, f"the picture {key}"))
        except DataError as error:
            if piece.files is None:
                raise
            log.warning("%s is left out: %s", place.file, error)
            left_out += 1
            continue
        block.append((key, place))
        if len(batch) == _BATCH_PICTURES:
            encode()
        if len(block) == _BLOCK:
            write()
    write()
    record = {"parts": [part.model_dump(mode="json") for part in parts], "left_out": left_out}
    return record | {"features": stored.stage if stored else ""}


def _encode_captions(
    stage: Stage, name: str, block: Sequence[tuple[str, str]], model: OwnModel
) -> list[dict[str, Any]]:
    forms = [form for form, _ in block]
    tokens = model.saved.tokenizer.max_tokens
    found, counted = [], []
    for start in range(0, len(forms), _BATCH_TEXTS):
        some = forms[start : start + _BATCH_TEXTS]
        texts = model.saved.encode_text(some, _BATCH_TEXTS, strict=False)
        counted += texts.counted.sum(1).tolist()
        if model.token_wise:
            padded = texts.vectors.new_zeros(len(some), tokens, texts.vectors.shape[2], dtype=torch.float16)
            padded[:, : texts.vectors.shape[1]] = texts.vectors * _not_padding(texts)
            found.append(padded)
        else:
            found.append(texts.vectors)
    table = pa.table([[caption for _, caption in block], forms, counted], CAPTIONS)
    vectors = torch.cat(found)
    if model.token_wise:
        weight = _counted(torch.tensor(counted), tokens)[..., None]
        means = (vectors.float() * weight).sum(1) / weight.sum(1).clamp_min(1)
        stored = {"vectors": means, "tokens": vectors}
    else:
        stored = {"vectors": vectors}
    return [part.model_dump(mode="json") for part in _written(stage, name, stored, table)]


def _not_padding(texts: Texts) -> Tensor:
    """[texts, tokens, 1], 1 for [CLS] and the tokens that count, 0 for padding."""
    kept = texts.counted.clone()
    kept[:, 0] = True
    return kept[..., None]


def _counted(lengths: Tensor, tokens: int) -> Tensor:
    places = torch.arange(tokens)
    return (places > 0) & (places <= lengths[:, None])


def _means(vectors: Tensor, model: OwnModel) -> dict[str, Tensor]:
    if model.token_wise:
        return {"vectors": vectors.float().mean(1), "tokens": vectors}
    return {"vectors": vectors}


def _written(stage: Stage, name: str, tensors: dict[str, Tensor], table: pa.Table) -> list[Part]:
    """Write a block; its tokens are a file of their own, because they are read from the disk row by row."""
    parts = []
    for suffix, key in ("", "vectors"), (".tokens", "tokens"):
        if key in tensors:
            path = f"{name}{suffix}.safetensors"
            storage.write_bytes(stage.path(path), save_tensors({key: tensors[key].contiguous()}))
            parts.append(stage.describe(path, len(table)))
    storage.write_table(stage.path(f"{name}.parquet"), table)
    return [*parts, stage.describe(f"{name}.parquet", len(table))]
