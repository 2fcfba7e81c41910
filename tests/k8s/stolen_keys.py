"""What each S3 key opens, by the table of the page on security and by trying, on loopback and on a cluster."""

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from botocore.exceptions import ClientError

from wukong import stages
from wukong.config import documents, stored
from wukong.errors import StorageError
from wukong.runs import run_records
from wukong.stages import preflight
from wukong.store import lease, storage

ROOT = "stolen-keys"
"""An experiment that only these tests have, whose objects may be written over."""

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
FOLDERS = [stage.name for stage in stages.TABLE if stage.writes.endswith("/{name}")]
RECORDS = [*stages.RECORDED, "champion", "cost", "run", "experiment"]
PLACES = {
    **{name: f"{name}/{ROOT}/a" for name in ("inputs", "indexes")},
    "experiments": f"{ROOT}/experiments/0.json",
    **{f"{name}/manifest": f"{ROOT}/{name}/KEY/manifest.json" for name in FOLDERS},
    **{f"{name}/data": f"{ROOT}/{name}/KEY/parts/00000.tar" for name in FOLDERS},
    "filter/forbidden": f"{ROOT}/filter/KEY/forbidden.txt",
    "takedowns": f"{ROOT}/takedowns/pending.json",
    "sweeps": f"{ROOT}/sweeps/a.json",
    **{f"runs/{name}": f"{ROOT}/runs/first/{name}.json" for name in RECORDS},
    "elsewhere": f"notes-of-{ROOT}/a.txt",
    "mlflow": f"{ROOT}/a",
}
"""An object for each word of the page's table. All but the last are of the bucket of runs."""
WORDS = {
    **{name: {name} for name in PLACES},
    **{name: {f"{name}/manifest", f"{name}/data"} for name in FOLDERS},
    "filter": {"filter/manifest", "filter/data", "filter/forbidden"},
    "runs": {f"runs/{name}" for name in RECORDS},
    "wukong": {*PLACES} - {"mlflow"},
}


def rows() -> dict[str, tuple[set[str], set[str]]]:
    """The page's table of keys: what each reads and writes, in the names of ``PLACES``."""
    _, _, after = PAGE.read_text(encoding="utf-8").partition("| key | held by | reads | writes |")
    found = {}
    for line in after.strip().splitlines()[1:]:
        if not line.startswith("|"):
            break
        cells = [re.findall("`([^`]+)`", cell) for cell in line.strip("|").split("|")]
        (key,) = cells[0]
        read, written = (set().union(*(WORDS[word] for word in cell)) for cell in cells[2:4])
        found[key] = (read, written)
    return found


def allowed(ask: Callable[[], Any]) -> bool:
    """Whether the store does what is asked. What it finds nothing for, it has not refused."""
    try:
        ask()
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        assert status in (403, 404), error
        return bool(status == 404)
    return True


def bucket_of(place: str) -> str:
    return "mlflow" if place == "mlflow" else "wukong"


def fill(owner: Any) -> None:
    """Put an object in each place."""
    for place, key in PLACES.items():
        owner.put_object(Bucket=bucket_of(place), Key=key, Body=b"x")


def opened_by(thief: Any) -> tuple[set[str], set[str]]:
    """The places that a key reads, and those that it writes: each action is tried on each place."""
    read, written = set[str](), set[str]()
    for place, key in PLACES.items():
        where = {"Bucket": bucket_of(place)}
        prefix = key.rpartition("/")[0] + "/" if "/runs/" not in key else key
        reads = {
            "get": allowed(partial(thief.get_object, **where, Key=key)),
            "head": allowed(partial(thief.head_object, **where, Key=key)),
            "list": allowed(partial(thief.list_objects_v2, **where, Prefix=prefix)),
        }
        if place.endswith(("/manifest", "/forbidden")):
            del reads["list"]  # of its folder, which has data too
        writes = {
            "put": allowed(partial(thief.put_object, **where, Key=key, Body=b"x")),
            "upload": allowed(partial(thief.create_multipart_upload, **where, Key=key)),
            "delete": allowed(partial(thief.delete_object, **where, Key=f"{key}.json")),
        }
        assert len({*reads.values()}) == len({*writes.values()}) == 1, (place, reads, writes)
        read |= {place} if reads["get"] else set()
        written |= {place} if writes["put"] else set()
    return read, written


def begins_with_its_key(home: str = "s3://wukong") -> None:
    """What the first component does with the store, by the key of the environment, which is that component's.

    Args:
        home: the experiments' storage.
    """
    crawl = {"queries": f"{home}/inputs/queries.txt", "endpoint": "http://search.invalid"}
    experiment = documents.parse({"name": "small", "storage": home, "crawl": crawl})
    preflight.check_access(experiment)
    assert storage.list_files(f"{home}/small/experiments") == []
    run_records.claim(experiment, "begun", "job")
    assert stored.load(stored.store(experiment)) == experiment


def crawls_with_its_key(home: str = "s3://wukong") -> None:
    """What the crawl does with files, by the key of the environment, which is the crawl's.

    In a bucket that the key may not ask for, and folders above which it may write nothing.

    Args:
        home: the experiments' storage.
    """
    output, record = f"{home}/small/crawl/KEY", f"{home}/small/runs/first/crawl.json"
    storage.write_json(f"{output}/parts/a.json", {})
    filesystem, path = storage.filesystem(f"{output}/_work/ray")
    filesystem.create_dir(path, recursive=True)
    assert not storage.exists(f"{output}/manifest.json")
    storage.write_if(record, b"{}", None)
    assert storage.version(record) is not None
    storage.delete(record)
    assert not storage.exists(record)
    storage.delete(record)
    storage.delete(output)
    assert storage.list_files(output) == []
    with pytest.raises(StorageError, match="each stage has a key of its own"):
        storage.read_json(f"{home}/small/filter/KEY/manifest.json")
    with pytest.raises(StorageError, match="cannot delete"):
        storage.delete(f"{home}/small/runs/first/filter.json")


def takes_over_with_its_key() -> None:
    """What a fine-tuning does, by its key, where a pre-training has died that made the same features."""
    output, runs = "s3://wukong/small/features/KEY", "s3://wukong/small/runs"
    of_nobody = Popen([sys.executable, "-c", ""])
    of_nobody.wait()
    dead = lease._holder(f"{runs}/dead/attempts/pretrain/00001-a.json", lease.SECONDS)
    dead = dead.model_copy(update={"process": of_nobody.pid})
    storage.write_json(f"{output}/{lease.NAME}", dead.model_dump(mode="json"))
    with lease.held(output, lambda: False, f"{runs}/first/attempts/finetune/00001-b.json"):
        assert not lease.is_over(output)
    with pytest.raises(StorageError, match="each stage has a key of its own"):
        storage.write_json(f"{runs}/dead/attempts/pretrain/00002-a.json", {})
    storage.delete(f"{output}/{lease.NAME}")
