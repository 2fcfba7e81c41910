"""Validation by real evaluators: the numbers are those of the evaluators alone, on one worker and on two."""

from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import small
import torch
import workers
from PIL import Image

from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.evaluate import classification as classifying
from wukong.evaluate import results, tasks
from wukong.evaluate.blocks import Files
from wukong.evaluate.classification import Classes
from wukong.evaluate.data_set import ClassificationData, Data, RetrievalData, WordOrderData
from wukong.evaluate.model import Model, OwnModel
from wukong.evaluate.protocol import OWN, PROTOCOLS, Protocol
from wukong.evaluate.published import Caption
from wukong.evaluate.vectors import Rows
from wukong.model.dual import DualEncoder, Texts
from wukong.model.saved_model import SavedModel
from wukong.model.similarity import Scores, global_similarity
from wukong.train.loop import train
from wukong.train.validation import Task, Validator, _run, _share

CAPTIONS = ["猫", "一只红色的狗", "红色的苹果", "绿色的苹果", "月亮", "太阳", "一只鸟", "房子", "树"]


class Squares:
    """Images of one colour each."""

    def __len__(self) -> int:
        return len(CAPTIONS)

    def image(self, i: int) -> Image.Image:
        return Image.new("RGB", (40, 40), (25 * i, 255 - 20 * i, 7 * i))


def retrieval() -> RetrievalData:
    ids = [f"k{number}" for number in range(len(CAPTIONS))]
    captions = [Caption(text, (number,)) for number, text in enumerate(CAPTIONS)]
    return RetrievalData("held", "holdout", ids, captions, False, Squares(), "held")


def classification() -> ClassificationData:
    ids = [f"k{number}" for number in range(len(CAPTIONS))]
    labels = np.arange(len(CAPTIONS)) % 3
    names = ("猫", "狗", "苹果")
    return ClassificationData("named", "holdout", names, ids, labels, Squares(), "named", names, every_class=False)


def features(similarity: str) -> torch.Tensor:
    shape = (len(CAPTIONS), small.WIDTH) if similarity == "global" else (len(CAPTIONS), 4, small.WIDTH)
    return torch.randn(shape, generator=torch.Generator().manual_seed(5)).half()


def telling(similarity: str) -> DualEncoder:
    """A model with random weights so large that it tells captions apart."""
    dual, _ = small.make(similarity=similarity)
    with torch.no_grad():
        for weight in dual.text.parameters():
            if weight.ndim == 2:
                weight.mul_(20)
    return dual.eval()


def word_order() -> WordOrderData:
    """Four pairs; the last picture is in none."""
    ids = [f"k{number}" for number in range(len(CAPTIONS))]
    captions = [Caption(text, (number,)) for number, text in enumerate(CAPTIONS[:8])]
    return WordOrderData("ordered", "test", ["c", "a", "d", "b"], ids, captions, Squares(), "ordered")


def validator(similarity: str, protocol: Protocol = OWN, of: Sequence[Data] = ()) -> Validator:
    stored = features(similarity)[_share(len(CAPTIONS))]
    tokenizer = Tokenizer(packaged_vocabulary())
    return Validator([Task(data, protocol, stored) for data in of or (retrieval(), classification())], tokenizer)


def expected(similarity: str, folder: Path) -> dict[str, float]:
    """What the evaluators find without any validation."""
    model = OwnModel(SavedModel(telling(similarity), Tokenizer(packaged_vocabulary())), "model")
    encoded = model.encode_features(features(similarity))
    outcomes = [tasks.measure(model, data, OWN, folder, encoded) for data in (retrieval(), classification())]
    return results.metrics_of([outcome.as_json("finetuned") for outcome in outcomes], "finetuned")


def _measure(_rank: int, _count: int, similarity: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    dual, _ = small.make(similarity=similarity)
    dual.load_state_dict(state)
    found = validator(similarity)(dual.eval())
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}


@pytest.mark.parametrize("similarity", ["global", "token"])
def test_the_metrics_are_those_of_the_evaluators(tmp_path: Path, similarity: str) -> None:
    wanted = expected(similarity, tmp_path)
    found = _measure(0, 1, similarity, telling(similarity).state_dict())
    assert {f"eval/{name}": float(value) for name, value in found.items()} == wanted
    assert "retrieval/holdouts/mean_recall" in found and "classification/named/top1" in found


def test_products_are_exact_in_a_training_that_rounds_them() -> None:
    asked: list[str] = []

    def similarity(self: DualEncoder, image: torch.Tensor, text: Texts) -> Scores:
        asked.append(torch.get_float32_matmul_precision())
        return global_similarity(image, text.vectors)

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with patch.object(DualEncoder, "similarity", similarity):
            validator("global")(telling("global"))
        assert set(asked) == {"highest"} and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("similarity", ["global", "token"])
def test_a_validation_writes_no_file(similarity: str) -> None:
    with patch.object(Files, "write", side_effect=AssertionError):
        assert validator(similarity)(telling(similarity))


CASES = [(similarity, protocol) for similarity in ("global", "token") for protocol in ("own", "clip-benchmark")]


def _all_counted(_rank: int, _count: int) -> dict[str, dict[str, torch.Tensor]]:
    return {" ".join(case): _counted(*case) for case in CASES}


def _counted(similarity: str, protocol: str) -> dict[str, torch.Tensor]:
    """What a worker finds of all kinds of tasks, and how many pairs of images and texts it compares for each."""
    compared = {"retrieval": 0, "classification": 0}
    similarity_of, compare = DualEncoder.similarity, classifying.compare

    def similarities(self: DualEncoder, image: torch.Tensor, text: Texts) -> Scores:
        compared["retrieval"] += len(image) * len(text.vectors)
        return similarity_of(self, image, text)

    def classes(model: Model, images: Rows, of: Classes, rules: Protocol) -> torch.Tensor:
        compared["classification"] += len(images) * len(of.names)
        return compare(model, images, of, rules)

    dual = telling(similarity)
    with patch.object(DualEncoder, "similarity", similarities), patch.object(classifying, "compare", classes):
        found = {**validator(similarity, PROTOCOLS.get(protocol, OWN))(dual)}
    found |= validator(similarity, of=[word_order()])(dual)
    for head in ("image_head", "text_head"):  # all workers go on with the next task
        collapsed, _ = small.make(similarity=similarity)
        torch.nn.init.zeros_(getattr(collapsed, head).weight)
        torch.nn.init.ones_(getattr(collapsed, head).bias)
        assert validator(similarity)(collapsed.eval()) == {}
    numbers = {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}
    return numbers | {f"compared {kind}": torch.tensor(number) for kind, number in compared.items()}


@pytest.mark.long
@pytest.mark.parametrize("count", [2, 4])
def test_workers_share_the_scores_and_find_together_what_one_finds(tmp_path: Path, count: int) -> None:
    """Nine images and captions, and two or four workers: their shares are not equal, and the fourth has none."""
    for similarity in ("global", "token"):
        refuse_near_scores(similarity)
    of_workers = workers.run(count, tmp_path, _all_counted)
    for case, alone in _all_counted(0, 1).items():
        for found in (each[case] for each in of_workers):
            for name, value in alone.items():
                if name.startswith("compared"):
                    share = int(value) * -(-len(CAPTIONS) // count) / len(CAPTIONS)
                    assert 0 < found[name] <= share
                else:
                    assert found[name].item() == value.item(), (case, name)
        if count == 2:
            for kind, pairs in (("retrieval", 81), ("classification", 27)):
                assert sum(int(found[case][f"compared {kind}"]) for found in of_workers) == pairs


def refuse_near_scores(similarity: str) -> None:
    """Scores that differ by rounding alone may be in another order."""
    model = OwnModel(SavedModel(telling(similarity), Tokenizer(packaged_vocabulary())), "model")
    images = model.encode_features(features(similarity))
    with torch.inference_mode():
        for scores in model.similarity(images, model.encode_texts(CAPTIONS, OWN)):
            for rows in (scores, scores.T):
                assert rows.sort(1).values.diff(dim=1).min() > 1e-5


def test_a_locked_tower_runs_once_and_gives_the_same_vectors() -> None:
    dual = small.with_tower(lock="all").eval()
    assert dual.image is not None
    tokenizer, protocol = Tokenizer(packaged_vocabulary()), OWN
    stored = _run(dual.image, dual, retrieval(), protocol)
    direct = Validator([Task(retrieval(), protocol)], tokenizer)(dual)
    kept = Validator([Task(retrieval(), protocol, stored)], tokenizer)(dual)
    assert kept == direct
    model = OwnModel(SavedModel(dual, tokenizer), "model")
    pictures = [Squares().image(number) for number in range(len(CAPTIONS))]
    torch.testing.assert_close(
        model.encode_features(stored), model.encode_images(pictures, protocol), rtol=1e-2, atol=2e-3
    )


def test_a_model_that_tells_nothing_apart_is_not_measured(caplog: pytest.LogCaptureFixture) -> None:
    dual, _ = small.make()
    torch.nn.init.zeros_(dual.text_head.weight)
    torch.nn.init.ones_(dual.text_head.bias)
    assert validator("global")(dual.eval()) == {}
    assert "held is not measured" in caplog.text and "named is not measured" in caplog.text


def test_real_evaluators_do_not_change_the_training() -> None:
    settings = small.SETTINGS
    plain, pairs = small.make(dropout=0.2)
    train(plain, pairs, settings, 7)
    every = settings.validation.model_copy(update={"every_steps": 2})
    model, pairs = small.make(dropout=0.2)
    train(model, pairs, settings.model_copy(update={"validation": every}), 7, validate=validator("global"))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in plain.state_dict().items())
