"""Whoever loads what an address holds refuses another file than the run began with."""

import json
from collections.abc import Callable
from functools import reduce
from io import BytesIO
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

from wukong.config import documents
from wukong.config.experiment import CONTENTS, Experiment
from wukong.curate.rule import PictureBatch
from wukong.curate.rules import similarity
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.errors import DataError
from wukong.model import saved_model
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.stages import start
from wukong.store import contents, storage

TEXT = {"layers": 1, "heads": 2, "width": 32}


def experiment(place: Path, key: str) -> Experiment:
    uri = storage.from_path(place)
    model: dict[str, object] = {"image": {"name": "test_vit", "weights": "random", "image_size": 160}, "embedding": 8}
    model["text"] = TEXT
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    value = {"name": "x", "crawl": crawl, "model": model}
    return documents.loads(json.dumps(value), [f"{key}={uri}"] if key else [])


def dual(settings: Experiment) -> DualEncoder:
    return DualEncoder(settings.model, Tokenizer.of(settings.model.text), ImageEncoder(settings.model.image))


def tower(place: Path) -> None:
    save_file(timm.create_model("test_vit").state_dict(), place)


def bert(place: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}
    BertModel(BertConfig(vocab_size=21128, **sizes)).save_pretrained(place)


def vocabulary(place: Path) -> None:
    entries = packaged_vocabulary().rstrip("\n").split("\n")
    extra = f"[unused-{torch.randint(10**9, ()).item()}]"
    place.write_text("\n".join([*entries[:-1], extra]), encoding="utf-8")


def model(place: Path) -> None:
    settings = experiment(place, "")
    built = dual(settings)
    saved_model.save(storage.from_path(place), built, Tokenizer.of(settings.model.text))


def judge(settings: Experiment) -> None:
    picture = BytesIO()
    Image.new("RGB", (30, 30)).save(picture, "PNG")
    similarity._model.cache_clear()  # as in a process of its own
    similarity.similarities(PictureBatch([picture.getvalue()], ["猫"], ["a picture"]), settings.filter)


CASES: dict[str, tuple[Callable[[Path], None], Callable[[Experiment], object]]] = {
    "model.image.weights": (tower, lambda settings: ImageEncoder(settings.model.image)),
    "model.text.weights": (bert, dual),
    "model.text.vocabulary": (vocabulary, lambda settings: Tokenizer.of(settings.model.text)),
    "filter.similarity_model": (model, judge),
}


@pytest.mark.parametrize("key", CONTENTS)
def test_a_file_that_was_replaced_is_not_loaded(key: str, tmp_path: Path) -> None:
    write, load = CASES[key]
    write(tmp_path / "it")
    begun = start.as_it_begins(experiment(tmp_path / "it", key))
    assert reduce(getattr, f"{key}_sha256".split("."), begun) == contents.digest(
        storage.from_path(tmp_path / "it"), CONTENTS[key]
    )
    load(begun)
    write(tmp_path / "it")
    with pytest.raises(DataError, match=r"/it was replaced: its SHA-256 is .*or what its model was trained with\. Put"):
        load(begun)


def test_a_saved_model_keeps_the_digest_of_its_tower(tmp_path: Path) -> None:
    tower(tmp_path / "it")
    begun = start.as_it_begins(experiment(tmp_path / "it", "model.image.weights"))
    uri = storage.from_path(tmp_path / "model")
    saved_model.save(uri, dual(begun), Tokenizer.of(begun.model.text))
    assert saved_model.load(uri).model.settings.image.weights_sha256 == contents.sha256(
        storage.from_path(tmp_path / "it")
    )
