"""A source that is added as one file is accepted, checked, planned, crawled, found again, and told of in reports."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from crawled import picture_of

import ray_jobs
import wukong
from wukong.store import storage

ALBUM = """
from wukong.crawl.source import Listed, Wording


def _lines(uri):
    from wukong.store import storage

    return [line.split(" ", 1) for line in storage.read_bytes(uri).decode().splitlines()]


def _check(uri):
    from wukong.store import storage

    return "" if storage.exists(uri) else f"{uri} is no album; name a text file"


def _read(uri, number, config):
    from wukong.crawl.found import as_table, found_row

    folder = uri.rpartition("/")[0]
    yield as_table([found_row(f"{folder}/{file}", text, None, row) for row, (file, text) in enumerate(_lines(uri))])


SOURCE = Listed(
    name="album",
    wording=Wording(
        "From album to pair", "pictures in the album", lambda rows: f"The album has {rows:,} pictures", "an album"
    ),
    nothing=lambda config, _: f"the album {config.endpoint!r} is empty.",
    check=_check,
    lists=lambda config: [config.endpoint],
    read=_read,
    count=lambda config: len(_lines(config.endpoint)),
    not_in_key=frozenset({"endpoint"}),
    reads_files=True,
)
"""
CRAWL_IT = """
import json, sys

import ray

from ray_jobs import crawl, plan
from wukong.config import documents
from wukong.model.cost import Shape, Size
from wukong.errors import DataError, WukongError
from wukong.report.funnel import wording
from wukong.stages import places, preflight
from wukong.store import storage

store, first, moved, empty = sys.argv[1:]


def experiment(endpoint):
    settings = {"engine": "album", "endpoint": endpoint, "min_side": 1}
    return documents.parse({"name": "x", "storage": store, "crawl": settings})


def refused(call, *given):
    try:
        call(*given)
    except WukongError as error:
        return str(error)


settings = experiment(first)
preflight.check_world(settings)
before = plan.of_run(settings, settings.crawl.source.count(settings.crawl), Size(1, 1, 1.0, Shape(1, 1)), 1)[0]
ray.init("local", num_cpus=1, include_dashboard=False, configure_logging=False, log_to_driver=False)
made = crawl.run(settings, {})
after = plan.of_run(settings, 2, Size(1, 1, 1.0, Shape(1, 1)), 1)[0]
rows = [row for uri in made.part_uris("parts/", ".parquet") for row in storage.read_table(uri).to_pylist()]
print(json.dumps({
    "refused": refused(preflight.check_world, experiment(first + "x")),
    "planned": [before.finished is None, before.reads == (first,), after.finished == made],
    "pairs": sorted([row["url"].rpartition("/")[2], row["caption"], row["status"], row["engine"]] for row in rows),
    "found again": places.finished("crawl", experiment(moved), {}) == made,
    "heading": wording(made).heading,
    "empty": refused(crawl.run, experiment(empty), {}),
}))
"""


@pytest.mark.long
def test_a_source_is_one_file(tmp_path: Path) -> None:
    for package in (wukong, ray_jobs):
        folder = Path(package.__file__).parent
        shutil.copytree(folder, tmp_path / folder.name, ignore=shutil.ignore_patterns("*.pyc"))
    (tmp_path / "wukong" / "crawl" / "engines" / "album.py").write_text(ALBUM)
    uris = [storage.from_path(tmp_path / "store")]
    for name, text in {"a": "1.jpg 一只猫\n2.jpg 一只狗\n", "b": "1.jpg 一只猫\n2.jpg 一只狗\n", "c": ""}.items():
        (tmp_path / name).mkdir()
        for number in (1, 2):
            (tmp_path / name / f"{number}.jpg").write_bytes(picture_of({"sha256": f"{number}23456"}))
        (tmp_path / name / "album.txt").write_text(text)
        uris.append(storage.from_path(tmp_path / name / "album.txt"))
    ended = subprocess.run(
        [sys.executable, "-c", CRAWL_IT, *uris],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert f"crawl.endpoint: {uris[1]}x is no album; name a text file" in told["refused"]
    assert told["planned"] == [True, True, True]
    assert told["pairs"] == [["1.jpg", "一只猫", "success", "album"], ["2.jpg", "一只狗", "success", "album"]]
    assert told["found again"], "what its lines say decides, as it asks for"
    assert told["heading"] == "From album to pair"
    assert told["empty"] == f"the crawl found nothing: the album '{uris[3]}' is empty."
