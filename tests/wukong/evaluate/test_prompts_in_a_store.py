"""The vectors of prompts that lie in a real object store: none of them is on a disk, and few are in memory."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from weakref import finalize

import pytest
import torch
import torch.nn.functional as F
from counting_proxy import CountingProxy, counted_store, peak_of_temporary_files
from torch import Tensor

from wukong.config.model import Model
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.evaluate import best_words, classification
from wukong.evaluate.blocks import Files
from wukong.evaluate.model import OwnModel
from wukong.evaluate.protocol import PROTOCOLS
from wukong.model.dual import DualEncoder
from wukong.model.saved_model import SavedModel

PAPER = PROTOCOLS["paper"]
PROMPTS = ["{}", "一张{}的照片", "{}的照片。"]
NAMES = [
    f"{colour}{what}{where}" for colour in "红绿蓝黄黑灰白紫" for what in "猫狗鸟鱼车" for where in ("", "边", "上")
]


def model() -> OwnModel:
    torch.manual_seed(0)
    text = {"layers": 1, "heads": 2, "width": 16}
    settings = Model.model_validate({"text": text, "embedding": 16, "similarity": "token"})
    dual = DualEncoder(settings, Tokenizer(packaged_vocabulary()), feature_width=12).eval()
    with torch.no_grad():
        dual.text.tokens.weight.mul_(50)  # random weights alone give all texts nearly one vector
    return OwnModel(SavedModel(dual, Tokenizer(packaged_vocabulary())), "own")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CountingProxy]:
    with counted_store(tmp_path_factory.mktemp("store") / "weed") as proxy:
        yield proxy


@pytest.mark.slow
@pytest.mark.parametrize("rough", [True, False])
@pytest.mark.parametrize("aggregation", ["similarity", "softmax"])
def test_scores_are_those_of_a_folder_and_nothing_is_on_the_disk(
    aggregation: str, rough: bool, store: CountingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classification, "_BLOCK_PRODUCTS", 10 * len(NAMES) * len(PROMPTS))
    monkeypatch.setattr(best_words, "rough_is_quicker", lambda: rough)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    own, rules = model(), replace(PAPER, aggregation=aggregation)  # type: ignore[arg-type]
    images = F.normalize(torch.randn(1100, 4, 16), dim=-1)
    here = classification.embed(own, NAMES, PROMPTS, rules, Files(tmp_path / "classes"))
    expected = classification.scores(own, images, here, rules)
    folder = f"s3://bucket/{aggregation}/{rough}"
    classification.embed(own, NAMES, PROMPTS, rules, Files(folder))
    store.read.clear()
    with peak_of_temporary_files() as peak:
        there = classification.embed(own, NAMES, PROMPTS, rules, Files(folder))
        found = classification.scores(own, images, there, rules)
    assert torch.equal(found, expected)
    assert peak.bytes == 0
    times = {len(ranges) for key, ranges in store.read.items() if key.endswith(".safetensors")}
    assert len(there.pieces) == 3 and max(times) <= (3 if rough else 2)


def test_a_piece_is_read_for_a_class_that_is_wanted_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = classification.embed(model(), NAMES, PROMPTS, PAPER, Files(tmp_path))
    assert len(classes.pieces) == 3
    asked: list[str] = []
    read = Files.read
    monkeypatch.setattr(Files, "read", lambda self, name: asked.append(name) or read(self, name))
    wanted = torch.zeros(len(NAMES), dtype=torch.bool)
    assert not [*classes.texts_of(wanted)] and not asked
    wanted[[100, 119]] = True
    ((first, texts),) = classes.texts_of(wanted)
    assert asked == [classes.pieces[2]] and first == 100 and len(texts.vectors) == 20 * len(PROMPTS)


class Counted(NamedTuple):
    """How many files are in memory now, and were at most."""

    now: set[int]
    most: list[int]


class Watched(Files):
    """Files of one tensor each, of which it is known which are in memory."""

    def __init__(self) -> None:
        super().__init__("s3://nowhere")
        self.counted, self._lock = Counted(set(), [0]), threading.Lock()

    def read(self, name: str) -> dict[str, Tensor]:
        tensor = torch.full((3,), float(name))
        with self._lock:
            self.counted.now.add(int(name))
            self.counted.most.append(len(self.counted.now))
        finalize(tensor, self.counted.now.discard, int(name))
        return {"x": tensor}


@pytest.mark.parametrize("files", [0, 1, 2, 20])
def test_of_many_files_three_are_in_memory_at_most(files: int) -> None:
    watched = Watched()
    found = [float(each["x"][0]) for each in watched.read_in_turn([str(number) for number in range(files)])]
    assert found == [*range(files)]
    assert max(watched.counted.most) <= min(files, 3)
