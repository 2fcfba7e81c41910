"""Sets in a real object store: each object is asked for once, side by side, and few bytes are on the disk at a time.

What is read from the tables is compared with what the set's reader reads from the same files in a folder.
"""

import base64
import io
import json
import pickle
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from counting_proxy import CountingProxy, counted_store, peak_of_temporary_files, send
from PIL import Image

from wukong.crawl import set_pairs
from wukong.errors import DataError
from wukong.evaluate import packed, sets
from wukong.evaluate.data_set import Counts, Data
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage

pytestmark = pytest.mark.slow
IMAGES = 520
BYTES = 63_000
"""Of a picture, at least."""
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CountingProxy]:
    with counted_store(tmp_path_factory.mktemp("store") / "weed") as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


@cache
def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (140, 150, 4 if number % 50 == 0 else 3), np.uint8)
    made = io.BytesIO()
    Image.fromarray(pixels).save(made, "PNG", compress_level=0)
    return made.getvalue()


def files(folder: Path) -> None:
    """COCO-CN, whose captions and test list are files beside the pictures."""
    names = [f"COCO_val2014_{number:012d}" for number in range(IMAGES)]
    for number, name in enumerate(names):
        (folder / "val2014").mkdir(parents=True, exist_ok=True)
        (folder / "val2014" / f"{name}.jpg").write_bytes(picture(number))
    (folder / "coco-cn_test.txt").write_text("\n".join(names))
    captions = "".join(f"{name}#zhm#0\t第{number}张\n" for number, name in enumerate(names))
    (folder / "imageid.human-written-caption.txt").write_text(captions, "utf-8")
    (folder / "images.zip").write_bytes(bytes(1 << 20))


def tars(folder: Path) -> None:
    """CLIP_benchmark's form; the images of a class that the set has not are left out."""
    (folder / "test").mkdir(parents=True)
    for number in range(2):
        with tarfile.open(folder / "test" / f"{number}.tar", "w") as tar:
            for i in range(number, IMAGES, 2):
                for suffix, data in (("png", picture(i)), ("cls", str(i % 10).encode())):
                    entry = tarfile.TarInfo(f"s{i:06d}.{suffix}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
    (folder / "test" / "nshards.txt").write_text("2")


def table(folder: Path, split: str = "valid", first: int = 0, images: int = IMAGES) -> None:
    """MUGE, whose pictures are lines of a table."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"MR_{split}_imgs.tsv").open("wb") as file:
        for number in range(first, first + images):
            file.write(b"%d\t%s\n" % (number, base64.urlsafe_b64encode(picture(number))))
    rows = [
        {"query_id": n, "query_text": f"第{n}个", "item_ids": [n, first + (n + 7) % images]}
        for n in range(first, first + images)
    ]
    (folder / f"MR_{split}_queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def cuts(folder: Path) -> None:
    """BoxClass-CN: parts of pictures, those of one picture far from each other."""
    (folder / "images").mkdir(parents=True)
    for number in range(40):
        (folder / "images" / f"{number}.jpg").write_bytes(picture(number))
    document = {
        "images": [{"id": number, "file_name": f"{number}.jpg"} for number in range(40)],
        "categories": [{"id": number + 1, "name": f"第{number}类"} for number in range(566)],
        "annotations": [
            {"image_id": n % 40, "category_id": n % 566 + 1, "bbox": [n % 90, n % 80, 60.0, 70.5]}
            for n in range(IMAGES)
        ],
    }
    (folder / "valid_category_data_total_zh.json").write_text(json.dumps(document), "utf-8")


def stamps(folder: Path) -> None:
    """Tux Paint's stamps, which their set lays on white."""
    for number, (category, _, _) in enumerate(sets.of("tuxpaint").names * 10):  # type: ignore[union-attr, operator]
        (folder / "stamps" / category).mkdir(parents=True, exist_ok=True)
        (folder / "stamps" / category / f"{number}.png").write_bytes(picture(50 * number))


def arrays(folder: Path) -> None:
    """CIFAR-10, whose pictures are no files."""
    (folder / "cifar-10-batches-bin").mkdir(parents=True)
    rows = np.random.default_rng(0).integers(0, 256, (100, 3073), np.uint8)
    rows[:, 0] %= 10
    (folder / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(rows.tobytes())
    (folder / "cifar-10-batches-bin" / "batches.meta.txt").write_text("\n".join(CLASSES))


SETS: dict[str, tuple[str, Callable[[Path], None], str | None]] = {
    "files": ("coco-cn", files, "test"),
    "tars": ("cifar10", tars, None),
    "table": ("muge", table, "val"),
    "cuts": ("boxclass-cn", cuts, None),
    "stamps": ("tuxpaint", stamps, "test"),
    "arrays": ("cifar10", arrays, "test"),
}


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {
        "coco-cn": {"splits": {"test": Counts(IMAGES, IMAGES)}},
        "muge": {"splits": {"val": Counts(IMAGES, IMAGES)}},
        "cifar10": {"splits": {"test": 100}, "webdataset": {"test": IMAGES}},
        "boxclass-cn": {"splits": {"test": IMAGES}},
        "tuxpaint": {"splits": {"test": 90}},
    }
    changed = {name: replace(sets.of(name), **changes) for name, changes in few.items()}  # type: ignore[type-var]
    monkeypatch.setattr(sets, "REGISTRY", {**sets.REGISTRY, **changed})


def sent(form: str, tmp_path: Path) -> tuple[Data, str]:
    """Write a set to a folder and to the bucket; return what its reader reads in the folder, and its bucket's root."""
    name, write, split = SETS[form]
    write(tmp_path / "here" / name)
    send(tmp_path / "here", f"s3://bucket/{form}")
    return sets.of(name).read(tmp_path / "here" / name, split), f"s3://bucket/{form}"


def packed_set(form: str, root: str) -> Manifest:
    name, _, split = SETS[form]
    stage = Stage("s3://bucket/out", "pack", {"form": form, "root": root})
    return stage.commit(packed.pack(stage, root, name, split))


@pytest.mark.parametrize("form", SETS)
def test_a_packed_set_is_the_set_and_each_object_was_asked_for_once(
    form: str, store: CountingProxy, scratch: Path, tmp_path: Path
) -> None:
    here, root = sent(form, tmp_path)
    store.read.clear()
    store.at_once = 0
    with peak_of_temporary_files() as peak:
        made = packed_set(form, root)
    name, _, split = SETS[form]
    sizes = storage.sizes(storage.join(root, name))
    pictures = {uri.removeprefix("s3://bucket/") for uri in sizes if uri.endswith((".jpg", ".png", ".tar", ".tsv"))}
    assert pictures <= store.read.keys() and not store.twice()
    for key in pictures:
        assert sum(map(len, store.read[key])) == sizes[f"s3://bucket/{key}"]
    assert not [*scratch.iterdir()]
    if form in ("files", "tars", "table"):
        assert 4 * packed.ROWS * BYTES < IMAGES * BYTES / 2, "else the test says nothing"
        assert peak.bytes < 4 * packed.ROWS * BYTES + (2 << 20)
        assert store.at_once > 2
    store.read.clear()
    there = packed.data("", name, split, made)
    assert type(there) is type(here) and there.digest == here.digest and list(there.ids) == list(here.ids)
    assert there.title == here.title
    for field in ("captions", "classes", "names"):
        assert list(getattr(there, field, None) or ()) == list(getattr(here, field, None) or ())
    with ThreadPoolExecutor(4) as readers:  # as the validation reads a worker's share
        for start in range(7, len(here), 64):
            rows = range(start, min(start + 64, len(here)))
            for i, seen in zip(rows, readers.map(there.image, rows), strict=True):
                assert seen.tobytes() == here.image(i).tobytes()
    assert [there.images.digest(i) for i in range(len(here))] == [here.images.digest(i) for i in range(len(here))]
    assert not store.twice(), "a table is read once"
    again = pickle.loads(pickle.dumps(there))
    assert again.image(len(here) - 1).tobytes() == here.image(len(here) - 1).tobytes()


def test_the_same_files_give_the_same_bytes_and_another_split_is_refused(store: CountingProxy, tmp_path: Path) -> None:
    _, root = sent("tars", tmp_path)
    first = packed_set("tars", root)
    storage.delete(first.uri)
    second = packed_set("tars", root)
    assert first.digest == second.digest
    with pytest.raises(DataError, match="has no split 'train': take one of test"):
        packed.data("", "cifar10", "train", second)


def test_a_table_that_is_cut_off_is_refused_with_its_place(store: CountingProxy, tmp_path: Path) -> None:
    _, root = sent("table", tmp_path)
    uri = storage.join(root, "muge/MR_valid_imgs.tsv")
    storage.write_bytes(uri, storage.read_bytes(uri)[:-1001])
    with pytest.raises(DataError, match=r"image 519 \(byte \d+ of .*MR_valid_imgs\.tsv\)"):
        packed_set("table", root)


def test_a_crawl_of_a_set_copies_no_table_of_pictures(
    store: CountingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = {"train": Counts(100, 100), "val": Counts(100, 100)}
    monkeypatch.setitem(sets.REGISTRY, "muge", replace(sets.of("muge"), splits=splits))
    here, there = storage.from_path(tmp_path / "here" / "muge"), "s3://bucket/crawled/muge"
    table(tmp_path / "here" / "muge", "train", 0, 100)
    table(tmp_path / "here" / "muge", "valid", 95, 100)
    send(tmp_path / "here" / "muge", there)
    with peak_of_temporary_files() as peak:
        found = [(pair.url.replace(there, here), pair.caption) for pair in set_pairs.read(there)]
    assert found == [(pair.url, pair.caption) for pair in set_pairs.read(here)]
    assert len(found) == 200 and peak.bytes < 20 * BYTES


def test_a_set_in_a_folder_is_never_packed(tmp_path: Path) -> None:
    files(tmp_path / "coco-cn")
    stage = Stage(storage.from_path(tmp_path / "out"), "pack", {})
    with pytest.raises(ValueError, match="read in place"):
        packed.pack(stage, storage.from_path(tmp_path), "coco-cn", "test")
    assert len([*(tmp_path / "coco-cn" / "val2014").iterdir()]) == IMAGES


def test_a_list_that_names_a_file_outside_of_its_set_writes_and_deletes_nothing(
    store: CountingProxy, tmp_path: Path, scratch: Path
) -> None:
    outside = scratch / "outside.jpg"
    outside.write_bytes(picture(0))
    cuts(tmp_path / "set")
    listed = tmp_path / "set" / "valid_category_data_total_zh.json"
    document = json.loads(listed.read_text("utf-8"))
    document["images"][3]["file_name"] = "../../outside.jpg"
    listed.write_text(json.dumps(document), "utf-8")
    root = "s3://bucket/outside"
    send(tmp_path / "set", f"{root}/boxclass-cn")
    with pytest.raises(DataError, match=r"outside.jpg, a picture of boxclass-cn, leads out of"):
        packed.pack(Stage(f"{root}/of", "pack", {}), root, "boxclass-cn", None)
    assert outside.read_bytes() == picture(0)
