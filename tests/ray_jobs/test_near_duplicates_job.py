"""Near duplicates in the filter job: by hand, in any number of groups, killed at every write, and only measured."""

import io
import itertools

import numpy as np
import polars as pl
import pytest
import ray
from crawled import experiment
from PIL import Image

from ray_jobs import exchange as rounds
from ray_jobs import filter as filtering
from ray_jobs import groups as groups_job
from ray_jobs import near_duplicates as search
from ray_jobs import repacking
from wukong.crawl.url import key_of
from wukong.curate import exchange, near_duplicates, picture_vectors
from wukong.store import storage

SIDES = 96, 64, 80


def number_of(row):
    return int(row["url"].rsplit("/", 1)[1])


def picture(row):
    """Three of a kind, in three sizes."""
    number = number_of(row)
    pixels = np.random.default_rng(number // 3).integers(0, 256, (8, 8), dtype=np.uint8)
    target = io.BytesIO()
    Image.fromarray(pixels).resize((SIDES[number % 3],) * 2, Image.Resampling.BOX).save(target, "PNG")
    return target.getvalue()


def vector(image):
    pixels = np.asarray(image.convert("L").resize((8, 8), Image.Resampling.BOX), float).ravel()
    return pixels - pixels.mean()


def rows(count=60):
    return [{"url": f"http://x/noto/{n}", "caption": f"第{n}张图片" + "在家" * (n % 3)} for n in range(count)]


def kept_by_hand(urls, better):
    """One of three, by a key that is lowest for the best."""
    groups = itertools.groupby(sorted(urls, key=lambda url: (number_of({"url": url}) // 3, better(url))),
                               key=lambda url: number_of({"url": url}) // 3)  # fmt: skip
    return {next(group) for _, group in groups}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Tasks run one after the other in this process; a vector is the picture's own pixels; few pairs are many."""

    def run_all(task, arguments, num_gpus=0):
        return [task(*entry) for entry in arguments]

    for module in (rounds, groups_job, repacking, search):
        monkeypatch.setattr(module, "run_all", run_all)
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(filtering.gpus, "count", lambda: 0)
    monkeypatch.setattr(exchange, "FAN", 3)
    monkeypatch.setattr(near_duplicates, "COMPARED_WHOLE", 10)
    monkeypatch.setattr(
        picture_vectors, "encode", lambda images, *_: np.array([vector(image) for image in images], np.float16)
    )


def filtered(folder, crawl, **near):
    settings = experiment(folder, split={}, mask_names=False, near_duplicates=near)
    return filtering.run(settings, {"crawl": crawl})


def table(manifest, folder):
    return pl.concat([pl.DataFrame(storage.read_table(uri)) for uri in manifest.part_uris(folder, ".parquet")])


def test_one_of_each_kind_is_kept(tmp_path, make_crawl):
    crawl = make_crawl(rows(), part_size=30, picture=picture)
    first = filtered(tmp_path, crawl, min_cosine=0.95)
    keys = {row["url"]: key_of(row["url"]) for row in rows()}
    assert set(table(first, "train/")["url"]) == kept_by_hand(keys, keys.get)
    assert first.dropped["near_duplicate"] == 40
    assert table(first, "dropped/")["nearest_cosine"].min() > 0.95
    assert table(first, "train/")["nearest_cosine"].null_count() == 20

    sharpest = filtered(tmp_path, crawl, min_cosine=0.95, keep="sharpest")
    assert {number_of(row) % 3 for row in table(sharpest, "train/").to_dicts()} == {0}
    longest = filtered(tmp_path, crawl, min_cosine=0.95, keep="best-caption")
    assert {number_of(row) % 3 for row in table(longest, "train/").to_dicts()} == {2}
    assert sharpest.counts["kept"] == longest.counts["kept"] == 20


def test_without_a_threshold_none_goes_and_it_is_counted_how_many_would(tmp_path, make_crawl):
    english = [{"url": f"http://x/noto/{n}", "caption": "a cat"} for n in range(60, 90)]  # a part that loses all
    crawl = make_crawl([*rows(), *english], part_size=30, picture=picture)
    measured = filtered(tmp_path, crawl)
    looks = {path: path.stat().st_mtime_ns for path in (tmp_path / "store/test/look").rglob("*.parquet")}
    assert measured.dropped["near_duplicate"] == 0
    assert measured.counts["train"] == measured.counts["near_duplicates"] == 60
    shares = [measured.counts[f"near_duplicates/{cosine:.2f}"] for cosine in near_duplicates.THRESHOLDS]
    assert shares == sorted(shares, reverse=True)
    for cosine in 0.8, 0.95, 0.99:
        dropped = filtered(tmp_path, crawl, min_cosine=cosine)
        assert dropped.dropped["near_duplicate"] == measured.counts[f"near_duplicates/{cosine:.2f}"]
        assert dropped.counts["near_duplicates"] == 60
    assert looks == {path: path.stat().st_mtime_ns for path in (tmp_path / "store/test/look").rglob("*.parquet")}


def test_pairs_that_repeat_a_picture_are_not_compared_again(tmp_path, make_crawl):
    # Of each kind two pictures are equal by digest. The first of them goes on, though the other has the longer caption.
    some = [row | {"sha256": f"{n // 3 * 3 + n % 3 // 2:016x}" * 4} for n, row in enumerate(rows())]
    crawl = make_crawl(some, part_size=30, picture=picture)
    settings = experiment(
        tmp_path, split={}, mask_names=False, duplicate_images="equal",
        near_duplicates={"min_cosine": 0.95, "keep": "best-caption"},
    )  # fmt: skip
    manifest = filtering.run(settings, {"crawl": crawl})
    assert manifest.dropped["duplicate_image"] == 20
    assert manifest.dropped["near_duplicate"] == 20
    assert sorted(number_of(row) for row in table(manifest, "train/").to_dicts()) == list(range(2, 60, 3))


def test_the_number_of_groups_and_of_ranges_changes_no_byte_of_what_is_kept(tmp_path, make_crawl, monkeypatch):
    made = {}
    for groups, fan in (1, 32), (3, 32), (20, 2):
        monkeypatch.setattr(exchange, "FAN", fan)
        monkeypatch.setattr(search, "RANGE_BYTES", 128 * -(-60 // groups))
        crawl = make_crawl(rows(), part_size=-(-60 // groups), name=f"crawl-{groups}", picture=picture)
        assert len(groups_job.groups_of(crawl)) == groups
        manifest = filtered(tmp_path, crawl, min_cosine=0.95)
        kept = [part for part in manifest.parts if not part.path.startswith("dropped/")]
        made[groups] = manifest.counts, manifest.dropped, kept, table(manifest, "dropped/").sort("key").to_dicts()
    assert made[1] == made[3] == made[20]


class Killed(BaseException):
    """The end of the process, in the midst of a write."""


@pytest.mark.slow
def test_a_search_that_is_killed_at_every_write_goes_on_to_the_same_bytes(tmp_path, make_crawl):
    crawl = make_crawl(rows(24), part_size=12, picture=picture)
    undisturbed = filtered(tmp_path / "a", crawl, min_cosine=0.95)
    kills = compared = 0
    while True:
        write, left, compare = storage.open_output, iter(range(kills)), near_duplicates.nearest

        def open_output(uri, write=write, left=left, **options):
            if next(left, None) is None:
                raise Killed
            return write(uri, **options)

        def nearest(found, compare=compare):
            nonlocal compared
            compared += 1
            return compare(found)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(storage, "open_output", open_output)
            patch.setattr(near_duplicates, "nearest", nearest)
            try:
                manifest = filtered(tmp_path / "b", crawl, min_cosine=0.95)
                break
            except Killed:
                kills += 1
    assert kills > 8
    assert manifest.digest == undisturbed.digest
    assert compared < 5, "what a killed run has compared is not compared again"
