"""The interface of an evaluation set: what it is, how to get it, and what reading it gives.

The sets are in ``wukong/evaluate/sets/``, one file each; how their files are laid out is read by
``wukong/evaluate/formats/``. Nothing is downloaded here, nothing is unpickled, and images are decoded one at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from wukong.errors import DataError
from wukong.evaluate import class_names
from wukong.evaluate.class_names import ClassName
from wukong.evaluate.formats import chinese_clip, webdataset
from wukong.evaluate.published import Caption, Captioned, Images, Labelled, NotThereError, Paired, reading_file
from wukong.runtime.language import _, joined

PICTURE_BYTES = 125_000
"""About how many a picture of a published set has: one of ImageNet's validation part, of 6.3 GB."""

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class HowToGet:
    """Where a set comes from. Most of these sets only their owner may pass on, so nothing is downloaded here.

    Attributes:
        download: what to download, with its address, one entry for each file or archive.
        place: where the unpacked files go, relative to the set's folder.
        licence: under which terms the owner publishes it.
    """

    download: tuple[str, ...]
    place: str
    licence: str

    def __str__(self) -> str:
        return _("Download {download}. Put it so that the set's folder has {place}.").format(
            download=joined(map(_, self.download), "; "), place=_(self.place)
        )


class Counts(NamedTuple):
    """Numbers of images and captions of a split, as in Table 8."""

    images: int
    captions: int


class _Pictures:
    """A split whose images are decoded when they are asked for."""

    images: Images

    def image(self, i: int) -> Image.Image:
        """Decode image ``i`` to RGB.

        Raises:
            DataError: it cannot be read or decoded.
        """
        return self.images.image(i)


class _Paired(_Pictures):
    """A split whose captions belong to images."""

    image_ids: Sequence[str]

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def ids(self) -> Sequence[str]:
        """The id of each image, under the name that it has in ``ClassificationData``."""
        return self.image_ids


@dataclass(frozen=True)
class ClassificationData(_Pictures):
    """One split of a classification set. Only ids and labels are in memory.

    Attributes:
        name: name of the set.
        split: name of the split.
        classes: ids of the classes, as their owner names them; a label is a place in this list.
        ids: an id of each image, unique within the split.
        labels: int64 [images].
        title: how reports call the set.
        names: the Chinese name of each class; None where the protocol says which list is taken.
        named_as: the set whose lists of names these are, in ``wukong.evaluate.class_names``; empty for its own.
        every_class: whether a class without an image means that the set is damaged.
        pictures: digest of each image's bytes; empty where it is not known.
    """

    name: str
    split: str
    classes: Sequence[str]
    ids: Sequence[str]
    labels: npt.NDArray[np.int64]
    images: Images = field(repr=False)
    title: str
    names: Sequence[str] | None = None
    every_class: bool = True
    pictures: Sequence[str] = ()
    named_as: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def digest(self) -> str:
        """SHA-256 over the set's name, its split, its classes, and the id and label of each image, in any order."""
        rows = sorted(zip(self.ids, self.labels.tolist(), strict=True))
        return _digest([self.name, self.split, list(self.classes), rows])

    @property
    def order(self) -> list[int]:
        """The numbers of the images in the order of their ids, which is the same however the set's rows are ordered."""
        return sorted(range(len(self.ids)), key=lambda i: self.ids[i])


@dataclass(frozen=True)
class RetrievalData(_Paired):
    """One split of a retrieval set. Every published caption is here, equal ones too. Images are not in memory.

    Attributes:
        name: name of the set.
        split: name of the split.
        image_ids: the id of each image, unique within the split.
        captions: each with the images that are right for it. An image may have several captions and a caption several
            images.
        text_to_image_only: whether only images are searched by text (MUGE).
        title: how reports call the set.
        pictures: digest of each image's bytes; empty where it is not known.
    """

    name: str
    split: str
    image_ids: Sequence[str]
    captions: Sequence[Caption]
    text_to_image_only: bool
    images: Images = field(repr=False)
    title: str
    pictures: Sequence[str] = ()

    @property
    def answered(self) -> bool:
        """Whether the owner publishes which images are right; no recall can be computed otherwise."""
        return any(caption.images for caption in self.captions)

    @property
    def digest(self) -> str:
        """SHA-256 over the set's name, its split, the image ids and the captions with their images, in any order."""
        return _digest([self.name, self.split, sorted(self.image_ids), sorted(map(self._row, self.captions))])

    @property
    def order(self) -> tuple[list[int], list[int]]:
        """The numbers of the captions and of the images in an order that does not depend on that of the set's rows."""
        rows = [self._row(caption) for caption in self.captions]
        captions = sorted(range(len(rows)), key=lambda n: rows[n])
        return captions, sorted(range(len(self.image_ids)), key=lambda i: self.image_ids[i])

    def _row(self, caption: Caption) -> list[str]:
        return [caption.text, *sorted(self.image_ids[i] for i in caption.images)]


@dataclass(frozen=True)
class WordOrderData(_Paired):
    """Pairs of captions with the same characters in another order, each with its picture (Winoground).

    Attributes:
        name: name of the set.
        split: name of the split.
        pair_ids: the id of each pair, unique within the split.
        image_ids: the id of each image, unique within the split.
        captions: two a pair, pair by pair, each with the one image that is right for it.
        title: how reports call the set.
    """

    name: str
    split: str
    pair_ids: Sequence[str]
    image_ids: Sequence[str]
    captions: Sequence[Caption]
    images: Images = field(repr=False)
    title: str

    @property
    def digest(self) -> str:
        """SHA-256 over the set's name, its split and the captions of each pair with their images, in any order."""
        rows = [(caption.text, *(self.image_ids[i] for i in caption.images)) for caption in self.captions]
        return _digest([self.name, self.split, sorted(zip(self.pair_ids, rows[::2], rows[1::2], strict=True))])


Data: TypeAlias = ClassificationData | RetrievalData | WordOrderData


@dataclass(frozen=True, kw_only=True)
class Classification:
    """A set of images with one label each.

    Attributes:
        name: its name, also in ``wukong.evaluate.class_names``.
        title: its name in Table 5.
        splits: number of images of each split in the owner's form.
        split: the split that is measured where nothing else is said.
        note: which splits the owner publishes, which ones others use, and what the paper says about it.
        how_to_get: what to download and where to put it.
        read_published: reads the owner's form: gets the set's folder, the split and the class ids.
        picture_bytes: about how many a picture has in the owner's form.
        webdataset: number of images of each split in CLIP_benchmark's form; None where it has the owner's splits.
        webdataset_folders: the folder that a split has in that form, where it has another name.
        webdataset_order: the classes in the order of that form's labels, from the class ids; None where it is the same.
            Images of classes that are not in the set are left out.
        names: id, English and Chinese name of each class; None for those in ``class_names``.
        named_as: the set whose classes in ``class_names`` these are; empty for its own.
        named_in_files: number of the classes of a set that only its owner's files name; 0 for all other sets.
    """

    name: str
    title: str
    splits: Mapping[str, int]
    split: str = "test"
    note: str = ""
    how_to_get: HowToGet
    read_published: Callable[[Path, str, Sequence[str]], Labelled] = field(repr=False)
    picture_bytes: int = PICTURE_BYTES
    webdataset: Mapping[str, int] | None = None
    webdataset_folders: Mapping[str, str] = field(default_factory=dict)
    webdataset_order: Callable[[Sequence[str]], Sequence[str]] | None = field(default=None, repr=False)
    names: tuple[tuple[str, str, str], ...] | None = field(default=None, repr=False)
    named_as: str = ""
    named_in_files: int = 0

    @property
    def classes(self) -> Sequence[ClassName]:
        """The classes with their Chinese and English names, in the order of the labels; none if ``named_in_files``."""
        if self.named_in_files:
            return []
        if self.names is None:
            return class_names.of(self.named_as or self.name)
        return [ClassName(label, *names, "ours") for label, names in enumerate(self.names)]

    @property
    def number_of_classes(self) -> int:
        """Number of the classes."""
        return self.named_in_files or len(self.classes)

    def read(self, folder: Path, split: str | None = None) -> ClassificationData:
        """Read one split, in the owner's form or in CLIP_benchmark's WebDataset form, whichever the folder has.

        Args:
            folder: the set's folder, see ``how_to_get``.
            split: name of the split. None for ``split``; in the WebDataset form for ``test``, if it has no such split.

        Raises:
            DataError: a file is missing or damaged, or the numbers of images or classes are not the published ones.
        """
        ids = tuple(each.id for each in self.classes)
        _require_folder(self, folder)
        if webdataset.is_here(folder):
            expected = self.splits if self.webdataset is None else self.webdataset
            chosen = split or (self.split if self.split in expected else "test")
            require_split(self, expected, chosen)
            order = ids if self.webdataset_order is None else self.webdataset_order(ids)
            published = _reading(
                self, folder, lambda: webdataset.read(folder, self.webdataset_folders.get(chosen, chosen), len(order))
            )
            _require_count(self, chosen, folder, "images", expected[chosen], len(published.ids))
            if order is not ids:
                published = webdataset.relabelled(published, order, ids)
        else:
            chosen = split or self.split
            require_split(self, self.splits, chosen)
            published = _reading(self, folder, lambda: self.read_published(folder, chosen, ids))
            _require_count(self, chosen, folder, "images", self.splits[chosen], len(published.ids))
        labels = np.asarray(published.labels, np.int64)
        _require_unique(self, published.ids)
        names = None if self.names is None else tuple(chinese for _, _, chinese in self.names)
        if self.named_in_files:
            _require_count(self, chosen, folder, "classes", self.named_in_files, len(published.names))
            ids = names = tuple(published.names)
        return ClassificationData(
            self.name,
            chosen,
            ids,
            published.ids,
            labels,
            published.images,
            self.title,
            names,
            named_as=self.named_as,
        )


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """A set of images and captions.

    Attributes:
        name: its name, for instance ``coco-cn``.
        title: its name in Table 8.
        splits: numbers of images and captions of each split, those of Table 8.
        split: the split that the paper measures.
        note: what others measure, and what is special in the files.
        how_to_get: what to download and where to put it.
        read_published: reads the owner's form: gets the set's folder and the split.
        picture_bytes: about how many a picture has in the owner's form.
        text_to_image_only: whether only images are searched by text.
        apart: the splits whose images and captions are no part of what a model is trained on.
    """

    name: str
    title: str
    splits: Mapping[str, Counts]
    split: str = "test"
    apart: tuple[str, ...] = ("val", "test")
    note: str = ""
    how_to_get: HowToGet
    read_published: Callable[[Path, str], Captioned] = field(repr=False)
    picture_bytes: int = PICTURE_BYTES
    text_to_image_only: bool = False

    def read(self, folder: Path, split: str | None = None) -> RetrievalData:
        """Read one split, in the owner's form or in Chinese-CLIP's, whichever the folder has.

        Args:
            folder: the set's folder, see ``how_to_get``.
            split: name of the split; None for ``split``.

        Raises:
            DataError: a file is missing or damaged, or the numbers of images or captions are not those of Table 8.
        """
        _require_folder(self, folder)
        chosen = split or self.split
        require_split(self, self.splits, chosen)
        if chinese_clip.is_here(folder, chosen):
            published = _reading(self, folder, lambda: chinese_clip.read(folder, chosen))
        else:
            published = _reading(self, folder, lambda: self.read_published(folder, chosen))
        _require_count(self, chosen, folder, "images", self.splits[chosen].images, len(published.image_ids))
        _require_count(self, chosen, folder, "captions", self.splits[chosen].captions, len(published.captions))
        _require_unique(self, published.image_ids)
        data = RetrievalData(
            self.name,
            chosen,
            published.image_ids,
            published.captions,
            self.text_to_image_only,
            published.images,
            self.title,
        )
        if data.answered:
            self._require_answers(data)
        return data

    def _require_answers(self, data: RetrievalData) -> None:
        """Raise DataError if a caption has no image, or if an image that must be found has no caption."""
        for number, caption in enumerate(data.captions):
            if not caption.images:
                raise DataError(f"{self.title}, split {data.split}: caption {number}, {caption.text!r}, has no image")
        if not self.text_to_image_only:
            described = {image for caption in data.captions for image in caption.images}
            if missing := [each for i, each in enumerate(data.image_ids) if i not in described]:
                raise DataError(
                    f"{self.title}, split {data.split}: {len(missing)} images have no caption, the first is "
                    f"{missing[0]}: the file of captions is incomplete or of another version; download it again"
                )


@dataclass(frozen=True, kw_only=True)
class WordOrder:
    """A set of pairs of captions with the same characters in another order. Nobody has published a number of pairs.

    Attributes:
        name: its name.
        title: how reports call it.
        splits: the splits.
        split: the split that is measured.
        note: what must be known to read its numbers.
        how_to_get: what to download or to write, and where to put it.
        read_published: reads the files: gets the set's folder and the split.
    """

    name: str
    title: str
    splits: tuple[str, ...] = ("test",)
    split: str = "test"
    note: str = ""
    how_to_get: HowToGet
    read_published: Callable[[Path, str], Paired] = field(repr=False)

    def read(self, folder: Path, split: str | None = None) -> WordOrderData:
        """Read one split.

        Args:
            folder: the set's folder, see ``how_to_get``.
            split: name of the split; None for ``split``.

        Raises:
            DataError: a file is missing or damaged, or the captions of a pair have not the same characters.
        """
        _require_folder(self, folder)
        chosen = split or self.split
        require_split(self, self.splits, chosen)
        published = _reading(self, folder, lambda: self.read_published(folder, chosen))
        return WordOrderData(self.name, chosen, *published, self.title)


DataSet: TypeAlias = Classification | Retrieval | WordOrder
_Found = TypeVar("_Found", Labelled, Captioned, Paired)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def _reading(data_set: DataSet, folder: Path, read: Callable[[], _Found]) -> _Found:
    """Read; where something is not there, or is not what it should be, say how to get it."""
    damaged = f"{data_set.title}: the files in {folder} are damaged, or others"
    try:
        with reading_file(folder, damaged):
            return read()
    except NotThereError as error:
        raise NotThereError(f"{data_set.title}: {error.message}. {data_set.how_to_get}") from error


def _require_folder(data_set: DataSet, folder: Path) -> None:
    if not folder.is_dir():
        raise NotThereError(f"{data_set.title}: the folder {folder} is not there. {data_set.how_to_get}")


def require_split(data_set: DataSet, splits: Collection[str], split: str) -> None:
    """Check that a set has a split.

    Raises:
        DataError: it has others.
    """
    if split not in splits:
        raise DataError(f"{data_set.title} has no split {split!r}: take one of {', '.join(splits)}")


def _require_count(
    data_set: DataSet,
    split: str,
    folder: Path,
    what: Literal["images", "captions", "classes"],
    expected: int,
    found: int,
) -> None:
    if found != expected:
        raise DataError(
            f"{data_set.title} ({data_set.name}), split {split}: {found:,} {what} in {folder}, but {expected:,} are "
            "published: files are missing, there are other files, or it is another version. "
            f"{data_set.how_to_get}"
        )


def _require_unique(data_set: DataSet, ids: Sequence[str]) -> None:
    if len(set(ids)) != len(ids):
        ((first, times),) = Counter(ids).most_common(1)
        raise DataError(f"{data_set.title}: the image {first} is there {times} times; download the set again")
