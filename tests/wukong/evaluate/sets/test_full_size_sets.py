"""Read the sets at their published size, of the paper's all that it measures, in the form of their owners."""

import shutil
import time
from pathlib import Path

import published_sets as published
import pytest

from wukong.evaluate import paper, sets
from wukong.evaluate.data_set import Classification, Retrieval

SECONDS = 60
SECOND = {"flickr8k-cn": 5, "flickr30k-cn": 5, "coco-cn": 53, "aic-icc": 5, "muge": 5_008, "xm3600-zh": 7_174,
          "xflickr30kco-zh": 1, "dci-cn": 1}  # fmt: skip
"""What the writer of a retrieval set asks for beside the number of images."""


def classified(data_set: Classification, folder: Path, write: published.Write) -> float:
    """Write a classification set with its real class ids, read it, and return the seconds that reading took."""
    classes = [each.id for each in data_set.classes] or [f"类{n}" for n in range(data_set.named_in_files)]
    images = data_set.splits[data_set.split]
    more = {"boxclass-cn": {"pictures": 24_221}}.get(data_set.name, {})
    truth = published.classification(data_set.name)(folder, classes, images, write, **more)
    start = time.perf_counter()
    data = data_set.read(folder)
    seconds = time.perf_counter() - start
    assert list(zip(data.ids, data.labels.tolist(), strict=True)) == truth
    assert data.image(images - 1).mode == "RGB"
    return seconds


def retrieved(data_set: Retrieval, folder: Path, write: published.Write) -> float:
    """Write a retrieval set, read it, and return the seconds that reading took."""
    images = data_set.splits[data_set.split].images
    writer = getattr(published, data_set.name.replace("-", "_"))
    more = {"aic-icc": {"listed": 30_000}, "muge": {"pixels": published.picture(0, size=(64, 64))}}
    ids, truth = writer(folder, images, SECOND[data_set.name], write, **more.get(data_set.name, {}))
    start = time.perf_counter()
    data = data_set.read(folder)
    seconds = time.perf_counter() - start
    assert list(data.image_ids) == ids
    assert [tuple(each) for each in data.captions] == truth
    assert data.image(images - 1).mode == "RGB"
    return seconds


@pytest.mark.parametrize("name", ["xm3600-zh", "xflickr30kco-zh", "dci-cn", "imagenet-v2", "boxclass-cn"])
def test_each_set_that_is_not_in_the_paper_is_read_at_its_published_size(name, tmp_path):
    data_set = sets.of(name)
    read = classified if isinstance(data_set, Classification) else retrieved
    assert read(data_set, tmp_path / name, published.Linked(tmp_path / "picture.jpg")) <= SECONDS / 4  # type: ignore[operator]


@pytest.mark.long
def test_all_22_sets_are_read_within_a_minute(tmp_path):
    took: dict[str, float] = {}
    start = time.perf_counter()
    for name in (*paper.TABLE_5, *paper.TABLE_7):
        data_set = sets.of(name)
        write = published.Linked(tmp_path / "picture.jpg")
        read = classified if isinstance(data_set, Classification) else retrieved
        took[name] = read(data_set, tmp_path / name, write)  # type: ignore[operator]
        shutil.rmtree(tmp_path / name)
    print(f"\n{len(took)} sets read in {sum(took.values()):.1f} s; written, read, compared and deleted in "
          f"{time.perf_counter() - start:.1f} s")  # fmt: skip
    print(", ".join(f"{name} {seconds:.2f} s" for name, seconds in sorted(took.items(), key=lambda item: -item[1])))
    assert len(took) == 22
    assert sum(took.values()) <= SECONDS
