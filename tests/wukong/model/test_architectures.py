"""The named architectures, compared with tables 3 and 5 of the paper."""

from pathlib import Path

import pytest
import torch
import yaml

from wukong.config import documents
from wukong.config.model import Model
from wukong.data.tokenizer import VOCABULARY_SIZE, Tokenizer, packaged_vocabulary
from wukong.errors import ConfigError
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder

ROOT = Path(__file__).parents[3]
ARCHITECTURES = ROOT / "wukong" / "config" / "architectures"
CRAWL = {"queries": "file:///q", "endpoint": "http://site.test"}
# Image tower's parameters in millions (as published with CLIP and Swin, less the last projection), width, tokens along
# a side, similarity.
PAPER = {
    "rn50": (38.3 - 2.1, 2048, 7, "global"),
    "rn101": (56.2 - 1.0, 2048, 7, "global"),
    "vit-b-32": (87.8 - 0.4, 768, 7, "global"),
    "vit-b-16": (86.2 - 0.4, 768, 14, "global"),
    "vit-l-14": (304.0 - 0.8, 1024, 16, "token"),
    "swin-l": (195.0, 1536, 7, "token"),
}


def parsed(model: object) -> Model:
    return documents.parse({"name": "x", "crawl": CRAWL, "model": model}).model


@pytest.mark.parametrize("name", PAPER)
def test_named_models_match_the_paper(name: str) -> None:
    settings = parsed({"architecture": name})
    with torch.device("meta"):
        model = DualEncoder(settings, Tokenizer(packaged_vocabulary()), ImageEncoder(settings.image, False))
    millions, width, side, similarity = PAPER[name]
    assert model.image is not None
    assert sum(p.numel() for p in model.image.parameters()) / 1e6 == pytest.approx(millions, rel=0.005)
    assert (model.image.pooled_width, model.image.token_count) == (width, side**2)
    assert settings.similarity == similarity
    assert settings.image.weights == "hub"
    # Table 3: 256, 224 x 224, 32 tokens, 12 layers of 768 with 12 heads. BERT-base without its pooler has 85.1 million
    # parameters in its layers.
    assert (settings.embedding, settings.image.image_size, settings.text.max_tokens) == (256, 224, 32)
    assert sum(p.numel() for p in model.text.layers.parameters()) / 1e6 == pytest.approx(85.1, abs=0.1)
    assert model.text.tokens.weight.shape == (VOCABULARY_SIZE, 768)
    assert [layer.heads for layer in model.text.layers] == [12] * 12
    assert [head.weight.shape for head in (model.image_head, model.text_head)] == [(256, width), (256, 768)]


@pytest.mark.parametrize("name", ["lite0", "dinov2-s"])
def test_small_models_need_no_hub(name: str) -> None:
    settings = parsed({"architecture": name})
    assert settings.image.weights == "package"
    model = DualEncoder(settings, Tokenizer(packaged_vocabulary()), ImageEncoder(settings.image))
    assert model.embed_text(torch.tensor([[101, 4344, 102]])).vectors.shape == (1, 256)


def test_each_file_is_an_architecture_without_repeated_keys() -> None:
    files = {path.stem: path for path in ARCHITECTURES.glob("*.yaml")}
    assert files.keys() == {*PAPER, "lite0", "dinov2-s"}
    for name, path in files.items():
        written = documents.loads(
            yaml.safe_dump({"name": "x", "crawl": CRAWL, "model": yaml.safe_load(path.read_text())})
        )
        assert parsed({"architecture": name}) == written.model


def test_other_keys_override_the_architecture() -> None:
    changed = parsed({"architecture": "swin-l", "similarity": "global", "text": {"layers": 3}})
    plain = parsed({"architecture": "swin-l"})
    assert (changed.similarity, changed.text.layers, changed.text.width) == ("global", 3, 768)
    assert changed.image == plain.image
    by_hand = plain.model_dump(mode="json")
    # A stage's key depends on the values, not on the name of the architecture.
    assert "architecture" not in by_hand
    assert Model.model_validate(by_hand).model_dump() == plain.model_dump()
    override = documents.loads(
        yaml.safe_dump({"name": "x", "crawl": CRAWL}), ["model.architecture=rn50", "model.text.heads=6"]
    )
    assert (override.model.image.name, override.model.text.heads) == ("resnet50_clip.openai", 6)


def test_an_unknown_name_or_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no architecture 'vit-b-33'; allowed are dinov2-s, lite0, rn"):
        parsed({"architecture": "vit-b-33"})
    with pytest.raises(ConfigError, match=r"model\.widht: unknown key; allowed here: architecture, bias, embedding"):
        parsed({"architecture": "rn50", "widht": 3})
