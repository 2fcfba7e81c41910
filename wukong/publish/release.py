"""Releasing a set as the paper released its own: CSV files of ``url,caption``, and what a user of them needs.

Beside the CSV files lie the dataset card, a description in Croissant (the format that search engines of data sets and
loaders read), and ``SHA256SUMS`` for ``sha256sum --check``. The rows are the training pairs in the global shuffle of
the shards, cut into files of equal size, less those on the opt-out list. Equal inputs give equal bytes; a killed
release goes on where it stopped.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import polars as pl

from wukong import manifest, progress, stages, storage
from wukong.config import Experiment
from wukong.crawl.status import FetchError
from wukong.crawl.url import normalise
from wukong.curate.split import TRAIN
from wukong.errors import ConfigError, DataError
from wukong.manifest import Manifest, Part, Stage
from wukong.publish.optout import OptOut
from wukong.report import card, statistics
from wukong.report.funnel import Step

OPTED_OUT = "opted_out"
"""Why a pair of the training set is not in its release."""

SUMS, DESCRIPTION = "SHA256SUMS", "croissant.json"
COLUMNS = ("url", "caption")
_VERSION = stages.of("release").version
_WRITERS = 4
_NEEDED = ["key", "url", "caption", "sha256", "width", "height", "length"]


def release(experiment: Experiment, validated: Manifest) -> Manifest:
    """Write a release of the training pairs that passed the gate.

    Args:
        experiment: its ``release`` section says how many files and which opt-out list.
        validated: manifest of the validate stage.

    Returns:
        The manifest. ``counts`` has ``pairs``; ``dropped`` those ``opted_out``.

    Raises:
        ConfigError: the opt-out list cannot be read, or more files are asked for than there are pairs.
        DataError: the set is not the one that passed the gate, or is damaged.
    """
    filtered = filtered_of(validated)
    settings = experiment.release
    list_uri = settings.opt_out or experiment.crawl.politeness.opt_out
    listed = OptOut.load(list_uri) if list_uri else OptOut()
    config = experiment.model_dump(mode="json", include={"name", "about", "sources", "seed"})
    config |= {"release": settings.model_dump(mode="json", exclude={"opt_out"})}
    config["opt_out_sha256"] = hashlib.sha256(storage.read_bytes(list_uri)).hexdigest() if list_uri else None
    stage = Stage(experiment.root, "release", config, [filtered, validated], version=_VERSION)
    if finished := stage.finished():
        return finished
    slices = _slices(filtered, settings.files)
    names = file_names(experiment.name, settings.files)
    with progress.track("release", len(slices), "files") as advance, ThreadPoolExecutor(_WRITERS) as pool:
        records = []
        for record in pool.map(lambda name, taken: _write_file(stage, name, taken, listed), names, slices):
            records.append(record)
            advance(1)
    parts = [Part.model_validate(record["part"]) for record in records]
    pairs, left_out = sum(part.rows for part in parts), sum(record["left_out"] for record in records)
    if not pairs:
        raise DataError(f"all {left_out} training pairs are on the opt-out list {list_uri}: nothing is left to release")

    of_set = statistics.read(storage.join(validated.uri, statistics.PATH))[TRAIN]
    removed = [statistics.Statistics.from_json(record["statistics"]) for record in records if record["left_out"]]
    counted = of_set.without(statistics.merge(removed))
    step = Step(OPTED_OUT, "not opted out", pairs, left_out)
    page = card.of(experiment, filtered, counted, [step], lambda rows: ~covered(rows, listed))
    storage.write_bytes(stage.path(card.PATH), page.encode())
    parts += [stage.describe(card.PATH)]
    storage.write_json(stage.path(DESCRIPTION), describe(experiment, parts))
    parts += [stage.describe(DESCRIPTION)]
    storage.write_bytes(stage.path(SUMS), sums(parts))
    parts += [stage.describe(SUMS)]
    return stage.commit(parts, counts={"pairs": pairs}, dropped={OPTED_OUT: left_out})


def filtered_of(validated: Manifest) -> Manifest:
    """The manifest of the filter stage that a validate stage looked at.

    Raises:
        DataError: what lies there now is another set.
    """
    if validated.stage != "validate":
        raise DataError(f"{validated.uri} is the manifest of a {validated.stage} stage, not of validate")
    parent = validated.parents[0]
    filtered = manifest.load(parent.uri)
    if filtered.digest != parent.digest:
        raise DataError(f"{parent.uri} has changed since {validated.uri} looked at it: validate it again")
    return filtered


def covered(pairs: pl.DataFrame, listed: OptOut) -> pl.Series:
    """Tell which pairs an opt-out list covers, by URL, by domain, or by the digest of the picture.

    Args:
        pairs: ``url`` and, where digests are to count, ``sha256``.
        listed: the list.
    """
    found = pl.Series([False] * len(pairs), dtype=pl.Boolean)
    if listed.digests and "sha256" in pairs.columns:
        found |= pairs["sha256"].is_in(list(listed.digests)).fill_null(value=False)
    if not (listed.domains or listed.urls):
        return found
    # Normalising costs far more than comparing: it is done for each host, and for the URLs of hosts that are listed.
    url = pairs["url"].str.replace_all(r"[\t\r\n]", "")
    host = url.str.extract(r"^[^/?#]*//(?:[^/?#]*@)?(\[[^\]]*\]|[^/?#:\[\]]*)").fill_null("")
    wire = {name: urlsplit(_normalised(f"http://{name}/")).hostname for name in host.unique()}
    of_listed = {urlsplit(address).hostname for address in listed.urls}
    suspect = [
        name for name, known in wire.items() if not known or known in of_listed or listed.covers(f"http://{known}/")
    ]
    hits = [place for place in host.is_in(suspect).arg_true() if listed.covers(_normalised(url[place]))]
    return found.scatter(hits, values=True) if hits else found


def file_names(name: str, files: int) -> list[str]:
    """Names of the CSV files, as ``demo-00000-of-00256.csv``."""
    return [f"{name}-{number:05d}-of-{files:05d}.csv" for number in range(files)]


def write_csv(uri: str, rows: pl.DataFrame) -> None:
    """Write one file of a release: a header, then ``url,caption`` a line, UTF-8, quoted where needed (RFC 4180)."""
    with storage.open_output(uri) as stream:
        rows.select(COLUMNS).write_csv(stream)


def read_csv(uri: str) -> pl.DataFrame:
    """Read one file of a release.

    Raises:
        DataError: it is not CSV with the columns ``url`` and ``caption``.
    """
    try:
        rows = pl.read_csv(storage.read_bytes(uri), infer_schema=False)
        return rows.select(COLUMNS).fill_null("")
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{uri} is not a file of a release: {error}") from error


def sums(parts: Sequence[Part]) -> bytes:
    """What ``sha256sum --check`` reads, of every file but itself."""
    listed = sorted(parts, key=lambda part: part.path)
    return "".join(f"{part.sha256}  {part.path}\n" for part in listed if part.path != SUMS).encode()


def describe(experiment: Experiment, parts: Sequence[Part]) -> dict[str, Any]:
    """The release in Croissant 1.0 (JSON-LD): its files with digests, its columns."""
    value = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": experiment.name,
        "description": experiment.about or f"{experiment.name}: Chinese image-text pairs.",
        "inLanguage": "zh",
        "version": experiment.release.version,
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "pairs",
                "name": "pairs",
                "description": "One row a pair: the address of a picture and its caption, person names masked.",
                "field": [_field("url", "sc:URL"), _field("caption", "sc:Text")],
            }
        ],
    }
    if experiment.release.licence:
        value["license"] = experiment.release.licence
    return with_files(value, parts)


def with_files(description: dict[str, Any], parts: Sequence[Part]) -> dict[str, Any]:
    """A description whose files are these, with their digests."""
    files = [
        {
            "@type": "cr:FileObject",
            "@id": part.path,
            "name": part.path,
            "contentUrl": part.path,
            "contentSize": f"{part.bytes} B",
            "encodingFormat": "text/csv",
            "sha256": part.sha256,
        }
        for part in sorted(parts, key=lambda part: part.path)
        if part.path.endswith(".csv")
    ]
    members = {
        "@type": "cr:FileSet",
        "@id": "files",
        "name": "files",
        "encodingFormat": "text/csv",
        "includes": "*.csv",
    }
    return {**description, "distribution": [*files, members]}


def _slices(filtered: Manifest, files: int) -> list[list[tuple[str, int, int]]]:
    """For each file, which rows of which shards it takes: (URI, first row, rows)."""
    shards = [part for part in filtered.parts if part.path.startswith(f"{TRAIN}/") and part.path.endswith(".parquet")]
    rows = sum(part.rows for part in shards)
    if files > rows:
        raise ConfigError(f"release.files is {files}, but there are only {rows} pairs to release: ask for fewer files")
    edges = [rows * number // files for number in range(files + 1)]
    slices: list[list[tuple[str, int, int]]] = [[] for _ in range(files)]
    first, file = 0, 0
    for shard in shards:
        taken = 0
        while taken < shard.rows:
            count = min(shard.rows - taken, edges[file + 1] - first)
            slices[file].append((storage.join(filtered.uri, shard.path), taken, count))
            taken, first = taken + count, first + count
            file += first == edges[file + 1]
    return slices


def _write_file(stage: Stage, name: str, slices: Sequence[tuple[str, int, int]], listed: OptOut) -> dict[str, Any]:
    if (record := stage.finished_task(name)) is not None:
        return record
    kept, removed = [], []
    for rows in _rows(slices):
        hit = covered(rows, listed)
        kept.append(rows.filter(~hit).select(COLUMNS))
        removed.append(rows.filter(hit))
    table, left_out = pl.concat(kept), pl.concat(removed)
    write_csv(stage.path(name), table)
    record = {
        "part": stage.describe(name, len(table)).model_dump(),
        "left_out": len(left_out),
        "statistics": statistics.measure(left_out).as_json() if len(left_out) else None,
    }
    stage.commit_task(name, record)
    return record


def _rows(slices: Sequence[tuple[str, int, int]]) -> Iterator[pl.DataFrame]:
    for uri, first, count in slices:
        rows = pl.DataFrame(storage.read_table(uri, _NEEDED)).slice(first, count)
        if len(rows) < count:
            raise DataError(f"{uri} has fewer rows than its manifest says: run the filter again")
        yield rows


def _normalised(url: str) -> str:
    """The URL as it goes on the wire; of what is none, nothing."""
    try:
        return normalise(url)
    except FetchError:
        return ""


def _field(name: str, kind: str) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"pairs/{name}",
        "name": f"pairs/{name}",
        "dataType": kind,
        "source": {"fileSet": {"@id": "files"}, "extract": {"column": name}},
    }


_CONTEXT = json.loads("""{
  "@language": "en", "@vocab": "https://schema.org/", "citeAs": "cr:citeAs", "column": "cr:column",
  "conformsTo": "dct:conformsTo", "cr": "http://mlcommons.org/croissant/", "rai": "http://mlcommons.org/croissant/RAI/",
  "data": {"@id": "cr:data", "@type": "@json"}, "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
  "dct": "http://purl.org/dc/terms/", "examples": {"@id": "cr:examples", "@type": "@json"}, "extract": "cr:extract",
  "field": "cr:field", "fileProperty": "cr:fileProperty", "fileObject": "cr:fileObject", "fileSet": "cr:fileSet",
  "format": "cr:format", "includes": "cr:includes", "isLiveDataset": "cr:isLiveDataset", "jsonPath": "cr:jsonPath",
  "key": "cr:key", "md5": "cr:md5", "parentField": "cr:parentField", "path": "cr:path", "recordSet": "cr:recordSet",
  "references": "cr:references", "regex": "cr:regex", "repeated": "cr:repeated", "replace": "cr:replace",
  "sc": "https://schema.org/", "separator": "cr:separator", "source": "cr:source", "subField": "cr:subField",
  "transform": "cr:transform"
}""")
"""Croissant's own JSON-LD context: what the short names stand for."""
