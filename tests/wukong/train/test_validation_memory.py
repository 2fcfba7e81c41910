"""Memory of a validation: by torch's own account of what is allocated, on one worker of forty that are not there."""

from collections.abc import Iterator
from itertools import accumulate
from unittest.mock import patch

import numpy as np
import pytest
import small
import torch
import torch.distributed as dist
from PIL import Image
from torch.testing._internal.distributed.fake_pg import FakeStore

from wukong.config.model import Model
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.evaluate import prompts
from wukong.evaluate.data_set import ClassificationData, Data, RetrievalData
from wukong.evaluate.protocol import OWN
from wukong.evaluate.published import Caption
from wukong.model.dual import DualEncoder
from wukong.train.validation import Task, Validator

WORKERS, IMAGES, PATCHES, NUMBERS, TEXTS = 40, 4000, 64, 64, 400
BLOCK = 48 * 2**20
"""Bytes of a block: the products of 16 MiB, what they are reduced to, and the block's own vectors."""


class NoImages:
    """Images that nobody asks for, because their features are stored."""

    def __len__(self) -> int:
        return IMAGES

    def image(self, i: int) -> Image.Image:
        raise IndexError(i)


class ToldError(Exception):
    """A worker has done its share, and tells the others."""


@pytest.fixture
def one_of_forty() -> Iterator[None]:
    """A group whose other workers are not there: what is gathered is this worker's, as often as there are workers."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=WORKERS)
    yield
    dist.destroy_process_group()


def captioned() -> RetrievalData:
    ids = [str(number) for number in range(IMAGES)]
    captions = [Caption(f"第{number}张照片", (number,)) for number in range(TEXTS)]
    return RetrievalData("captioned", "test", ids, captions, True, NoImages(), "captioned")


def classified() -> ClassificationData:
    names = [f"类{number}" for number in range(TEXTS // 2)]
    ids, labels = [str(number) for number in range(IMAGES)], np.arange(IMAGES) % len(names)
    return ClassificationData("classified", "test", names, ids, labels, NoImages(), "classified", names)


@pytest.mark.slow
@pytest.mark.parametrize("data", [captioned(), classified()], ids=["retrieval", "classification"])
def test_a_worker_holds_its_share_the_texts_and_one_block(
    data: Data, one_of_forty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "of", lambda *_: ["{}", "一张{}的照片"])
    tokenizer = Tokenizer(packaged_vocabulary())
    text = {"layers": 1, "heads": 2, "width": 16}
    model = Model.model_validate({"text": text, "embedding": NUMBERS, "similarity": "token"})
    dual = DualEncoder(model, tokenizer, feature_width=small.WIDTH).eval()
    with torch.no_grad():
        dual.text.tokens.weight.mul_(50)  # random weights alone give all texts nearly one vector
    validate = Validator([Task(data, OWN, torch.randn(IMAGES // WORKERS, PATCHES, small.WIDTH).half())], tokenizer)
    with (
        patch.object(dist, "broadcast", side_effect=ToldError),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile,
        pytest.raises(ToldError),
    ):
        validate(dual)
    moments = sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    peak = max(accumulate(event.nbytes() for event in moments if event.name() == "[memory]"))
    share, texts = 4 * IMAGES // WORKERS * PATCHES * NUMBERS, 4 * TEXTS * 12 * NUMBERS
    assert share + texts < peak <= share + texts + BLOCK < 4 * IMAGES * PATCHES * NUMBERS
