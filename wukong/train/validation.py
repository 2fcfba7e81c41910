"""Validation while a model is trained: the evaluators of ``wukong.evaluate`` on all workers together.

Each worker encodes its share of the images and texts. It gets the texts of the others, compares its own images with
them, and tells the others what was found, never the images' vectors. What a locked image tower gives for the images
never changes, so it is computed once and kept in memory. All workers compute the metrics from what all have found;
those of the first count, so that all workers decide alike.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain

import safetensors.torch
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from wukong.config.evaluators import HOLDOUTS
from wukong.config.experiment import Experiment
from wukong.config.training import Validating
from wukong.data import images
from wukong.data.tokenizer import Tokenizer
from wukong.errors import DataError
from wukong.evaluate import holdouts, packed, results, tasks
from wukong.evaluate.blocks import InMemory, Sizes, Work
from wukong.evaluate.data_set import Data
from wukong.evaluate.image_text import TEXTS
from wukong.evaluate.model import CollapsedError, OwnModel, square, token_ids
from wukong.evaluate.protocol import OWN, Protocol, named
from wukong.evaluate.results import Outcome
from wukong.model.dual import DualEncoder, Texts
from wukong.model.image_encoder import ImageEncoder
from wukong.model.loss import gathered_constant, world
from wukong.model.saved_model import SavedModel
from wukong.store.manifest import Manifest
from wukong.train import determinism
from wukong.train.loop import Validate

_ROLE = "finetuned"
_BATCH = 64
_READERS = 4
"""Images that are decoded at a time."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """A task of the validation: a set, and how it is measured.

    Attributes:
        data: the hold-out or the published set.
        protocol: protocol by which it is measured.
        features: a locked image tower's features of this worker's share of the images, float16 [share, ...]; None to
            run the model's own tower each time.
    """

    data: Data
    protocol: Protocol
    features: Tensor | None = None


@contextmanager
def prepared(
    experiment: Experiment,
    filtered: Manifest,
    settings: Validating,
    model: DualEncoder,
    tokenizer: Tokenizer,
    computed: str | None,
    tower: ImageEncoder | None,
    made: Mapping[str, Manifest],
) -> Iterator[Validate]:
    """Read what is measured, and run a locked image tower on this worker's share of it.

    Args:
        experiment: the experiment, with its hold-outs, classification sets, and the folder of the published sets.
        filtered: manifest of the filter stage.
        settings: settings of the validation.
        model: the model that will be trained; the width of its features, and whether its tower is locked, are used.
        tokenizer: the captions' tokenizer.
        computed: URI of the hold-outs' stored features, for a model that is trained on features; None otherwise.
        tower: the locked image tower that gives the features of published sets, for a model that is trained on
            features; None otherwise.
        made: manifests of the packed sets, by their names; a set in a folder of this machine has none.

    Yields:
        A function for ``wukong.train.loop.train``.

    Raises:
        DataError: a set is missing or damaged, or the hold-out that decides is empty.
        StorageError: the store cannot be read.
    """
    published = named(settings.protocol)
    locked = model.image if model.image is not None and model.image.is_locked else tower
    measured: list[Task] = []
    for name in settings.tasks or experiment.held_out_tasks:
        data: Data | None
        if name in experiment.held_out_tasks:
            protocol, data = OWN.for_pairs(experiment.evaluate.captions), holdouts.read(experiment, filtered, name)
        else:
            protocol = published
            split = settings.split or protocol.split(name)
            data = packed.data(experiment.evaluate.sets, name, split, made.get(name))
        if data is None:
            if settings.decides and name in settings.metric.split("/"):
                raise DataError(
                    f"validation.metric is {settings.metric!r}, and {name} has no pictures: name another metric, "
                    "or mend the hold-out"
                )
            continue  # the log says so
        features = None
        if computed is not None and name in experiment.held_out_tasks:
            rows = _share(len(data))
            features = holdouts.features(experiment, filtered, computed, data)[rows]
        elif locked is not None:
            features = _run(locked, model, data, protocol)
        measured.append(Task(data, protocol, features))
    yield Validator(measured, tokenizer)


class Validator:
    """Measures a model; see ``wukong.train.loop.Validate``.

    Args:
        measured: the tasks, the same on every worker.
        tokenizer: the captions' tokenizer.
    """

    def __init__(self, measured: Sequence[Task], tokenizer: Tokenizer) -> None:
        self._tasks, self._tokenizer = measured, tokenizer

    def __call__(self, model: DualEncoder) -> Mapping[str, float]:
        """Measure a model that is in evaluation mode.

        Returns:
            The metrics of ``wukong.evaluate.results.metrics_of`` without ``eval/``: ``KIND/TASK/RESULT``, shares of 1.
            Without those of a task whose images, captions or classes the model cannot tell apart yet, and then
            without means over hold-outs.

        Raises:
            DataError: a vector is not finite.
        """
        shared = _SharedModel(model, self._tokenizer)
        entries, all_measured = [], True
        with determinism.exact_products():
            for task in self._tasks:
                try:
                    entries.append(_measure(shared, task).as_json(_ROLE))
                except CollapsedError as error:
                    all_measured = False
                    log.warning("%s is not measured: %s", task.data.name, error)
        metrics = {
            name.removeprefix("eval/"): value
            for name, value in results.metrics_of(entries, _ROLE).items()
            if all_measured or name.split("/")[2] != HOLDOUTS
        }
        return _of_the_first(metrics, model)


def _measure(model: "_SharedModel", task: Task) -> Outcome:
    """Measure a task on all workers together.

    Raises:
        CollapsedError: the vectors of all images, texts or classes are equal.
        DataError: a vector is not finite.
    """
    data, protocol, sizes, files = task.data, task.protocol, Sizes(), InMemory()
    own, workers = _share(len(data)), world()[1]
    if workers > 1:
        each = math.ceil(len(data) / workers)
        sizes = Sizes(each, each, TEXTS)
        if protocol.retrieval_ties == "topk":  # needs the scores of all images in one place
            protocol = replace(protocol, retrieval_ties="against")
    encoded = model.encode_share(task)

    def encode(rows: slice) -> Mapping[str, Tensor]:
        return {_ROLE: encoded[rows.start - own.start : rows.stop - own.start]}

    work = Work(data, protocol, {_ROLE: model}, encode, files, files.below("classes"), sizes, examples=False)
    made = []
    for block in chain(*tasks.blocks(data, protocol, [_ROLE], sizes)):
        images = block.columns if block.kind == "scores" else block.rows
        # All encode the texts together.
        if block.kind == "texts" or workers == 1 or images == (own.start, own.stop):
            tasks.make(work, block)
            made += [block.name] if block.kind != "texts" else []
    _exchange(files.below(_ROLE), made, model.device)
    return tasks.outcome(work, _ROLE)


def _exchange(files: InMemory, made: Sequence[str], device: torch.device) -> None:
    """Give all workers what each has found, from the files that it has made, without the images' vectors."""
    if world()[1] == 1:
        return
    found = {
        f"{name} {key}": each.contiguous()
        for name in made
        for key, each in files.read(name).items()
        if key != "vectors"
    }
    data = torch.frombuffer(bytearray(safetensors.torch.save(found)), dtype=torch.uint8).to(device)
    for worker, size in enumerate(gathered_constant(torch.tensor([len(data)], device=device)).tolist()):
        sent = data if worker == world()[0] else data.new_empty(size)
        dist.broadcast(sent, worker)
        others: dict[str, dict[str, Tensor]] = {}
        for path, each in safetensors.torch.load(bytes(sent.cpu().numpy())).items():
            name, _, key = path.partition(" ")
            others.setdefault(name, {})[key] = each
        for name, each in others.items():
            files.write(name, each)


class _SharedModel(OwnModel):
    """A model that is trained, with which all workers encode together; each must call the same methods."""

    def __init__(self, model: DualEncoder, tokenizer: Tokenizer) -> None:
        self._saved = SavedModel(model, tokenizer)
        self.name, self.digest = "the model in training", ""  # embedded classes are not kept
        self.token_wise = model.token_wise
        self.scale = float(model.scale.detach())

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._saved.device

    def encode_share(self, task: Task) -> Tensor:
        """Encode this worker's share of the images: unit vectors, float32 [share, (tokens,) d], on the CPU."""
        parts = []
        if task.features is not None:
            parts = [self.encode_features(block) for block in task.features.split(_BATCH)]
        else:
            for pictures in _pictures(task.data):
                parts.append(self.encode_images(pictures, task.protocol))
        return torch.cat(parts)

    def encode_texts(self, texts: Sequence[str], protocol: Protocol) -> Texts:
        """Encode texts; see ``wukong.evaluate.model.Model``."""
        # What is unknown to the vocabulary is judged by all texts, not by a worker's few.
        cut = token_ids(self._saved.tokenizer, [protocol.written(text) for text in texts], protocol.context)
        rank, workers = world()
        if workers == 1:
            return self.encode_ids(cut)
        # All workers have as many; the last text fills up what is missing.
        each = math.ceil(len(cut) / workers)
        mine = self.encode_ids([cut[min(row, len(cut) - 1)] for row in range(rank * each, (rank + 1) * each)])
        device = self._saved.device
        longest = torch.tensor(mine.counted.shape[1], device=device)
        dist.all_reduce(longest, dist.ReduceOp.MAX)
        missing = int(longest) - mine.counted.shape[1]
        vectors = F.pad(mine.vectors, (0, 0, 0, missing)) if mine.vectors.ndim == 3 else mine.vectors
        counted = F.pad(mine.counted, (0, missing)).to(torch.uint8)
        whole = [gathered_constant(part.to(device)).cpu()[: len(texts)] for part in (vectors, counted)]
        return Texts(whole[0], whole[1].to(torch.bool))


def _share(count: int) -> range:
    """Return this worker's share of some images; where they do not suffice for all, the last workers have the same."""
    rank, workers = world()
    each = math.ceil(count / workers)
    start = min(rank, (count - 1) // each) * each
    return range(start, min(start + each, count))


def _pictures(data: Data) -> Iterator[list[Image.Image]]:
    """Decode this worker's share of the images, a batch at a time."""
    rows = _share(len(data))
    with ThreadPoolExecutor(_READERS) as readers:
        for start in range(0, len(rows), _BATCH):
            yield list(readers.map(data.image, rows[start : start + _BATCH]))


@torch.inference_mode()
def _run(tower: ImageEncoder, model: DualEncoder, data: Data, protocol: Protocol) -> Tensor:
    """Run a locked tower on this worker's share of the images: float16 [share, ...], as stored features are."""
    log.info("%s: the image tower runs once on its %d images", data.name, len(data))
    tower.eval()
    device = next(tower.parameters()).device
    settings, parts = model.settings.image, []
    for pictures in _pictures(data):
        shown = [
            picture if protocol.transform == "model" else square(picture, settings.image_size, protocol)
            for picture in pictures
        ]
        views = [images.evaluation_view(picture, settings.image_size, settings.view) for picture in shown]
        parts.append(model.select(tower(images.to_tensor(views).to(device))).to(torch.float16).cpu())
    return torch.cat(parts)


def _of_the_first(metrics: Mapping[str, float], model: DualEncoder) -> dict[str, float]:
    """Return the first worker's values on every worker: machines of other kinds round differently."""
    if world()[1] == 1:
        return dict(metrics)
    names = sorted(metrics)
    values = torch.tensor([metrics[name] for name in names], dtype=torch.float64, device=model.log_scale.device)
    dist.broadcast(values, 0)
    return dict(zip(names, values.tolist(), strict=True))
