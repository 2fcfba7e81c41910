"""Tasks: sets of pictures with known answers, measured by models whose results are known."""

import json
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
from wukong.evaluate.data_set import Classification, Counts, Retrieval
from wukong.evaluate.protocol import PROTOCOLS, Protocol
from wukong.evaluate.published import Caption, Captioned, Labelled, NotThereError
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


def measured(model: Knowing, name: str, root: Path) -> tasks.Outcome:
    (root / name).mkdir(parents=True, exist_ok=True)
    there = tasks.read(name, {}, root, PAPER)
    return tasks.measure(model, name, there.data[name], PAPER, root / f"cache{model.shift}{model.sign}")


def test_classification_by_a_model_that_knows_and_by_one_that_is_always_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = classified(monkeypatch)
    right = measured(Knowing(names), "fashion-mnist", tmp_path)
    assert (right.headline, right.results["top1"].value, right.results["mean_per_class"].value) == ("top1", 1, 1)
    assert right.results["top1"].low < 1 and right.results["top1"].units == 40
    assert right.sizes == {"images": 40, "classes": 10} and right.chance["top5"] == 0.5
    assert list(right.classes) == [(name, 4, 1.0) for name in names]
    wrong = measured(Knowing(names, shift=1), "fashion-mnist", tmp_path)
    assert wrong.results["top1"].value == 0 and wrong.digest == right.digest


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
    wrong = measured(Knowing(words, sign=-1), name, tmp_path)
    assert wrong.results["text_to_image_r1"].value == 0


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
        tasks.read("fashion-mnist,cifar10", {}, tmp_path, PAPER)
    there = tasks.read("all", {}, tmp_path, PAPER)
    assert list(there.data) == ["fashion-mnist"]
    assert set(there.missing) == set(sets.REGISTRY) - {"fashion-mnist"}
    assert all("Download" in message for message in there.missing.values())
    with pytest.raises(NotThereError, match="none of the 24 sets"):
        tasks.read("all", {}, tmp_path / "empty", PAPER)


def test_a_damaged_set_is_an_error_for_all_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classified(monkeypatch)
    (tmp_path / "fashion-mnist").mkdir()
    broken = replace(sets.of("fashion-mnist"), splits={"test": 41})
    monkeypatch.setitem(sets.REGISTRY, "fashion-mnist", broken)
    with pytest.raises(DataError, match=r"40 images .* but 41 are published"):
        tasks.read("all", {}, tmp_path, PAPER)


@pytest.mark.parametrize(("asked", "message"), [("mnist", "no evaluation set 'mnist'"), (" , ", "names none")])
def test_tasks_that_do_not_exist_are_refused(asked: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tasks.chosen(asked)


def test_the_json_and_the_metrics_hold_every_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Knowing(classified(monkeypatch))
    outcome = measured(model, "fashion-mnist", tmp_path)
    written = json.loads(json.dumps(tasks.as_json(model, PAPER, [outcome], {"dtd": "not there"})))
    (entry,) = written["tasks"]
    assert entry["results"]["top1"] == {"value": 1, "low": outcome.results["top1"].low, "high": 1, "level": 0.95,
                                        "units": 40}  # fmt: skip
    assert (entry["protocol"], entry["digest"], len(entry["classes"])) == ("paper", outcome.digest, 10)
    assert written["protocol"]["settings"] == PAPER.describe() and written["missing"] == {"dtd": "not there"}
    flat = tasks.metrics_of([outcome])
    assert flat["eval/classification/fashion-mnist/top1"] == 1
    assert flat["eval/classification/fashion-mnist/top1_low"] == outcome.results["top1"].low
    assert len(flat) == 9
