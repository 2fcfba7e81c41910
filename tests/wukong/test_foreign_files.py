"""Files of others, damaged or made to harm: each reader gives their content, or an error that a person can mend."""

import base64
import gzip
import io
import json
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from wukong.config import documents
from wukong.config.crawl import Crawl
from wukong.crawl import own_files, queries, url_list
from wukong.crawl.uploads import RefusedError
from wukong.curate import hash_files
from wukong.data import feature_files
from wukong.errors import ConfigError, DataError, WukongError, reading
from wukong.evaluate import sets, stored
from wukong.evaluate.formats import (
    byte_rows,
    caption_lines,
    chinese_clip,
    folders,
    idx,
    json_lines,
    json_list,
    matlab,
    pictures,
    webdataset,
)
from wukong.evaluate.sets import boxclass_cn, food101
from wukong.model import weights
from wukong.publish import release
from wukong.registry import sweep
from wukong.runs import describe
from wukong.serve import openai_api
from wukong.store import storage

Read = Callable[[Path], object]


def jpeg() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(stream, "JPEG")
    return stream.getvalue()


def tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in (
            ("0.jpg", jpeg()),
            ("0.cls", b"1"),
            (f"{'长' * 60}.jpg", b""),
            (f"{'长' * 60}.cls", b"0"),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def parquet(**columns: Any) -> bytes:
    return bytes(storage.table_bytes(pa.table(columns)))


def fingerprints() -> bytes:
    made = hash_files.Fingerprints(
        "demo", "test", "0" * 64, ["a"], np.ones((1, 8, 32), np.uint8), np.ones(1, np.uint8),
        np.ones((1, 4), np.float16), "m", np.arange(3, dtype=np.uint64),
    )  # fmt: skip
    return _written(lambda uri: hash_files.write(uri, made))


def features() -> bytes:
    return _written(lambda uri: feature_files.write(uri, ["a", "b"], torch.ones(2, 4).half()))


def _written(write: Callable[[str], object]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(storage.from_path(Path(folder, "made")))
        return Path(folder, "made").read_bytes()


def at(read: Callable[[str], object]) -> Read:
    """A reader that gets the file's URI."""
    return lambda path: read(storage.from_path(path))


def everything(read: Callable[[Path], Any]) -> Read:
    """A reader that is read to its end."""
    return lambda path: list(read(path))


def of_list(path: Path) -> object:
    return list(own_files.pictures_of(Crawl(engine="files", endpoint=storage.from_path(path))))


def of_urls(path: Path) -> object:
    config = Crawl(engine="urls", endpoint=storage.from_path(path))
    return url_list.count(config.endpoint), list(url_list.read_list(config.endpoint, 0, config))


def of_tars(path: Path) -> object:
    (path.parent / "nshards.txt").write_text("1")
    return webdataset.read(path.parent.parent, path.parent.name, 2)


def of_number(path: Path) -> object:
    (path.parent / "0.tar").write_bytes(tar())
    return webdataset.read(path.parent.parent, path.parent.name, 2)


def of_table(path: Path) -> object:
    _, images = chinese_clip.read_images(path)
    return [images.image(number) for number in range(len(images))]


def of_rows(path: Path) -> object:
    return byte_rows.read(path.parent, [path.name], labels=1, label=0, classes=3)


def of_captions(path: Path) -> object:
    return caption_lines.read(path, ["1.jpg"])


def of_food(path: Path) -> object:
    return food101.SET.read(path.parent.parent)


def of_set(name: str) -> Read:
    return lambda path: sets.of(name).read(path.parent)


def asked(path: Path) -> object:
    try:
        request = openai_api._asked(path.read_bytes())
        return openai_api._contents(request, openai_api.Limits())
    except (RefusedError, openai_api.WrongError):  # the client gets them
        return None


IDX = b"\0\0\x08\x03" + np.array([2, 3, 4], ">u4").tobytes() + bytes(24)
LINES = '{"id": 1, "text": "一只猫", "image_ids": [12345]}\n{"id": 2, "text": "狗", "image_ids": []}\n'.encode()
LIST = '[{"image_id": "a.jpg", "caption": ["一只猫", "猫"]}, {"image_id": "b.jpg", "caption": []}]'.encode()
CSV = 'url,caption\nhttp://a.test/1.jpg,"一只猫, 白"\nhttp://a.test/2.jpg,狗\n'.encode()
HASHES = f"hash,type\n{'0f' * 32},pdq\n{'1f' * 16},md5\n".encode()
COCO = json.dumps(
    {
        "categories": [{"name": "cat", "id": 1}],
        "images": [{"id": 7, "file_name": "1.jpg"}],
        "annotations": [{"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4]}],
    }
).encode()
ASKED = json.dumps(
    {
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,AAAA"}}]}
        ],
        "dimensions": 512,
    }
).encode()

# fmt: off
READERS: dict[str, tuple[str, bytes, Read]] = {
    "IDX": ("images-idx3-ubyte", IDX, lambda path: idx.read(path, 3)),
    "IDX, packed": ("images-idx3-ubyte.gz", gzip.compress(IDX), lambda path: idx.read(path, 3)),
    "byte rows": (
        "data.bin",
        b"\1" + bytes(3072),
        lambda path: byte_rows.read(path.parent, [path.name], labels=1, label=0, classes=3),
    ),
    "lines": ("list.txt", "一\n二\n".encode(), folders.listed),
    "caption lines": (
        "captions.txt",
        "1.jpg#zhb#0 一 只 猫\n1.jpg#0 狗\n".encode(),
        of_captions,
    ),
    "JSON lines": ("rows.jsonl", LINES, everything(json_lines.rows)),
    "JSON list": ("rows.json", LIST, everything(json_list.elements)),
    "table of pictures": ("valid_imgs.tsv", b"1\t" + base64.b64encode(jpeg()) + b"\n", of_table),
    "texts": (
        "texts.jsonl",
        LINES,
        lambda path: chinese_clip.read_texts(path, ["12345"], text="text", images="image_ids"),
    ),
    "WebDataset": ("test/0.tar", tar(), of_tars),
    "number of tars": ("test/nshards.txt", b"1", of_number),
    "picture": ("1.jpg", jpeg(), lambda path: pictures.Files(path.parent, [path.name]).image(0)),
    "Food-101": (
        "meta/test.json",
        b'{"apple_pie": ["apple_pie/1"]}',
        of_food,
    ),
    "BoxClass-CN": (boxclass_cn._LABELS, COCO, of_set("boxclass-cn")),
    "hashes": ("hashes.csv", HASHES, at(hash_files.read_list)),
    "hashes, packed": ("hashes.csv.gz", gzip.compress(HASHES), at(hash_files.read_list)),
    "fingerprints": ("demo.parquet", fingerprints(), at(hash_files.read)),
    "own list": ("own.csv", CSV, of_list),
    "own list, packed": ("own.csv.gz", gzip.compress(CSV), of_list),
    "own list, JSON": ("own.jsonl", b'{"url": "http://a.test/1.jpg", "caption": "a"}\n', of_list),
    "own list, Parquet": ("own.parquet", parquet(url=["http://a.test/1.jpg"], caption=["猫"]), of_list),
    "URLs": ("urls.tsv", CSV.replace(b",", b"\t"), of_urls),
    "URLs, packed": ("urls.csv.gz", gzip.compress(CSV), of_urls),
    "URLs, Parquet": ("urls.parquet", parquet(url=["http://a.test/1.jpg"], caption=["猫"]), of_urls),
    "corpus": ("corpus.jsonl.gz", gzip.compress(LINES), at(lambda uri: list(queries._texts([uri], "text")))),
    "release": ("release.csv", CSV, at(release.read_csv)),
    "answers": ("answers.parquet", parquet(answer=[1]), lambda path: stored.parse(path.read_bytes(), path.name)),
    "features": ("features.safetensors", features(), at(feature_files.read)),
    "weights": ("w.safetensors", safetensors.torch.save({"a": torch.ones(2)}), at(weights.read_shapes)),
    "request": ("request.json", ASKED, asked),
    "experiment": ("experiment.yaml", b"name: demo\ncrawl: {engine: files}\nsince: 2026-01-01\n", documents.load),
    "sweep": ("sweep.yaml", b"experiment: a.yaml\ngrid: {pretrain.epochs: [1, 2]}\n", sweep.load),
    "shown JSON": ("shown.json", LIST, at(describe.describe)),
    "shown tar": ("shown.tar", tar(), at(describe.describe)),
    "shown weights": ("shown.safetensors", safetensors.torch.save({"a": torch.ones(2)}), at(describe.describe)),
    "shown table": ("shown.parquet", parquet(url=["a"], n=[1]), at(describe.describe)),
    "shown picture": ("shown.jpg", jpeg(), at(describe.describe)),
}
# fmt: on
HARMFUL = {
    "lists in lists": b"[" * 100_000,
    "objects in objects": b'{"a":' * 50_000,
    "many digits": b"9" * 5_000,
    "large number": b"-9" + b"9" * 400,
    "infinite": b"1e999",
    "no date": b"2026-13-45",
    "null": b"null",
    "NUL": b"\0",
    "no UTF-8": b"\xff\xfe",
    "surrogate": b"\xed\xa0\x80",
    "quote": b'"',
    "carriage return": b"\r",
    "end of line": b"\n",
    "commas": b",,",
    "long": b"x" * 200_000,
}
Change = tuple[int, int, str | bytes]
CHANGES = st.lists(
    st.tuples(
        st.integers(0, 10_000),
        st.sampled_from([0, 1, 1, 4, 1 << 20]),
        st.one_of(st.sampled_from([*HARMFUL]), st.binary(max_size=4)),
    ),
    min_size=1,
    max_size=3,
)
"""Places, as shares of the whole in 1/10,000; how many bytes go there; and what comes in their place."""


def mutate(data: bytes, changes: list[Change]) -> bytes:
    for share, gone, new in changes:
        place = share * len(data) // 10_000
        data = data[:place] + (HARMFUL[new] if isinstance(new, str) else new) + data[place + gone :]
    return data


@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES, inside=st.booleans())
def test_a_damaged_file_gives_its_content_or_an_error_to_mend(
    kind: str, tmp_path: Path, changes: list[Change], inside: bool
) -> None:
    name, data, read = READERS[kind]
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if inside and name.endswith(".gz"):
        path.write_bytes(gzip.compress(mutate(gzip.decompress(data), changes), 1))
    else:
        path.write_bytes(mutate(data, changes))
    try:
        read(path)
    except WukongError as error:
        assert str(error)


@pytest.mark.parametrize("kind", READERS)
def test_the_files_that_are_damaged_there_can_be_read(kind: str, tmp_path: Path) -> None:
    name, data, read = READERS[kind]
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(data)
    try:
        read(tmp_path / name)
    except WukongError as error:
        # Whole sets are larger, and name other pictures.
        assert kind in ("Food-101", "BoxClass-CN", "experiment", "sweep") and "damaged" not in str(error)


def test_an_error_says_what_where_and_how_to_mend_it() -> None:
    said = r"^x\.json is no list: KeyError\. Fetch it again$"
    with pytest.raises(ConfigError, match=said), reading("x.json is no list", "Fetch it again", ConfigError):
        raise KeyError
    with pytest.raises(DataError, match="as it was"), reading("a", "b"):
        raise DataError("as it was")
    with pytest.raises(MemoryError), reading("a", "b"):
        raise MemoryError


def test_matlab_files(tmp_path: Path) -> None:
    """The reader of scipy ends its process for the second file, which differs from the first in a byte."""
    cells = np.empty((5, 1), object)
    cells[:, 0] = [f"n0208562{number}-x/a.jpg" for number in range(5)]
    path = tmp_path / "list.mat"
    savemat(path, {"file_list": cells, "labels": np.array([[1], [2]], np.uint8), "one": 7.0})
    assert matlab.variable(path, "file_list") == [each for (each,) in cells]
    assert (matlab.variable(path, "labels"), matlab.variable(path, "one")) == ([1, 2], 7.0)
    with pytest.raises(DataError, match="has no variable 'other'"):
        matlab.variable(path, "other")
    whole, tag, text = path.read_bytes(), b"\0\0\0\x11\0\0\0", b"n0208562"
    path.write_bytes(whole.replace(b"\x10" + tag + text, b"\0" + tag + text, 1))
    assert path.read_bytes() != whole
    with pytest.raises(DataError, match=r"list\.mat is no complete MATLAB file: .*Download it again"):
        matlab.variable(path, "file_list")
