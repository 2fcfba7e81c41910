"""Rough scores choose candidates and exact ones decide: what is found is what exact scores alone find, in float64."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wukong.config.model import Model as Settings
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.evaluate import best_words, candidates, classification, retrieval
from wukong.evaluate.blocks import Files
from wukong.evaluate.model import OwnModel, Quick
from wukong.evaluate.protocol import PROTOCOLS, Ties
from wukong.evaluate.retrieval import Pairs, Tile
from wukong.model.dual import DualEncoder, Texts
from wukong.model.saved_model import SavedModel
from wukong.model.similarity import Scores, token_similarity, token_similarity_of_pairs

IMAGES, CAPTIONS = 150, 200


def vectors(apart: float) -> tuple[Tensor, Texts]:
    """The smaller ``apart`` is, the nearer are the scores."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(16, generator=generator)
    image, text = (
        F.normalize(common + apart * torch.randn(*shape, 16, generator=generator), dim=-1)
        for shape in ((IMAGES, 5), (CAPTIONS, 4))
    )
    counted = torch.arange(4)[None, :] < torch.randint(2, 5, (CAPTIONS, 1), generator=generator)
    counted[:, 0] = False
    return image, Texts(text, counted)


def in_float64(image: Tensor, text: Texts) -> Scores:
    products = torch.einsum("ipd,twd->itpw", image.double(), text.vectors.double())
    allowed = products.masked_fill(~text.counted[None, :, None, :], -torch.inf)
    words = products.amax(2).masked_fill(~text.counted, 0).sum(2) / text.counted.sum(1)
    return Scores(allowed.amax(3).mean(2), words)


def roughly(image: Tensor, text: Texts) -> Scores:
    return token_similarity(image.bfloat16(), text.vectors.bfloat16(), text.counted)


@pytest.mark.parametrize("ties", ["against", "first"])
@pytest.mark.parametrize("apart", [1.0, 0.3])
def test_a_search_finds_what_scores_in_float64_find(ties: Ties, apart: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "_ERRORS", 300)
    image, text = vectors(apart)
    pairs = Pairs.of([[number % IMAGES] for number in range(CAPTIONS)], IMAGES)
    computed = 0

    def counted(some: Tensor, of: Texts) -> Scores:
        nonlocal computed
        computed += len(some)
        return token_similarity_of_pairs(some, *of)

    def never(_image: Tensor, _text: Texts) -> Scores:
        raise AssertionError

    tile = Tile(slice(0, CAPTIONS), slice(0, IMAGES))
    quick = Quick(roughly, counted)
    best = retrieval.search_tile(tile, image, text, pairs, never, ties, block=100, device="cpu", quick=quick)
    found = retrieval.found([(tile, best)], pairs, ties)
    exact, rough, right = in_float64(image, text), roughly(image, text), pairs.block(tile.texts, tile.images)
    assert computed < IMAGES * CAPTIONS * (0.4 if apart == 1 else 0.8)
    assert found.image_to_text is not None
    for hits, scores, near, own in (
        (found.text_to_image, exact.text_to_image.T, rough.text_to_image.T, right),
        (found.image_to_text, exact.image_to_text, rough.image_to_text, right.T),
    ):
        places = scores.sort(1, descending=True)
        for column, k in enumerate(found.cutoffs):
            told = places.values[:, k - 1] - places.values[:, k] > 1e-5
            assert told.float().mean() > 0.9
            assert torch.equal(hits[told, column], own.gather(1, places.indices[:, :k]).sum(1)[told])
        first = near.topk(10, 1).indices.sort(1).values
        assert not torch.equal(first, places.indices[:, :10].sort(1).values), "the rough scores alone would not do"


def test_few_scores_are_computed_exactly_at_once() -> None:
    assert candidates.first(20, 20, 10) is None
    assert candidates.first(512, 512, 10) == 10
    assert candidates.first(100, 512, 10) == 41 and candidates.first(100, 512, 10, error=0.1) == 10


def own_model() -> OwnModel:
    torch.manual_seed(0)
    text = {"layers": 1, "heads": 2, "width": 16}
    settings = Settings.model_validate({"text": text, "embedding": 16, "similarity": "token"})
    dual = DualEncoder(settings, Tokenizer(packaged_vocabulary()), feature_width=12).eval()
    with torch.no_grad():
        dual.text.tokens.weight.mul_(50)  # random weights alone give all texts nearly one vector
    return OwnModel(SavedModel(dual, Tokenizer(packaged_vocabulary())), "own")


@torch.inference_mode()
def test_a_model_on_a_gpu_searches_and_classifies_as_one_on_a_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers of 16 bits are computed on the processor too, if it is taken for a GPU."""
    monkeypatch.setattr(candidates, "_ERRORS", 300)
    model, rules = own_model(), PROTOCOLS["paper"]
    image, _ = vectors(1.0)
    names = [f"{first}{second}" for first in "红绿蓝黄黑灰白紫" for second in "猫狗苹果月亮太阳"]
    texts = model.encode_texts([f"一张{name}的照片" for name in names * 3], rules)
    pairs = Pairs.of([[number % IMAGES] for number in range(len(texts.counted))], IMAGES)
    tile = Tile(slice(0, pairs.texts), slice(0, IMAGES))
    classes = classification.embed(model, names, ["{}", "一张{}的照片"], rules, Files(tmp_path))
    monkeypatch.setattr(best_words, "rough_is_quicker", lambda: False)

    def measured() -> tuple[dict[str, Tensor], Tensor]:
        best = retrieval.search_tile(tile, image, texts, pairs, model.similarity, block=64, quick=model.quick)
        return best, classification.scores(model, image, classes, rules)

    assert model.quick is None
    best, scores = measured()
    monkeypatch.setattr(best_words, "half_is_quicker", lambda _device: True)
    assert model.quick is not None
    quick_best, quick_scores = measured()
    assert not torch.equal(scores, quick_scores)
    torch.testing.assert_close(quick_scores.topk(5, 1).values, scores.topk(5, 1).values, rtol=0, atol=1e-6)
    for direction, keys in best.items():
        ours, theirs = (_scores(each) for each in (quick_best[direction], keys))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def _scores(keys: Tensor) -> Tensor:
    bits = (keys >> 32).int()
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)
