"""The filter job with ``filter.decontaminate``, over pictures that were planted."""

import hashlib
import io
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from crawled import experiment
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from ray_jobs import filter as job
from ray_jobs import fingerprints as fingerprints_job
from ray_jobs import validate
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.crawl.url import key_of
from wukong.curate import hash_files, pdq
from wukong.data.schema import OVERLAPS
from wukong.errors import ConfigError, DataError
from wukong.evaluate import fingerprints, sets
from wukong.evaluate.data_set import RetrievalData
from wukong.evaluate.published import Caption
from wukong.publish import takedown, takedown_plan
from wukong.stages import places, preflight
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage, load

pytestmark = pytest.mark.usefixtures("local_ray")

BY_HASHES = {"min_cosine": None}
HOLDOUTS = [{"name": "held", "source": "*/held/*", "captions": "any"}]


def drawn(seed: int) -> Image.Image:
    """A picture of many shapes, unlike those of other seeds."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (256, 256), tuple(random.integers(256, size=3)))
    draw = ImageDraw.Draw(image)
    for _ in range(40):
        left, upper, width, height = (int(value) for value in random.integers(8, 120, size=4) * [2, 2, 1, 1])
        shape = draw.ellipse if random.integers(2) else draw.rectangle
        shape(
            (left, upper, left + width, upper + height),
            fill=tuple(int(value) for value in random.integers(256, size=3)),
        )
    return image.filter(ImageFilter.GaussianBlur(2))


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def rows_of(pictures: Mapping[str, Image.Image]) -> list[dict[str, Any]]:
    """A crawl's rows of pictures by their place; each caption occurs once."""
    captions = [
        f"{colour}色的{animal}在{place}" for colour in "红橙黄绿青" for animal in "猫狗鸟鱼马" for place in "山水"
    ]
    rows = []
    for (place, image), caption in zip(pictures.items(), captions, strict=False):
        data = jpeg(image)
        rows.append(
            {
                "url": f"http://x/{place}",
                "caption": caption,
                "picture": data,
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        )
    return rows


def crawl_of(make_crawl: Any, pictures: Mapping[str, Image.Image], **changes: Any) -> Manifest:
    rows = rows_of(pictures)
    rows[-1] |= changes.pop("last", {})
    data = {key_of(row["url"]): row.pop("picture") for row in rows}
    return make_crawl(rows, picture=lambda row: data[row["key"]], **changes)


def settings(tmp_path: Path, decontaminate: Mapping[str, Any] | None, **filtered: Any) -> Experiment:
    split = {"held_out_captions": 0.0, "holdouts": HOLDOUTS}
    return experiment(tmp_path, split=split, decontaminate=decontaminate, **filtered)


def fingerprints_at(folder: Path, pictures: Mapping[str, Image.Image]) -> str:
    folder.mkdir()
    for name, image in pictures.items():
        image.save(folder / f"{name}.png")
    uri = storage.from_path(folder.parent / f"{folder.name}.parquet")
    hash_files.write(uri, fingerprints.of_folder(folder))
    return uri


def table(manifest: Manifest, prefix: str) -> pl.DataFrame:
    return pl.concat(pl.DataFrame(storage.read_table(uri)) for uri in manifest.part_uris(prefix, ".parquet"))


def test_pictures_of_a_set_known_by_its_hashes_are_dropped_and_named(tmp_path, make_crawl):
    tests = {f"test{n}": drawn(n) for n in range(4)}
    planted = {
        "a/small": tests["test0"].resize((128, 128)),
        "a/mirrored": ImageOps.mirror(tests["test1"]),
        "a/other": drawn(100),
        "a/another": drawn(101),
        "held/equal": tests["test2"],
    }
    uri = fingerprints_at(tmp_path / "known", tests)
    crawl = crawl_of(make_crawl, planted, part_size=2)
    manifest = job.run(settings(tmp_path, {"hashes": [uri], **BY_HASHES}), {"crawl": crawl})

    found = table(manifest, OVERLAPS).to_dicts()
    shown = {(row["picture"], row["key"]) for row in found}
    assert shown == {("test0.png", key_of("http://x/a/small")), ("test1.png", key_of("http://x/a/mirrored"))}
    assert {(row["set"], row["level"], row["action"]) for row in found} == {("known", "hash", "drop")}
    assert all(0 <= row["distance"] <= 31 for row in found)
    assert manifest.dropped["overlap"] == 2
    assert manifest.counts["overlap/known"] == 2
    assert manifest.counts["train"] == 2 and manifest.counts["held"] == 1, "a hold-out is not trained on"
    dropped = table(manifest, "dropped/")
    assert dict(zip(dropped["key"], dropped["overlap"], strict=True)) == {
        key: f"known/{picture}" for picture, key in shown
    }


def test_marked_pairs_are_trained_on_and_keep_their_mark(tmp_path, make_crawl):
    uri = fingerprints_at(tmp_path / "known", {"test": drawn(0)})
    crawl = crawl_of(make_crawl, {"a/same": drawn(0), "a/other": drawn(1)})
    manifest = job.run(settings(tmp_path, {"hashes": [uri], "action": "mark", **BY_HASHES}), {"crawl": crawl})
    assert manifest.dropped["overlap"] == 0 and manifest.counts["overlap/known"] == 1
    marks = dict(table(manifest, "train/").select("url", "overlap").iter_rows())
    assert marks == {"http://x/a/same": "known/test.png", "http://x/a/other": None}
    assert table(manifest, OVERLAPS)["action"].to_list() == ["mark"]


def test_the_gate_passes_pairs_with_the_columns_of_the_rules_that_are_on(tmp_path, make_crawl):
    uri = fingerprints_at(tmp_path / "known", {"test": drawn(0)})
    asked = settings(tmp_path, {"hashes": [uri], **BY_HASHES})
    asked = asked.model_copy(update={"validation": asked.validation.model_copy(update={"min_pairs": 2})})
    crawl = crawl_of(make_crawl, {f"a/{n}": drawn(n) for n in range(3)} | {"held/one": drawn(5)})
    assert validate.run(asked, {"filter": job.run(asked, {"crawl": crawl})}).counts["pairs"] == 3


def test_what_is_near_a_hold_out_is_dropped_though_its_file_is_another(tmp_path, make_crawl):
    pictures = {"held/one": drawn(0), "a/smaller": drawn(0).resize((200, 200)), "a/other": drawn(1), "a/cat": drawn(2)}
    crawl = crawl_of(make_crawl, pictures, part_size=1, last={"caption": "a cat"})  # of a part nothing is left
    plain = job.run(settings(tmp_path, None), {"crawl": crawl})
    assert plain.counts["train"] == 2, "equal files alone are kept away"
    manifest = job.run(settings(tmp_path, {"sets": ["held"], **BY_HASHES}), {"crawl": crawl})
    assert manifest.counts["overlap/held"] == manifest.dropped["overlap"] == 1
    (row,) = table(manifest, OVERLAPS).to_dicts()
    assert (row["picture"], row["key"]) == (key_of("http://x/held/one"), key_of("http://x/a/smaller"))


def test_captions_of_a_test_are_dropped_in_any_form_and_counted_apart(tmp_path, make_crawl):
    pictures = {"a/one": drawn(1), "a/two": drawn(2), "a/three": drawn(3)}
    caption = rows_of(pictures)[0]["caption"]
    made = fingerprints.of_folder(_folder(tmp_path / "known", drawn(9)))
    full_width = "".join(chr(ord(sign) + 0xFEE0) if "!" <= sign <= "~" else sign for sign in f" {caption}。")
    known = hash_files.caption_hashes(pl.Series([caption, full_width]))
    uri = storage.from_path(tmp_path / "known.parquet")
    hash_files.write(uri, made.__class__(**{**vars(made), "captions": known}))
    crawl = crawl_of(make_crawl, pictures)
    manifest = job.run(settings(tmp_path, {"hashes": [uri], **BY_HASHES}), {"crawl": crawl})
    assert manifest.counts["overlap_captions/known"] == manifest.dropped["overlap"] == 1
    assert manifest.counts["overlap/known"] == 0 and not len(table(manifest, OVERLAPS))
    assert table(manifest, "dropped/").select("url", "overlap_caption").rows() == [("http://x/a/one", "known")]
    kept = job.run(settings(tmp_path, {"hashes": [uri], "captions": False, **BY_HASHES}), {"crawl": crawl})
    assert kept.counts["train"] == 3


def _folder(folder: Path, image: Image.Image) -> Path:
    folder.mkdir()
    image.save(folder / "picture.png")
    return folder


def test_of_a_pairs_captions_only_the_tests_is_left_out(tmp_path, make_crawl):
    made = fingerprints.of_folder(_folder(tmp_path / "known", drawn(9)))
    uri = storage.from_path(tmp_path / "known.parquet")
    hash_files.write(
        uri, made.__class__(**{**vars(made), "captions": hash_files.caption_hashes(pl.Series(["红色的猫"]))})
    )
    captions = [{"caption": text, "count": 1, "query": None} for text in ("红色的猫", "一只红猫在山上")]
    rows = [
        {"url": "http://x/a", "caption": "红色的猫", "captions": captions},
        {"url": "http://x/b", "caption": "蓝色的鱼"},
    ]
    crawl = make_crawl(rows, picture=lambda _: jpeg(drawn(1)))
    manifest = job.run(settings(tmp_path, {"hashes": [uri], **BY_HASHES}), {"crawl": crawl})
    assert manifest.dropped["overlap"] == 0 and manifest.counts["overlap_captions/known"] == 1
    assert dict(table(manifest, "train/").select("url", "caption").iter_rows())["http://x/a"] == "一只红猫在山上"


def test_a_run_that_is_done_again_gives_the_same_bytes_and_other_hashes_another_stage(tmp_path, make_crawl):
    crawl = crawl_of(make_crawl, {f"a/{n}": drawn(n) for n in range(6)}, part_size=2)
    uri = fingerprints_at(tmp_path / "known", {"test": drawn(0)})
    asked = {"hashes": [uri], "sets": ["all"], **BY_HASHES}
    first, second = (job.run(settings(tmp_path / name, asked), {"crawl": crawl}) for name in ("first", "second"))
    assert first.parts == second.parts and first.counts == second.counts
    hash_files.write(uri, fingerprints.of_folder(_folder(tmp_path / "other", drawn(1))))
    assert job.run(settings(tmp_path / "first", asked), {"crawl": crawl}).uri != first.uri


def test_without_the_setting_nothing_of_it_is_stored(tmp_path, make_crawl):
    crawl = crawl_of(make_crawl, {f"a/{n}": drawn(n) for n in range(3)})
    manifest = job.run(settings(tmp_path, None), {"crawl": crawl})
    assert not {"fingerprints", "digests"} & manifest.config.keys() and manifest.config["decontaminate"] is None
    assert "overlap" not in manifest.config["rule_versions"]
    assert not {"overlap", "overlap_caption"} & {*table(manifest, "train/").columns}
    assert not manifest.part_uris(OVERLAPS)


def test_fingerprints_of_another_kind_are_refused_before_any_task(tmp_path, make_crawl):
    storage.write_table(storage.from_path(tmp_path / "wrong.parquet"), pl.DataFrame({"hash": ["0"]}).to_arrow())
    asked = settings(tmp_path, {"hashes": [storage.from_path(tmp_path / "wrong.parquet")], **BY_HASHES})
    with pytest.raises(ConfigError, match="wukong hashes SET"):
        job.run(asked, {"crawl": crawl_of(make_crawl, {"a": drawn(0)})})


def test_what_is_not_there_is_named_before_the_first_stage(tmp_path):
    vectors = {"uri": storage.from_path(tmp_path / "copies.onnx"), "sha256": "0" * 64, "licence": "MIT"}
    unknown = {"sets": ["imagenet"], "hashes": [storage.from_path(tmp_path / "none.parquet")]}
    asked = documents.parse(
        {
            "name": "test",
            "crawl": {"queries": "file:///none", "endpoint": "http://127.0.0.1:1"},
            "filter": {"split": {"held_out_captions": 0.0}, "decontaminate": unknown, "vector_model": vectors},
            "evaluate": {"sets": storage.from_path(tmp_path / "sets")},
        }
    )
    with pytest.raises(ConfigError) as refused:
        preflight.check_world(asked, ["filter"])
    lines = str(refused.value).splitlines()
    assert any("filter.decontaminate.sets: " in line and "has nothing in imagenet/" in line for line in lines)
    assert any("none.parquet does not exist" in line and "`wukong hashes SET`" in line for line in lines)
    assert any("filter.vector_model.uri: " in line and "copies.onnx" in line for line in lines)
    (tmp_path / "copies.onnx").write_bytes(b"other weights")
    uri = fingerprints_at(tmp_path / "known", {"test": drawn(0)})
    asked = settings(tmp_path, {"hashes": [uri]}, vector_model=vectors)
    with pytest.raises(ConfigError, match=r"copies\.onnx has the SHA-256 .*, and 0{64} is expected"):
        preflight.check_lists(asked)


def test_names_of_no_set_are_refused_with_the_names_that_there_are():
    document = {
        "name": "test",
        "crawl": {"queries": "file:///none", "endpoint": "http://127.0.0.1:1"},
        "filter": {"split": {"held_out_captions": 0.0, "holdouts": HOLDOUTS}, "decontaminate": {"sets": ["imagenett"]}},
    }
    asked = documents.parse(document | {"evaluate": {"sets": "file:///sets"}})
    with pytest.raises(ConfigError, match=r"there is no evaluation set 'imagenett'; there are held.*, imagenet, "):
        preflight.check_stages(asked, ["filter"])
    document["filter"]["decontaminate"]["sets"] = ["imagenet"]
    with pytest.raises(ConfigError, match=r"evaluate\.sets is empty, and filter\.decontaminate\.sets names imagenet"):
        documents.parse(document)
    document["filter"]["decontaminate"]["sets"] = []
    with pytest.raises(ConfigError, match="names neither sets nor hashes"):
        documents.parse(document)


@pytest.mark.slow
def test_cut_pictures_of_a_hold_out_are_found_by_vectors(tmp_path, make_crawl):
    beside = Image.new("RGB", (512, 256))
    beside.paste(drawn(7), (0, 0))
    beside.paste(drawn(1), (256, 0))
    pictures = {"held/0": drawn(0), "held/1": drawn(1), "a/cut": drawn(0).crop((20, 30, 240, 250)), "a/beside": beside}
    pictures |= {f"a/{seed}": drawn(seed) for seed in range(10, 16)}
    manifest = job.run(settings(tmp_path, {"sets": ["all"]}), {"crawl": crawl_of(make_crawl, pictures, part_size=4)})
    found = table(manifest, OVERLAPS)
    held = {key_of(f"http://x/held/{n}"): n for n in range(2)}
    named = {key_of(f"http://x/a/{name}"): name for name in ("cut", "beside")}
    shown = {(held[row["picture"]], named[row["key"]], row["level"]) for row in found.to_dicts()}
    assert shown == {(0, "cut", "vector"), (1, "beside", "vector")}
    assert manifest.dropped["overlap"] == 2 and manifest.counts["train"] == 6


@pytest.mark.slow
def test_a_published_sets_fingerprints_are_made_once_and_anew_for_other_files(tmp_path, monkeypatch):
    folder = tmp_path / "sets" / "coco-cn"
    folder.mkdir(parents=True)
    (folder / "captions.txt").write_text("一只猫")

    class Images:
        def image(self, number: int) -> Image.Image:
            if number == 1:
                raise DataError("picture 1 is damaged")
            return drawn(number)

    data = RetrievalData("coco-cn", "test", ["a", "b", "c"], [Caption("一只猫", (0,))], False, Images(), "COCO-CN")  # type: ignore[arg-type]
    read = []
    monkeypatch.setattr(
        sets, "of", lambda name: SimpleNamespace(read=lambda at, _split: read.append((name, at)) or data)
    )
    monkeypatch.setattr(fingerprints_job, "run_all", lambda task, work, _: [task(*each) for each in work])
    asked = documents.parse(
        {
            "name": "test",
            "storage": storage.from_path(tmp_path / "store"),
            "crawl": {"queries": "file:///none", "endpoint": "http://127.0.0.1:1"},
            "filter": {"split": {"held_out_captions": 0.0}, "decontaminate": {"sets": ["all"]}},
            "evaluate": {"sets": storage.from_path(tmp_path / "sets")},
        }
    )
    (made,) = fingerprints_job.made(asked)
    assert read == [("coco-cn", folder)] and made.counts == {"unread": 1}
    assert fingerprints_job.made(asked) == [made] and len(read) == 1
    known = fingerprints_job.read(made)
    assert (known.name, list(known.pictures), len(known.thumbnails)) == ("coco-cn", ["a", "c"], 2)
    assert known.captions.tolist() == hash_files.caption_hashes(pl.Series(["一只猫"])).tolist()
    lengths = np.linalg.norm(known.vectors.astype(np.float32), axis=1)
    assert known.vectors.dtype == np.float16 and np.allclose(lengths, 1, atol=1e-3)
    mirrored = pdq.hashes([ImageOps.mirror(drawn(0))])[0]
    assert np.array_equal(known.forms[0, 1], mirrored[0])
    before = places.filtering(asked, manifest_of_nothing(tmp_path)).key
    (folder / "captions.txt").write_text("一只狗")
    (again,) = fingerprints_job.made(asked)
    assert again.uri != made.uri and len(read) == 2
    assert places.filtering(asked, manifest_of_nothing(tmp_path)).key != before, (
        "another set makes another filter stage"
    )


def manifest_of_nothing(folder: Path) -> Manifest:
    return Stage(storage.from_path(folder), "crawl", {}).commit([])


def test_a_takedown_takes_a_pair_out_of_the_table_of_overlaps_too(tmp_path, make_crawl):
    uri = fingerprints_at(tmp_path / "known", {"test0": drawn(0), "test1": drawn(1)})
    asked = settings(tmp_path, {"hashes": [uri], "action": "mark", **BY_HASHES})
    crawl = crawl_of(make_crawl, {"a/0": drawn(0), "a/1": drawn(1), "a/2": drawn(2)}, root=asked.root)
    manifest = job.run(asked, {"crawl": crawl})
    assert manifest.counts["overlap/known"] == 2
    listed = tmp_path / "list.txt"
    listed.write_text("http://x/a/0\n")
    planned = takedown_plan.plan(asked.root, storage.from_path(listed), "case 1", datetime(2026, 1, 1, tzinfo=UTC))
    takedown.carry_out(asked.root, planned)
    left = load(manifest.uri)
    assert table(left, OVERLAPS)["key"].to_list() == [key_of("http://x/a/1")]
    assert left.counts["overlap/known"] == 1 and left.counts["train"] == 2
    assert {part.path: part.rows for part in left.parts}[OVERLAPS] == 1
