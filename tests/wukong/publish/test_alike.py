"""Takedown by example: what is near a picture is found wherever it lies, and nothing of what is confirmed is left."""

import hashlib
import io
import json
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pdqhash
import pyarrow as pa
import pytest
import shown_pictures as shown
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from trace_search import found
from typer.testing import CliRunner, Result

from cli import alike as command
from cli import takedown as takedown_command
from cli.main import app
from wukong.crawl import attempt
from wukong.crawl.optout import OptOut
from wukong.curate import pdq
from wukong.errors import ConfigError, DataError
from wukong.publish import alike, parallel, superseded
from wukong.publish.trained_models import TrainedModel
from wukong.store import manifest, storage
from wukong.store.manifest import Stage
from wukong.tracking import availability, mlflow_rest

Call = Callable[..., Result]
PLANTED = set(shown.COPIES)


@pytest.fixture
def root(tmp_path: Path) -> str:
    return shown.experiment(tmp_path)[0]


@pytest.fixture
def sent(tmp_path: Path) -> Path:
    """What a person sends: the picture as it lies in the crawl."""
    path = tmp_path / "sent.jpg"
    path.write_bytes(shown.COPIES["equal"](shown.photo(shown.SHOWN)))
    return path


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.setenv("WUKONG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "e.json").write_text(
        json.dumps(
            {
                "name": "test",
                "storage": storage.from_path(tmp_path / "store"),
                "crawl": {"queries": "file:///q", "endpoint": "http://127.0.0.1:1"},
            }
        )
    )

    def called(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["takedown", "--config", str(tmp_path / "e.json"), *arguments])

    return called


def md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def near(root: str, picture: Path, distance: int = command.DISTANCE) -> dict[str, alike.Match]:
    """What is near, by the name of the pair."""
    outputs, examples = alike.outputs_at(root), alike.read_examples([storage.from_path(picture)])
    hits, unread = alike.by_pictures(root, outputs, examples, distance)
    assert not unread
    names = {pair.key: pair.name for pair in shown.pairs()}
    return {names[match.hit.key]: match for match in alike.described(outputs, hits)}


def traces(names: set[str]) -> dict[str, str]:
    named = shown.of_names(sorted(names)).values()
    return {f"{what} of {p.name}": word for p in named for what, word in
            (("key", p.key), ("url", p.url), ("digest", p.sha256), ("caption", p.caption))}  # fmt: skip


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def check_nothing_is_left(folder: Path, names: set[str]) -> None:
    files = files_of(folder)
    outside = {name: data for name, data in files.items() if "/takedowns/" not in name}
    assert not found(outside.items(), traces(names))
    pictures = [pair.data for pair in shown.of_names(sorted(names)).values()]
    assert not [name for name, data in outside.items() if any(picture in data for picture in pictures)]
    stayed = traces({pair.name for pair in shown.pairs()} - names)
    there = {what for _, what in found(outside.items(), stayed)}
    assert there == set(stayed)


def test_near_copies_are_listed_with_where_they_lie_and_unlike_pictures_are_not(root: str, sent: Path) -> None:
    matches = near(root, sent)
    assert set(matches) == PLANTED
    assert [match.hit.level for match in matches.values()] == ["equal", "hash", "hash", "hash", "hash"]
    forms, _ = pdqhash.compute_dihedral(np.asarray(Image.open(sent).convert("RGB")))
    for name, match in matches.items():
        pair = shown.of_names([name])[name]
        bits, _ = pdqhash.compute(np.asarray(Image.open(io.BytesIO(pair.data)).convert("RGB")))
        others = min(int(np.count_nonzero(bits != form)) for form in forms)
        assert match.hit.distance == pytest.approx(others, abs=6), name
        assert (match.url, match.caption, match.sha256) == (pair.url, pair.caption, pair.sha256)
        split = {"half": "filter dropped/00000.parquet", "mirror": "filter held/00000.parquet"}
        assert split.get(name, "filter train/00000.parquet") in match.where
        assert ("release pairs-00000.csv" in match.where) == (name not in split)
        assert sum(place.startswith("crawl parts/") for place in match.where) == 1
    assert command.DISTANCE == pdq.DISTANCE
    for distance in (0, 2):
        nearer = {name for name, match in matches.items() if match.hit.distance <= distance}
        assert set(near(root, sent, distance)) == nearer


def test_a_copy_that_is_not_in_the_crawl_finds_the_same(root: str, tmp_path: Path) -> None:
    other = tmp_path / "other.webp"
    shown.photo(shown.SHOWN).resize((250, 187)).save(other, quality=60)
    matches = near(root, other)
    assert set(matches) == PLANTED
    assert {match.hit.level for match in matches.values()} == {"hash"}


def test_hashes_that_the_filter_stored_are_used_and_their_tars_not_read(root: str, sent: Path) -> None:
    (crawl,) = (stage for stage in alike.outputs_at(root) if stage.stage == "crawl")
    look, some = Stage(root, "look", {}, [crawl]), shown.pairs()
    fields = [("key", pa.string()), ("pdq_forms", pa.binary()), ("pdq_quality", pa.uint8()), ("md5", pa.binary())]
    for number, start in enumerate(range(0, len(some), shown.A_PART)):
        part = some[start : start + shown.A_PART]
        forms = [pdqhash.compute_dihedral(np.asarray(Image.open(io.BytesIO(p.data)).convert("RGB")))[0] for p in part]
        hashed = [b"".join(np.packbits(form).tobytes() for form in each) for each in forms]
        quality = [10 if p.name == "turned" else 100 for p in part]
        rows = [[p.key for p in part], hashed, quality, [md5(p.data) for p in part]]
        storage.write_table(look.path(f"parts/{number:05d}.parquet"), pa.table(rows, schema=pa.schema(fields)))
        storage.write_bytes(f"{crawl.uri}/parts/{number:05d}.tar", b"not read")
    look.commit([look.describe(f"parts/{number:05d}.parquet") for number in range(-(-len(some) // shown.A_PART))])
    assert set(near(root, sent)) == PLANTED - {"turned"}, "a hash of a poor picture says nothing"


@pytest.mark.parametrize("kind", ["pdq", "md5"])
def test_pictures_of_a_list_of_hashes_are_found(root: str, tmp_path: Path, call: Call, kind: str) -> None:
    (half,) = shown.of_names(["half"]).values()
    bits, _ = pdqhash.compute(np.asarray(Image.open(io.BytesIO(half.data)).convert("RGB")))
    listed = tmp_path / "forbidden.txt"
    listed.write_text({"pdq": np.packbits(bits).tobytes().hex(), "md5": md5(half.data).hex()}[kind] + "\n")
    looked = call("--like-hashes", str(listed))
    gone = PLANTED if kind == "pdq" else {"half"}
    assert {p.name for p in shown.pairs() if p.key in looked.stdout} == gone
    near_list = tmp_path / "near.txt"
    near_list.write_text(looked.stdout)
    done = call(str(near_list), "--reason", "case 1")
    assert done.exit_code == 0, done.output
    check_nothing_is_left(tmp_path / "store", gone)


def test_crawls_that_failed_or_were_killed_are_searched(tmp_path: Path, sent: Path) -> None:
    root, some = storage.from_path(tmp_path / "killed"), shown.pairs()
    stage = shown.crawl(root, {}, some, finish=False)
    assert set(near(root, sent)) == PLANTED
    # The task of a part was killed between its tar and its table.
    part = next(n for n, p in enumerate(some) if p.name == "mirror") // shown.A_PART
    storage.delete(stage.path(f"parts/{part:05d}.parquet"))
    matches = near(root, sent)
    assert set(matches) == PLANTED
    assert matches["mirror"].url == "http://a.site.test/mirror.jpg" and not matches["mirror"].sha256
    listed = OptOut.parse(alike.as_list([matches["mirror"], matches["half"]]).encode(), "")
    assert listed == OptOut(urls=frozenset([matches["mirror"].url]), digests=frozenset([matches["half"].sha256]))


def test_a_crawl_that_failed_is_searched_as_long_as_it_has_its_files(root: str, sent: Path) -> None:
    (crawl,) = (stage for stage in alike.outputs_at(root) if stage.stage == "crawl")
    storage.delete(f"{root}/filter")
    storage.delete(f"{crawl.uri}/manifest.json")
    manifest.save(crawl, f"{crawl.uri}/{attempt.FAILED}")
    assert set(near(root, sent)) == PLANTED
    for folder in ("parts", "plan", "search"):
        storage.delete(f"{crawl.uri}/{folder}")
    assert near(root, sent) == {}


def test_shards_without_their_crawl_are_searched(root: str, sent: Path) -> None:
    storage.delete(f"{root}/crawl")
    assert set(near(root, sent)) == PLANTED - {"half"}, "of dropped pairs only the crawl has the pictures"


def test_in_processes_it_finds_the_same(root: str, sent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_cores", lambda: 2)
    monkeypatch.setattr(alike, "_MANY_PICTURES", 1)
    assert set(near(root, sent)) == PLANTED


def test_what_is_left_in_the_list_is_taken_out_of_everything_and_models_are_named(
    root: str, sent: Path, call: Call, tmp_path: Path
) -> None:
    filtered = next(stage for stage in alike.outputs_at(root) if stage.stage == "filter")
    indexes = storage.from_path(tmp_path / "home" / "indexes")
    stale, other = Stage(indexes, "index", {"of": "it"}), Stage(indexes, "index", {"of": "other pictures"})
    for index, uri in (stale, filtered.uri), (other, "file:///elsewhere"):
        storage.write_json(index.path(superseded.COLLECTION), {"uri": uri, "digest": filtered.digest})
        index.commit([index.describe(superseded.COLLECTION)])
    features = Stage(root, "features", {}, [filtered])
    storage.write_bytes(features.path("train/00000.view00.safetensors"), b"of pictures")
    features.commit([features.describe("train/00000.view00.safetensors")])
    before = files_of(tmp_path / "store")
    looked = call("--like", str(sent), "--cosine", "1")
    assert looked.exit_code == 0 and files_of(tmp_path / "store") == before, looked.output
    turned = shown.of_names(["turned"])["turned"].sha256
    kept = [line for line in looked.stdout.splitlines() if line != turned]
    assert len(kept) == len(looked.stdout.splitlines()) - 1
    near_list = tmp_path / "near.txt"
    near_list.write_text("\n".join(kept))
    gone = PLANTED - {"turned"}
    done = call(str(near_list), "--reason", "case 1")
    assert done.exit_code == 0, done.output
    check_nothing_is_left(tmp_path / "store", gone)
    assert not storage.list_files(features.uri)
    assert not storage.list_files(stale.uri) and other.finished()
    _, models = shown.experiment(tmp_path / "again")
    (record,) = (storage.read_json(uri) for uri in storage.list_files(f"{root}/takedowns", ".json"))
    named = {each["uri"].rsplit("/", 2)[-1]: each for each in record["models"]}
    assert {key: each["pairs"] for key, each in named.items()} == {
        models["pretrain"].uri.rsplit("/", 1)[-1]: 2,  # of four one was dropped, and one held out
        models["mirrored"].uri.rsplit("/", 1)[-1]: 2,
        models["lost"].uri.rsplit("/", 1)[-1]: None,
    }
    for each in named.values():
        assert manifest.load(each["uri"]).digest == each["digest"]
    assert "A model was trained on 2 of them" in done.output and "wukong rollback" in done.output
    released = storage.list_files(f"{root}/release", f"takedowns/{record['id']}.json")
    assert len(released) == 1 and "models" not in storage.read_json(released[0])
    again = call("--like", str(sent), "--cosine", "1").stdout
    assert {pair.name for pair in shown.pairs() if pair.key in again} == {"turned"}


def test_registered_versions_of_a_model_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str, number: int, uri: str) -> dict[str, Any]:
        tags = [{"key": "wukong.model", "value": uri}] if uri else []
        return {"name": name, "version": number, "tags": [*tags, {"key": "other", "value": "s3://b/x"}]}

    known = [version("demo", 1, "s3://b/x"), version("demo", 2, "s3://b/y"), version("best", 7, "s3://b/x")]
    server = SimpleNamespace(registered=lambda _: [*known, version("theirs", 1, "")])
    monkeypatch.setattr(mlflow_rest, "Server", lambda: server)
    monkeypatch.setattr(availability, "answers", lambda _: True)
    models = [TrainedModel(uri=f"s3://b/{name}", digest="0", pairs=1) for name in "xz"]
    named = [model.registered for model in takedown_command._registered(models)]
    assert named == [("models:/demo/1", "models:/best/7"), ()]


def bomb(side: int) -> bytes:
    """A PNG whose header says that it is huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"no picture at all, but text", "no picture of a known type"),
        (bomb(60_000), "too much to decode"),
        (shown.jpeg(shown.photo(1))[:3000], "cannot be used"),
        (b"\xff\xd8\xff" + bytes(33 * 2**20), "more than 32 MiB"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_picture_is_refused(root: str, tmp_path: Path, call: Call, content: bytes | None, why: str) -> None:
    path = tmp_path / "given.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=why):
        alike.read_examples([storage.from_path(path)])
    assert call("--like", str(path), "--dry-run").exit_code != 0


@given(st.text(), st.text())
def test_no_caption_and_no_url_is_an_entry_of_its_own(caption: str, url: str) -> None:
    match = alike.Match(alike.Hit("0" * 20, "vector", 0.1, "x"), url, caption, "0" * 64, (f"crawl {url}",))
    assert OptOut.parse(alike.as_list([match]).encode(), "") == OptOut()


def test_a_picture_of_one_colour_is_found_by_its_file_alone(root: str, tmp_path: Path) -> None:
    path = tmp_path / "white.png"
    Image.new("RGB", (300, 300), "white").save(path)
    (example,) = alike.read_examples([storage.from_path(path)])
    assert len(example.hashes) == 0
    assert near(root, path) == {}


def test_a_place_without_pictures_is_refused(root: str, sent: Path, call: Call, tmp_path: Path) -> None:
    for place in (storage.from_path(tmp_path / "nothing"), storage.list_files(f"{root}/release")[0].rsplit("/", 1)[0]):
        with pytest.raises(DataError, match="has no pictures to compare with"):
            alike.outputs_at(place)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--dry-run"], "give a LIST, or --like"),
        (["list.txt", "--like", "x.jpg", "--dry-run"], "one of them"),
        (["list.txt"], "say why"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    root: str, call: Call, tmp_path: Path, arguments: list[str], why: str
) -> None:
    before = files_of(tmp_path / "store")
    done = call(*arguments)
    assert done.exit_code != 0 and re.search(why, f"{done.output} {done.exception}")
    assert files_of(tmp_path / "store") == before
