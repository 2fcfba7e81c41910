"""The validation gate on real Ray and real Great Expectations."""

import shutil
import subprocess
import sys

import polars as pl
import pytest
from crawled import corpus, experiment, write_crawl
from made_again import listing

from ray_jobs import filter as filter_job
from ray_jobs import validate as job
from wukong.config import stored
from wukong.curate.pairs import PAIRS
from wukong.errors import ConfigError, GateError
from wukong.stages import places
from wukong.store import storage

pytestmark = pytest.mark.usefixtures("local_ray")


def gate(tmp_path, **validation):
    e = experiment(tmp_path)
    return e.model_copy(update={"validation": e.validation.model_copy(update={"min_pairs": 50} | validation)})


@pytest.fixture(scope="module")
def whole(local_ray, tmp_path_factory):
    folder = tmp_path_factory.mktemp("filtered")
    return filter_job.run(gate(folder), {"crawl": write_crawl(folder, corpus())})


@pytest.fixture
def filtered(whole, tmp_path):
    """A copy of it, which a test may change."""
    copy = shutil.copytree(storage.filesystem(whole.uri)[1], tmp_path / "filtered")
    return whole.model_copy(update={"uri": storage.from_path(copy)})


def change(manifest, split, edit):
    """Rewrite the first shard table of a split, as a fault in the filter would; return the manifest with that table."""
    uri = manifest.part_uris(f"{split}/", ".parquet")[0]
    frame = edit(pl.DataFrame(storage.read_table(uri)))
    storage.write_table(uri, frame.select(PAIRS.names).to_arrow().cast(PAIRS))
    return listing(manifest, uri)


def test_what_the_filter_keeps_passes(tmp_path, filtered):
    manifest = job.run(gate(tmp_path), {"filter": filtered})
    assert manifest.counts["warnings"] == 0
    assert manifest.counts["pairs"] == filtered.counts["kept"] - filtered.dropped["held_back"]
    results = storage.read_json(f"{manifest.uri}/results.json")
    assert len(results["expectations"]) == manifest.counts["expectations"] > 15
    page = storage.read_bytes(f"{manifest.uri}/docs/index.html").decode()
    assert "pairs-00000" in page
    assert job.run(gate(tmp_path), {"filter": filtered}) == manifest
    assert places.finished("validate", gate(tmp_path), {"filter": filtered}) == manifest
    card = storage.read_bytes(f"{manifest.uri}/docs/card.html").decode()
    assert f"{manifest.counts['pairs']:,}" in card
    assert "101,483,885" in card
    assert "docs/card.html" in [part.path for part in manifest.parts]


CHECK = """
import sys
from ray_jobs import validate
from wukong.config import stored
from wukong.store import manifest
from wukong.store.manifest import Stage

experiment, filtered = stored.load(sys.argv[1]), manifest.load(sys.argv[2])
validate._check(Stage(experiment.root, "checked", {}), experiment, 0, validate._batches(filtered, experiment)[0])
sys.exit("torch" in sys.modules)
"""


@pytest.mark.long
def test_a_batch_is_checked_without_torch(tmp_path, filtered):
    uri = stored.store(gate(tmp_path))
    subprocess.run([sys.executable, "-c", CHECK, uri, f"{filtered.uri}/manifest.json"], check=True)


FAULTS = {
    "sides": lambda f: f.with_columns(width=pl.lit(200, pl.Int32)),
    "aspect_ratio": lambda f: f.with_columns(width=pl.lit(1000, pl.Int32)),
    "length": lambda f: f.with_columns(length=pl.lit(32, pl.Int32)),
    "caption_frequency": lambda f: f.with_columns(caption_count=pl.lit(11, pl.Int64)),
    "chinese": lambda f: f.with_columns(caption=pl.lit("cat ") + pl.col("key")),
    "sensitive_words": lambda f: f.with_columns(caption=pl.lit("免费色情影片")),
    "known_splits": lambda f: f.with_columns(split=pl.lit("elsewhere")),
    "downloaded": lambda f: f.with_columns(status=pl.lit("http_error")),
    "unique_keys": lambda f: f.with_columns(key=pl.lit("a" * 20)),
    "unmasked_names": lambda f: f.with_columns(caption=pl.lit("演员刘诗诗")),
}

TOGETHER = (
    ("sides", "length", "caption_frequency", "chinese", "known_splits", "downloaded", "unique_keys"),
    ("aspect_ratio", "sensitive_words"),
    ("unmasked_names",),
)
"""Faults of columns of their own."""


@pytest.mark.parametrize("names", TOGETHER)
def test_a_fault_is_stopped_by_its_expectation(tmp_path, filtered, names):
    for name in names:
        filtered = change(filtered, "train", FAULTS[name])
    with pytest.raises(GateError) as stopped:
        job.run(gate(tmp_path), {"filter": filtered})
    lines = [line.strip() for line in str(stopped.value).splitlines() if "observed" in line]
    told = {line.partition(":")[0] for line in lines}
    assert told == {*names, "seen_captions_trained"}, "captions that are seen by name are trained on no more"
    assert "key=" in str(stopped.value)
    stage = str(stopped.value).rsplit("data docs: ", 1)[1].removesuffix("/docs/index.html")
    assert storage.exists(f"{stage}/docs/index.html")
    assert storage.exists(f"{stage}/results.json")
    assert not storage.exists(f"{stage}/manifest.json")


def test_a_caption_of_an_unseen_test_set_in_training_is_stopped_and_shown(tmp_path, filtered):
    leaked = pl.DataFrame(storage.read_table(filtered.part_uris("new-word/", ".parquet")[0]))["caption"][0]
    filtered = change(filtered, "train", lambda f: f.with_columns(
        caption=pl.when(pl.int_range(pl.len()) == 0).then(pl.lit(leaked)).otherwise("caption")))  # fmt: skip
    with pytest.raises(GateError, match=f"unseen_captions_disjoint(.|\n)*{leaked}"):
        job.run(gate(tmp_path), {"filter": filtered})


def test_a_picture_of_a_test_set_in_training_is_stopped(tmp_path, filtered):
    leaked = pl.DataFrame(storage.read_table(filtered.part_uris("new-style/", ".parquet")[0]))["sha256"][0]
    filtered = change(filtered, "train", lambda f: f.with_columns(
        sha256=pl.when(pl.int_range(pl.len()) == 0).then(pl.lit(leaked)).otherwise("sha256")))  # fmt: skip
    with pytest.raises(GateError, match="pictures_disjoint"):
        job.run(gate(tmp_path), {"filter": filtered})


def test_a_warning_does_not_stop(tmp_path, filtered):
    filtered = change(filtered, "train", FAULTS["aspect_ratio"])
    manifest = job.run(gate(tmp_path, severity={"aspect_ratio": "warn"}), {"filter": filtered})
    assert manifest.counts["warnings"] == 1


def test_too_few_pairs_stop(tmp_path, filtered):
    with pytest.raises(GateError, match=r"training_pairs: .*min_value 5000.*observed \d+"):
        job.run(gate(tmp_path, min_pairs=5000), {"filter": filtered})


def test_an_unknown_expectation_in_the_severities_is_named(tmp_path, filtered):
    with pytest.raises(ConfigError, match="no expectation is called 'aspect'"):
        job.run(gate(tmp_path, severity={"aspect": "warn"}), {"filter": filtered})


def test_drift_from_a_reference_is_measured_and_stops(tmp_path, filtered):
    reference = job.run(gate(tmp_path), {"filter": filtered})
    same = job.run(gate(tmp_path, reference=reference.uri), {"filter": filtered})
    observed = storage.read_json(f"{same.uri}/results.json")["dataset"]
    assert {name: value for name, value in observed.items() if name.startswith("drift_")} == {
        "drift_tokens": 0, "drift_sides": 0, "drift_ratios": 0, "drift_lengths": 0,
    }  # fmt: skip
    filtered = change(filtered, "train", lambda f: f.with_columns(width=pl.lit(800, pl.Int32)))
    with pytest.raises(GateError, match=r"drift_ratios: expected .*max_value 0.1; observed 0\.\d+"):
        job.run(gate(tmp_path, reference=reference.uri, min_pairs=51), {"filter": filtered})
    with pytest.raises(ConfigError, match="of a filter stage"):
        job.run(gate(tmp_path, reference=filtered.uri), {"filter": filtered})
