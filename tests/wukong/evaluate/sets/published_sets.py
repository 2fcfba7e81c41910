"""Write evaluation sets in the exact form of their owners, with the traps that the real files have, at any size.

Each writer gets a folder, the class ids and a number of images, and returns what a reader must find: id and label of
each image, or ids and captions, in the owner's order. It is written from the owners' descriptions and shares nothing
with the readers.
"""

import base64
import colorsys
import gzip
import io
import json
import os
import struct
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

Truth = list[tuple[str, int]]

CLASSES: dict[str, tuple[str, ...]] = {
    "cifar10": ("airplane", "automobile", "bird"),
    "cifar100": ("apple", "aquarium_fish", "baby", "bear"),
    "caltech101": ("Faces", "Faces_easy", "Leopards", "accordion", "ant"),
    "caltech256": ("001.ak47", "056.dog", "198.spider", "257.clutter"),
    "sports": ("air hockey", "ampute football", "archery"),
    "flowers102": ("pink primrose", "hard-leaved pocket orchid", "canterbury bells"),
    "food101": ("apple_pie", "baby_back_ribs", "baklava"),
    "pets": ("Abyssinian", "American Bulldog", "Bengal"),
    "sun397": ("/a/abbey", "/a/apartment_building/outdoor", "/z/zoo"),
    "imagenet": ("n01440764", "n01443537", "n01484850"),
    "imagenet-v2": tuple(f"n{1440764 + i:08d}" for i in range(11)),
    "boxclass-cn": ("猫", "红色的车", "吉他"),
    "imagenet-r": ("n01443537", "n01484850", "n01494475"),
    "imagenet-a": ("n01498041", "n01531178", "n01534433"),
    "imagenet-sketch": ("n01440764", "n01443537", "n01484850"),
    "dtd": ("banded", "blotchy", "polka-dotted"),
    "dogs": ("n02085620-Chihuahua", "n02085782-Japanese_spaniel", "n02085936-Maltese_dog"),
    "eurosat": ("AnnualCrop", "Forest", "SeaLake"),
    "aircraft": ("707-320", "C-130", "F/A-18"),
    "fashion-mnist": ("T-shirt/top", "Trouser", "Ankle boot"),
    "tuxpaint": ("animals", "food", "town/houses"),
}
"""Ids of the classes of small sets, in the order of their labels."""

COUNTED = {
    "caltech101": "all", "caltech256": "all", "eurosat": "all", "imagenet": "val", "imagenet-v2": "matched-frequency"
}  # fmt: skip
"""The split that is written, where it is not ``test``."""


def colour(i: int) -> tuple[int, int, int]:
    """A colour for image ``i``, far from that of its neighbours."""
    red, green, blue = colorsys.hsv_to_rgb(i * 0.381966 % 1, 1, 0.9)
    return round(red * 255), round(green * 255), round(blue * 255)


def picture(i: int, kind: str = "JPEG", size: tuple[int, int] = (8, 6), mode: str = "RGB") -> bytes:
    """An image file of one colour."""
    file = io.BytesIO()
    Image.new("RGB", size, colour(i)).convert(mode).save(file, kind, quality=95)
    return file.getvalue()


def distinct(path: Path, i: int) -> None:
    """Write image ``i`` of its own colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(i, {".png": "PNG"}.get(path.suffix.lower(), "JPEG")))


class Linked:
    """Make every image a hard link to one file, for sets of full size."""

    def __init__(self, source: Path) -> None:
        source.write_bytes(picture(0))
        self._source = os.fspath(source)
        self._folders: set[Path] = set()

    def __call__(self, path: Path, i: int) -> None:
        folder = path.parent
        if folder not in self._folders:
            folder.mkdir(parents=True, exist_ok=True)
            self._folders.add(folder)
        os.link(self._source, path)


Write = Callable[[Path, int], None]


def text(path: Path, lines: Sequence[str], end: str = "\n") -> None:
    """Write lines of text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}{end}" for line in lines).encode())


def mac(folder: Path, name: str) -> None:
    """Write what macOS adds to archives beside a file, and what it and Windows leave in folders."""
    (folder / f"._{name}").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X")
    (folder / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1")
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")


def spread(images: int, classes: int) -> list[int]:
    """Labels of images that are sorted by class, as equal in number as they can be."""
    return [i * classes // images for i in range(images)]


def folders(
    root: Path, classes: Sequence[str], images: int, write: Write, name: str = "{n}.jpg", traps: bool = True
) -> Truth:
    """One folder a class; ``name`` may have ``{n}``, the number in the class, and ``{c}``, the class."""
    truth: Truth = []
    seen: dict[int, int] = {}
    for i, label in enumerate(spread(images, len(classes))):
        seen[label] = n = seen.get(label, 0) + 1
        path = f"{classes[label]}/{name.format(n=n, c=classes[label])}"
        write(root / path, i)
        truth.append((path, label))
    if traps:
        mac(root / classes[0], truth[0][0].rpartition("/")[2])
        (root / "README.txt").write_text("not a class")
        (root / ".cache").mkdir()
    return truth


def cifar10(folder: Path, classes: Sequence[str], images: int, _write: Write) -> Truth:
    place = folder / "cifar-10-batches-bin"
    place.mkdir(parents=True)
    labels = np.arange(images) % len(classes)
    rows = np.zeros((images, 3073), np.uint8)
    rows[:, 0] = labels
    for channel in range(3):
        rows[:, 1 + 1024 * channel : 1 + 1024 * (channel + 1)] = np.array([[colour(i)[channel]] for i in range(images)])
    rows.tofile(place / "test_batch.bin")
    text(place / "batches.meta.txt", [*classes, ""])  # the real one ends with an empty line
    return [(f"test_batch.bin#{i}", int(label)) for i, label in enumerate(labels)]


def cifar100(folder: Path, classes: Sequence[str], images: int, _write: Write) -> Truth:
    place = folder / "cifar-100-binary"
    place.mkdir(parents=True)
    labels = np.arange(images) % len(classes)
    rows = np.zeros((images, 3074), np.uint8)
    rows[:, 0], rows[:, 1] = 19, labels  # the coarse label first
    for channel in range(3):
        rows[:, 2 + 1024 * channel : 2 + 1024 * (channel + 1)] = np.array([[colour(i)[channel]] for i in range(images)])
    rows.tofile(place / "test.bin")
    text(place / "fine_label_names.txt", classes)
    return [(f"test.bin#{i}", int(label)) for i, label in enumerate(labels)]


def caltech101(folder: Path, classes: Sequence[str], images: int, write: Write) -> Truth:
    root = folder / "101_ObjectCategories"
    write(root / "BACKGROUND_Google" / "image_0001.jpg", 999)
    (root / "BACKGROUND_Google" / "tmp").write_bytes(b"")
    return folders(root, classes, images, write, "image_{n:04d}.jpg")


def caltech256(folder: Path, classes: Sequence[str], images: int, write: Write) -> Truth:
    root = folder / "256_ObjectCategories"
    truth: Truth = []
    seen: dict[int, int] = {}
    for i, label in enumerate(spread(images, len(classes))):
        seen[label] = seen.get(label, 0) + 1
        path = f"{classes[label]}/{classes[label][:3]}_{seen[label]:04d}.jpg"
        write(root / path, i)
        truth.append((path, label))
    write(root / classes[1] / "greg" / "vision309" / "056_0001.jpg", 998)
    (root / classes[2] / "RENAME2").write_bytes(b"#!/bin/sh")
    return truth


def sports(folder: Path, classes: Sequence[str], images: int, write: Write) -> Truth:
    (folder / "train").mkdir(parents=True)
    text(folder / "sports.csv", ["class id,filepaths,labels,data set"])
    return folders(folder / "test", classes, images, write, "{n:03d}.jpg")


def flowers102(folder: Path, classes: Sequence[str], images: int, write: Write) -> Truth:
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.arange(images + 7) % len(classes)  # more images than the test part has
    numbers = np.arange(images, 0, -1) + 7  # not sorted
    savemat(folder / "imagelabels.mat", {"labels": (labels + 1).astype(np.uint8)[None]})
    parts = {"trnid": numbers[:1] * 0 + 1, "valid": numbers[:1] * 0 + 2, "tstid": numbers}
    savemat(folder / "setid.mat", {name: part.astype(np.uint16)[None] for name, part in parts.items()})
    names = [f"jpg/image_{number:05d}.jpg" for number in numbers]
    for i, name in enumerate(names):
        write(folder / name, i)
    return [(name, int(labels[number - 1])) for name, number in zip(names, numbers, strict=True)]


def food101(folder: Path, classes: Sequence[str], images: int, write: Write) -> Truth:
    truth = folders(folder / "food-101" / "images", classes, images, write, "{n:07d}.jpg")
    meta = folder / "food-101" / "meta"
    meta.mkdir()
    lists = {name: [path[:-4] for path, label in truth if classes[label] == name] for name in classes}
    (meta / "test.json").write_text(json.dumps(lists))
    return truth


def pets(folder: Path, classes: Sequence[str], images: int, write: Write) -> Truth:
    lines: list[str] = []
    truth: Truth = []
    for i, label in enumerate(spread(images, len(classes))):
        # Cats begin with a capital letter, dogs with a small one; the class ids are torchvision's.
        breed = classes[label].replace(" ", "_")
        name = f"{breed if breed in {'Abyssinian', 'Bengal'} else breed.lower()}_{i + 1}"
        write(folder / "images" / f"{name}.jpg", i)
        lines.append(f"{name} {label + 1} 1 {label + 1}")
        truth.append((f"{name}.jpg", label))
    (folder / "images" / "Abyssinian_100.mat").write_bytes(b"MATLAB 5.0")
    text(folder / "annotations" / "test.txt", lines)
    text(folder / "annotations" / "list.txt", ["#Image CLASS-ID SPECIES BREED ID", *lines])
    trimaps = folder / "annotations" / "trimaps"
    trimaps.mkdir()
    (trimaps / "._Abyssinian_1.png").write_bytes(b"\x00\x05\x16\x07")
    return truth


def sun397(folder: Path, classes: Sequence[str], images: int, write: Write) -> Truth:
    root = folder / "SUN397"
    truth: Truth = []
    for i, label in enumerate(spread(images, len(classes))):
        path = f"{classes[label][1:]}/sun_{i:016d}.jpg"
        write(root / path, i)
        truth.append((path, label))
    text(root / "ClassName.txt", classes)
    text(folder / "Partitions" / "Testing_01.txt", [f"/{path}" for path, _ in truth], "\r\n")
    return truth


def imagenet(folder: Path, classes: Sequence[str], images: int, write: Write) -> Truth:
    return folders(folder / "val", classes, images, write, "ILSVRC2012_val_{n:08d}.JPEG")


def imagenet_flat(folder: Path, classes: Sequence[str], images: int, write: Write) -> Truth:
    """The validation archive as it is, with the development kit, whose numbers are not the order of WordNet ids."""
    labels = [i * 7 % len(classes) for i in range(images)]
    names = [f"ILSVRC2012_val_{i + 1:08d}.JPEG" for i in range(images)]
    for i, name in enumerate(names):
        write(folder / "val" / name, i)
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    number_of = {label: len(classes) - label for label in range(len(classes))}
    by_number = {number: label for label, number in number_of.items()}
    rows = [(number, classes[by_number[number]], "a word", 0) for number in sorted(by_number)]
    rows.append((len(classes) + 1, "n00001740", "entity", 2))  # an inner node
    data = folder / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    savemat(data / "meta.mat", {"synsets": np.array(rows, kind)[:, None]})
    text(data / "ILSVRC2012_validation_ground_truth.txt", [str(number_of[label]) for label in labels])
    return list(zip(names, labels, strict=True))


def imagenet_kaggle(folder: Path, classes: Sequence[str], images: int, write: Write) -> Truth:
    """Kaggle's form, whose table is not sorted."""
    labels = [i * 7 % len(classes) for i in range(images)]
    names = [f"ILSVRC2012_val_{i + 1:08d}.JPEG" for i in range(images)]
    for i, name in enumerate(names):
        write(folder / "ILSVRC" / "Data" / "CLS-LOC" / "val" / name, i)
    rows = [f"{name[:-5]},{classes[label]} 85 1 499 272 {classes[label]} 1 2 3 4 " for name, label in
            zip(names, labels, strict=True)]  # fmt: skip
    text(folder / "LOC_val_solution.csv", ["ImageId,PredictionString", *reversed(rows)])
    return list(zip(names, labels, strict=True))


def imagenet_v2(folder: Path, classes: Sequence[str], images: int, write: Write) -> Truth:
    """Folders are class numbers, of which 10 sorts before 2."""
    numbers = [str(label) for label in range(len(classes))]
    return folders(folder / "imagenetv2-matched-frequency-format-val", numbers, images, write, "{n:040x}.jpeg")


def boxclass_cn(folder: Path, classes: Sequence[str], images: int, write: Write, pictures: int | None = None) -> Truth:
    """Boxes in COCO's form, their numbers not whole; image numbers are no places, and pictures have several boxes."""
    names = [f"{10 + 4 * i:06d}.jpg" for i in range(pictures or images)]
    for i, name in enumerate(names):
        write(folder / "images" / name, i)
    write(folder / "images" / "999998.jpg", 7)  # of no box
    boxes = [(i % len(names), i * 7 % len(classes)) for i in range(images)]
    content = {
        "info": {},
        "images": [{"id": 5000 - i, "file_name": name, "width": 8, "height": 6} for i, name in enumerate(names)],
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(classes)],
        "annotations": [
            {"id": i, "image_id": 5000 - number, "category_id": label + 1, "bbox": [1.7, 0.2, 4.9, 3.5], "area": 17.2}
            for i, (number, label) in enumerate(boxes)
        ],
    }
    path = folder / "valid_category_data_total_zh.json"
    path.write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    return [(f"{names[number]}#{i}", label) for i, (number, label) in enumerate(boxes)]


def imagenet_r(folder: Path, classes: Sequence[str], images: int, write: Write) -> Truth:
    return folders(folder / "imagenet-r", classes, images, write, "art_{n:06d}.jpg")


def imagenet_a(folder: Path, classes: Sequence[str], images: int, write: Write) -> Truth:
    return folders(folder / "imagenet-a", classes, images, write, "0.0{n:06d}_bee.jpg")


def imagenet_sketch(folder: Path, classes: Sequence[str], images: int, write: Write) -> Truth:
    return folders(folder / "sketch", classes, images, write, "sketch_{n:06d}.JPEG")


def dtd(folder: Path, classes: Sequence[str], images: int, write: Write) -> Truth:
    truth = folders(folder / "dtd" / "images", classes, images, write, "{c}_{n:04d}.jpg")
    (folder / "dtd" / "images" / classes[0] / ".directory").write_bytes(b"")
    for number in (1, 2):
        text(folder / "dtd" / "labels" / f"test{number}.txt", [path for path, _ in truth][:: 1 if number == 1 else -1])
    return truth


def dogs(folder: Path, classes: Sequence[str], images: int, write: Write) -> Truth:
    truth = folders(folder / "Images", classes, images, write, "x_{n:05d}.jpg")
    cells = np.empty((len(truth), 1), object)
    cells[:, 0] = [path for path, _ in truth]
    labels = np.array([[label + 1] for _, label in truth], np.uint8)
    savemat(folder / "test_list.mat", {"file_list": cells, "labels": labels, "annotation_list": cells})
    return truth


def eurosat(folder: Path, classes: Sequence[str], images: int, write: Write) -> Truth:
    return folders(folder / "2750", classes, images, write, "{c}_{n:05d}.jpg")


def aircraft(folder: Path, classes: Sequence[str], images: int, write: Write) -> Truth:
    data = folder / "fgvc-aircraft-2013b" / "data"
    truth: Truth = []
    for i, label in enumerate(spread(images, len(classes))):
        write(data / "images" / f"{i + 1:07d}.jpg", i)
        truth.append((f"{i + 1:07d}.jpg", label))
    text(data / "variants.txt", classes)
    text(data / "images_variant_test.txt", [f"{path[:-4]} {classes[label]}" for path, label in truth])
    return truth


def fashion_mnist(folder: Path, classes: Sequence[str], images: int, _write: Write) -> Truth:
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.arange(images) % len(classes)
    pixels = (np.arange(images) * 37 % 256).astype(np.uint8)[:, None, None] * np.ones((1, 28, 28), np.uint8)
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz", "wb", 1) as file:
        file.write(struct.pack(">HBBIII", 0, 8, 3, images, 28, 28) + pixels.tobytes())
    with gzip.open(folder / "t10k-labels-idx1-ubyte.gz", "wb", 1) as file:
        file.write(struct.pack(">HBBI", 0, 8, 1, images) + labels.astype(np.uint8).tobytes())
    return [(f"test#{i}", int(label)) for i, label in enumerate(labels)]


def tuxpaint(folder: Path, classes: Sequence[str], images: int, _write: Write) -> Truth:
    """Stamps are cut out: what is transparent is white, whatever colour it has. Each has a caption, some an SVG too."""
    truth: Truth = []
    for label, name in enumerate(classes):
        count = images // len(classes) + (label < images % len(classes))
        for stamp in sorted(f"{name}/{'birds/' if i % 2 else ''}{i:03d}.png" for i in range(count)):
            path = folder / "stamps" / stamp
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.zeros((24, 24, 4), np.uint8)
            pixels[12:] = (*colour(len(truth)), 255)
            Image.fromarray(pixels).save(path)
            path.with_suffix(".txt").write_text("x", "utf-8")
            path.with_suffix(".svg").write_text("<svg/>", "utf-8")
            truth.append((stamp, label))
    (folder / "stamps" / "seasonal").mkdir()
    (folder / "stamps" / "seasonal" / "tree.png").write_bytes(b"of no class")
    return truth


def classification(name: str) -> Callable[[Path, Sequence[str], int, Write], Truth]:
    """The writer of a classification set."""
    writer: Callable[[Path, Sequence[str], int, Write], Truth] = globals()[name.replace("-", "_")]
    return writer


def webdataset(
    folder: Path, split: str, labels: Sequence[int], names: Sequence[str], per_tar: int = 4, suffix: str = "webp"
) -> None:
    """CLIP_benchmark's form; a tar of macOS also has a ``._`` file for each."""
    place = folder / split
    place.mkdir(parents=True)
    tars = -(-len(labels) // per_tar)
    for number in range(tars):
        with tarfile.open(place / f"{number}.tar", "w") as tar:
            for i in range(number * per_tar, min(len(labels), (number + 1) * per_tar)):
                kind = {"webp": "WEBP", "png": "PNG", "jpg": "JPEG"}[suffix]
                for member, data in (
                    (f"._s{i:07d}.{suffix}", b"Mac OS X"),
                    (f"s{i:07d}.cls", str(labels[i]).encode()),
                    (f"s{i:07d}.{suffix}", picture(i, kind)),
                ):
                    entry = tarfile.TarInfo(member)
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
    text(place / "nshards.txt", [str(tars)])
    text(folder / "classnames.txt", names)
    text(folder / "zeroshot_classification_templates.txt", ["a photo of a {c}."])


Captions = list[tuple[str, tuple[int, ...]]]
"""Text and the numbers of the images that it is right for."""


def sentence(i: int) -> str:
    """A caption; some are equal, and some have what breaks readers that are less careful."""
    traps = ["一只狗在草地上", "一只狗在草地上", "男人 说：“你好”", "标号 #0 的房子", "a b\u2028c", "时间3:30", "，"]
    return traps[i] if i < len(traps) else f"第{i}句话，一个人在街上走"


def flickr8k_cn(folder: Path, images: int, each: int, write: Write) -> tuple[list[str], Captions]:
    ids = [f"{1000268201 + i}_693b08cb0e" for i in range(images)]
    for i, name in enumerate(ids):
        write(folder / "Flicker8k_Dataset" / f"{name}.jpg", i)
    mac(folder / "Flicker8k_Dataset", f"{ids[0]}.jpg")
    truth = [(sentence(i * each + n), (i,)) for i in range(images) for n in range(each)]
    lines = [f"{ids[i]}.jpg#zhc#{n % each} {words}" for n, (words, (i,)) in enumerate(truth)]
    text(folder / "data" / "flickr8kzhc.caption.txt", [*lines, "9_of_another_part.jpg#zhc#0 别的"], "\r\n")
    text(folder / "data" / "flickr8kzhmtest.captions.txt", [line.replace("#zhc#", "#zhm#") for line in lines])
    text(folder / "data" / "flickr8ktest.txt", ids)
    for part in ("train", "val"):
        text(folder / "data" / f"flickr8k{part}.txt", ["9_of_another_part"] if part == "val" else [])
    return ids, truth


def flickr30k_cn(folder: Path, images: int, each: int, write: Write) -> tuple[list[str], Captions]:
    """The test part: words with parts of speech; two spaces stand for a comma."""
    ids = [str(1007129816 + i) for i in range(images)]
    for i, name in enumerate(ids):
        write(folder / "flickr30k-images" / f"{name}.jpg", i)
    name = "flickr30kzhmbosontest"
    lines: list[str] = []
    truth: Captions = []
    for i in range(images):
        for n in range(each):
            words = ["一个:m", "第:m", f"{i}:{n}:m", "男人:n", "站:v", "着:u"]
            if (i + n) % 3 == 1:
                truth.append((f"一个第{i}:{n}，男人站着", (i,)))
                line = f"{' '.join(words[:3])}  {' '.join(words[3:])}"
            else:
                truth.append((f"一个第{i}:{n}男人站着，。", (i,)))
                line = " ".join([*words, "，:wd", "。:wj"])
            lines.append(f"{ids[i]}#zhm#{n} {line}")
    text(folder / name / "TextData" / f"seg.{name}.caption.txt", lines)
    text(folder / name / "ImageSets" / f"{name}.txt", ids)
    mac(folder / name / "ImageSets", f"{name}.txt")
    return ids, truth


def coco_cn(folder: Path, images: int, more: int, write: Write) -> tuple[list[str], Captions]:
    """One caption an image and a second one for the first ``more``; the lines are of all parts and not in order."""
    ids = [f"COCO_{'train' if i % 2 else 'val'}2014_{i:012d}" for i in range(images)]
    for i, name in enumerate(ids):
        write(folder / name.rpartition("_")[0].removeprefix("COCO_") / f"{name}.jpg", i)
    place = folder / "coco-cn-version1805v1.1"
    entries = [(i, 0) for i in reversed(range(images))] + [(i, 1) for i in range(more)]
    truth: Captions = [(sentence(number), (i,)) for number, (i, _) in enumerate(entries)]
    lines = [
        f"{ids[i]}#{n}{' ' if number % 5 == 2 else chr(9)}{truth[number][0]}" for number, (i, n) in enumerate(entries)
    ]
    others = ["COCO_train2014_999999999999#0\t别的图片", "COCO_val2014_999999999998#0 \t别的图片"]
    text(place / "imageid.human-written-caption.txt", [*others, *lines])
    text(place / "imageid.human-written-tags.txt", ["COCO_val2014_000000000000 狗 草地"])
    for part in ("train", "val"):
        text(place / f"coco-cn_{part}.txt", ["COCO_train2014_999999999999"])
    text(place / "coco-cn_test.txt", ids)
    for file in ("imageid.human-written-caption.txt", "coco-cn_test.txt"):
        mac(place, file)
    return ids, truth


def aic_icc(
    folder: Path, images: int, each: int, write: Write, listed: int | None = None
) -> tuple[list[str], Captions]:
    """``listed`` images are in the file, of which the first ``images`` are written and are the truth."""
    place = folder / "ai_challenger_caption_validation_20170910"
    ids = [f"{(listed or images) - i:040x}.jpg" for i in range(listed or images)]  # not sorted
    for i, name in enumerate(ids[:images]):
        write(place / "caption_validation_images_20170910" / name, i)
    mac(place / "caption_validation_images_20170910", ids[0])
    entries = [
        {"url": f"http://b.hiphotos.baidu.com/{i}", "image_id": name, "caption": [sentence(i * each + n)
                                                                                  for n in range(each)]}
        for i, name in enumerate(ids)
    ]  # fmt: skip
    (place / "caption_validation_annotations_20170910.json").write_text(json.dumps(entries), "utf-8")
    return ids[:images], [(words, (i,)) for i, entry in enumerate(entries[:images]) for words in entry["caption"]]


def muge(
    folder: Path, images: int, queries: int, _write: Write | None, form: str = "owner", pixels: bytes | None = None
) -> tuple[list[str], Captions]:
    """The owner's form or Chinese-CLIP's; ids are numbers in the queries and text in the table."""
    folder.mkdir(parents=True, exist_ok=True)
    table, asked = {
        "owner": ("MR_valid_imgs.tsv", "MR_valid_queries.jsonl"),
        "chinese-clip": ("valid_imgs.tsv", "valid_texts.jsonl"),
    }[form]
    ids = [str(1000002 + 3 * i) for i in range(images)]
    encode = base64.b64encode if form == "owner" else base64.urlsafe_b64encode
    shared = encode(pixels) if pixels else None
    with (folder / table).open("wb") as file:
        for i, name in enumerate(ids):
            file.write(name.encode() + b"\t" + (shared or encode(picture(i, "PNG" if i % 2 else "JPEG"))) + b"\n")
    per = max(1, images // max(1, queries))
    truth: Captions = [
        (sentence(q), tuple((q * per + n) % images for n in range(min(per + 1, images)))) for q in range(queries)
    ]
    keys = ("query_id", "query_text", "item_ids") if form == "owner" else ("text_id", "text", "image_ids")
    text(
        folder / asked,
        [
            json.dumps({keys[0]: q, keys[1]: f"{words} ", keys[2]: [int(ids[i]) for i in of]}, ensure_ascii=q % 2 == 0)
            for q, (words, of) in enumerate(truth)
        ],
    )
    return ids, truth


def xm3600_zh(folder: Path, images: int, captions: int, write: Write) -> tuple[list[str], Captions]:
    """Captions in many languages; most pictures have two Chinese ones, the last have one."""
    ids = [f"{0xD89A4889331CE042 - i:016x}" for i in range(images)]
    for i, name in enumerate(ids):
        write(folder / "images" / f"{name}.jpg", i)
    mac(folder / "images", f"{ids[0]}.jpg")
    truth: Captions = []
    lines: list[str] = []
    for i, name in enumerate(ids):
        texts = [sentence(len(truth) + n) for n in range(1 + (i < captions - images))]
        truth += [(each, (i,)) for each in texts]
        languages = {
            language: {"caption": said, "caption/tokenized": said, "caption/tokenized/lowercase": said}
            for language, said in (("de", ["Ein Hund"]), ("zh", [f"{each} " for each in texts]), ("ja", ["犬"]))
        }
        row = {"image/key": name, "image/locale": "zh", **languages}
        lines.append(json.dumps(row, ensure_ascii=i % 2 == 0))
    text(folder / "captions.jsonl", lines)
    return ids, truth


def xflickr30kco_zh(folder: Path, images: int, _each: int, write: Write) -> tuple[list[str], Captions]:
    """The first half is of Flickr30K with numbers as text, the other of COCO with numbers; one number is in both."""
    flickr = [str(1007129816 + i) for i in range(images // 2)]
    coco = [1007129816 + i for i in range(images - len(flickr))]
    rows: list[dict[str, object]] = [{"sentences": [], "id": each, "img_path": f"{each}.jpg"} for each in flickr]
    rows += [{"sentences": [], "id": each, "img_path": f"COCO_val2014_{each:012d}.jpg"} for each in coco]
    for i, row in enumerate(rows):
        row["sentences"] = [sentence(i)]
        write(folder / ("flickr30k-images" if i < len(flickr) else "val2014") / str(row["img_path"]), i)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text(folder / "annotations" / "zh" / "test.jsonl", lines)
    text(folder / "annotations" / "de" / "test.jsonl", lines[:1])
    return [str(row["img_path"])[:-4] for row in rows], [(sentence(i), (i,)) for i in range(images)]


def dci_cn(folder: Path, images: int, _each: int, write: Write) -> tuple[list[str], Captions]:
    """Paths are the owner's; the pictures are those of two archives, each unpacked into a folder of its own."""
    ids = [f"sa_{3 * images - i}" for i in range(images)]
    for i, name in enumerate(ids):
        write(folder / "images" / f"images_{1 + i % 2}" / f"{name}.jpg", i)
    mac(folder / "images" / "images_1", f"{ids[0]}.jpg")
    lines = [f"/data/benchmarks/dci/photos/{name}.jpg\t{sentence(i)}" for i, name in enumerate(ids)]
    text(folder / "image_caption_trans.txt", lines)
    return ids, [(sentence(i), (i,)) for i in range(images)]
