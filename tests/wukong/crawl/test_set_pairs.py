"""The pairs of a published set's train part: all of them, apart from what is measured, read from where the set lies."""

import base64
import io
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from wukong.config import documents
from wukong.crawl import own_files, set_pairs
from wukong.crawl.engines import published_set
from wukong.crawl.status import FetchError, Status
from wukong.errors import ConfigError
from wukong.evaluate import set_folders, sets
from wukong.evaluate.data_set import Counts, Retrieval
from wukong.store import storage

MOST = 1 << 20


def picture(number: int) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (9 + number, 9), (20 * number, 0, 0)).save(encoded, "PNG")
    return encoded.getvalue()


def muge(folder: Path, part: str, images: list[bytes], queries: list[tuple[str, list[int]]]) -> Counts:
    folder.mkdir(parents=True, exist_ok=True)
    table = b"".join(b"%d\t%b\n" % (100 + n, base64.b64encode(each)) for n, each in enumerate(images))
    (folder / f"MR_{part}_imgs.tsv").write_bytes(table)
    lines = [
        json.dumps({"query_id": n, "query_text": text, "item_ids": [100 + i for i in of]})
        for n, (text, of) in enumerate(queries)
    ]
    (folder / f"MR_{part}_queries.jsonl").write_text("\n".join(lines), "utf-8")
    return Counts(len(images), len(queries))


@pytest.fixture
def muge_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder, files = tmp_path / "muge", [picture(number) for number in range(7)]
    splits = {
        "train": muge(folder, "train", files[:5], [("红裙子", [0, 1, 2]), ("蓝帽子", [1]), ("黑鞋", [3, 4])]),
        "val": muge(folder, "valid", [files[3], *files[5:]], [("蓝帽子", [1, 2]), ("白袜", [0])]),
    }
    monkeypatch.setitem(sets.REGISTRY, "muge", replace(sets.of("muge"), splits=splits))
    return storage.from_path(folder)


def test_a_query_has_a_pair_for_each_of_its_pictures_but_for_what_is_measured(
    muge_at: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pairs, read, left_out = list(set_pairs.read(muge_at)), [], []
    for each in pairs:
        try:
            read.append((each.caption, bytes(own_files.read_picture(each.url, MOST))))
        except FetchError as error:
            assert error.status is Status.MEASURED
            left_out.append((each.caption, str(error)))
    assert read == [*(("红裙子", picture(number)) for number in (0, 1, 2)), ("黑鞋", picture(4))]
    why = "the {} is in a part of MUGE that is measured"
    assert left_out == [("蓝帽子", why.format("caption")), ("黑鞋", why.format("picture"))]
    assert len({each.url for each in pairs}) == len(pairs), "each pair has a key of its own"
    assert "1 pairs are left out because of their picture, and 1 because of their caption" in caplog.text
    (table,) = own_files.tables_of(set_pairs.read(muge_at))
    assert len(table) == len(pairs)


def test_a_damaged_part_of_a_table_is_a_corrupt_picture(muge_at: str) -> None:
    with pytest.raises(FetchError) as error:
        own_files.read_picture(own_files.part_of(f"{muge_at}/MR_train_imgs.tsv", 0, 6), MOST)  # begins in the id
    assert error.value.status is Status.CORRUPT
    with pytest.raises(FetchError) as error:
        own_files.read_picture(next(set_pairs.read(muge_at)).url, 10)
    assert error.value.status is Status.TOO_LARGE


def storage_functions() -> dict[str, Any]:
    return {name: getattr(storage, name) for name in ("sizes", "download", "open_input")}


def test_of_a_set_in_a_store_no_picture_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, downloaded = tmp_path / "coco-cn", []
    place = folder / "coco-cn-version1805v1.1"
    place.mkdir(parents=True)
    names = [f"COCO_train2014_{number:012d}" for number in range(4)]
    for number, name in enumerate(names):
        path = folder / "train2014" / f"{name}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture(number))
    (place / "imageid.human-written-caption.txt").write_text("".join(f"{name}#0\t第{name[-1]}张\n" for name in names))
    for part, own in {"train": names[:2], "val": names[2:3], "test": names[3:]}.items():
        (place / f"coco-cn_{part}.txt").write_text("\n".join(own))
    splits = {"train": Counts(2, 2), "val": Counts(1, 1), "test": Counts(1, 1)}
    monkeypatch.setitem(sets.REGISTRY, "coco-cn", replace(sets.of("coco-cn"), splits=splits))
    local, real = storage.from_path(tmp_path), storage_functions()

    def sizes(uri: str) -> dict[str, int]:
        there: dict[str, int] = real["sizes"](uri.replace("s3://b", local))
        return {each.replace(local, "s3://b"): size for each, size in there.items()}

    def download(uri: str, folder: Path, name: str) -> Path:
        downloaded.append(Path(name).name)
        return Path(real["download"](uri.replace("s3://b", local), folder, name))

    monkeypatch.setattr(storage, "sizes", sizes)
    monkeypatch.setattr(storage, "download", download)
    monkeypatch.setattr(
        storage, "open_input", lambda uri, *rest: real["open_input"](uri.replace("s3://b", local), *rest)
    )
    pairs = list(set_pairs.read("s3://b/coco-cn"))
    assert [(each.url, each.caption) for each in pairs] == [
        (f"s3://b/coco-cn/train2014/{name}.jpg", f"第{name[-1]}张") for name in names[:2]
    ]
    assert sorted(downloaded) == [
        *(f"coco-cn_{part}.txt" for part in ("test", "train", "val")),
        "imageid.human-written-caption.txt",
    ]


@pytest.mark.slow
def test_coco_cn_at_its_published_size(tmp_path: Path) -> None:
    """20,341 pictures and 22,218 captions. The files are opened by nobody but SHA-256."""
    folder, lines, number = tmp_path / "coco-cn", [], 0
    place = folder / "coco-cn-version1805v1.1"
    for each in (place, folder / "train2014"):
        each.mkdir(parents=True)
    for part, images, captions in (("train", 18_341, 20_065), ("val", 1_000, 1_100), ("test", 1_000, 1_053)):
        names = [f"COCO_train2014_{number + i:012d}" for i in range(images)]
        number += images
        for i, name in enumerate(names):
            # The first ten of each part are the same.
            (folder / "train2014" / f"{name}.jpg").write_bytes(b"%d" % i if i < 10 else name.encode())
        (place / f"coco-cn_{part}.txt").write_text("\n".join(names))
        lines += [f"{names[i % images]}#{i // images}\t{part}的第{i}句" for i in range(captions)]
    (place / "imageid.human-written-caption.txt").write_text("\n".join(lines), "utf-8")
    pairs = list(set_pairs.read(storage.from_path(folder)))
    measured = [each for each in pairs if "#measured " in each.url]
    assert len({each.url for each in pairs}) == 20_065 and len(measured) == 20, "ten pictures with two captions each"


def test_the_sets_are_those_with_a_train_part_of_captions() -> None:
    found = [name for name, each in sets.REGISTRY.items() if isinstance(each, Retrieval) and "train" in each.splits]
    assert sorted(found) == sorted(published_set.SETS) and {*found} <= {*set_folders.NAMES}
    for name in found:
        each = sets.of(name)
        assert isinstance(each, Retrieval) and {*each.apart} <= {*each.splits} - {"train"}, name
        assert each.split in each.apart or name == "aic-icc", "what the paper measures is apart from training"


def test_a_slash_at_the_end_of_the_folder_changes_nothing(muge_at: str) -> None:
    plain, with_slash = (
        documents.parse({"name": "x", "crawl": {"engine": "published_set", "endpoint": uri}}).crawl
        for uri in (muge_at, f"{muge_at}/")
    )
    for ask in (published_set.SOURCE.lists, published_set.SOURCE.count, published_set.SOURCE.content):
        assert ask is not None and ask(plain) == ask(with_slash)
    assert published_set.SOURCE.count(plain) == 3


@pytest.mark.parametrize("name", ["imagenet", "sun397", "coco"])
def test_a_set_without_a_train_part_of_captions_is_refused(name: str) -> None:
    crawl = {"engine": "published_set", "endpoint": f"s3://b/sets/{name}"}
    with pytest.raises(ConfigError, match=rf"crawl\.endpoint: .*{name}.*no set with a train part.*coco-cn"):
        documents.parse({"name": "x", "crawl": crawl})
