"""Vectors in files, and what is measured from them."""

import resource
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from wukong.errors import DataError, StorageError
from wukong.evaluate import retrieval, vectors
from wukong.evaluate.blocks import Files
from wukong.evaluate.model import refuse_collapsed
from wukong.evaluate.protocol import Ties
from wukong.evaluate.vectors import Pieces, StoredTexts
from wukong.model.dual import Texts
from wukong.model.similarity import Scores, token_similarity


def similarity(image: torch.Tensor, text: Texts) -> Scores:
    return token_similarity(image, *text)


def drawn() -> tuple[torch.Tensor, Texts]:
    torch.manual_seed(0)
    image = F.normalize(torch.randn(40, 5, 8), dim=-1)
    counted = torch.arange(7)[None] < torch.randint(2, 8, (90, 1))
    counted[:, 0] = False
    return image, Texts(F.normalize(torch.randn(90, 7, 8), dim=-1), counted)


def pieces(files: Files, parts: Sequence[torch.Tensor]) -> Pieces:
    for number, part in enumerate(parts):
        files.write(str(number), {"vectors": part})
    return Pieces([len(part) for part in parts], lambda number: files.read(str(number))["vectors"])


def stored(folder: Path, image: torch.Tensor, text: Texts) -> tuple[Pieces, StoredTexts]:
    """Files of 16 images, and of 50 and 40 texts, each as long as its longest text."""
    ends = (text.counted * torch.arange(1, 8)).amax(1)
    texts = [text.vectors[rows, : int(ends[rows].max())] for rows in (slice(0, 50), slice(50, 90))]
    images = pieces(Files(folder / "images"), image.split(16))
    return images, StoredTexts(pieces(Files(folder / "texts"), texts), text.counted)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    image, text = drawn()
    images, texts = stored(tmp_path, image, text)
    assert (len(images), len(texts.vectors)) == (40, 90)
    assert torch.equal(images[13:37], image[13:37]) and torch.equal(images[30:99], image[30:])
    for rows in (slice(0, 90), slice(45, 55), slice(88, 90)):
        found, expected = vectors.block(texts, rows), vectors.block(text, rows)
        assert torch.equal(found.counted, expected.counted)
        assert torch.equal(found.vectors[found.counted], expected.vectors[expected.counted])


@pytest.mark.parametrize("ties", ["against", "topk"])
def test_a_search_in_files_finds_what_a_search_in_memory_finds(tmp_path: Path, ties: Ties) -> None:
    image, text = drawn()
    pairs = retrieval.Pairs.of([[number % 40] for number in range(90)], 40)
    expected = retrieval.search(image, text, pairs, similarity, ties, block=16)
    found = retrieval.search(*stored(tmp_path, image, text), pairs, similarity, ties, block=16)
    assert torch.equal(found.text_to_image, expected.text_to_image)
    assert found.image_to_text is not None and expected.image_to_text is not None
    assert torch.equal(found.image_to_text, expected.image_to_text)


def test_stored_vectors_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "BLOCK", 7)
    image, text = drawn()
    images, texts = stored(tmp_path, image, text)
    refuse_collapsed(images, "image")
    refuse_collapsed(texts.vectors, "caption", texts.counted)
    image[33, 2, 1] = torch.inf
    with pytest.raises(DataError, match="1 of 40 images are not finite, the first is image 33"):
        refuse_collapsed(stored(tmp_path, image, text)[0], "image")
    equal = pieces(Files(tmp_path / "equal"), image[:1].repeat(20, 1, 1).split(7))
    with pytest.raises(DataError, match=r"all 20 items \(image\) are equal"):
        refuse_collapsed(equal, "image")


def test_a_block_reads_the_files_that_it_needs_and_no_other() -> None:
    read: list[int] = []
    vectors = torch.arange(20.0).view(10, 2)

    def part(number: int) -> torch.Tensor:
        read.append(number)
        return vectors.split(4)[number]

    found = Pieces([4, 4, 2], part)
    assert torch.equal(found[3:6], vectors[3:6]) and read == [0, 1]
    assert torch.equal(found[5:8], vectors[5:8]) and read == [0, 1], "the last file is in memory"
    assert torch.equal(found[8:99], vectors[8:]) and read == [0, 1, 2]


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    files, before = Files(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(StorageError, match=f"{tmp_path}/vectors"):
            files.write("vectors", {"vectors": torch.randn(100, 5, 8)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not files.has("vectors") and not list(tmp_path.iterdir())


def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.write("vectors", {"vectors": torch.randn(100, 5, 8)})
    path = tmp_path / "vectors.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"vectors\.safetensors is damaged .*put a whole copy of it there"):
        files.read("vectors")
