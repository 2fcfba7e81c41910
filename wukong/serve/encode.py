"""Make the index of a collection: encode its pictures and captions once, piece by piece, and resumed after a kill.

Pieces of the collection are gathered in shards (``wukong.serve.index``). First every piece of a shard that is not there
is encoded, then the distinct captions of the shard are gathered and encoded in blocks, then all is joined. Each step is
a task that leaves a record when it is complete; ``Run`` decides where tasks run, here or on a cluster.

No vector is computed twice. A picture that an earlier index by the same model has keeps its vector
(``wukong.serve.earlier``). Where a training or an evaluation has stored features of the same pictures by the same
tower, the tower does not run (``wukong.serve.stored_features``).

An index names its collection in ``collection.json``, which is written first. When the collection has changed, for
instance by a takedown, its earlier indexes are withdrawn before the new one is made and deleted afterwards, with the
shards that no index lists: they hold captions and vectors of what is not there any more.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from wukong.errors import DataError
from wukong.evaluate.model import OwnModel
from wukong.model.dual import Texts
from wukong.model.saved_model import open_picture
from wukong.publish import superseded
from wukong.publish.superseded import COLLECTION, SHARDS, STAGE, Listed
from wukong.runtime import progress
from wukong.runtime.language import _
from wukong.serve import calibration, earlier, shard, stored_features
from wukong.serve.collection import Collection, Piece, Place
from wukong.serve.earlier import Earlier, Halves, Numbers
from wukong.serve.index import CALIBRATION, open_index
from wukong.serve.shard import ENCODED, Made
from wukong.serve.stored_features import FeatureFile
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest, Stage

Work = TypeVar("Work")
Result = TypeVar("Result")

SHARD_PICTURES = 10_000_000
"""Most pictures of a shard, unless a piece has more."""

log = logging.getLogger(__name__)

_VERSION = 6
_BLOCK = 2_048
_BLOCKS_AT_ONCE = 16
"""Blocks whose items have one vector each are that many times as long."""
_EARLIER = "earlier"
_BATCH_PICTURES, _BATCH_TEXTS, _BATCH_FEATURES = 32, 256, 1_024


class Run(Protocol):
    """What runs tasks: in this process, or on a cluster."""

    def __call__(self, task: Callable[[OwnModel | None, Work], Result], work: Sequence[Work], /) -> Iterable[Result]:
        """Run a task for each of some work, and yield what they return, in the order of the work."""
        ...


class UnknownError(DataError):
    """A vector is needed that no earlier index has, and there is no model to compute it."""


def here(model: OwnModel | None) -> Run:
    """Run tasks in this process, one after the other."""

    def run(task: Callable[[OwnModel | None, Work], Result], work: Sequence[Work], /) -> Iterator[Result]:
        return (task(model, each) for each in work)

    return run


def stage_of(collection: Collection, model: OwnModel, root: str) -> Stage:
    """Return the stage of an index, which says where it lies and whether it is finished; arguments as of ``build``."""
    return _stage(collection, model.digest, root)


def _stage(collection: Collection, model: str, root: str) -> Stage:
    return Stage(root, STAGE, {"data": collection.digest, "model": model}, version=_VERSION)


def build(collection: Collection, model: OwnModel, root: str, run: Run | None = None) -> Manifest:
    """Encode what is not encoded yet, and write the manifest; a finished index is found and not made again.

    Indexes of what the collection was before are deleted.

    Args:
        collection: what is searched.
        model: the model with its image tower.
        root: URI under which indexes are kept.
        run: runs the tasks; None for this process.

    Raises:
        DataError: a shard is damaged; no picture can be decoded; the model's vectors are not finite.
        StorageError: the collection cannot be read, or the index cannot be written.
    """
    facts = Listed(model=model.digest, width=model.saved.model.width, token_wise=model.token_wise, keys=(), pieces=())
    old = [
        folder
        for folder, (uri, digest) in superseded.made_of(root).items()
        if uri == collection.uri.rstrip("/") and digest != collection.digest
    ]
    return _updated(collection, facts, root, old, run or here(model), model)


def rebuild(collection: Collection, folder: str) -> Manifest:
    """Make the index of a collection that has lost pictures of what an earlier one has; no model is needed.

    Args:
        collection: what is left.
        folder: URI of the earlier index, which is deleted.

    Raises:
        UnknownError: the earlier index lacks something.
    """
    facts, root = superseded.listed(folder), folder.rstrip("/").rsplit("/", 2)[0]
    calibrated = storage.join(folder, CALIBRATION)
    known = storage.read_json(calibrated) if storage.exists(calibrated) else {}
    return _updated(collection, facts, root, [folder], here(None), known)


def _updated(
    collection: Collection,
    facts: Listed,
    root: str,
    old: Sequence[str],
    run: Run,
    model: OwnModel | dict[str, Any],
) -> Manifest:
    """Make an index where there is none, and delete others.

    Args:
        collection: what is searched.
        facts: what is known of the model.
        root: URI under which indexes are kept.
        old: URIs of the indexes that go.
        run: runs the tasks.
        model: the model, or the calibration where there is none.
    """
    stage = _stage(collection, facts.model, root)
    # First: what it may show of pairs that were taken down, nothing can use.
    superseded.withdraw(old)
    made = stage.made(lambda: _make(stage, collection, facts, _before(collection, facts.model, root), run, model))
    superseded.delete(root, old)
    return made


def _before(collection: Collection, model: str, root: str) -> list[Listed]:
    """What indexes by a model list, finished or not; those of the collection come first."""
    made_of = superseded.made_of(root)
    folders = sorted(made_of, key=lambda folder: (made_of[folder][0] != collection.uri.rstrip("/"), folder))
    found = [superseded.listed(folder) for folder in folders if superseded.lists_shards(folder)]
    return [each for each in found if each.model == model]


def _make(
    stage: Stage,
    collection: Collection,
    facts: Listed,
    before: Sequence[Listed],
    run: Run,
    model: OwnModel | dict[str, Any],
) -> Manifest:
    storage.write_json(stage.path(COLLECTION), {"uri": collection.uri, "digest": collection.digest})
    groups = _grouped(collection.pieces, before[0].pieces if before else ())
    root = stage.uri.rsplit("/", 2)[0]
    shards = [_shard(root, group, facts, before) for group in groups]
    listed = facts.model_copy(
        update={"keys": tuple(each.stage.key for each in shards), "pieces": tuple(each.pieces for each in shards)}
    )
    storage.write_json(stage.path(SHARDS), listed.model_dump(mode="json"))
    left = [(each, group) for each, group in zip(shards, groups, strict=True) if each.stage.finished() is None]
    features = stored_features.find(collection, model) if left and isinstance(model, OwnModel) else {}
    unread = replace(collection, divide=tuple)
    work = [_Encoded(each, unread, piece, features.get(piece.tar)) for each, group in left for piece in group]
    sources: Counter[str] = Counter()
    with progress.track(_("index"), sum(each.piece.pictures for each in work), _("pictures")) as advance:
        for each, record in zip(work, run(encode_piece, work), strict=True):
            advance(each.piece.pictures)
            sources.update(record["sources"])
    for source, count in sources.items():
        log.info("%d pictures have their vectors from %s", count, source)
    todo = [each for each, _ in left]
    blocks = [(each, number) for each, count in zip(todo, run(_collect, todo), strict=True) for number in range(count)]
    with progress.track(_("index"), len(blocks), _("blocks of captions")) as advance:
        for _done in run(encode_captions, blocks):
            advance(1)
    for _finished in run(_finish, todo):
        pass
    made = [manifest.load(each.stage.uri) for each in shards]
    counts = {name: sum(each.counts[name] for each in made) for name in ("pictures", "captions", "left_out")}
    if not counts["pictures"]:
        raise DataError(f"no picture of {collection.uri} can be decoded: give --data other pictures")
    calibrated = model
    if isinstance(model, OwnModel):
        unfinished = Manifest(stage=STAGE, uri=stage.uri, config=stage.config)
        opened = [open_index(unfinished, model, number) for number in range(len(shards))]
        calibrated = calibration.calibrate(opened, model)
    storage.write_json(stage.path(CALIBRATION), calibrated)
    measured = [each.metrics["recall"] for each in made if "recall" in each.metrics]
    metrics = {"recall_at_10": round(float(np.mean(measured)), 4)} if measured else {}
    parts = [stage.describe(path) for path in (CALIBRATION, COLLECTION, SHARDS)]
    return stage.commit(parts, counts=counts, metrics=metrics)


def _grouped(pieces: Sequence[Piece], before: Sequence[Sequence[str]]) -> list[list[Piece]]:
    """Gather pieces in shards: those that were in one stay there, and others fill the last one, and new ones."""
    named = {piece.name: piece for piece in pieces}
    groups = [[named.pop(name) for name in names if name in named] for names in before]
    groups = [group for group in groups if group]
    for piece in named.values():
        if not groups or sum(each.pictures for each in groups[-1]) + piece.pictures > SHARD_PICTURES:
            groups.append([])
        groups[-1].append(piece)
    return groups


def _shard(root: str, group: Sequence[Piece], facts: Listed, before: Sequence[Listed]) -> Made:
    """Describe a shard. Earlier ones that have pieces of the same names may have its pictures."""
    config = {"model": facts.model, "width": facts.width, "token_wise": facts.token_wise}
    pieces = manifest.digest_of([piece.digest for piece in group])
    stage = Stage(root, superseded.SHARD, config | {"pieces": pieces}, version=_VERSION)
    names = {piece.name for piece in group}
    keys = {
        key: None
        for listed in before
        for key, theirs in zip(listed.keys, listed.pieces, strict=True)
        if key != stage.key and not names.isdisjoint(theirs)
    }
    uris = [storage.join(root, superseded.SHARD, key) for key in keys]
    there = [uri for uri in uris if storage.exists(storage.join(uri, "manifest.json"))]
    return Made(
        stage=stage,
        pieces=tuple(piece.name for piece in group),
        tars={piece.tar: piece.tar_digest for piece in group if piece.tar},
        earlier=_same_earlier(stage, there),
        width=facts.width,
        token_wise=facts.token_wise,
        block=_BLOCK if facts.token_wise else _BLOCK * _BLOCKS_AT_ONCE,
    )


def _same_earlier(stage: Stage, uris: Sequence[str]) -> tuple[str, ...]:
    """Return the earlier shards of which a build that was killed has taken something, or these, if it has not begun.

    What is complete names pictures and captions of them by number. If one is gone since, all begins anew.
    """
    if stage.finished() is not None:
        return ()
    record = stage.finished_task(_EARLIER, lambda _: ())
    if record is not None and not all(storage.exists(storage.join(uri, "manifest.json")) for uri in record["uris"]):
        storage.delete(stage.uri)
        record = None
    if record is None:
        record = {"uris": list(uris)}
        stage.commit_task(_EARLIER, record)
    return tuple(record["uris"])


@dataclass(frozen=True)
class _Encoded:
    """A piece that is encoded: its shard, its collection without the pieces, and its stored features."""

    made: Made
    collection: Collection
    piece: Piece
    features: FeatureFile | None


def encode_piece(model: OwnModel | None, work: _Encoded) -> dict[str, Any]:
    """Encode a piece, unless that is done, and return its record."""
    stage, name = work.made.stage, work.piece.name
    if (record := stage.finished_task(name, _files_of_piece)) is None:
        record = _encode_piece(stage, work.collection, work.piece, model, work.made, work.features)
        stage.commit_task(name, record)
    return record


def _files_of_piece(record: Mapping[str, Any]) -> list[str]:
    blocks = [f"{block}{suffix}" for block, _ in record["blocks"] for suffix in (".parquet", ".f16")]
    return [*blocks, *_token_files(record)]


def _token_files(record: Mapping[str, Any]) -> list[str]:
    return [part["path"] for part in record["tokens"]]


def _collect(_: OwnModel | None, made: Made) -> int:
    return shard.collect(made)


def _finish(_: OwnModel | None, made: Made) -> None:
    shard.finish(made)


def _encode_piece(
    stage: Stage,
    collection: Collection,
    piece: Piece,
    model: OwnModel | None,
    made: Made,
    stored: FeatureFile | None,
) -> dict[str, Any]:
    """Encode the pictures of a piece in blocks, from their features where those are stored.

    Pictures of a folder that cannot be decoded are left out and counted.
    """
    table = piece.rows()
    before = earlier.opened(made.earlier) if made.earlier else None
    numbers = before.find(table["digest"]) if before else np.full(len(table), -1, np.int64)
    known = dict(zip(table["key"].to_pylist(), zip(range(len(table)), numbers.tolist(), strict=True), strict=True))
    features = stored.read() if stored else None
    block = _Block(stage, piece.name, made, table, before, model, by_features=features is not None)
    places = before.places(piece, numbers) if before else None
    pictures: Iterable[tuple[str, Place, Callable[[], bytes]]] = (
        collection.read_piece(piece, known)
        if places is None
        else ((key, place, _no_file) for key, place in zip(known, places, strict=True))
    )
    left_out = 0
    for key, place, read in pictures:
        row, number = known[key]
        if before and number >= 0 and before.place(number).size == place.size:
            block.add(row, place, number)
            continue
        if model is None:
            raise UnknownError(f"no earlier index has the picture {key} of {collection.uri}")
        given = features.of(key) if features else read()
        try:
            block.add(row, place, given if isinstance(given, Tensor) else open_picture(given, f"the picture {key}"))
        except DataError as error:
            if piece.files is None:
                raise
            log.warning("%s is left out: %s", place.file, error)
            left_out += 1
    block.write()
    source = f"the features at {stored.stage}" if stored else "the image tower"
    sources = {"an earlier index": block.taken, source: block.encoded}
    return {
        "blocks": block.written,
        "tokens": block.tokens,
        "left_out": left_out,
        "sources": {source: count for source, count in sources.items() if count},
    }


def _no_file() -> bytes:
    raise ValueError("the vector of this picture is known")


class _Block:
    """Pictures of a piece that are written together.

    Attributes:
        written: names of the blocks that are written, each with its pictures.
        tokens: descriptions of their token vectors.
        taken: pictures whose vector was known.
        encoded: pictures that were encoded.
    """

    def __init__(
        self,
        stage: Stage,
        name: str,
        made: Made,
        table: pa.Table,
        before: Earlier | None,
        model: OwnModel | None,
        *,
        by_features: bool,
    ) -> None:
        self._stage, self._name, self._made, self._table = stage, name, made, table
        self._before, self._model, self._by_features = before, model, by_features
        self._batch_size = _BATCH_FEATURES if by_features else _BATCH_PICTURES
        self._rows: list[int] = []
        self._places: list[Place] = []
        self._numbers: list[int] = []
        self._batch: list[Any] = []
        self._vectors: list[Tensor] = []
        self.written: list[tuple[str, int]] = []
        self.tokens: list[dict[str, Any]] = []
        self.taken = self.encoded = 0

    def add(self, row: int, place: Place, given: Any) -> None:
        """Add a picture by its row in the piece: the number of one that is known, its features, or the picture."""
        self._rows.append(row)
        self._places.append(place)
        is_known = isinstance(given, int)
        self._numbers.append(given if is_known else -1)
        if not is_known:
            self._batch.append(given)
            if len(self._batch) == self._batch_size:
                self._encode()
        if len(self._rows) == self._made.block:
            self.write()

    def _encode(self) -> None:
        if self._batch and self._model is not None:
            by_features = self._by_features
            found = (
                self._model.encode_features(torch.stack(self._batch))
                if by_features
                else self._model.saved.encode_image(self._batch)
            )
            self._vectors.append(found.half())
            self._batch.clear()

    def write(self) -> None:
        """Write what was added."""
        self._encode()
        if not self._rows:
            return
        numbers = np.array(self._numbers)
        new = torch.cat(self._vectors).numpy() if self._vectors else None
        name, token_wise = f"_pieces/{self._name}-{len(self.written):03d}", self._made.token_wise
        halves = self._joined(numbers, new, tokens=token_wise)
        if token_wise:
            path = f"tokens/{self._name}-{len(self.written):03d}.safetensors"
            self.tokens.append(_write_tokens(self._stage, path, halves))
            halves = halves.astype(np.float32).mean(1).astype(np.float16)
        storage.write_bytes(self._stage.path(f"{name}.f16"), halves.tobytes())
        mine = self._table.take(pa.array(self._rows))
        columns = {
            "file": [place.file for place in self._places],
            "offset": [place.offset for place in self._places],
            "size": [place.size for place in self._places],
            "earlier": numbers,
        }
        both = [columns[each] if each in columns else mine[each] for each in ENCODED.names]
        storage.write_table(self._stage.path(f"{name}.parquet"), pa.table(both, ENCODED))
        self.written.append((name, len(self._rows)))
        self.taken += int((numbers >= 0).sum())
        self.encoded += int((numbers < 0).sum())
        for each in (self._rows, self._places, self._numbers, self._vectors):
            each.clear()

    def _joined(self, numbers: Numbers, new: Halves | None, *, tokens: bool) -> Halves:
        """The vectors that are new and those that were known, in the order of the pictures."""
        taken = numbers >= 0
        if self._before is None or not taken.any():
            if new is None:
                raise ValueError("a block has pictures")
            return new
        old = self._before.tokens(numbers[taken]) if tokens else self._before.vectors(numbers[taken])
        halves = np.empty((len(numbers), *old.shape[1:]), np.float16)
        halves[taken] = old
        if new is not None:
            halves[~taken] = new
        return halves


def _write_tokens(stage: Stage, path: str, halves: Halves) -> dict[str, Any]:
    """Write the token vectors of a block, which are a part of the shard; return its description."""
    storage.write_bytes(stage.path(path), save_tensors({"tokens": torch.from_numpy(np.ascontiguousarray(halves))}))
    return stage.describe(path, len(halves)).model_dump(mode="json")


def encode_captions(model: OwnModel | None, work: tuple[Made, int]) -> dict[str, Any]:
    """Encode a block of the captions of a shard, unless that is done, and return its record."""
    made, number = work
    name = f"captions-{number:05d}"
    halves = f"{shard.caption_block(number)}.f16"
    if (record := made.stage.finished_task(name, lambda record: [halves, *_token_files(record)])) is None:
        record = _encode_captions(made, number, model)
        made.stage.commit_task(name, record)
    return record


def _encode_captions(made: Made, number: int, model: OwnModel | None) -> dict[str, Any]:
    table = storage.read_table(made.stage.path(f"{shard.caption_block(number)}.parquet"))
    shards, rows = table["shard"].to_numpy(), table["row"].to_numpy()
    new = np.flatnonzero(shards < 0)
    counted = np.zeros(len(table), np.int64)
    vectors: Halves | None = None
    if len(new):
        if model is None:
            raise UnknownError(f"no earlier index has the captions of {made.stage.uri}")
        forms = table["form"].take(pa.array(new)).to_pylist()
        some, counted[new] = _encode_texts(model, forms)
        vectors = np.empty((len(table), *some.shape[1:]), np.float16)
        vectors[new] = some
    for each in np.unique(shards[shards >= 0]).tolist():
        before, mine = earlier.opened(made.earlier), np.flatnonzero(shards == each)
        some = before.captions(each, rows[mine], tokens=made.token_wise)
        if vectors is None:
            vectors = np.empty((len(table), *some.shape[1:]), np.float16)
        vectors[mine], counted[mine] = some, before.shards[each].counted[torch.from_numpy(rows[mine])]
    assert vectors is not None  # noqa: S101 - a block has captions
    tokens = []
    if made.token_wise:
        tokens.append(_write_tokens(made.stage, f"caption-tokens/{number:05d}.safetensors", vectors))
        weight = _counted(counted, vectors.shape[1])[..., None]
        sums = (vectors.astype(np.float32) * weight).sum(1)
        vectors = (sums / np.maximum(weight.sum(1), 1)).astype(np.float16)
    storage.write_bytes(made.stage.path(f"{shard.caption_block(number)}.f16"), vectors.tobytes())
    return {"tokens": tokens, "counted": counted.tolist()}


BY_MODEL: frozenset[Callable[..., Any]] = frozenset({encode_piece, encode_captions})
"""The tasks that need the model."""


def _encode_texts(model: OwnModel, forms: Sequence[str]) -> tuple[Halves, Numbers]:
    """Encode texts: float16 [texts, d], or [texts, tokens, d], and how many tokens of each count."""
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
            found.append(texts.vectors.half())
    return torch.cat(found).numpy(), np.array(counted)


def _not_padding(texts: Texts) -> Tensor:
    """[texts, tokens, 1], 1 for [CLS] and the tokens that count, 0 for padding."""
    kept = texts.counted.clone()
    kept[:, 0] = True
    return kept[..., None]


def _counted(lengths: Numbers, tokens: int) -> npt.NDArray[np.bool_]:
    places = np.arange(tokens)
    return (places > 0) & (places <= lengths[:, None])
