"""Retrieval in blocks, on any model: ``retrieval.search``, and the recalls of what it finds."""

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wukong.errors import DataError
from wukong.evaluate import answers, retrieval
from wukong.evaluate.interval import Interval
from wukong.evaluate.protocol import Ties
from wukong.evaluate.retrieval import Pairs
from wukong.model.dual import Texts
from wukong.model.similarity import Scores, global_similarity, token_similarity


def similarity(image: Tensor, text: Texts) -> Scores:
    return global_similarity(image, text.vectors) if image.ndim == 2 else token_similarity(image, *text)


def texts(vectors: Tensor) -> Texts:
    return Texts(vectors, torch.ones(vectors.shape[:2], dtype=torch.bool))


def ordered(row: list[float], right: set[int], ties: Ties, ids: list[str]) -> list[int]:
    """The candidates from the first to the last, by the definition of each rule."""
    places = range(len(row))
    if ties == "against":
        return sorted(places, key=lambda place: (-row[place], place in right))
    if ties == "first":
        return sorted(places, key=lambda place: (-row[place], place))
    by_id = sorted(places, key=lambda place: ids[place], reverse=True)
    return sorted(by_id, key=lambda place: -row[place])


@given(
    st.lists(st.sets(st.integers(0, 6), min_size=1, max_size=3), min_size=1, max_size=12),
    st.sampled_from(["against", "first", "id"]),
    st.integers(1, 5),
    st.integers(0, 10_000),
)
@settings(deadline=None)
def test_blocks_give_what_sorting_whole_rows_gives(
    images_of_texts: list[set[int]], ties: Ties, block: int, seed: int
) -> None:
    """Whole numbers of few values, so that many scores are equal; several images a caption and captions an image."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(-1, 2, (7, 2), generator=generator).float()
    text = torch.randint(-1, 2, (len(images_of_texts), 2), generator=generator).float()
    pairs = Pairs.of([sorted(of) for of in images_of_texts], 7, every_image=False)
    image_ids, text_ids = [str(3 * i) for i in range(7)], [str(5 * i) for i in range(len(text))]
    found = retrieval.search(
        image, texts(text), pairs, similarity, ties, image_ids=image_ids, text_ids=text_ids, cutoffs=(1, 3), block=block
    )
    scores = text @ image.T
    of_images = [{t for t, of in enumerate(images_of_texts) if i in of} for i in range(7)]
    for k, column in ((1, 0), (3, 1)):
        for t, of in enumerate(images_of_texts):
            assert found.text_to_image[t, column] == len(set(ordered(scores[t].tolist(), of, ties, image_ids)[:k]) & of)
        assert found.image_to_text is not None
        for i, of in enumerate(of_images):
            first = ordered(scores[:, i].tolist(), of, ties, text_ids)[:k]
            assert found.image_to_text[i, column] == len(set(first) & of)


@pytest.mark.parametrize("ties", get_args(Ties))
@pytest.mark.parametrize("tokens", [(), (5,)])
def test_blocks_give_what_one_matrix_gives(ties: Ties, tokens: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    image = F.normalize(torch.randn(40, *tokens, 8), dim=-1)
    text = F.normalize(torch.randn(90, *(4 for _ in tokens), 8), dim=-1)
    counted = torch.arange(4)[None, :] < torch.randint(1, 5, (90, 1))
    held = Texts(text, counted)
    pairs = Pairs.of([[number % 40] for number in range(90)], 40)
    ids = [str(number) for number in range(90)]
    found = retrieval.search(image, held, pairs, similarity, ties, image_ids=ids[:40], text_ids=ids, block=16)
    scores, right = similarity(image, held), pairs.block(slice(0, 90), slice(0, 40))
    assert torch.equal(found.text_to_image, retrieval.hits(scores.text_to_image.T, right, ties, ids[:40]))
    assert found.image_to_text is not None
    assert torch.equal(found.image_to_text, retrieval.hits(scores.image_to_text, right.T, ties, ids))


def recalls(found: retrieval.Found, pairs: Pairs, *, share: bool = False) -> dict[str, Interval]:
    captions, ids = ([f"{what} {n}" for n in range(count)] for what, count in (("c", pairs.texts), ("i", pairs.images)))
    return answers.of_retrieval(found, pairs, captions, ids, share=share).intervals()


def test_a_perfect_model_finds_all_and_an_adversarial_one_nothing() -> None:
    torch.manual_seed(0)
    image = F.normalize(torch.randn(60, 128), dim=-1)
    pairs = Pairs.of([[number // 5] for number in range(300)], 60)
    own = image.repeat_interleave(5, 0)
    perfect = recalls(retrieval.search(image, texts(own), pairs, similarity), pairs)
    for each in perfect.values():
        assert (each.value, each.high) == (1.0, 1.0) and 0.9 < each.low < 1
    adversarial = recalls(retrieval.search(image, texts(-own), pairs, similarity), pairs)
    for each in adversarial.values():
        assert (each.value, each.low) == (0.0, 0.0) and 0 < each.high < 0.1


def test_a_random_models_intervals_hold_chance() -> None:
    torch.manual_seed(1)
    pairs = Pairs.of([[number // 5] for number in range(1000)], 200)
    image, text = F.normalize(torch.randn(200, 64), dim=-1), F.normalize(torch.randn(1000, 64), dim=-1)
    found = recalls(retrieval.search(image, texts(text), pairs, similarity), pairs)
    of_texts, of_images = retrieval.chance([1], 200), retrieval.chance([5], 1000)
    for k in retrieval.CUTOFFS:
        assert found[f"text_to_image_r{k}"].low <= of_texts[k] <= found[f"text_to_image_r{k}"].high
        assert found[f"image_to_text_r{k}"].low <= of_images[k] <= found[f"image_to_text_r{k}"].high
    mean = found.pop("mean_recall")
    assert mean.low <= (sum(of_texts.values()) + sum(of_images.values())) / 6 <= mean.high
    assert mean.units == 200  # images, each with its five captions
    assert mean.value == pytest.approx(sum(each.value for each in found.values()) / 6)


def test_text_to_image_only_where_a_caption_has_several_images() -> None:
    """As in MUGE: images without a caption are candidates, and any right image is a hit."""
    image = torch.eye(6)
    text = F.normalize(torch.tensor([[3.0, 2, 1, 0, 0, 0], [0, 0, 0, 2, 3, 1]]), dim=-1)
    pairs = Pairs.of([[1, 2], [5, 5]], 6, every_image=False)
    found = retrieval.search(image, texts(text), pairs, similarity, both=False, cutoffs=(1, 2, 3))
    assert found.text_to_image.tolist() == [[0, 1, 2], [0, 0, 1]]
    assert found.image_to_text is None
    any_hit, share = recalls(found, pairs), recalls(found, pairs, share=True)
    assert [each.value for each in any_hit.values()][:3] == [0.0, 0.5, 1.0]
    assert [each.value for each in share.values()][:3] == [0.0, 0.25, 1.0]
    assert any_hit["text_to_image_r1"].units == 2


def test_a_nan_is_an_error_that_names_its_place() -> None:
    image, text = torch.randn(9, 4), torch.randn(9, 4)
    text[7, 2] = torch.nan
    pairs = Pairs.of([[number] for number in range(9)], 9)
    for ties in get_args(Ties):
        ids = [str(number) for number in range(9)]
        with pytest.raises(DataError, match="caption 7"):
            retrieval.search(image, texts(text), pairs, similarity, ties, image_ids=ids, text_ids=ids, block=4)


def test_wrong_counts_are_errors() -> None:
    pairs = Pairs.of([[0], [1]], 2)
    with pytest.raises(DataError, match="3 images and 2 captions"):
        retrieval.search(torch.randn(3, 4), texts(torch.randn(2, 4)), pairs, similarity)
    with pytest.raises(DataError, match="caption 1 belongs to image 5"):
        Pairs.of([[0], [5]], 2)
    with pytest.raises(DataError, match="1 captions have no image, the first is caption 1"):
        Pairs.of([[0], []], 1)
    with pytest.raises(DataError, match="1 images have no caption, the first is image 1"):
        Pairs.of([[0]], 2)
