"""Files of features, compared with what the safetensors library writes and with the tower's own output."""

import io
import json
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save

from wukong.config.features import Dtype
from wukong.config.model import Model
from wukong.data import feature_files, images
from wukong.data.feature_files import File
from wukong.errors import DataError
from wukong.stages.estimate import feature_bytes
from wukong.store import storage
from wukong.train import features

SIDE = 32
IMAGE = {"name": "vit_tiny_patch16_224", "weights": "random", "image_size": SIDE}
MODELS = {kind: Model.model_validate({"image": IMAGE, "similarity": kind}) for kind in ("global", "token")}
KEYS = [f"k{number}" for number in range(7)]


def encoded(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def shard(folder: Path, name: str = "00000", keys: Sequence[str] = KEYS, table: Sequence[str] = KEYS) -> str:
    """Write a tar and its table; return the tar's URI."""
    with tarfile.open(folder / f"{name}.tar", "w") as tar:
        for number, key in enumerate(keys):
            for suffix, content in (("jpg", encoded(number)), ("txt", b"-")):
                entry = tarfile.TarInfo(f"{key}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    pq.write_table(pa.table({"key": list(table)}), folder / f"{name}.parquet")
    return storage.from_path(folder / f"{name}.tar")


def given(model: Model, view: int) -> torch.Tensor:
    """What the tower gives for a view of all images, in float32."""
    tower = features._encoder(model.image.model_dump_json(), None, torch.device("cpu"))
    shown = [
        images.augmented_view(images.decode(encoded(number)), SIDE, images.view_seed(key, view))
        if view
        else images.evaluation_view(images.decode(encoded(number)), SIDE, model.image.view)
        for number, key in enumerate(KEYS)
    ]
    with torch.inference_mode():
        pooled, tokens = tower(images.to_tensor(shown))
    found: torch.Tensor = tokens if model.similarity == "token" else pooled
    return found.clone()


@pytest.fixture(autouse=True)
def batches_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_BATCH", 3)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_file_has_the_bytes_that_the_library_writes(kind: str, dtype: Dtype, tmp_path: Path) -> None:
    """Two shards and both kinds of view in one stream, in batches that do not fill."""
    tars = [shard(tmp_path), shard(tmp_path, "00001")]
    files = [
        File(tar, view, storage.from_path(tmp_path / f"{number}.{view}"))
        for number, tar in enumerate(tars)
        for view in (0, 1)
    ]
    assert list(features.compute(files, MODELS[kind], dtype)) == [(file, 7) for file in files]
    for file in files:
        data = storage.read_bytes(file.target)
        found = load(data)
        sums = [
            zlib.crc32(b"".join(value[row].numpy().tobytes() for _, value in sorted(found.items(), reverse=True)))
            for row in range(7)
        ]
        metadata = {"keys": json.dumps(KEYS), "crc32": "".join(f"{each:08x}" for each in sums)}
        written = save(found, metadata=metadata)
        # The library writes the metadata in any order.
        length = int.from_bytes(data[:8], "little")
        assert json.loads(data[8 : 8 + length]) == json.loads(written[8 : 8 + length])
        assert data[:8] == written[:8] and data[8 + length :] == written[8 + length :]
        keys, values = feature_files.read(file.target)
        expected = given(MODELS[kind], file.view)
        assert keys == KEYS and values.dtype == torch.float16 and values.shape == expected.shape
        # Half of a step of int8 is 1 / 254 of the largest component.
        error = (values.float() - expected).abs() / expected.abs().amax(-1, keepdim=True)
        assert error.max() < (1 / 254 if dtype == "int8" else 0) + 1e-3
        tokens = 1 if kind == "global" else expected.shape[1]
        size = sum(value.numel() * value.element_size() for value in found.values())
        assert size == 7 * feature_bytes(tokens, expected.shape[-1], dtype)
        some, part = feature_files.read_rows(file.target, 2, 5)
        assert some == KEYS[2:5] and torch.equal(part, values[2:5])
        some, part = feature_files.read_rows(file.target, 2, 4, at_least=1 << 20)
        assert some == KEYS[2:] and torch.equal(part, values[2:])
        row_bytes = 2 * found["features"][0].numel()
        some, part = feature_files.read_rows(file.target, 1, 3, at_least=3 * row_bytes)
        assert some == KEYS[1:4] and torch.equal(part, values[1:4])
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.long
def test_processes_that_decode_change_no_byte(tmp_path: Path) -> None:
    tars = [shard(tmp_path), shard(tmp_path, "00001")]
    read = []
    for decoders in (0, 2):
        files = [File(tar, 1, storage.from_path(tmp_path / f"{n}.{decoders}")) for n, tar in enumerate(tars)]
        assert [rows for _, rows in features.compute(files, MODELS["global"], decoders=decoders)] == [7, 7]
        read.append([storage.read_bytes(file.target) for file in files])
    assert read[0] == read[1]


@pytest.mark.parametrize(
    ("keys", "table", "message"),
    [
        (KEYS[:5], KEYS, r"00000.tar has other pictures than .*00000.parquet"),
        (KEYS, KEYS[:5], "has other pictures"),
        (["other", *KEYS[1:]], KEYS, "has other pictures"),
        ([], KEYS, "holds no picture"),
    ],
)
def test_a_shard_that_differs_from_its_table_leaves_no_file(
    keys: list[str], table: list[str], message: str, tmp_path: Path
) -> None:
    file = File(shard(tmp_path, keys=keys, table=table), 0, storage.from_path(tmp_path / "out"))
    with pytest.raises(DataError, match=message):
        list(features.compute([file], MODELS["global"]))
    assert {path.name for path in tmp_path.iterdir()} == {"00000.tar", "00000.parquet"}


def test_features_that_are_not_finite_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_features", lambda *_: torch.full((3, 4), torch.inf))
    file = File(shard(tmp_path), 0, storage.from_path(tmp_path / "out"))
    with pytest.raises(DataError, match=r"output for .*00000.tar is not finite"):
        list(features.compute([file], MODELS["global"]))
    assert not (tmp_path / "out").exists()
