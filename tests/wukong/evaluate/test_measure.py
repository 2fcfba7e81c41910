"""Evaluating a model on pairs: the content of the evaluate job's files."""

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F

from wukong.config import Classification, Evaluate, Holdout, Model
from wukong.crawl import plan
from wukong.crawl.found import FOUND
from wukong.crawl.url import normalise
from wukong.data.schema import key_of
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.errors import DataError
from wukong.evaluate import measure
from wukong.model.dual import DualEncoder
from wukong.model.saved_model import SavedModel

HOLDOUT = Holdout(name="test", source="*")
PICTURES, CAPTIONS, WIDTH = 60, 5, 8


@pytest.fixture(params=["global", "token"])
def saved(request: pytest.FixtureRequest) -> SavedModel:
    torch.manual_seed(0)
    settings = Model.model_validate(
        {
            "text": {"layers": 1, "heads": 2, "width": 16, "pooling": "mean"},
            "embedding": WIDTH,
            "similarity": request.param,
        }
    )
    tokenizer = Tokenizer(packaged_vocabulary())
    return SavedModel(DualEncoder(settings, tokenizer, feature_width=WIDTH).eval(), tokenizer)


def five_a_picture(saved: SavedModel) -> tuple[list[str], list[str], torch.Tensor]:
    """Images with five captions each, one row for each pair; their features are close to their captions' vectors."""
    characters = "猫狗鸟鱼马牛羊鸡山水"
    captions = [
        "".join(characters[int(digit)] for digit in f"{picture:02d}") + characters[number]
        for picture in range(PICTURES)
        for number in range(CAPTIONS)
    ]
    vectors = saved.encode_text(captions).vectors
    if saved.model.token_wise:
        vectors = vectors[:, 1:4].flatten(0, 1)
    centres = vectors.view(PICTURES, -1, WIDTH).mean(1)
    noise = torch.randn(centres.shape, generator=torch.Generator().manual_seed(1)) * centres.std(0) * 0.3
    features = (centres + noise).repeat_interleave(CAPTIONS, 0)
    if saved.model.token_wise:
        features = torch.stack([features, features.roll(1, 1)], 1)
    saved.model.image_head.weight.data.copy_(torch.eye(WIDTH))
    return [f"digest{row // CAPTIONS}" for row in range(PICTURES * CAPTIONS)], captions, features


def reference(
    saved: SavedModel, captions: list[str], features: torch.Tensor
) -> tuple[dict[int, float], dict[int, float]]:
    """The protocol of Flickr30K in numpy: a caption must find its image, an image any of its five captions."""
    text = saved.encode_text(captions)
    image = F.normalize(features[::CAPTIONS], dim=-1).numpy()
    to_text = np.empty((PICTURES, len(captions)))
    to_image = np.empty_like(to_text)
    for column in range(len(captions)):
        words = text.vectors[column].numpy()
        if saved.model.token_wise:
            products = image @ words.T
            counted = text.counted[column].numpy()
            with_cls = counted | (np.arange(len(counted)) == 0)
            to_text[:, column] = products[:, :, with_cls].max(2).mean(1)
            to_image[:, column] = products[:, :, counted].max(1).mean(1)
        else:
            to_text[:, column] = to_image[:, column] = image @ words
    places_t2i = [int((to_image[:, c] > to_image[c // CAPTIONS, c]).sum()) for c in range(len(captions))]
    places_i2t = [
        min(int((to_text[p] > to_text[p, c]).sum()) for c in range(p * CAPTIONS, (p + 1) * CAPTIONS))
        for p in range(PICTURES)
    ]
    return tuple({k: float(np.mean(np.array(p) < k)) for k in (1, 5, 10)} for p in (places_t2i, places_i2t))  # type: ignore[return-value]


@pytest.mark.parametrize("taken", ["all", "distinct"])
def test_a_picture_with_five_captions_is_one_candidate(saved: SavedModel, taken: str) -> None:
    pictures, captions, features = five_a_picture(saved)
    keys = [f"key{row}" for row in range(len(captions))]
    entry = measure.retrieval_entry(saved, HOLDOUT, keys, pictures, captions, features, taken)
    text_to_image, image_to_text = reference(saved, captions, features)
    assert text_to_image[1] > 0.1  # with each row a picture of its own it is 0
    assert [entry["text_to_image"][f"r{k}"] for k in (1, 5, 10)] == pytest.approx(list(text_to_image.values()))
    assert [entry["image_to_text"][f"r{k}"] for k in (1, 5, 10)] == pytest.approx(list(image_to_text.values()))
    assert (entry["images"], entry["captions"]) == (PICTURES, PICTURES * CAPTIONS)
    assert entry["chance"]["text_to_image"]["r1"] == pytest.approx(1 / PICTURES)
    assert entry["chance"]["image_to_text"]["r1"] == pytest.approx(CAPTIONS / (PICTURES * CAPTIONS))
    shown = [picture["key"] for picture in entry["examples"][0]["pictures"]]
    assert len(set(shown)) == 5 and all(int(key.removeprefix("key")) % CAPTIONS == 0 for key in shown)
    alone = measure.retrieval_entry(saved, HOLDOUT, keys, keys, captions, features, taken)
    assert alone["text_to_image"]["r1"] == 0.0


def test_the_protocol_first_takes_the_first_caption_of_each_image(saved: SavedModel) -> None:
    pictures, captions, features = five_a_picture(saved)
    keys = [f"key{row}" for row in range(len(captions))]
    entry = measure.retrieval_entry(saved, HOLDOUT, keys, pictures, captions, features, "first")
    few = slice(None, None, CAPTIONS)
    expected = measure.retrieval_entry(saved, HOLDOUT, keys[few], pictures[few], captions[few], features[few], "all")
    assert entry == expected | {"captions_taken": "first"}
    assert Evaluate().captions == "distinct"


def test_an_example_shows_the_matching_caption_of_a_right_image(saved: SavedModel) -> None:
    pictures, captions, features = five_a_picture(saved)
    entry = measure.retrieval_entry(saved, HOLDOUT, pictures, pictures, captions, features, "all")
    found = [(e["caption"], p) for e in entry["examples"] for p in e["pictures"] if p["right"]]
    assert found and all(picture["caption"] == caption for caption, picture in found)


def test_an_image_counts_once_in_its_class(saved: SavedModel) -> None:
    pictures, _, features = five_a_picture(saved)
    urls = [f"http://x/{'cat' if row // CAPTIONS % 3 else 'dog'}/{row}" for row in range(len(pictures))]
    task = Classification(name="animals", holdouts=("test",), classes={"猫": "*/cat/*", "狗": "*/dog/*"})
    entry = measure.classification_entry(saved, task, pictures, pictures, urls, features, 256)
    few = slice(None, None, CAPTIONS)
    alone = measure.classification_entry(saved, task, pictures[few], pictures[few], urls[few], features[few], 256)
    assert entry == alone
    assert entry is not None and entry["images"] == PICTURES
    assert measure.classification_entry(saved, task, ["k"], ["d"], ["http://x/bird"], features[:1], 256) is None


@pytest.mark.parametrize("where", ["features", "weights"])
def test_a_model_with_values_that_are_not_finite_is_not_evaluated(saved: SavedModel, where: str) -> None:
    _, captions, features = five_a_picture(saved)
    if where == "features":
        features[7] = torch.nan
    else:
        saved.model.image_head.bias.data[0] = torch.nan
    task = Classification(name="animals", holdouts=("test",), classes={"猫": "*", "狗": "*/dog/*"})
    keys = [f"key{row}" for row in range(len(captions))]
    name = "key7" if where == "features" else "key0"
    with pytest.raises(DataError, match=f"picture {name} is not finite"):
        measure.retrieval_entry(saved, HOLDOUT, keys, keys, captions, features)
    with pytest.raises(DataError, match=f"picture {name} is not finite"):
        measure.classification_entry(saved, task, keys, keys, keys, features, 256)


def test_url_fragments_give_an_image_several_captions() -> None:
    urls = [f"http://x/cat.jpg{fragment}" for fragment in ("", "#2", "#3")]
    rows = [(key_of(url), url, f"猫{order}", None, order, None) for order, url in enumerate(urls)]
    columns = [list(column) for column in zip(*rows, strict=True)]
    planned = plan.merge(pa.table(columns, schema=FOUND))
    assert sorted(planned["caption"].to_pylist()) == ["猫0", "猫1", "猫2"]
    assert {normalise(url) for url in planned["url"].to_pylist()} == {"http://x/cat.jpg"}
