"""Models of others: tiny ones with random weights, and the same vectors by their own preprocessing."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from wukong.errors import ConfigError
from wukong.evaluate import adapters
from wukong.evaluate.model import OwnModel
from wukong.evaluate.protocol import PROTOCOLS

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
    found = adapters.from_cn_clip(module, clip.tokenize, "cn_clip:tiny")
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
    with torch.no_grad():
        module.logit_scale += 1
    assert adapters.digest_of(module) != found.digest


@pytest.mark.parametrize(("uri", "message"), [("cn_clip:ViT-Z", "no model 'ViT-Z'; there are: ViT-B-16")])
def test_an_unknown_model_of_chinese_clip_is_refused(uri: str, message: str) -> None:
    pytest.importorskip("cn_clip.clip")
    with pytest.raises(ConfigError, match=message):
        adapters.load(uri)


def test_a_package_that_is_not_installed_is_named_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with pytest.raises(ConfigError, match=r"open_clip is not installed.*pip install open_clip_torch"):
        adapters.load("open_clip:ViT-B-32/laion2b")


def test_any_other_uri_is_a_model_of_this_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(adapters.saved_model, "load", lambda *each: asked.append(each) or "saved")
    monkeypatch.setattr(adapters, "OwnModel", lambda saved, name: (saved, name))
    assert adapters.load("models:/demo@champion", "cpu") == ("saved", "models:/demo@champion")
    assert asked == [("models:/demo@champion", "cpu")]
    assert OwnModel is not adapters.OwnModel
