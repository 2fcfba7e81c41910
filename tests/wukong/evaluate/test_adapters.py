"""Models of others: tiny ones with random weights, and the same vectors by their own preprocessing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import released_models as tiny
import torch
import torch.nn.functional as F
from PIL import Image

from wukong.config import model_kinds
from wukong.errors import ConfigError
from wukong.evaluate import adapters
from wukong.evaluate.adapters import cn_clip
from wukong.evaluate.model import OwnModel
from wukong.evaluate.protocol import PROTOCOLS
from wukong.model import released

TEXTS = ["一只猫", "ABC的照片" * 20]


def picture(i: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(i).integers(0, 256, (50, 70, 3), np.uint8))


def test_chinese_clip_gives_the_vectors_of_its_own_transform_and_tokenizer() -> None:
    clip = pytest.importorskip("cn_clip.clip")
    from cn_clip.clip.model import CLIP
    from cn_clip.clip.utils import image_transform

    torch.manual_seed(0)
    module = CLIP(
        embed_dim=8, image_resolution=32, vision_layers=1, vision_width=64, vision_patch_size=16,
        vocab_size=21128, text_attention_probs_dropout_prob=0.0, text_hidden_act="gelu",
        text_hidden_dropout_prob=0.0, text_hidden_size=16, text_initializer_range=0.02, text_intermediate_size=32,
        text_max_position_embeddings=64, text_num_attention_heads=2, text_num_hidden_layers=1, text_type_vocab_size=2,
    ).eval()  # fmt: skip
    found = cn_clip.from_cn_clip(module, clip.tokenize, "cn_clip:tiny", "tiny")
    shown = [picture(0), picture(1)]
    transform = image_transform(32)
    with torch.inference_mode():
        images = F.normalize(module.encode_image(torch.stack([transform(each) for each in shown])), dim=-1)
        texts = F.normalize(module.encode_text(clip.tokenize(TEXTS, context_length=52)), dim=-1)
    rules = PROTOCOLS["cn-clip"]
    torch.testing.assert_close(found.encode_images(shown, rules), images, atol=2e-6, rtol=0)
    torch.testing.assert_close(found.encode_texts(TEXTS, rules).vectors, texts, atol=2e-6, rtol=0)
    shorter = found.encode_texts(TEXTS, PROTOCOLS["paper"]).vectors
    assert not torch.allclose(shorter[1], texts[1], atol=1e-4), "the context of 32 tokens did not cut"
    assert (found.token_wise, found.scale) == (False, pytest.approx(float(module.logit_scale.detach().exp())))
    assert cn_clip.from_cn_clip(module, clip.tokenize, "again", "tiny").digest == found.digest
    assert cn_clip.from_cn_clip(module, clip.tokenize, "again", "other").digest != found.digest
    with torch.no_grad():
        module.logit_scale += 1
    assert cn_clip.from_cn_clip(module, clip.tokenize, "again", "tiny").digest != found.digest


def test_open_clip_gives_the_vectors_of_its_own_transform_and_tokenizer(tmp_path: Path) -> None:
    """A tiny model of open_clip, from a file of weights and its own folder of settings."""
    package = pytest.importorskip("open_clip")
    settings: dict[str, Any] = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    }
    wide = {"text_cfg": {**settings["text_cfg"], "width": 128}}
    for name, more in (
        ("tiny-for-tests", {}),
        ("tiny-quick-for-tests", {"quick_gelu": True}),
        ("tiny-wide-for-tests", wide),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(settings | more), "utf-8")
    package.add_model_config(tmp_path)
    torch.manual_seed(0)
    module, _, transform = package.create_model_and_transforms("tiny-for-tests")
    torch.save(module.eval().state_dict(), tmp_path / "weights.pt")
    found = adapters.load(f"open_clip:tiny-for-tests/{tmp_path / 'weights.pt'}")
    shown = [picture(0), picture(1)]
    with torch.inference_mode():
        images = F.normalize(module.encode_image(torch.stack([transform(each) for each in shown])), dim=-1)
        texts = F.normalize(module.encode_text(package.get_tokenizer("tiny-for-tests")(TEXTS)), dim=-1)
    rules = PROTOCOLS["clip-benchmark"]
    torch.testing.assert_close(found.encode_images(shown, rules), images, atol=2e-6, rtol=0)
    torch.testing.assert_close(found.encode_texts(TEXTS, rules).vectors, texts, atol=2e-6, rtol=0)
    assert found.scale == pytest.approx(float(module.logit_scale.detach().exp()))
    quick = adapters.load(f"open_clip:tiny-quick-for-tests/{tmp_path / 'weights.pt'}")
    assert not torch.allclose(quick.encode_texts(TEXTS, rules).vectors, texts, atol=1e-4)
    assert quick.digest != found.digest, "classes that one model embedded would be taken for the other's"
    with pytest.raises(ConfigError, match=r"open_clip does not load 'tiny-wide-for-tests/.*weights\.pt' \("):
        adapters.load(f"open_clip:tiny-wide-for-tests/{tmp_path / 'weights.pt'}")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("cn_clip:ViT-Z", "no model 'ViT-Z'; there are: ViT-B-16"),
        ("cn_clip:ViT-B-16//nowhere/x.pt", r"does not load 'ViT-B-16//nowhere/x\.pt' \(RuntimeError"),
    ],
)
def test_a_model_that_chinese_clip_does_not_have_is_refused(uri: str, message: str) -> None:
    pytest.importorskip("cn_clip.clip")
    with pytest.raises(ConfigError, match=message):
        adapters.load(uri)


def test_a_model_of_chinese_clip_is_read_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that training writes; the package builds the text tower that belongs to the name."""
    pytest.importorskip("cn_clip.clip")
    from cn_clip.clip import utils

    asked: list[tuple[str, Any]] = []
    small = {
        "embed_dim": 8, "image_resolution": 32, "vision_layers": 1, "vision_width": 64, "vision_patch_size": 16,
        "vocab_size": 21128, "text_attention_probs_dropout_prob": 0.0, "text_hidden_act": "gelu",
        "text_hidden_dropout_prob": 0.0, "text_hidden_size": 16, "text_initializer_range": 0.02,
        "text_intermediate_size": 32, "text_max_position_embeddings": 64, "text_num_attention_heads": 2,
        "text_num_hidden_layers": 1, "text_type_vocab_size": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    trained = utils.CLIP(**small).eval()

    def made(name: str, checkpoint: dict[str, Any]) -> torch.nn.Module:
        asked.append((name, checkpoint))
        module: torch.nn.Module = utils.CLIP(**small)
        module.load_state_dict(checkpoint["state_dict"])
        return module

    monkeypatch.setattr(utils, "create_model", made)
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "x.pt")
    found = adapters.load(f"cn_clip:RN50/{tmp_path / 'x.pt'}")
    adapters.load(f"cn_clip:ViT-H-14/{tmp_path / 'x.pt'}")
    adapters.load(f"cn_clip:ViT-L-14-336/{tmp_path / 'x.pt'}")
    # As in the list of models of Chinese-CLIP's README.
    assert [name for name, _ in asked] == [
        "RN50@RBT3-chinese",
        "ViT-H-14@RoBERTa-wwm-ext-large-chinese",
        "ViT-L-14-336@RoBERTa-wwm-ext-base-chinese",
    ]
    expected = cn_clip.from_cn_clip(trained, utils.tokenize, "x", "RN50")
    assert found.digest == expected.digest


@pytest.mark.parametrize("name", tiny.TINY)
def test_a_released_model_gives_what_the_authors_code_computes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(released, "ARCHITECTURES", tiny.TINY)
    torch.save({"state_dict": tiny.checkpoint(name)}, tmp_path / "x.ckpt")
    found = adapters.load(f"wukong_release:{name}/{tmp_path / 'x.ckpt'}")
    rules, recorded = PROTOCOLS["paper"], tiny.RECORDED["tiny"][name]
    images = found.encode_images([tiny.picture(0), tiny.picture(1)], rules)
    texts = found.encode_texts(tiny.TEXTS, rules)
    assert list(images.shape) == recorded["shape"]
    torch.testing.assert_close(images.flatten(0, -2), torch.tensor(recorded["images"]), atol=1e-5, rtol=0)
    lengths = [len(ids) for ids in tiny.RECORDED["ids"]]
    if "texts" in recorded:
        vectors = texts.vectors
        if found.token_wise:
            vectors = torch.cat([each[:length] for each, length in zip(vectors, lengths, strict=True)])
        torch.testing.assert_close(vectors, torch.tensor(recorded["texts"]), atol=1e-5, rtol=0)
    similarity = found.image_to_text(images, texts)
    torch.testing.assert_close(similarity, found.similarity(images, texts).image_to_text)
    theirs = torch.tensor(recorded["similarity"])
    if not found.token_wise:
        torch.testing.assert_close(similarity, theirs, atol=1e-5, rtol=0)
        return
    # The last text has no padding. Theirs is a token of zeros, which a patch may match; with it the others are equal.
    torch.testing.assert_close(similarity[:, -1], theirs[:, -1], atol=1e-5, rtol=0)
    for number, length in enumerate(lengths):
        products = images @ texts.vectors[number, :length].T
        best = products.amax(2) if length == released.CONTEXT else products.amax(2).clamp(min=0)
        torch.testing.assert_close(best.mean(1), theirs[:, number], atol=1e-5, rtol=0)
        # From caption to image, [CLS] does not count (section 4.3).
        torch.testing.assert_close(
            found.similarity(images, texts).text_to_image[:, number], products.amax(1)[:, 1:].mean(1)
        )


def test_a_released_model_without_a_file_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"names no checkpoint: write wukong_release:NAME/FILE.*wukong_swin_g"):
        adapters.load("wukong_release:wukong_vit_b")


def test_a_package_that_is_not_installed_is_named_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with pytest.raises(ConfigError, match=r"open_clip is not installed.*pip install open_clip_torch"):
        adapters.load("open_clip:ViT-B-32/laion2b")


def test_the_kinds_that_cannot_be_trained_are_those_with_an_adapter() -> None:
    assert tuple(adapters.REGISTRY) == model_kinds.KINDS


def test_any_other_uri_is_a_model_of_this_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(adapters.saved_model, "load", lambda *each: asked.append(each) or "saved")
    monkeypatch.setattr(adapters, "OwnModel", lambda saved, name: (saved, name))
    assert adapters.load("models:/demo@champion", "cpu") == ("saved", "models:/demo@champion")
    assert asked == [("models:/demo@champion", "cpu")]
    assert OwnModel is not adapters.OwnModel
