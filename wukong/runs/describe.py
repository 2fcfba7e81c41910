"""What lies at an address, for people and for programs: a manifest, a run, a folder, a table, a model, a picture.

``resolve`` takes every address that Wukong prints and returns the URI of what it names; ``describe`` reads a little of
what is there and says what it is. Nothing is read whole but small files.
"""

import json
import math
import operator
import re
import struct
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from wukong import stages
from wukong.curate import rules
from wukong.errors import ConfigError, DataError, reading
from wukong.runs import run as runs
from wukong.runs.run import Run
from wukong.runtime import environment
from wukong.runtime.language import _
from wukong.stages import run_paths
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest
from wukong.store.parts import Parts
from wukong.tracking import model_versions, run_links

ROWS = 5
"""Rows, lines and pairs that are shown."""

_MOST_FILES = 40
_MOST_MEMBERS = 20
_MOST_BYTES = 4 << 20
"""Of a JSON file or a text that is read whole."""

_LONGEST = 200
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".avif")
_TEXTS = (".txt", ".csv", ".tsv", ".jsonl", ".yaml", ".yml", ".html", ".md", ".log", ".py", ".toml")
_PAGE = re.compile(r"https?://[^#]*#/experiments/\d+/runs/([0-9a-f]{32})(?:/artifacts/([^?]+))?(?:\?.*)?")
_MODEL_PAGE = re.compile(r"https?://[^#]*#/models/([^/?]+)(?:/versions/(\d+))?(?:\?.*)?")
_RUN = re.compile(r"runs:/([0-9a-f]{32})(?:/(.+))?")


def resolve(place: str, home_storage: str) -> str:
    """Return the URI of what an address names.

    Args:
        place: a path; ``s3://`` or ``file://``; ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``; ``runs:/ID`` or
            ``runs:/ID/FILE``; the address of a run, of one of its files or of a model in MLflow; or a run's name.
        home_storage: the storage whose experiments are looked through for a run's name.

    Raises:
        ConfigError: it is no address of these kinds.
        DataError: what it names does not exist, or was not made by Wukong.
        MlflowError: MLflow does not know it.
    """
    page, model_page = _PAGE.fullmatch(place), _MODEL_PAGE.fullmatch(place)
    if page:
        return resolve(f"runs:/{page[1]}" + (f"/{unquote(page[2])}" if page[2] else ""), home_storage)
    if model_page:
        name, version = unquote(model_page[1]), model_page[2]
        if version is None:
            raise ConfigError(f"{place} is the page of all versions of a model: name one, models:/{name}/1")
        return resolve(f"models:/{name}/{version}", home_storage)
    if place.startswith(("http://", "https://")):
        raise ConfigError(f"{place} is a page for a browser; `wukong runs` lists runs here")
    if place.startswith("models:/"):
        return model_versions.folder_of(place)
    if place.startswith("runs:/"):
        run = _RUN.fullmatch(place)
        environment.use_for(place)
        if run is None:
            raise ConfigError(f"{place}: write runs:/ID or runs:/ID/FILE, with the ID of 32 letters that MLflow shows")
        return run_links.file_of_run(run[1], run[2]) if run[2] else run_links.storage_of_run(run[1])
    if place.startswith(("s3://", "file://")):
        return place
    if "://" in place:
        raise ConfigError(f"{place}: only s3://, file://, runs:/, models:/, paths and names of runs can be shown")
    path = Path(place).expanduser()
    if path.exists():
        return storage.from_path(path)
    if "/" in place or "." in place or not run_paths.is_name(place):
        raise DataError(f"{place}: there is no such file or folder")
    environment.use_for(home_storage)
    return runs.find(place, home_storage).uri


def describe(uri: str) -> dict[str, Any]:
    """Return what is at a URI: ``uri``, ``kind``, ``bytes`` for a file, and what is particular to the kind.

    Raises:
        DataError: there is nothing, or the file is damaged.
        StorageError: the store cannot be read.
    """
    sizes = storage.sizes(uri)
    if not sizes:
        raise DataError(f"there is nothing at {uri}")
    if uri not in sizes:
        return {"uri": uri, **_folder(uri.rstrip("/"), sizes)}
    name = urlsplit(uri, allow_fragments=False).path.lower()
    kinds: Mapping[str | tuple[str, ...], Callable[[str, int], dict[str, Any]]] = {
        ".parquet": _table,
        ".json": _json,
        ".tar": _tar,
        ".safetensors": _tensors,
        _PICTURES: _picture,
        _TEXTS: _text,
    }
    describer = next((read for suffixes, read in kinds.items() if name.endswith(suffixes)), _unknown)
    with reading(f"{uri} is damaged, or not what its name says", "Fetch or make it again"):
        return {"uri": uri, "bytes": sizes[uri], **describer(uri, sizes[uri])}


def _folder(uri: str, sizes: Mapping[str, int]) -> dict[str, Any]:
    names = {file[len(uri) :].lstrip("/"): size for file, size in sizes.items()}
    if "manifest.json" in names:
        return _manifest(manifest.load(uri))
    if "experiment.json" in names and any(f"{stage}.json" in names for stage in stages.RECORDED):
        return _run(uri)
    if {"config.json", "model.safetensors"} <= names.keys():
        config = storage.read_json(storage.join(uri, "config.json"))
        tensors = _tensors(storage.join(uri, "model.safetensors"), names["model.safetensors"])
        return {"kind": "model", "config": config, **{key: tensors[key] for key in ("parameters", "tensors")}}
    shown = dict(sorted(names.items())[:_MOST_FILES])
    total = {"count": len(names), "bytes": sum(names.values())}
    return {"kind": "folder", **total, "files": [{"path": path, "bytes": size} for path, size in shown.items()]}


def _run(uri: str) -> dict[str, Any]:
    run = Run(uri)
    return {
        "kind": "run",
        "name": run.name,
        "experiment": run.experiment_name,
        "stages": [record.model_dump(exclude_defaults=True) for record in run.records.values()],
        "origin": run.origin.model_dump(mode="json") if run.origin else None,
        "report": run.report,
    }


def _manifest(found: Manifest) -> dict[str, Any]:
    parts = Parts.in_order(found.parts)
    return {
        "kind": "manifest",
        "stage": found.stage,
        "digest": found.digest,
        "rows": parts.rows,
        "bytes": parts.bytes,
        "counts": found.counts,
        "dropped": {reason: rows for reason, rows in found.dropped.items() if rows},
        "metrics": found.metrics,
        "parents": [parent.model_dump() for parent in found.parents],
        "provenance": found.provenance,
        "files": [{"path": part.path, "rows": part.rows, "bytes": part.bytes} for part in parts[:_MOST_FILES]],
        "count": len(parts),
        "pairs": _pairs(found),
    }


def _pairs(found: Manifest) -> list[dict[str, Any]]:
    """Return the first pairs of a stage that holds some, of those that may be seen."""
    import pyarrow.compute as pc

    for uri in found.part_uris(suffix=".parquet"):
        table = storage.read_table(uri)
        if "dropped_by" in table.column_names:
            table = table.filter(~pc.field("dropped_by").isin([*rules.never_shown()]))
        columns = [
            name for name in ("key", "caption", "url", "width", "height", "status") if name in table.column_names
        ]
        if "caption" in columns and table.num_rows:
            return [dict(row) for row in table.select(columns).slice(0, ROWS).to_pylist()]
    return []


def _table(uri: str, _size: int) -> dict[str, Any]:
    import pyarrow.parquet as pq

    def read(store: Any, path: str) -> dict[str, Any]:
        with pq.ParquetFile(path, filesystem=store) as file:
            head = next(file.iter_batches(batch_size=ROWS), None) if file.metadata.num_rows else None
            return {
                "kind": "table",
                "rows": file.metadata.num_rows,
                "schema": {field.name: str(field.type) for field in file.schema_arrow},
                "head": head.to_pylist() if head is not None else [],
            }

    return storage.read_with(uri, read)


def _json(uri: str, size: int) -> dict[str, Any]:
    if size > _MOST_BYTES:
        return {
            "kind": "json",
            "value": None,
            "note": _("more than {most_bytes} MiB, not read").format(most_bytes=_MOST_BYTES >> 20),
        }
    value = storage.read_json(uri)
    if isinstance(value, dict) and {"stage", "uri"} <= value.keys() and value.keys() & {"parts", "parts_table"}:
        return _manifest(manifest.load(uri))
    return {"kind": "json", "value": value}


def _tar(uri: str, _size: int) -> dict[str, Any]:
    members, count = [], 0
    with storage.open_input(uri) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
        for member in tar:
            count += 1
            if count <= _MOST_MEMBERS:
                members.append({"path": member.name, "bytes": member.size})
    return {"kind": "tar", "count": count, "files": members}


def _tensors(uri: str, size: int) -> dict[str, Any]:
    """Read the header of a safetensors file: eight bytes of length, then JSON."""
    with storage.open_input(uri) as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > min(size, 100 << 20):
            raise ValueError(f"its header would have {length} bytes")
        header = json.loads(stream.read(length))
    metadata = header.pop("__metadata__", {})
    tensors = [{"name": name, "dtype": entry["dtype"], "shape": entry["shape"]} for name, entry in header.items()]
    parameters = sum(math.prod(map(operator.index, entry["shape"])) for entry in tensors)
    if parameters > 8 * size:  # no type has less than a bit
        raise ValueError("its tensors would be larger than the file")
    return {"kind": "tensors", "parameters": parameters, "metadata": metadata, "tensors": tensors}


def _picture(uri: str, _size: int) -> dict[str, Any]:
    from PIL import Image

    from wukong.data.decoding import DECODER_ERRORS, FORMATS

    with storage.open_input(uri) as stream:
        try:
            with Image.open(stream, formats=FORMATS) as picture:
                return {"kind": "picture", "format": picture.format, "size": list(picture.size), "mode": picture.mode}
        except DECODER_ERRORS as error:
            raise ValueError(str(error)) from error


def _text(uri: str, size: int) -> dict[str, Any]:
    with storage.open_input(uri) as stream:
        text = stream.read(min(size, 64 << 10)).decode("utf-8", "replace")
    lines = text.splitlines()
    return {"kind": "text", "head": [line[:_LONGEST] for line in lines[: 2 * ROWS]]}


def _unknown(uri: str, size: int) -> dict[str, Any]:
    with storage.open_input(uri) as stream:
        return {"kind": "file", "begins": stream.read(min(size, 16)).hex(" ")}
