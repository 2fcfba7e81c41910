"""Write a release: the training pairs as CSV files of ``url,caption``, the form in which the paper published its set.

A third column, ``captions``, is there where pairs have several captions: all of them with their counts, as JSON, and
nothing for a pair that has one.

Beside the CSV files it writes the dataset card, a description in Croissant, the EU's summary of training content and
``SHA256SUMS``, which ``sha256sum --check`` reads. The rows are the training pairs in the order of the shards, which is
random, without the pairs on the opt-out list. All CSV files have about the same number of rows. Equal inputs give equal
bytes; the time of the crawl, which documents name, is one of them. A release that was killed continues after the files
that are complete.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from wukong import stages
from wukong.config.experiment import Experiment
from wukong.crawl.optout import OptOut
from wukong.curate.exchange import File
from wukong.curate.split import TRAIN
from wukong.data.schema import MORE_CAPTIONS
from wukong.errors import ConfigError, DataError
from wukong.publish import croissant, hosts, training_summary
from wukong.publish.parallel import for_each
from wukong.report import card, removed, statistics
from wukong.report.funnel import Step
from wukong.report.removed import Removed
from wukong.runtime.language import _
from wukong.store import damage, manifest, storage
from wukong.store.manifest import Manifest, Part, Stage
from wukong.store.parts import Parts

OPTED_OUT = "opted_out"
"""Name, in a manifest's ``dropped``, of the training pairs that the opt-out list covers."""

SUMS = "SHA256SUMS"
"""Where a release stores the digests of its files."""

COLUMNS = ("url", "caption")
SEVERAL = "captions"
"""The third column."""

_VERSION = stages.of("release").version
_FILES = 256  # of the paper's set
_FEW = 1_000_000  # pairs that threads are enough for
_NEEDED = ["key", "url", "caption", "sha256", "bytes", "width", "height", "length"]
_HOSTS = "_work/hosts"


def release(experiment: Experiment, validated: Manifest) -> Manifest:
    """Write a release of the training pairs that passed the validation gate.

    Args:
        experiment: its ``release`` section sets the number of files and the opt-out list.
        validated: manifest of the validate stage.

    Returns:
        The manifest. ``counts`` has ``pairs``, the number released; ``dropped`` has ``opted_out``, the number left out.

    Raises:
        ConfigError: the opt-out list cannot be read, or more files are asked for than there are pairs.
        DataError: the filtered set has changed since it was validated, it is damaged, or every pair is left out.
    """
    filtered = filtered_of(validated)
    settings = experiment.release
    list_uri = settings.opt_out or experiment.crawl.politeness.opt_out
    listed = OptOut.load(list_uri) if list_uri else OptOut()
    config = experiment.model_dump(mode="json", include={"name", "about", "sources"})
    of_release = settings.model_dump(mode="json", exclude={"opt_out"}) | {"files": settings.files or _FILES}
    config |= {"seed": experiment.filter.seed, "release": of_release}
    config["opt_out_sha256"] = hashlib.sha256(storage.read_bytes(list_uri)).hexdigest() if list_uri else None
    stage = Stage(experiment.root, "release", config, [filtered, validated], version=_VERSION)
    return stage.made(lambda: _release(stage, experiment, filtered, validated, listed, list_uri))


def _release(
    stage: Stage, experiment: Experiment, filtered: Manifest, validated: Manifest, listed: OptOut, list_uri: str | None
) -> Manifest:
    settings = experiment.release
    shards = filtered.parts.below(f"{TRAIN}/", ".parquet")
    files = settings.files or max(1, min(_FILES, shards.rows))
    if files > shards.rows:
        raise ConfigError(
            f"release.files is {files}, but there are only {shards.rows} pairs to release: ask for fewer files"
        )
    edges = [shards.rows * number // files for number in range(files + 1)]
    named = list(zip(file_names(experiment.name, files), pairwise(edges), strict=True))
    several = MORE_CAPTIONS in filtered.counts
    columns = [*_NEEDED, *([SEVERAL] if several else [])]
    write = partial(_write_file, stage=stage, filtered_uri=filtered.uri, shards=shards, columns=columns, listed=listed)
    records = list(for_each("release", named, write, many=shards.rows > _FEW))
    parts = [Part.model_validate(record["part"]) for record in records]
    pairs, left_out = sum(part.rows for part in parts), sum(record["left_out"] for record in records)
    if not pairs:
        raise DataError(f"all {left_out} training pairs are on the opt-out list {list_uri}: nothing is left to release")

    of_set = statistics.read(validated)[TRAIN]
    opted_out = [statistics.Statistics.from_json(record["statistics"]) for record in records if record["left_out"]]
    counted = of_set.without(statistics.merge(opted_out))
    step = Step(OPTED_OUT, _("not opted out"), pairs, left_out)
    crawl = manifest.load(filtered.parents[0].uri)
    shown = card.of(
        experiment,
        filtered,
        counted,
        [step],
        lambda rows: ~listed.covers_pairs(rows),
        removed=_removed(experiment, filtered, validated, listed),
    )
    card.write(stage.uri, shown)
    parts += [stage.describe(card.PATH)]
    storage.write_json(
        stage.path(croissant.PATH), croissant.describe(experiment, crawl, filtered, parts, several=several)
    )
    parts += [stage.describe(croissant.PATH)]
    counted_hosts = [File(stage.path(path), rows) for record in records for path, rows in record["hosts"]]
    found, ordered = hosts.ordered(counted_hosts, stage.path(_HOSTS))
    largest = hosts.largest(found, ordered, small_publisher=settings.small_publisher)
    domains = training_summary.write_domains(stage, found, largest)
    summary = training_summary.write(stage, settings, shown, crawl, filtered, counted, left_out, domains)
    parts += [stage.describe(training_summary.DOMAINS), summary]
    storage.write_bytes(stage.path(SUMS), sums(parts))
    parts += [stage.describe(SUMS)]
    return stage.commit(parts, counts={"pairs": pairs}, dropped={OPTED_OUT: left_out})


def _removed(experiment: Experiment, filtered: Manifest, validated: Manifest, listed: OptOut) -> Removed:
    """Return what the gate counted of the dropped pairs, and those that may be shown, if the release shows any."""
    found = removed.read(validated)
    for part in filtered.parts.below("dropped/", ".parquet") if experiment.release.show_dropped else ():
        uri = storage.join(filtered.uri, part.path)
        rows = pl.DataFrame(storage.read_table(uri, ["key", "url", "sha256", "dropped_by"], part.sha256))
        candidates = removed.candidates(rows.filter(~listed.covers_pairs(rows)), experiment.filter)
        found.add(Removed(candidates=candidates))
    return found


def filtered_of(validated: Manifest) -> Manifest:
    """Returns the manifest of the filter stage whose output a validate stage checked.

    Raises:
        DataError: the filter's output has changed since then, or the manifest is not one of a validate stage.
    """
    if validated.stage != "validate":
        raise DataError(f"{validated.uri} is the manifest of a {validated.stage} stage, not of validate")
    parent = validated.parents[0]
    filtered = manifest.load(parent.uri)
    if filtered.digest != parent.digest:
        raise DataError(f"{parent.uri} has changed since {validated.uri} looked at it: validate it again")
    return filtered


def file_names(name: str, files: int) -> list[str]:
    """Returns the names of the CSV files, for instance ``demo-00000-of-00256.csv``."""
    return [f"{name}-{number:05d}-of-{files:05d}.csv" for number in range(files)]


def write_csv(uri: str, rows: pl.DataFrame) -> None:
    """Write one CSV file of a release: a header line, then one pair a line, in UTF-8, quoted as RFC 4180 says."""
    with storage.open_output(uri) as stream:
        _of_release(rows).write_csv(stream)


def read_csv(uri: str) -> pl.DataFrame:
    """Read one CSV file of a release. An empty field is read as an empty string, and JSON as its text.

    Raises:
        DataError: it is not a CSV file with the columns ``url`` and ``caption``.
    """
    try:
        rows = pl.read_csv(storage.read_bytes(uri), infer_schema=False)
        return _of_release(rows).fill_null("")
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{uri} is not a file of a release ({error}): {damage.remedy(uri)}") from error


def sums(parts: Sequence[Part]) -> bytes:
    """Returns the contents of ``SHA256SUMS``: one line for every file except itself."""
    listed = sorted(parts, key=lambda part: part.path)
    return "".join(f"{part.sha256}  {part.path}\n" for part in listed if part.path != SUMS).encode()


def _write_file(
    file: tuple[str, tuple[int, int]],
    stage: Stage,
    filtered_uri: str,
    shards: Parts,
    columns: list[str],
    listed: OptOut,
) -> dict[str, Any]:
    """Write one CSV file, given by its name and the rows of all shards that it takes; one shard is in memory."""
    name, (first, end) = file
    if (record := stage.finished_task(name, _files_of)) is not None:
        return record
    left_out, counter = statistics.Statistics(), hosts.Counter(stage.path(f"{_HOSTS}/{name}"))
    with storage.open_output(stage.path(name)) as stream:
        for number, rows in enumerate(_rows(filtered_uri, shards, columns, first, end)):
            hit = listed.covers_pairs(rows)
            released = rows.filter(~hit)
            _refuse_own_files(released)
            counter.add(released)
            _of_release(_in_json(released)).write_csv(stream, include_header=number == 0)
            if hit.any():
                left_out = statistics.merge([left_out, statistics.measure(rows.filter(hit))])
    record = {
        "part": stage.describe(name, end - first - left_out.pairs).model_dump(),
        "left_out": left_out.pairs,
        "statistics": left_out.as_json() if left_out.pairs else None,
        "hosts": [(file.uri.removeprefix(f"{stage.uri}/"), file.rows) for file in counter.close()],
    }
    stage.commit_task(name, record)
    return record


def _files_of(record: Mapping[str, Any]) -> list[str]:
    return [record["part"]["path"], *(path for path, _ in record["hosts"])]


def _refuse_own_files(rows: pl.DataFrame) -> None:
    own = rows.filter(~pl.col("url").str.contains("^https?://"))
    if len(own):
        raise ConfigError(
            f"{own['url'][0]} is a picture on a disk of your own, whose path is of no use to others: put such pictures "
            "on the web, and train on a list of URLs to release it"
        )


def _of_release(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(*COLUMNS, *([SEVERAL] if SEVERAL in rows.columns else []))


def _in_json(rows: pl.DataFrame) -> pl.DataFrame:
    if SEVERAL not in rows.columns:
        return rows
    told = [
        [{name: each[name] for name in ("caption", "count")} for each in some or ()] for some in rows[SEVERAL].to_list()
    ]
    texts = [json.dumps(each, ensure_ascii=False) if each else "" for each in told]
    return rows.with_columns(pl.Series(SEVERAL, texts, pl.String))


def _rows(filtered_uri: str, shards: Parts, columns: list[str], first: int, end: int) -> Iterator[pl.DataFrame]:
    """Iterate over rows of consecutive shards, a table at a time."""
    ends = np.cumsum(shards.table["rows"].to_numpy())
    while first < end:
        number = int(np.searchsorted(ends, first, side="right"))
        uri, skipped = storage.join(filtered_uri, shards[number].path), first - int(ends[number]) + shards[number].rows
        count = min(end, int(ends[number])) - first
        rows = pl.DataFrame(storage.read_table(uri, columns, shards[number].sha256)).slice(skipped, count)
        if len(rows) < count:
            raise DataError(f"{uri} has fewer rows than its manifest says: {damage.remedy(uri)}")
        yield rows
        first += count
