"""150 pictures of noise with all that people filter by, made up."""

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import drawn
import numpy as np
import pyarrow as pa

from wukong.crawl.uploads import Limits
from wukong.serve import collection, encode, index
from wukong.serve.index import Index
from wukong.serve.search import Searcher
from wukong.serve.served_shard import LocalShard
from wukong.serve.service import Service
from wukong.store import storage

EPOCH = date(1970, 1, 1)
HOSTS = ["example.com", "img.Example.com", "myexample.com", "example.org", None]
LICENCES = ["CC BY 4.0", "CC0 1.0", "", None]


@dataclass(frozen=True)
class Row:
    """What is known of a picture."""

    source: str | None
    width: int | None
    height: int
    day: date | None
    licence: str | None
    group: int
    captions: tuple[str, ...]


def rows(count: int = 150) -> list[Row]:
    numbers = random.Random(0)
    return [
        Row(
            numbers.choice(HOSTS),
            numbers.choice([None, 64, 256, 640]),
            numbers.choice([64, 256, 640]),
            numbers.choice([None, date(1966, 5, 4), *[date(2024, 1, 1) + timedelta(numbers.randrange(60))] * 4]),
            numbers.choice(LICENCES),
            numbers.randrange(row + 1) if numbers.random() < 0.5 else row,
            (f"第{row}张图片",),
        )
        for row in range(count)
    ]


def columns(made: list[Row]) -> dict[str, Any]:
    """Arrow and numpy, with and without a dictionary, because an index may have any."""
    return {
        "source": pa.array([each.source for each in made]).dictionary_encode(),
        "width": pa.array([each.width for each in made], pa.int32()),
        "height": np.array([each.height for each in made], np.int32),
        "date": np.array([(each.day - EPOCH).days if each.day else -1 for each in made], np.int32),
        "licence": pa.chunked_array([[each.licence for each in made[:70]], [each.licence for each in made[70:]]]),
        "group": np.array([each.group for each in made], np.int64),
    }


def opened(root: Path, known: dict[str, Any], similarity: str = "global") -> tuple[Service, Index]:
    """A service in one process over an index with these columns."""
    model = drawn.model(similarity)
    found = collection.of(drawn.pictures(root / "filter").uri)
    made = encode.build(found, model, storage.from_path(root / "indexes"))
    held = replace(index.open_index(made, model), columns=known)
    shard = LocalShard(Searcher(held, model), ThreadPoolExecutor(1), ThreadPoolExecutor(1), 256)
    return Service(found, model, made, Limits(), [shard], 60.0), held
