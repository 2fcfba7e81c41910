"""Tasks: sets of pictures with known answers, measured by models whose results are known."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from wukong.errors import ConfigError, DataError
from wukong.evaluate import sets, tasks
from wukong.evaluate.data_set import Classification, ClassificationData, Counts, Retrieval, RetrievalData
from wukong.evaluate.protocol import PROTOCOLS, Protocol
from wukong.evaluate.published import Caption, Captioned, Labelled, NotThereError
from wukong.evaluate.results import Classified, ClassResult, Outcome, Query
from wukong.model.dual import Texts
from wukong.model.similarity import Scores, global_similarity

PAPER = PROTOCOLS["paper"]


class Pixels:
    """Image ``i`` has the colour of its answer, so a model can know it from the pixels alone."""

    def __init__(self, answers: Sequence[int]) -> None:
        self.answers = answers

    def __len__(self) -> int:
        return len(self.answers)

    def image(self, i: int) -> Image.Image:
        return Image.new("RGB", (4, 4), (self.answers[i], 0, 0))

    def digest(self, i: int) -> None:
        return None


class Knowing:
    """Reads the answer from an image's colour; a text's vector is that of the first name or caption in it."""

    name, digest, token_wise, scale = "knowing", "0", False, 1.0

    def __init__(self, words: Sequence[str], shift: int = 0, sign: float = 1.0) -> None:
        self.words, self.shift, self.sign = list(words), shift, sign

    def encode_images(self, pictures: Sequence[Image.Image], protocol: Protocol) -> Tensor:
        answers = torch.tensor([(np.asarray(each)[0, 0, 0] + self.shift) % len(self.words) for each in pictures])
        return self.sign * F.one_hot(answers.long(), len(self.words)).float()

    def encode_texts(self, texts: Sequence[str], protocol: Protocol) -> Texts:
        numbers = []
        for text in texts:
            inside = [n for n, word in enumerate(self.words) if word.lower() in text.lower()]
            numbers.append(max(inside, key=lambda n: len(self.words[n])))
        return Texts(F.one_hot(torch.tensor(numbers), len(self.words)).float(), torch.ones(len(texts), 1).bool())

    def similarity(self, image: Tensor, text: Texts) -> Scores:
        return global_similarity(image, text.vectors)

    def image_to_text(self, image: Tensor, text: Texts) -> Tensor:
        return self.similarity(image, text).image_to_text

    def rough_image_to_text(self, image: Tensor, text: Texts) -> Tensor | None:
        return None


def classified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fashion-MNIST with 40 coloured images; return the names of its classes."""
    labels = [i % 10 for i in range(40)]
    full = sets.of("fashion-mnist")
    assert isinstance(full, Classification)
    small = replace(
        full,
        splits={"test": 40},
        read_published=lambda *_: Labelled([str(i) for i in range(40)], labels, Pixels(labels)),
    )
    monkeypatch.setitem(sets.REGISTRY, "fashion-mnist", small)
    return [each.chinese for each in small.classes]


def captioned(monkeypatch: pytest.MonkeyPatch, name: str, only: bool) -> list[str]:
    """A retrieval set of six images; captions 0 and 1 belong to image 0."""
    words = ["红色的大苹果", "绿色的小船", "蓝色的天空", "黑色的猫", "白色的狗", "黄色的香蕉"]
    captions = [Caption(f"这里有{word}", (number,)) for number, word in enumerate(words)]
    captions.insert(1, Caption(f"照片里有{words[0]}", (0,)))
    full = sets.of(name)
    assert isinstance(full, Retrieval)
    small = replace(
        full,
        splits={PAPER.split(name): Counts(6, 7)},
        text_to_image_only=only,
        read_published=lambda *_: Captioned([str(i) for i in range(6)], captions, Pixels(range(6))),
    )
    monkeypatch.setitem(sets.REGISTRY, name, small)
    return words


def measured(model: Knowing, name: str, root: Path) -> Outcome:
    (root / name).mkdir(parents=True, exist_ok=True)
    there = tasks.read([name], {}, root, PAPER, skip=False)
    return tasks.measure(model, there.data[name], PAPER, root / f"cache{model.shift}{model.sign}")


def test_classification_by_a_model_that_knows_and_by_one_that_is_always_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = classified(monkeypatch)
    right = measured(Knowing(names), "fashion-mnist", tmp_path)
    assert (right.headline, right.results["top1"].value, right.results["mean_per_class"].value) == ("top1", 1, 1)
    assert right.results["top1"].low < 1 and right.results["top1"].units == 40
    assert right.sizes == {"images": 40, "classes": 10} and right.chance["top5"] == 0.5
    assert list(right.classes) == [ClassResult(name, 4, 1.0) for name in names]
    assert right.confusion == [[4 * (row == column) for column in range(10)] for row in range(10)]
    assert len(right.examples) == 4 and all(isinstance(each, Classified) and each.right for each in right.examples)
    wrong = measured(Knowing(names, shift=1), "fashion-mnist", tmp_path)
    assert wrong.results["top1"].value == 0 and wrong.digest == right.digest
    following = dict(zip(names, [*names[1:], names[0]], strict=True))
    assert {each.name: each.mistaken_for for each in wrong.classes} == following
    for each in wrong.examples:
        assert isinstance(each, Classified) and not each.right
        assert (each.label, each.found) == (names[int(each.image) % 10], following[each.label])


@pytest.mark.parametrize(("name", "only"), [("coco-cn", False), ("muge", True)])
def test_answers_to_one_set_are_in_one_order_however_its_rows_are_read(
    name: str, only: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = captioned(monkeypatch, name, only)
    (tmp_path / name).mkdir()
    data = tasks.read([name], {}, tmp_path, PAPER, skip=False).data[name]
    assert isinstance(data, RetrievalData)
    order = [4, 0, 5, 2, 1, 3]
    captions = [Caption(text, tuple(order.index(i) for i in of)) for text, of in reversed(data.captions)]
    ids = [data.image_ids[i] for i in order]
    mixed = replace(data, image_ids=ids, captions=captions, images=Pixels(order))
    sometimes = Knowing(words)
    sometimes.words[3:5] = sometimes.words[4], sometimes.words[3]  # it takes a cat for a dog
    one, other = (tasks.measure(sometimes, each, PAPER, tmp_path / "cache") for each in (data, mixed))
    assert one.digest == other.digest and 0 < one.results["text_to_image_r1"].value < 1
    assert one.answers is not None and other.answers is not None
    assert one.answers.queries == other.answers.queries
    assert one.answers.units.tolist() == other.answers.units.tolist()
    for result, values in one.answers.results.items():
        np.testing.assert_array_equal(values, other.answers.results[result])


@pytest.mark.parametrize(("name", "only"), [("coco-cn", False), ("muge", True)])
def test_retrieval_by_a_model_that_knows_and_by_one_that_is_always_wrong(
    name: str, only: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = captioned(monkeypatch, name, only)
    right = measured(Knowing(words), name, tmp_path)
    directions = {"text_to_image"} if only else {"text_to_image", "image_to_text"}
    assert set(right.results) == {f"{each}_r{k}" for each in directions for k in (1, 5, 10)} | {"mean_recall"}
    assert all(each.value == 1 for each in right.results.values())
    assert right.sizes == {"images": 6, "captions": 7}
    assert right.chance["text_to_image_r1"] == pytest.approx(1 / 6)
    for query in right.examples:
        assert isinstance(query, Query) and query.rank == 0 and len(query.images) == 5
        assert [each.right for each in query.images] == [True, False, False, False, False]
        assert query.images[0].caption == query.caption
        other = query.images[1]
        assert words[int(other.image)] in other.caption, "another picture stands with a caption of its own"
    wrong = measured(Knowing(words, sign=-1), name, tmp_path)
    assert wrong.results["text_to_image_r1"].value == 0
    assert all(isinstance(query, Query) and query.rank == 5 for query in wrong.examples)


def test_collapsed_images_give_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Blind(Knowing):
        def encode_images(self, pictures: Sequence[Image.Image], protocol: Protocol) -> Tensor:
            return F.one_hot(torch.zeros(len(pictures)).long(), len(self.words)).float()

    for name, words in (("fashion-mnist", classified(monkeypatch)), ("muge", captioned(monkeypatch, "muge", True))):
        with pytest.raises(DataError, match="collapsed"):
            measured(Blind(words), name, tmp_path)


def test_a_named_set_that_is_not_there_is_an_error_and_one_of_all_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classified(monkeypatch)
    (tmp_path / "fashion-mnist").mkdir()
    with pytest.raises(NotThereError, match=r"CIFAR10.*Download"):
        tasks.read(sets.chosen("fashion-mnist,cifar10"), {}, tmp_path, PAPER, skip=False)
    there = tasks.read(sets.chosen("all"), {}, tmp_path, PAPER, skip=True)
    assert list(there.data) == ["fashion-mnist"]
    assert set(there.missing) == set(sets.REGISTRY) - {"fashion-mnist"}
    assert all("Download" in message for message in there.missing.values())


def test_a_damaged_set_is_an_error_for_all_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classified(monkeypatch)
    (tmp_path / "fashion-mnist").mkdir()
    broken = replace(sets.of("fashion-mnist"), splits={"test": 41})
    monkeypatch.setitem(sets.REGISTRY, "fashion-mnist", broken)
    with pytest.raises(DataError, match=r"40 images .* but 41 are published"):
        tasks.read(sets.chosen("all"), {}, tmp_path, PAPER, skip=True)


@pytest.mark.parametrize(("asked", "message"), [("mnist", "no evaluation set 'mnist'"), (" , ", "names none")])
def test_tasks_that_do_not_exist_are_refused(asked: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sets.chosen(asked)


def test_hold_outs_stand_behind_the_sets() -> None:
    assert sets.chosen("mine,cifar10", ["mine", "yours"]) == ["cifar10", "mine"]
    assert sets.chosen("all", ["mine"]) == [*sets.REGISTRY, "mine"]
    with pytest.raises(ConfigError, match=r"'mine'.*hold-outs are those of --config"):
        sets.chosen("mine")


def test_a_class_without_images_is_an_error_in_a_published_set_and_left_out_of_a_hold_out(tmp_path: Path) -> None:
    names = ("猫", "狗", "鸟")
    labels = np.array([0, 0, 2, 2])
    data = ClassificationData("mine", "holdout", names, list("abcd"), labels, Pixels([0, 2, 2, 2]), "Mine", names)
    with pytest.raises(DataError, match="class 1 has no image"):
        tasks.measure(Knowing(names), data, PAPER, tmp_path)
    found = tasks.measure(Knowing(names), replace(data, every_class=False), PAPER, tmp_path)
    assert found.results["top1"].value == 0.75
    assert found.results["mean_per_class"].value == (0.5 + 1) / 2
    assert [(each.name, each.images, each.top1) for each in found.classes] == [("猫", 2, 0.5), ("鸟", 2, 1.0)]


def test_vectors_that_are_known_are_not_computed_again(tmp_path: Path) -> None:
    class Unseeing(Knowing):
        def encode_images(self, pictures: Sequence[Image.Image], protocol: Protocol) -> Tensor:
            raise AssertionError

    names = ("猫", "狗")
    data = ClassificationData("mine", "holdout", names, ["a", "b"], np.array([0, 1]), Pixels([0, 1]), "Mine", names)
    assert tasks.measure(Unseeing(names), data, PAPER, tmp_path, torch.eye(2)).results["top1"].value == 1
