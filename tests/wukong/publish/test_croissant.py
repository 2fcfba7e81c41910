"""The description of a release, read by MLCommons' own reader of Croissant."""

import io
import json
import logging.config
import sys
from contextlib import redirect_stderr
from pathlib import Path

import absl.logging
import mlcroissant
import polars as pl
import pytest

from wukong.config import documents
from wukong.publish import croissant, release
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest

# mlcroissant logs by absl, whose handler closes its stream, pytest's, when anything configures logging in a test that
# replaces standard error, unless that stream is the process's own.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__

ROWS = [
    ("http://a.cn/1.jpg?q=a,b", '一只"猫",\n两行'),
    ("http://a.cn/2.jpg", "狗"),
    ("http://图片.cn/猫", "<人名>的花"),
]


CRAWL = Manifest(
    stage="crawl",
    uri="file:///s/crawl",
    config={"engine": "baidu", "politeness": {"robots_txt": True, "respect_noai": False}},
    counts={"urls": 1_234, "success": 1_200},
    dropped={"robots_disallowed": 21, "http_error": 13},
    provenance={"created": "2026-11-02T01:00:00.000000+00:00", "seconds": 7_200.0},
)
FILTERED = Manifest(
    stage="filter",
    uri="file:///s/filter",
    config={"min_side": 200, "mask_names": True, "name_care": "thorough", "rule_versions": {"usage": 1}},
    counts={"pairs": 1_200, "kept": 1_000, "train": 900, "overlap/coco-cn": 12, "name_and_face": 7, "unread/unsafe": 2},
    dropped={"size": 150, "sensitive": 50},
)
PUBLISHER = {"publisher": "Example", "contact": "pairs@example.org", "address": "https://example.org/set"}


def released(folder: Path, rows: list[tuple[str, ...]]) -> Path:
    """A release of two CSV files with its description; the third column of rows is that of several captions."""
    settings = {"version": "1.2.0", "licence": "CC-BY-4.0", "published": "2026-11-30", **PUBLISHER}
    crawl = {"queries": "file:///q", "endpoint": "http://x"}
    experiment = documents.parse({"name": "demo", "storage": "file:///s", "crawl": crawl, "release": settings})
    root, parts = storage.from_path(folder), []
    columns = ["url", "caption", "captions"][: len(rows[0])]
    for name, some in zip(release.file_names("demo", 2), (rows[:2], rows[2:]), strict=True):
        release.write_csv(f"{root}/{name}", pl.DataFrame(some, schema=columns, orient="row"))
        parts.append(manifest.describe(root, name, len(some)))
    description = croissant.describe(experiment, CRAWL, FILTERED, parts, several="captions" in columns)
    storage.write_json(f"{root}/{croissant.PATH}", description)
    return folder / croissant.PATH


@pytest.fixture
def described(tmp_path: Path) -> Path:
    return released(tmp_path, ROWS)


def test_the_reader_leaves_the_output_of_tests_open() -> None:
    before = sys.stderr
    with redirect_stderr(io.StringIO()):
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})
    assert not before.closed


def test_the_reader_finds_no_error_and_reads_the_pairs(described: Path) -> None:
    dataset = mlcroissant.Dataset(described)  # raises ValidationError
    assert not dataset.metadata.ctx.issues.errors
    assert (dataset.metadata.name, dataset.metadata.version) == ("demo", "1.2.0")
    assert dataset.metadata.license == ["CC-BY-4.0"]
    found = [(row["pairs/url"].decode(), row["pairs/caption"].decode()) for row in dataset.records("pairs")]
    assert found == ROWS


def test_the_reader_knows_what_the_manifests_tell_of_responsible_ai(described: Path) -> None:
    metadata = mlcroissant.Dataset(described).metadata
    assert not metadata.ctx.issues.warnings
    assert metadata.ctx.conforms_to.value == "http://mlcommons.org/croissant/1.1"
    assert json.loads(described.read_text())["conformsTo"][1] == "http://mlcommons.org/croissant/RAI/1.0"
    assert (metadata.url, metadata.creators[0].name) == ("https://example.org/set", "Example")
    assert str(metadata.date_published)[:10] == "2026-11-30"
    assert metadata.cite_as.startswith("@misc{demo, author = {{Example}}, title = {demo, version 1.2.0}, year = {2026}")
    assert [str(each)[:10] for each in metadata.data_collection_timeframe] == ["2026-11-01", "2026-11-02"]
    for text in ("baidu", "21 pictures were not requested", "were not left out"):
        assert text in metadata.data_collection, text
    assert metadata.data_collection_missing_data == "34 of 1,234 addresses gave no picture."
    assert any("size (min_side 200) removed 150 pairs" in line for line in metadata.data_preprocessing_protocol)
    unread = "unsafe could not judge, and did not drop: 2"
    for text in ("coco-cn: 12 pictures, 1 %", unread, "one large face: 7", "fit their pictures"):
        assert any(text in line for line in metadata.data_limitations), text
    assert any("thorough" in line for line in metadata.personal_sensitive_information)
    assert "pairs@example.org" in metadata.data_release_maintenance_plan
    for told in (metadata.data_biases, metadata.data_social_impact, metadata.data_use_cases):
        assert told


def test_the_reader_reads_the_pairs_that_have_several_captions(tmp_path: Path) -> None:
    several = [{"caption": "狗", "count": 3}, {"caption": "小狗", "count": 1}]
    third = ["", json.dumps(several, ensure_ascii=False), ""]
    dataset = mlcroissant.Dataset(released(tmp_path, [(*row, more) for row, more in zip(ROWS, third, strict=True)]))
    assert not dataset.metadata.ctx.issues.errors
    rows = list(dataset.records("pairs"))
    assert [(row["pairs/url"].decode(), row["pairs/caption"].decode()) for row in rows] == ROWS
    assert json.loads(rows[1]["pairs/captions"]) == several


def test_the_reader_refuses_a_description_that_is_wrong(described: Path) -> None:
    value = json.loads(described.read_text())
    value["recordSet"][0]["field"][0]["source"]["fileSet"]["@id"] = "other"
    described.write_text(json.dumps(value))
    with pytest.raises(mlcroissant.ValidationError):
        mlcroissant.Dataset(described)
