"""The format of feature files: rounding, checksums, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from wukong.config.features import Dtype
from wukong.data import feature_files
from wukong.errors import DataError
from wukong.store import storage

KEYS = [f"k{number}" for number in range(7)]


def test_int8_rounds_each_vector_on_its_own_scale() -> None:
    vectors = torch.tensor([[12.7, -0.14, 0.16, 5.0], [0.0, 0.0, 0.0, 0.0], [-254.0, 2.9, 3.1, 127.0]]).half()
    stored, scales = feature_files.quantise(vectors)
    assert stored.tolist() == [[127, -1, 2, 50], [0, 0, 0, 0], [-127, 1, 2, 64]]
    torch.testing.assert_close(scales, torch.tensor([0.1, 0.0, 2.0]), rtol=1e-3, atol=0)
    back = feature_files.dequantise(stored, scales)
    torch.testing.assert_close(back[2], torch.tensor([-254.0, 2.0, 4.0, 128.0]).half())
    assert not back[1].any()


def test_int8_vectors_point_where_the_exact_ones_do() -> None:
    """A uniform error of a step h has the deviation h / sqrt(12); of normal numbers the cosine follows from it."""
    vectors = torch.randn(200, 768, generator=torch.Generator().manual_seed(0))
    found = feature_files.dequantise(*feature_files.quantise(vectors)).float()
    cosine = torch.nn.functional.cosine_similarity(vectors, found)
    step = vectors.abs().amax(1) / 127
    expected = 1 - step**2 / 12 / vectors.pow(2).mean(1) / 2
    torch.testing.assert_close(cosine, expected, rtol=0, atol=1e-5)
    assert cosine.min() > 0.9998


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_every_altered_byte_is_found(dtype: Dtype, tmp_path: Path) -> None:
    """Each byte of a file in turn, in one of its bits: what is read is an error, or what was written."""
    path = tmp_path / "file"
    uri = storage.from_path(path)
    values = torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(0)).half()
    feature_files.write(uri, KEYS[:5], values, dtype)
    whole, keys_and_values = path.read_bytes(), feature_files.read(uri)
    begin = 8 + int.from_bytes(whole[:8], "little")
    unnoticed = 0
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << place % 7
        path.write_bytes(data)
        try:
            keys, found = feature_files.read(uri)
        except DataError as error:
            assert uri in str(error)
        else:
            # The trainings compare the keys with those of the shard's table.
            assert torch.equal(found, keys_and_values[1]) and (place < begin or keys == KEYS[:5])
            unnoticed += place >= begin
    assert not unnoticed
    # Of the rows that are read, not of others.
    data = bytearray(whole)
    data[-1] ^= 1
    path.write_bytes(data)
    assert feature_files.read_rows(uri, 0, 4)[0] == KEYS[:4]
    with pytest.raises(DataError, match="some of the rows 3 to 4 were altered"):
        feature_files.read_rows(uri, 3, 5)
    for cut in (0, 4, 20, begin, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match="is damaged"):
            feature_files.read(uri)


@pytest.mark.parametrize(
    ("rows", "keys", "sums"), [(0, [], ""), (0, ["a"], "00000000"), (1, ["a"], ""), (2, ["a", "b"], "0" * 8)]
)
def test_a_header_with_another_number_of_rows_is_refused(rows: int, keys: list[str], sums: str, tmp_path: Path) -> None:
    metadata = {"keys": json.dumps(keys), "crc32": sums}
    (tmp_path / "file").write_bytes(save({"features": torch.zeros(rows, 4).half()}, metadata=metadata))
    with pytest.raises(DataError, match=f"it has {rows} rows, {len(keys)} keys and {len(sums) // 8} checksums"):
        feature_files.read(storage.from_path(tmp_path / "file"))


def test_more_rows_than_there_are_are_refused(tmp_path: Path) -> None:
    uri = storage.from_path(tmp_path / "file")
    feature_files.write(uri, KEYS[:2], torch.zeros(2, 4).half())
    with pytest.raises(DataError, match="it has 2 rows, and row 2 is asked for"):
        feature_files.read_rows(uri, 1, 3)
