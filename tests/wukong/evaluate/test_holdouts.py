"""The hold-outs of an experiment as tasks, measured from stored features: against the same protocol in numpy."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.config.model import Model
from wukong.crawl import plan
from wukong.crawl.found import FOUND
from wukong.crawl.url import key_of, normalise
from wukong.data.feature_files import write as write_features
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.errors import DataError
from wukong.evaluate import holdouts, paired, tasks
from wukong.evaluate.data_set import ClassificationData, RetrievalData
from wukong.evaluate.model import OwnModel
from wukong.evaluate.protocol import OWN
from wukong.evaluate.results import Outcome, Query
from wukong.model.dual import DualEncoder
from wukong.model.saved_model import SavedModel
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage

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


def experiment(captions: str = "distinct", classes: dict[str, str] | None = None) -> Experiment:
    found: dict[str, Any] = {
        "name": "x",
        "storage": "file:///none",
        "crawl": {"queries": "file:///q", "endpoint": "http://x"},
        "filter": {"split": {"held_out_captions": 0.1, "holdouts": [{"name": "test", "source": "*/held/*"}]}},
        "evaluate": {"captions": captions},
    }
    if classes:
        found["evaluate"]["classification"] = [{"name": "animals", "holdouts": ["test"], "classes": classes}]
    return documents.parse(found)


def filtered(root: Path, keys: Sequence[str], captions: Sequence[str], pictures: Sequence[str | None],
             urls: Sequence[str] | None = None) -> Manifest:  # fmt: skip
    """A filter stage with one shard of one hold-out; image ``n`` is grey of the shade ``n``."""
    stage = Stage(storage.from_path(root), "filter", {})
    columns = {"key": keys, "url": urls or keys, "caption": captions, "sha256": pictures}
    schema = pa.schema([(name, pa.string()) for name in columns])
    storage.write_table(stage.path("test/00000.parquet"), pa.table(columns, schema))
    target = root / "shard.tar"
    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, key in enumerate(keys):
            data = io.BytesIO()
            Image.new("RGB", (8, 8), (number % 256,) * 3).save(data, "PNG")
            info = tarfile.TarInfo(f"{key}.jpg")
            info.size = data.tell()
            tar.addfile(info, io.BytesIO(data.getvalue()))
    storage.upload(target, stage.path("test/00000.tar"))
    return stage.commit([stage.describe(f"test/00000.{end}", len(keys)) for end in ("tar", "parquet")])


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


def measured(
    saved: SavedModel, settings: Experiment, pairs: Manifest, features: torch.Tensor, cache: Path, name: str = "test"
) -> Outcome:
    """Measure from features in the order of the pairs' keys ``key0``, ``key1``, ..."""
    data = holdouts.read(settings, pairs, name)
    assert data is not None
    ids = data.ids if isinstance(data, ClassificationData) else data.image_ids
    model = OwnModel(saved, "mine")
    encoded = model.encode_features(features[[int(each.removeprefix("key")) for each in ids]])
    return tasks.measure(model, data, OWN, cache, encoded)


@pytest.mark.parametrize("taken", ["all", "distinct"])
def test_a_picture_with_five_captions_is_one_candidate(saved: SavedModel, taken: str, tmp_path: Path) -> None:
    pictures, captions, features = five_a_picture(saved)
    keys = [f"key{row}" for row in range(len(captions))]
    found = measured(saved, experiment(taken), filtered(tmp_path, keys, captions, pictures), features, tmp_path)
    text_to_image, image_to_text = reference(saved, captions, features)
    assert text_to_image[1] > 0.1  # with each row a picture of its own it is 0
    for direction, expected in (("text_to_image", text_to_image), ("image_to_text", image_to_text)):
        assert {k: found.results[f"{direction}_r{k}"].value for k in expected} == pytest.approx(expected)
    assert found.sizes == {"images": PICTURES, "captions": PICTURES * CAPTIONS} and found.split == "holdout"
    assert found.chance["text_to_image_r1"] == pytest.approx(1 / PICTURES)
    assert found.chance["image_to_text_r1"] == pytest.approx(CAPTIONS / (PICTURES * CAPTIONS))
    (query, *_) = found.examples
    assert isinstance(query, Query)
    shown = [each.image for each in query.images]
    assert len(set(shown)) == 5 and all(int(key.removeprefix("key")) % CAPTIONS == 0 for key in shown)
    alone = measured(saved, experiment(taken), filtered(tmp_path / "a", keys, captions, keys), features, tmp_path)
    assert alone.results["text_to_image_r1"].value == 0.0


def test_the_rule_first_takes_the_first_caption_of_each_image(saved: SavedModel, tmp_path: Path) -> None:
    pictures, captions, features = five_a_picture(saved)
    keys = [f"key{row}" for row in range(len(captions))]
    few = slice(None, None, CAPTIONS)
    first = measured(saved, experiment("first"), filtered(tmp_path, keys, captions, pictures), features, tmp_path)
    pairs = filtered(tmp_path / "few", keys[few], captions[few], pictures[few])
    assert first == measured(saved, experiment("all"), pairs, features, tmp_path)


def test_stored_features_are_given_in_the_order_of_the_images(tmp_path: Path) -> None:
    keys = ["a", "b", "c"]
    pairs = filtered(tmp_path, keys, ["猫", "狗", "鸟"], ["1", "2", "3"])
    data = holdouts.read(experiment(), pairs, "test")
    assert isinstance(data, RetrievalData)
    stage = Stage(storage.from_path(tmp_path), "features", {})
    values = {key: torch.full((2,), float(place)).half() for place, key in enumerate("cab")}
    write_features(stage.path("test/00000.view00.safetensors"), [*values], torch.stack([*values.values()]))
    found = holdouts.features(experiment(), pairs, stage.uri, data)
    assert torch.equal(found, torch.stack([values[key] for key in data.image_ids]))
    other = filtered(tmp_path / "other", ["z"], ["猫"], ["1"])
    missing = holdouts.read(experiment(), other, "test")
    assert missing is not None
    with pytest.raises(DataError, match="no features for the pair z"):
        holdouts.features(experiment(), other, stage.uri, missing)


def test_an_image_counts_once_in_its_class_and_has_its_own_name(saved: SavedModel, tmp_path: Path) -> None:
    pictures, captions, features = five_a_picture(saved)
    keys = [f"key{row}" for row in range(len(pictures))]
    urls = [f"http://x/held/{'cat' if row // CAPTIONS % 3 else 'dog'}/{row}" for row in range(len(pictures))]
    settings = experiment(classes={"猫": "*/cat/*", "狗": "*/dog/*", "鸟": "*/bird/*"})
    pairs = filtered(tmp_path, keys, captions, pictures, urls)
    found = measured(saved, settings, pairs, features, tmp_path, "animals")
    assert [(each.name, each.images) for each in found.classes] == [("猫", 40), ("狗", 20)]
    assert found.sizes == {"images": PICTURES, "classes": 3} and found.chance["top1"] == pytest.approx(1 / 3)
    assert found.results["top1"].value == pytest.approx(np.trace(found.confusion) / PICTURES)
    elsewhere = experiment(classes={"猫": "*/tiger/*", "狗": "*/wolf/*"})
    assert holdouts.read(elsewhere, pairs, "animals") is None


def test_equal_captions_are_one_query_and_a_table_without_digests_has_a_picture_a_pair(tmp_path: Path) -> None:
    pairs = filtered(tmp_path, ["key0", "key1", "key2"], ["猫", "猫", "狗"], [None, None, None])
    data = holdouts.read(experiment(), pairs, "test")
    assert isinstance(data, RetrievalData)
    assert [(each.text, each.images) for each in data.captions] == [("猫", (0, 1)), ("狗", (2,))]
    assert [int(np.asarray(data.image(i))[0, 0, 0]) for i in range(3)] == [0, 1, 2]
    without = pairs.model_copy(update={"parts": ()})
    assert holdouts.read(experiment(), without, "test") is None


@pytest.mark.parametrize("taken", ["all", "distinct", "first"])
def test_the_order_of_pairs_in_shards_changes_neither_a_set_nor_answers(
    saved: SavedModel, taken: str, tmp_path: Path
) -> None:
    """Another seed of the filter, or another size of shards, orders the same pairs otherwise."""
    pictures, captions, features = five_a_picture(saved)
    captions[7] = captions[3]  # one caption at two images
    keys = [f"key{row}" for row in range(len(captions))]
    urls = [f"http://x/held/{'cat' if row // CAPTIONS % 3 else 'dog'}/{row}" for row in range(len(pictures))]
    settings = experiment(taken, classes={"猫": "*/cat/*", "狗": "*/dog/*"})
    found = []
    for seed in range(3):
        rows = np.random.default_rng(seed).permutation(len(keys)) if seed else range(len(keys))
        ordered = ([column[row] for row in rows] for column in (keys, captions, pictures, urls))
        pairs = filtered(tmp_path / f"{seed}", *ordered)
        found.append([measured(saved, settings, pairs, features, tmp_path, name) for name in ("test", "animals")])
    assert found[0] == found[1] == found[2]
    assert {each.digest for each, _ in found} == {found[0][0].digest}
    for one, other in zip(found[0], found[1], strict=True):
        assert one.answers is not None and other.answers is not None
        assert one.answers.queries == other.answers.queries
        assert one.answers.units.tolist() == other.answers.units.tolist()
        (difference,) = paired.differences(one.answers.scores(), [other.answers.scores()])
        assert {each.value for each in difference.values()} == {0.0}


def test_a_picture_that_its_shard_lacks_is_named(tmp_path: Path) -> None:
    found = holdouts.Pictures(
        [holdouts.Tar(filtered(tmp_path, ["key0"], ["猫"], [None]).part_uris("test/", ".tar")[0])], ["key1"], [None]
    )
    with pytest.raises(DataError, match="lacks the picture of the pair key1"):
        found.image(0)


@pytest.mark.parametrize("where", ["features", "weights"])
def test_a_model_with_values_that_are_not_finite_is_not_evaluated(
    saved: SavedModel, where: str, tmp_path: Path
) -> None:
    _, captions, features = five_a_picture(saved)
    if where == "features":
        features[7] = torch.nan
    else:
        saved.model.image_head.bias.data[0] = torch.nan
    keys = [f"key{row}" for row in range(len(captions))]
    first = sorted(keys).index("key7") if where == "features" else 0
    with pytest.raises(DataError, match=f"not finite, the first is image {first}:"):
        measured(saved, experiment(), filtered(tmp_path, keys, captions, keys), features, tmp_path)


def test_url_fragments_give_an_image_several_captions() -> None:
    urls = [f"http://x/cat.jpg{fragment}" for fragment in ("", "#2", "#3")]
    rows = [(key_of(url), url, f"猫{order}", None, order, None) for order, url in enumerate(urls)]
    columns = [list(column) for column in zip(*rows, strict=True)]
    planned = plan.merge(pl.DataFrame(pa.table(columns, schema=FOUND)))
    assert sorted(planned["caption"].to_pylist()) == ["猫0", "猫1", "猫2"]
    assert {normalise(url) for url in planned["url"].to_pylist()} == {"http://x/cat.jpg"}
