"""Readers of the classification sets: each on its owner's form with its traps, against the truth and torchvision."""

import re
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import published_sets as published
import pytest
from torchvision import datasets

from wukong.errors import ConfigError, DataError
from wukong.evaluate import paper, sets
from wukong.evaluate.data_set import Classification, Retrieval, WordOrder
from wukong.evaluate.formats import folders
from wukong.evaluate.published import NotThereError

CLASSIFICATION = [name for name, each in sets.REGISTRY.items() if isinstance(each, Classification)]
IMAGES = 11


def small(name: str, images: int = IMAGES, split: str | None = None) -> Classification:
    """The set with few classes, whose counted splits have this number of images."""
    full = sets.of(name)
    assert isinstance(full, Classification)
    classes = published.CLASSES[name]
    return replace(
        full,
        names=None if full.named_in_files else tuple((each, each, each) for each in classes),
        named_in_files=len(classes) if full.named_in_files else 0,
        splits=dict.fromkeys([*full.splits, *([split] if split else [])], images),
        webdataset=None if full.webdataset is None else dict.fromkeys(full.webdataset, images),
    )


def written(name: str, folder: Path, writer: str | None = None) -> published.Truth:
    return published.classification(writer or name)(folder, published.CLASSES[name], IMAGES, published.distinct)


def test_the_22_sets_of_the_paper_are_there_and_eight_others_that_say_so():
    retrieval = {name for name, each in sets.REGISTRY.items() if isinstance(each, Retrieval)}
    assert retrieval & paper.TABLE_7.keys() == {"flickr8k-cn", "flickr30k-cn", "coco-cn", "aic-icc", "muge"}
    assert retrieval - paper.TABLE_7.keys() == {"xm3600-zh", "xflickr30kco-zh", "dci-cn"}
    assert len(set(CLASSIFICATION) & paper.TABLE_5.keys()) == 17
    assert set(CLASSIFICATION) - paper.TABLE_5.keys() == {"fashion-mnist", "tuxpaint", "imagenet-v2", "boxclass-cn"}
    assert set(CLASSIFICATION) == set(published.CLASSES)
    assert [name for name, each in sets.REGISTRY.items() if isinstance(each, WordOrder)] == ["word-order"]
    for name, each in sets.REGISTRY.items():
        assert each.note.startswith("Not in the paper.") == (name not in {*paper.TABLE_5, *paper.TABLE_7}), name


def test_an_unknown_set_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'mnist'.*take one of aic-icc, aircraft"):
        sets.of("mnist")


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_each_image_has_its_published_label(name, tmp_path):
    truth = written(name, tmp_path / "set")
    data = small(name).read(tmp_path / "set")
    assert list(zip(data.ids, data.labels.tolist(), strict=True)) == truth
    assert data.labels.dtype == np.int64
    assert len(data) == len(data.images) == IMAGES
    for i in range(IMAGES):
        image = data.image(i)
        assert image.mode == "RGB"
        expected = (i * 37 % 256,) * 3 if name == "fashion-mnist" else published.colour(i)
        if name == "tuxpaint":  # its upper half is transparent
            expected = tuple((255 + part) / 2 for part in expected)
        assert np.abs(np.asarray(image).reshape(-1, 3).mean(0) - expected).max() < 6, f"image {i} is another"


@pytest.mark.parametrize("form", ["imagenet_flat", "imagenet_kaggle"])
def test_imagenet_flat(form, tmp_path):
    truth = written("imagenet", tmp_path / "set", form)
    data = small("imagenet").read(tmp_path / "set")
    assert list(zip(data.ids, data.labels.tolist(), strict=True)) == truth


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_what_is_not_there_is_named_with_how_to_get_it(name, tmp_path):
    data_set = sets.of(name)
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "nowhere", tmp_path / "empty"):
        with pytest.raises(NotThereError) as raised:
            small(name).read(folder)
        message = str(raised.value)
        assert message.startswith(data_set.title)
        assert str(folder) in message
        assert all(each in message for each in data_set.how_to_get.download)
        assert data_set.how_to_get.place in message


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_another_number_of_images_is_refused(name, tmp_path):
    written(name, tmp_path / "set")
    split = published.COUNTED.get(name, "test")
    with pytest.raises(DataError, match=rf"{name}\), split {split}: 11 images in .*, but 12 are published"):
        small(name, images=12).read(tmp_path / "set")


@pytest.mark.parametrize("name", ["aircraft", "dogs", "dtd", "flowers102", "food101", "pets", "sun397"])
def test_an_image_that_a_list_names_must_be_there(name, tmp_path):
    truth = written(name, tmp_path / "set")
    (lost,) = (path for path in (tmp_path / "set").rglob("*") if path.as_posix().endswith(f"/{truth[3][0]}"))
    lost.unlink()
    with pytest.raises(NotThereError, match=rf"1 of the 11 images .* the first is .*{lost.name}"):
        small(name).read(tmp_path / "set")


@pytest.mark.parametrize("name", ["caltech101", "eurosat", "sports", "imagenet", "imagenet-r", "imagenet-sketch"])
def test_other_class_folders_are_refused(name, tmp_path):
    written(name, tmp_path / "set")
    (first,) = {path for path in (tmp_path / "set").rglob(published.CLASSES[name][0]) if path.is_dir()}
    first.rename(first.with_name("another"))
    with pytest.raises(DataError, match=r"1 missing \(.*\); 1 unknown \(another\)"):
        small(name).read(tmp_path / "set")


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(DataError, match="DTD has no split 'validation': take one of test, train, val"):
        small("dtd").read(tmp_path, "validation")


def test_caltech256_without_clutter(tmp_path):
    truth = [entry for entry in written("caltech256", tmp_path / "set") if entry[1] != 3]
    data = small("caltech256", images=len(truth)).read(tmp_path / "set", "without-clutter")
    assert list(zip(data.ids, data.labels.tolist(), strict=True)) == truth
    assert np.abs(np.asarray(data.image(7)).reshape(-1, 3).mean(0) - published.colour(7)).max() < 6


def test_a_partition_is_chosen_by_its_number(tmp_path):
    truth = written("dtd", tmp_path / "set")
    assert small("dtd").read(tmp_path / "set", "test-02").ids == [path for path, _ in truth][::-1]


def test_sun397_as_a_whole(tmp_path):
    truth = written("sun397", tmp_path / "set")
    data = small("sun397").read(tmp_path / "set", "all")
    assert sorted(zip(data.ids, data.labels.tolist(), strict=True)) == sorted(truth)


def test_cifar_of_another_order_or_length_is_refused(tmp_path):
    written("cifar10", tmp_path)
    place = tmp_path / "cifar-10-batches-bin"
    rows = (place / "test_batch.bin").read_bytes()
    (place / "test_batch.bin").write_bytes(rows[:-1])
    with pytest.raises(DataError, match="no whole number of images"):
        small("cifar10").read(tmp_path)
    (place / "test_batch.bin").write_bytes(b"\x07" + rows[1:])
    with pytest.raises(DataError, match="has the label 7 where there are 3 classes"):
        small("cifar10").read(tmp_path)
    published.text(place / "batches.meta.txt", ["bird", "airplane", "automobile"])
    with pytest.raises(DataError, match="'bird' in place 0, the class names in place 2"):
        small("cifar10").read(tmp_path)


def test_pickles_of_cifar_are_not_read(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(NotThereError, match=r"cifar-10-binary\.tar\.gz"):
        small("cifar10").read(tmp_path)


def test_damaged_lists_are_refused(tmp_path):
    written("flowers102", tmp_path / "flowers")
    path = tmp_path / "flowers" / "setid.mat"
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(DataError, match=r"setid\.mat"):
        small("flowers102").read(tmp_path / "flowers")
    written("food101", tmp_path / "food")
    path = tmp_path / "food" / "food-101" / "meta" / "test.json"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"test\.json is no JSON object"):
        small("food101").read(tmp_path / "food")
    written("pets", tmp_path / "pets")
    path = tmp_path / "pets" / "annotations" / "test.txt"
    path.write_text(path.read_text().replace("Bengal_9 3", "Bengal_9 1"))
    with pytest.raises(DataError, match="'Bengal_9 1 1 3', which is no image of one of the 3 classes"):
        small("pets").read(tmp_path / "pets")
    written("fashion-mnist", tmp_path / "mnist")
    path = tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="no complete IDX file"):
        small("fashion-mnist").read(tmp_path / "mnist")


def test_the_digest_follows_ids_and_labels(tmp_path):
    written("imagenet-a", tmp_path / "one")
    written("imagenet-a", tmp_path / "two")
    one, two = (small("imagenet-a").read(tmp_path / each) for each in ("one", "two"))
    assert one.digest == two.digest
    assert replace(two, labels=two.labels[::-1]).digest != one.digest
    assert replace(two, ids=two.ids[::-1]).digest != one.digest
    assert replace(two, ids=two.ids[::-1], labels=two.labels[::-1]).digest == one.digest, "the same set, read backwards"


# --- torchvision reads the same files ---


TORCHVISION = {
    "dtd": lambda root: datasets.DTD(root, "test"),
    "flowers102": lambda root: datasets.Flowers102(root, "test"),
    "food101": lambda root: datasets.Food101(root, "test"),
    "pets": lambda root: datasets.OxfordIIITPet(root, "test"),
    "aircraft": lambda root: datasets.FGVCAircraft(root, "test"),
    "sun397": datasets.SUN397,
    "eurosat": datasets.EuroSAT,
    "imagenet-r": lambda root: datasets.ImageFolder(root / "imagenet-r"),
    "imagenet-a": lambda root: datasets.ImageFolder(root / "imagenet-a"),
    "imagenet-sketch": lambda root: datasets.ImageFolder(root / "sketch"),
    "imagenet": lambda root: datasets.ImageFolder(root / "val"),
}
PLACE = {"flowers102": "flowers-102", "pets": "oxford-iiit-pet", "eurosat": "eurosat",
         "dtd": "dtd"}  # fmt: skip


@pytest.mark.parametrize("name", TORCHVISION)
def test_equal_to_torchvision(name, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.Flowers102, "_check_integrity", lambda self: True)  # the owner's checksums
    written(name, tmp_path / PLACE.get(name, ""))
    for trap in [*tmp_path.rglob("._*"), *tmp_path.rglob(".cache"), *tmp_path.rglob("greg")]:
        shutil.rmtree(trap) if trap.is_dir() else trap.unlink()  # torchvision reads some of them as images
    theirs = TORCHVISION[name](tmp_path)
    ours = small(name).read(tmp_path, "all" if name == "sun397" else None)
    pairs = [theirs[i] for i in range(len(theirs))]
    assert sorted((label, np.asarray(image.convert("RGB")).tolist()) for image, label in pairs) == sorted(
        (int(ours.labels[i]), np.asarray(ours.image(i)).tolist()) for i in range(len(ours))
    )
    if name not in {"sun397", "eurosat"}:  # those are in the order of the file system, or of no owner
        assert [label for _, label in pairs] == ours.labels.tolist()


def test_the_labels_of_caltech256_are_torchvisions(tmp_path):
    written("caltech256", tmp_path / "caltech256")
    theirs = datasets.Caltech256(tmp_path)
    assert theirs.categories == list(published.CLASSES["caltech256"])
    assert theirs.y == small("caltech256").read(tmp_path).labels.tolist()


# --- CLIP_benchmark's WebDataset form ---


def web(name: str, folder: Path, suffix: str = "webp") -> list[int]:
    labels = [i * 2 % len(published.CLASSES[name]) for i in range(IMAGES)]
    published.webdataset(folder, "test", labels, published.CLASSES[name], suffix=suffix)
    return labels


@pytest.mark.parametrize("name", [name for name in CLASSIFICATION if name not in ("caltech101", "boxclass-cn")])
def test_webdataset_form_of_each(name, tmp_path):
    labels = web(name, tmp_path / "set")
    data_set = small(name, split="test")
    split = next((split for split, place in data_set.webdataset_folders.items() if place == "test"), "test")
    data = data_set.read(tmp_path / "set", split)
    assert data.labels.tolist() == labels
    assert list(data.ids) == [f"s{i:07d}" for i in range(IMAGES)]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_webdataset_images(suffix, tmp_path):
    web("dtd", tmp_path, suffix)
    data = small("dtd").read(tmp_path)
    for i in range(IMAGES):
        assert np.abs(np.asarray(data.image(i)).reshape(-1, 3).mean(0) - published.colour(i)).max() < 6


def test_without_its_own_split_the_webdataset_form_is_read_from_test(tmp_path):
    labels = web("eurosat", tmp_path)
    data = small("eurosat").read(tmp_path)
    assert (data.split, data.labels.tolist()) == ("test", labels)


def test_a_split_of_other_images_is_not_taken_from_the_webdataset_form(tmp_path):
    web("caltech101", tmp_path / "caltech101")
    with pytest.raises(DataError, match="Caltech101 has no split 'all': take one of train, test"):
        small("caltech101").read(tmp_path / "caltech101", "all")
    web("sun397", tmp_path / "sun397")
    with pytest.raises(DataError, match="SUN397 has no split 'test': take one of all"):
        small("sun397").read(tmp_path / "sun397")


def test_caltech101_of_tensorflow_datasets_has_another_order_and_the_background(tmp_path):
    # Labels of TensorFlow Datasets: accordion, ant, background_google, faces, faces_easy, leopards.
    published.webdataset(tmp_path, "test", [0, 1, 2, 3, 4, 5, 2, 0], list("abcdef"))
    data = small("caltech101", images=8).read(tmp_path)
    names = [published.CLASSES["caltech101"][label] for label in data.labels]
    assert names == ["accordion", "ant", "Faces", "Faces_easy", "Leopards", "accordion"]
    assert list(data.ids) == [f"s{i:07d}" for i in (0, 1, 3, 4, 5, 7)]
    assert np.abs(np.asarray(data.image(2)).reshape(-1, 3).mean(0) - published.colour(3)).max() < 6


def test_damaged_webdatasets_are_refused(tmp_path):
    web("dtd", tmp_path / "short")
    tar = tmp_path / "short" / "test" / "1.tar"
    tar.write_bytes(tar.read_bytes()[:2600])
    with pytest.raises(DataError, match=r"1\.tar is not a complete tar"):
        small("dtd").read(tmp_path / "short")
    web("dtd", tmp_path / "lost")
    (tmp_path / "lost" / "test" / "2.tar").unlink()
    with pytest.raises(NotThereError, match=r"1 of 3 tars .* the first is 2\.tar\. Download"):
        small("dtd").read(tmp_path / "lost")
    published.webdataset(tmp_path / "classes", "test", [0, 3], ["a", "b", "c", "d"])
    with pytest.raises(DataError, match="has 4 class names where this set has 3"):
        small("dtd").read(tmp_path / "classes")
    published.webdataset(tmp_path / "labels", "test", [0, 3], ["a", "b", "c"])
    with pytest.raises(DataError, match="no label below 3 but '3'"):
        small("dtd").read(tmp_path / "labels")
    web("dtd", tmp_path / "half")
    with tarfile.open(tmp_path / "half" / "test" / "2.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("s0000099.jpg"))
    with pytest.raises(DataError, match=r"s0000099 in .* has an image or a label, but not both"):
        small("dtd").read(tmp_path / "half")


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_no_two_classes_are_one_when_they_are_compared(name):
    ids = [each.id for each in sets.of(name).classes]
    assert len({folders.plain(re.sub(r"^[0-9]{3}\.|^/[a-z]/", "", each)) for each in ids}) == len(ids)
