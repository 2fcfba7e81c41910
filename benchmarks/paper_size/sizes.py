"""What is rehearsed: columns of the paper, and published sets at a share of their size, with their writers."""

import importlib.util
import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.evaluate import sets
from wukong.evaluate.data_set import Classification, Counts, Retrieval
from wukong.evaluate.protocol import PROTOCOLS
from wukong.store.manifest import Stage

ROOT = Path(__file__).parents[2]
STORAGE = "s3://wukong/paper-size"
COLUMNS = {"rn50": 32, "vit-l": 32, "swin-l": 16}
"""Columns of Table 5 and the pixels of a side that their small towers see: 1, 4 and 16 vectors of a picture."""
SHARES: Mapping[str, float] = {
    **dict.fromkeys(("imagenet", "sun397", "flickr30k-cn"), 1.0),
    **dict.fromkeys(("food101", "dtd", "pets", "flickr8k-cn", "coco-cn", "muge"), 0.1),
}
"""The sets of Tables 5 and 6, and the share of each set's pictures. All have their published classes and prompts."""
LEAST = 20
"""Pictures of a set of captions, so that Recall@10 says something."""
VARIABLE = "WUKONG_BENCH_SHARE"


def experiment(column: str, folder: str, pairs: int) -> Experiment:
    """A small column of the paper, with the published sets, of which a validation measures ImageNet."""
    steps = pairs // 128
    given = {
        "storage": STORAGE,
        "filter.split.holdouts": [],
        "filter.split.held_out_captions": 0,
        "model.image.image_size": COLUMNS[column],
        "model.embedding": 16,
        "pretrain.epochs": 1,
        "pretrain.log_every": 1,
        "pretrain.validation.tasks": ["imagenet"],
        "pretrain.validation.metric": "classification/imagenet/top1",
        # One is measured twice, because it is killed after the first validation.
        "pretrain.validation.every_steps": max(steps // 2, 1) if column == "vit-l" else "epoch",
        "evaluate.sets": f"{STORAGE}/{folder}",
        "evaluate.tasks": [*SHARES],
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in given.items()]
    return documents.load(ROOT / "configs" / "paper" / "small" / f"{column}.yaml", overrides)


def pairs_stage(pairs: int) -> Stage:
    """Where the pairs are that are trained on, as a filter leaves them."""
    return Stage(STORAGE, "filter", {"pairs": pairs})


def counts(name: str, share: float) -> Any:
    """What a set has at a share of its size: images, at least one of each class, or images and captions."""
    known, split = sets.of(name), PROTOCOLS["paper"].split(name)
    assert isinstance(known, Classification | Retrieval)
    published = known.splits[split]
    if isinstance(published, int):
        return split, max(round(published * share * SHARES[name]), len(known.classes))
    images = max(round(published.images * share * SHARES[name]), LEAST)
    # A caption an image at least; MUGE's queries have more than one image.
    return split, Counts(images, max(round(published.captions / published.images * images), LEAST // 4))


def shrink() -> None:
    """Replace the published sizes of the sets in this process by those of the share that the environment names."""
    share, small = float(os.environ[VARIABLE]), {}
    for name in SHARES:
        split, size = counts(name, share)
        small[name] = replace(sets.of(name), splits={split: size})
    sets.REGISTRY = {**sets.REGISTRY, **small}


@cache
def _published_sets() -> ModuleType:
    """The writers of the tests, which know the forms of the owners and nothing of the readers."""
    path = ROOT / "tests" / "wukong" / "evaluate" / "sets" / "published_sets.py"
    spec = importlib.util.spec_from_file_location("published_sets", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.picture = picture
    return module


def picture(number: int, kind: str = "JPEG", **_: Any) -> bytes:
    """A small picture of sixteen colours, which no other has."""
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
    made = io.BytesIO()
    Image.fromarray(pixels).resize((40, 32), Image.Resampling.NEAREST).save(made, kind, quality=90)
    return made.getvalue()


def write(folder: Path, name: str, share: float) -> None:
    """Write a set in the form of its owner."""
    known, published, (_, size) = sets.of(name), _published_sets(), counts(name, share)
    writer: Callable[..., Any] = getattr(published, name.replace("-", "_"))
    if isinstance(known, Classification):
        writer(folder, [each.id for each in known.classes], size, published.distinct)
        return
    more = {"coco-cn": size.captions - size.images, "muge": size.captions}
    writer(folder, size.images, more.get(name, size.captions // size.images), published.distinct)
