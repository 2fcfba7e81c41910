"""The filter job on real Ray, over file storage."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import ray
from crawled import corpus, experiment, picture_of
from made_again import listing
from PIL import Image

from ray_jobs import filter as job
from wukong.crawl.url import key_of
from wukong.curate.pairs import DROPPED, PAIRS
from wukong.errors import DataError, StorageError
from wukong.evaluate import holdouts
from wukong.report.funnel import funnel
from wukong.store import storage

pytestmark = pytest.mark.usefixtures("local_ray")


def shard_rows(manifest, prefix=""):
    tables = [pl.DataFrame(storage.read_table(uri)) for uri in manifest.part_uris(prefix, ".parquet")]
    return pl.concat(tables)


def test_a_crawl_becomes_shards_and_every_row_is_accounted_for(tmp_path, make_crawl):
    rows = corpus()
    crawl = make_crawl(rows)
    manifest = job.run(experiment(tmp_path), {"crawl": crawl})

    successes = [row for row in rows if row.get("status", "success") == "success"]
    assert manifest.counts["pairs"] == len(successes)
    assert {k: v for k, v in manifest.dropped.items() if k != "held_back"} == {
        "size": 1, "aspect_ratio": 1, "meaningless": 1, "language": 1, "length": 1, "frequency": 11, "sensitive": 1,
        "usage": 0,
    }  # fmt: skip
    splits = {name: manifest.counts[name] for name in ("train", "new-style", "new-style-new-word", "new-word")}
    assert sum(splits.values()) + manifest.dropped["held_back"] == manifest.counts["kept"]

    dropped = shard_rows(manifest, "dropped/")
    assert dropped.to_arrow().schema.names == DROPPED.names
    assert Counter(dropped["dropped_by"]) == {k: v for k, v in manifest.dropped.items() if v}
    kept = {name: shard_rows(manifest, f"{name}/") for name in splits if splits[name]}
    assert {name: len(frame) for name, frame in kept.items()} == {k: v for k, v in splits.items() if v}
    everything = [key for frame in [dropped, *kept.values()] for key in frame["key"]]
    assert sorted(everything) == sorted(key_of(str(row["url"])) for row in successes)
    assert all(frame["split"].unique().to_list() == [name] for name, frame in kept.items())


def test_pictures_are_copied_byte_for_byte_beside_their_captions(tmp_path, make_crawl):
    crawl = make_crawl(corpus())
    manifest = job.run(experiment(tmp_path), {"crawl": crawl})
    rows = {row["key"]: row for row in shard_rows(manifest, "train/").to_dicts()}
    seen = []
    for uri in manifest.part_uris("train/", ".tar"):
        with tarfile.open(fileobj=io.BytesIO(storage.read_bytes(uri))) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        order = [name.removesuffix(".jpg") for name in members if name.endswith(".jpg")]
        table = pl.DataFrame(storage.read_table(uri.removesuffix(".tar") + ".parquet"))
        assert table.to_arrow().cast(PAIRS).schema == PAIRS
        assert order == table["key"].to_list()
        for key in order:
            assert members[f"{key}.jpg"] == picture_of(rows[key])
            assert members[f"{key}.txt"].decode() == rows[key]["caption"]
            assert json.loads(members[f"{key}.json"])["sha256"] == rows[key]["sha256"]
            assert len(members) == 3 * len(order)
        seen += order
    assert sorted(seen) == sorted(rows)


def test_training_shards_are_shuffled_and_equal_in_size(tmp_path, make_crawl):
    crawl = make_crawl(corpus())
    manifest = job.run(experiment(tmp_path, shard_size=20), {"crawl": crawl})
    sizes = [part.rows for part in manifest.parts if part.path.startswith("train/") and part.path.endswith(".tar")]
    assert len(sizes) == -(-manifest.counts["train"] // 20)
    assert max(sizes) - min(sizes) <= 1
    urls = shard_rows(manifest, "train/")["url"].to_list()
    assert urls != sorted(urls)
    other = job.run(experiment(tmp_path, shard_size=20, seed=1), {"crawl": crawl})
    again = shard_rows(other, "train/")["url"].to_list()
    assert urls != again
    assert sorted(urls) == sorted(again)
    for name in (holdout["name"] for holdout in manifest.config["split"]["holdouts"]):
        sets = [holdouts.read(experiment(tmp_path), made, name) for made in (manifest, other)]
        assert sets[0] is not None and sets[1] is not None
        assert sets[0].digest == sets[1].digest, "the same test set in other shards"
    trained_anew = experiment(tmp_path, shard_size=20).model_copy(update={"seed": 1})
    assert job.run(trained_anew, {"crawl": crawl}) == manifest, "the seed of training makes no other data"


def test_a_name_is_masked_in_the_text_and_the_metadata_of_the_shard(tmp_path, make_crawl):
    manifest = job.run(experiment(tmp_path, split={}), {"crawl": make_crawl(corpus())})
    rows = shard_rows(manifest, "train/").filter(pl.col("url") == "http://x/noto/person").to_dicts()
    assert rows[0]["caption"] == "摄影师<人名>在公园里拍照"
    assert rows[0]["caption_original"] == "摄影师张伟明在公园里拍照"
    assert all("张伟明".encode() not in storage.read_bytes(uri) for uri in manifest.part_uris("train/", ".tar"))


def test_caption_counts_are_of_the_whole_corpus_not_of_a_part(tmp_path, make_crawl):
    crawl = make_crawl(corpus(), part_size=20)
    manifest = job.run(experiment(tmp_path), {"crawl": crawl})
    assert manifest.dropped["frequency"] == 11
    counts = shard_rows(manifest, "train/").group_by("caption").agg(pl.col("caption_count").first())
    originals = Counter(str(row["caption"]) for row in corpus())
    assert all(
        originals[row["caption"]] == row["caption_count"] for row in counts.to_dicts() if "<" not in row["caption"]
    )


def test_a_second_run_finds_the_first(tmp_path, make_crawl):
    crawl = make_crawl(corpus())
    first = job.run(experiment(tmp_path), {"crawl": crawl})
    assert job.run(experiment(tmp_path), {"crawl": crawl}) == first
    assert not storage.list_files(storage.join(first.uri, "_work"))


def test_a_missing_picture_is_named(tmp_path, make_crawl):
    crawl = make_crawl(corpus())
    tar = crawl.part_uris("parts/", ".tar")[1]
    other = storage.read_bytes(crawl.part_uris("parts/", ".tar")[0])
    storage.write_bytes(tar, other)
    with pytest.raises(DataError, match=r"parts/00001\.tar lacks the picture of"):
        run_unwrapped(tmp_path, listing(crawl, tar))


def test_a_truncated_tar_is_named(tmp_path, make_crawl):
    crawl = make_crawl(corpus())
    tar = crawl.part_uris("parts/", ".tar")[0]
    storage.write_bytes(tar, storage.read_bytes(tar)[:5000])
    with pytest.raises(DataError, match=r"parts/00000\.tar"):
        run_unwrapped(tmp_path, crawl)


def test_a_truncated_parquet_file_is_named(tmp_path, make_crawl):
    crawl = make_crawl(corpus())
    uri = crawl.part_uris("parts/", ".parquet")[0]
    storage.write_bytes(uri, storage.read_bytes(uri)[:-100])
    with pytest.raises(StorageError, match=r"parts/00000\.parquet"):
        run_unwrapped(tmp_path, crawl)


def test_a_part_with_another_schema_is_named(tmp_path, make_crawl):
    crawl = make_crawl(corpus())
    uri = crawl.part_uris("parts/", ".parquet")[0]
    storage.write_table(uri, storage.read_table(uri).drop_columns(["sha256"]))
    with pytest.raises(DataError, match=r"parts/00000\.parquet is not a part of a crawl"):
        run_unwrapped(tmp_path, listing(crawl, uri))


def test_no_pair_left_is_an_error_that_says_why(tmp_path, make_crawl):
    crawl = make_crawl([{"url": f"http://x/{n}", "caption": f"第{n}只猫", "width": 10} for n in range(5)])
    with pytest.raises(DataError, match="size dropped 5"):
        job.run(experiment(tmp_path), {"crawl": crawl})


def test_a_crawl_without_pictures_is_told_apart_from_rules_that_are_too_strict(tmp_path, make_crawl):
    crawl = make_crawl([{"url": f"http://x/{n}", "caption": "猫", "status": "dns_error"} for n in range(5)])
    with pytest.raises(DataError, match=r"no pair came in: the crawl at .* holds no picture") as raised:
        job.run(experiment(tmp_path), {"crawl": crawl})
    assert "Loosen" not in str(raised.value)


@pytest.mark.long
def test_a_killed_run_continues_to_the_same_bytes(tmp_path, make_crawl):
    crawl = make_crawl(corpus(), part_size=5)
    undisturbed = job.run(experiment(tmp_path / "a"), {"crawl": crawl})
    settings = tmp_path / "experiment.json"
    settings.write_text(experiment(tmp_path / "b").model_dump_json())
    code = (
        "import sys, json, ray\n"
        "from pathlib import Path\n"
        "from ray_jobs import filter as job\n"
        "from wukong.config import documents\n"
        "from wukong.store import manifest\n"
        "ray.init(address=sys.argv[3], log_to_driver=False, configure_logging=False)\n"
        "e = documents.parse(json.loads(Path(sys.argv[1]).read_text()))\n"
        "print(job.run(e, {'crawl': manifest.load(sys.argv[2])}).digest)\n"
    )
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    command = [sys.executable, "-c", code, str(settings), crawl.uri, ray.get_runtime_context().gcs_address]
    written = "_work/captions/answers/", "_parts/rules-", "_work/pictures/answers/", "_parts/assign-", "_parts/repack-"
    for stop_at in written:
        process = subprocess.Popen(command, env=environment, cwd=root)
        while process.poll() is None:
            if any(stop_at in str(path) for path in (tmp_path / "b").rglob("*.*")):
                break
            time.sleep(0.01)
        assert process.poll() is None, "the run ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    continued = job.run(experiment(tmp_path / "b"), {"crawl": crawl})
    assert continued.digest == undisturbed.digest
    assert continued.parts == undisturbed.parts


def test_captions_are_counted_as_they_are_once_put_right(tmp_path, make_crawl):
    same = ["<b>一隻貓</b>", "一只猫", "一只猫😀", "一隻貓&nbsp;"] * 3
    rows = [{"url": f"http://x/noto/{n}", "caption": text} for n, text in enumerate([*same, "小狗"])]
    crawl = make_crawl(rows)
    plain = job.run(experiment(tmp_path, split={}), {"crawl": crawl})
    assert plain.dropped["frequency"] == 0
    right = job.run(experiment(tmp_path, split={}, clean_markup=True, simplify=True), {"crawl": crawl})
    assert right.dropped["frequency"] == 12
    dropped = shard_rows(right, "dropped/")
    assert set(dropped["caption"]) == {"一只猫"}
    assert set(dropped["caption_original"]) == set(same)
    assert "duplicate_image" not in right.dropped


def test_of_pairs_with_equal_pictures_the_first_by_key_stays(tmp_path, make_crawl):
    rows = [row | {"sha256": f"{n // 2:016x}" * 4} for n, row in enumerate(corpus()) if row.get("status") is None]
    crawl = make_crawl(rows, part_size=20)
    manifest = job.run(experiment(tmp_path, split={}, duplicate_images="equal"), {"crawl": crawl})
    before = set(shard_rows(manifest, "dropped/").filter(pl.col("dropped_by") != "duplicate_image")["url"])
    passed = [row for row in rows if row["url"] not in before]
    first = {}
    for row in sorted(passed, key=lambda row: key_of(row["url"])):
        first.setdefault(row["sha256"], key_of(row["url"]))
    assert set(shard_rows(manifest, "train/")["key"]) == set(first.values())
    assert manifest.dropped["duplicate_image"] == len(passed) - len(first)
    assert [step.name for step in funnel(crawl, manifest)][-3:-1] == ["duplicate_image", "held_back"]


def test_similar_pictures_and_captions_that_do_not_fit_are_left_out(tmp_path, make_crawl):
    pytest.importorskip("torch")
    from wukong.config.model import ImageEncoder, Model
    from wukong.curate.phash import perceptual_hash
    from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
    from wukong.model import image_encoder, saved_model
    from wukong.model.dual import DualEncoder

    tower = ImageEncoder(name="vit_tiny_patch16_224", weights="random", image_size=32)
    model = Model.model_validate(
        {"image": tower, "text": {"layers": 1, "heads": 2, "width": 16}, "embedding": 8, "similarity": "global"}
    )
    tokenizer = Tokenizer(packaged_vocabulary())
    uri = storage.from_path(tmp_path / "model")
    saved_model.save(uri, DualEncoder(model, tokenizer, image_encoder.ImageEncoder(tower)), tokenizer)

    def picture(row):
        number = int(row["url"].rsplit("/", 1)[1])
        pixels = np.random.default_rng(number // 3).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        target = io.BytesIO()
        Image.fromarray(pixels).resize((96, 96)).save(target, "JPEG", quality=92 + 2 * (number % 3))
        return target.getvalue()

    rows = [{"url": f"http://x/noto/{n}", "caption": f"第{n}张图片"} for n in range(30)]
    crawl = make_crawl(rows, part_size=8, picture=picture)
    similar = {"split": {}, "duplicate_images": "similar", "mask_names": False}
    manifest = job.run(experiment(tmp_path, **similar), {"crawl": crawl})
    kept = shard_rows(manifest, "train/")
    assert sorted(int(url.rsplit("/", 1)[1]) // 3 for url in kept["url"]) == list(range(10))
    assert kept["image_hash"].to_list() == [perceptual_hash(picture(row)) for row in kept.to_dicts()]
    assert kept["similarity"].null_count() == len(kept)
    assert manifest.dropped["duplicate_image"] == 20

    everything = job.run(
        experiment(tmp_path, similarity_model=uri, min_similarity=-1, **similar | {"duplicate_images": "keep"}),
        {"crawl": crawl},
    )
    scores = shard_rows(everything, "train/").sort("similarity")
    loaded = saved_model.load(uri)
    shown = scores.to_dicts()[7]
    with Image.open(io.BytesIO(picture(shown))) as opened:
        expected = loaded.similarity(loaded.encode_image([opened]), loaded.encode_text([shown["caption"]]))
    assert shown["similarity"] == pytest.approx(float(expected), abs=1e-4)
    middle = scores["similarity"][15]
    looks = {path: path.stat().st_mtime_ns for path in (tmp_path / "store/test/look").rglob("*.parquet")}
    half = job.run(
        experiment(tmp_path, similarity_model=uri, min_similarity=middle, **similar | {"duplicate_images": "keep"}),
        {"crawl": crawl},
    )
    assert half.dropped["similarity"] == int((scores["similarity"] < middle).sum()) == 15
    assert set(shard_rows(half, "train/")["key"]) == set(scores["key"][15:])
    # No picture was looked at again for another threshold.
    assert looks == {path: path.stat().st_mtime_ns for path in (tmp_path / "store/test/look").rglob("*.parquet")}


def run_unwrapped(tmp_path, crawl):
    """Run the job and raise the error of ours that Ray wrapped, as the stage's entry point reports it."""
    try:
        job.run(experiment(tmp_path), {"crawl": crawl})
    except ray.exceptions.RayTaskError as error:
        raise error.as_instanceof_cause().cause from error
