"""``wukong run --data``: make an experiment from a folder or a list of your own images."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import unquote

import typer

from wukong import stages
from wukong.commands.chosen import Chosen
from wukong.commands.chosen import chosen as named
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError
from wukong.store import storage

if TYPE_CHECKING:
    from wukong.crawl.source import Picture

DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="FOLDER_OR_LIST",
        help="The pictures or the list that `wukong run --data` was given; --config is then what it was there.",
    ),
]

DEFAULT = Path(__file__).parents[1] / "configs" / "own-data.yaml"
"""The experiment for your own images if you name none."""

_LARGEST_BATCH, _BATCHES = 256, 8
_SHOWN = 5
_LINE_BYTES = 150  # of a URL with its caption
_DEAD = 4  # of so many URLs of an old list at least one gives a picture, as a rule


@dataclass(frozen=True)
class Counts:
    """Content of a folder or list: images, images with a caption, and rows that cannot be used."""

    pictures: int
    captioned: int
    bad_rows: tuple[str, ...]


def experiment_of(data: str, config_file: Path | None, overrides: Sequence[str]) -> Experiment:
    """Make the experiment that trains on a folder or list.

    Args:
        data: path or URI of a folder of images, of a list of images, or of a folder of lists of URLs.
        config_file: an experiment whose crawl is replaced by these images. A file without a ``name`` says what differs
            from ``configs/own-data.yaml``, which has the data's name and batches that fit the data. None if nothing
            differs.
        overrides: ``key.path=value`` entries.

    Raises:
        ConfigError: there is nothing at that place, or the experiment is not valid.
    """
    uri = data if "://" in data else storage.from_path(Path(data).resolve())
    if "://" not in data and not Path(data).exists():
        raise ConfigError(
            f"--data {data}: there is nothing; name a folder of pictures, a list (.csv, .jsonl), or a folder of lists"
        )
    engine = "urls" if _is_set_of_lists(uri) else "files"
    given = [f"crawl.engine={engine}", f"crawl.endpoint={json.dumps(uri)}", *overrides]
    if config_file is not None and not documents.is_part(config_file):
        return documents.load(config_file, given)
    values: dict[str, Any] = {"name": name_of(uri)}
    crawl = documents.load_part(config_file, DEFAULT, values, given).crawl
    pictures = crawl.source.pictures
    fitting = batch_for(count(pictures(crawl)).captioned if pictures else _rows(uri) // _DEAD)
    values |= {stage: {"batch_size": fitting} for stage in stages.TRAININGS}
    return documents.load_part(config_file, DEFAULT, values, given)


def chosen(config_file: Path | None, data: str | None, run: str | None, overrides: Sequence[str]) -> Chosen:
    """Return what a command is told of (``wukong.commands.chosen``), which may be what ``wukong run --data`` was given.

    Args:
        config_file: the experiment's file, or what differs from ``configs/own-data.yaml``; None for none.
        data: see ``experiment_of``; None if the experiment is not of one's own pictures.
        run: value of ``--run``.
        overrides: ``key.path=value`` entries.

    Raises:
        ConfigError: the experiment is not valid, or there is nothing at the place of the pictures.
        DataError: there is no such run.
    """
    given = experiment_of(data, config_file, overrides) if data is not None else None
    return named(config_file, run, overrides, given)


def _is_set_of_lists(uri: str) -> bool:
    """Return whether a folder holds lists and no picture, as the released Wukong data set does: its lists name URLs."""
    from wukong.crawl.own_files import LISTS, METADATA, PICTURES

    names = [file.lower() for file in storage.sizes(uri) if file != uri]
    if any(name.endswith(PICTURES) or name.rsplit("/", 1)[1] in METADATA for name in names):
        return False
    return any(name.endswith(LISTS) for name in names)


def _rows(uri: str) -> int:
    """Return about how many rows the lists in a folder have."""
    return sum(
        size // (_LINE_BYTES // 3 if file.endswith((".gz", ".parquet")) else _LINE_BYTES)
        for file, size in storage.sizes(uri).items()
    )


def name_of(uri: str) -> str:
    """Make an experiment's name from the last part of a URI, of which Chinese characters become pinyin."""
    last = unquote(uri).rstrip("/").rpartition("/")[2].partition(".")[0]
    if not last.isascii():
        from pypinyin import lazy_pinyin  # it reads its dictionary, which takes half a second

        last = "-".join(lazy_pinyin(last))
    name = re.sub(r"[^a-z0-9]+", "-", last.lower()).strip("-")[:40].strip("-")
    return name or f"own-{hashlib.sha256(uri.encode()).hexdigest()[:8]}"  # for instance, the name is Thai


def batch_for(pairs: int) -> int:
    """Return the pairs of one step: a power of two from 2 to 256, for about eight batches in an epoch."""
    return int(2 ** max(1, min(_LARGEST_BATCH, pairs // _BATCHES).bit_length() - 1))


def count(named: Iterable["Picture"]) -> Counts:
    """Count images, without opening them."""
    pictures, captioned, bad = 0, 0, []
    for picture in named:
        pictures += 1
        captioned += bool(picture.caption)
        _, is_row, problem = picture.url.partition("#row ")
        if is_row:
            number, _, why = problem.partition(": ")
            bad.append(f"row {int(number):,}: {why}")
    return Counts(pictures, captioned, tuple(bad))


def check(experiment: Experiment) -> list[str]:
    """Check that there are enough pictures of one's own; return a line for each kind of row that will be left out.

    Raises:
        ConfigError: there are too few; the message names the key.
        DataError: there is none, or the list cannot be read at all.
    """
    pictures_of, uri = experiment.crawl.source.pictures, experiment.crawl.endpoint
    if pictures_of is None:
        return []
    counts = count(pictures_of(experiment.crawl))
    if not counts.captioned:
        raise ConfigError(
            f"crawl.endpoint: none of the {counts.pictures:,} pictures of {uri} has a caption: put NAME.txt beside "
            "NAME.jpg, or a metadata.csv with file_name and text; in a list, fill the column caption (docs/own-data.md)"
        )
    wanted = {
        "pretrain.batch_size": experiment.pretrain.batch_size,
        "finetune.batch_size": experiment.finetune.batch_size,
        "validation.min_pairs": experiment.validation.min_pairs,
    }
    for key, value in wanted.items():
        if value > counts.captioned:
            raise ConfigError(
                f"{key}: {value} is more than the {counts.captioned:,} pictures with a caption that {uri} holds; give "
                f"less, for instance --set {key}={max(2, counts.captioned // _BATCHES)}"
            )
    notes = []
    if counts.bad_rows:
        more = f", and {len(counts.bad_rows) - _SHOWN:,} more" if len(counts.bad_rows) > _SHOWN else ""
        rows = "; ".join(counts.bad_rows[:_SHOWN])
        notes.append(f"rows that cannot be used: {len(counts.bad_rows):,}: {rows}{more}")
    if silent := counts.pictures - counts.captioned - len(counts.bad_rows):
        notes.append(f"pictures without a caption, which will be left out: {silent:,}")
    return notes
