"""Pictures on a list that an operator must obey, from the crawl to every page and command that tells of the filter."""

import io
import json

import numpy as np
import pdqhash
import polars as pl
import pytest
from crawled import corpus, experiment
from PIL import Image

from ray_jobs import filter as job
from wukong.crawl.optout import OptOut
from wukong.report.run_report import _dropped
from wukong.runs import describe
from wukong.store import storage

pytestmark = pytest.mark.usefixtures("local_ray")

SECRET = "不该看见的图片"


def drawn(seed, turn=None):
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((256, 256), Image.Resampling.BICUBIC)
    return image if turn is None else image.transpose(turn)


def picture_of(row):
    target = io.BytesIO()
    number = int(row["sha256"][:8], 16)
    if "forbidden" in row["url"]:
        image = drawn(0, Image.Transpose.FLIP_LEFT_RIGHT if row["url"].endswith("mirrored") else None)
    else:
        image = drawn(number + 1)
    image.save(target, "JPEG", quality=60)
    return target.getvalue()


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    bits, _ = pdqhash.compute(np.asarray(drawn(0)))
    path = tmp_path_factory.mktemp("lists") / "list.csv"
    path.write_text(f"hash,type\n{np.packbits(bits).tobytes().hex()},pdq\n")
    return storage.from_path(path)


def test_forbidden_pictures_are_dropped_counted_and_seen_by_nobody(tmp_path, make_crawl, listed):
    forbidden = [{"url": f"http://x/noto/forbidden-{how}", "caption": SECRET} for how in ("as-it-is", "mirrored")]
    rows = [*forbidden, *corpus()[:60]]
    crawl = make_crawl(rows, picture=picture_of)
    asked = experiment(tmp_path, split={}, forbidden={"lists": [listed]})
    manifest = job.run(asked, {"crawl": crawl})
    assert manifest.dropped["forbidden"] == 2
    assert manifest.counts["unread/forbidden"] == 0
    assert manifest.counts["kept"] == 60

    dropped = pl.concat([pl.DataFrame(storage.read_table(uri)) for uri in manifest.part_uris("dropped/", ".parquet")])
    assert sorted(dropped.filter(pl.col("dropped_by") == "forbidden")["url"]) == sorted(row["url"] for row in forbidden)
    # Neither its pictures nor its captions are in a shard, on the report's page or in what `wukong show` prints.
    tars = b"".join(storage.read_bytes(uri) for uri in manifest.part_uris("train/", ".tar"))
    assert SECRET.encode() not in tars
    assert not [row for row in forbidden if row["url"].encode() in tars]
    assert SECRET not in json.dumps(_dropped(manifest), ensure_ascii=False)
    assert [row["reason"] for row in _dropped(manifest)][:1] == ["forbidden"]
    assert SECRET not in json.dumps(describe.describe(manifest.uri), ensure_ascii=False)

    # The crawl still has them: the list for a takedown names both, and nothing else.
    listed_for_takedown = OptOut.load(storage.join(manifest.uri, job.FORBIDDEN))
    assert listed_for_takedown.digests == frozenset(
        dropped.filter(pl.col("dropped_by") == "forbidden")["sha256"].to_list()
    )
    assert not listed_for_takedown.urls and not listed_for_takedown.domains


def test_without_a_list_nothing_of_the_filter_changes(tmp_path, make_crawl):
    crawl = make_crawl(corpus()[:60], picture=picture_of)
    plain = job.run(experiment(tmp_path, split={}), {"crawl": crawl})
    assert "forbidden" not in plain.dropped and "unread/forbidden" not in plain.counts
    assert not storage.exists(storage.join(plain.uri, job.FORBIDDEN))
    again = job.run(experiment(tmp_path, split={}, forbidden={"lists": []}), {"crawl": crawl})
    assert again.uri == plain.uri
