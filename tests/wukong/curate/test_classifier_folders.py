"""Classifiers in the folders of transformers and timm give what those packages compute with them."""

import json

import numpy as np
import onnx_models
import pytest
from PIL import Image

from wukong.config.picture_model import PictureModel
from wukong.curate import picture_models
from wukong.errors import ConfigError

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch")
HALF = (0.5, 0.5, 0.5)


def pictures():
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(5)]


def pixels():
    stacked = torch.from_numpy(np.stack([np.asarray(each) for each in pictures()])).permute(0, 3, 1, 2)
    return (stacked / 255 - 0.5) / 0.5


def found(folder, **output):
    at = {"size": 64, "resize": "squash", "mean": HALF, "std": HALF}
    model = PictureModel.model_validate(onnx_models.settings(folder, input=at, output=output))
    return picture_models.outputs(model, pictures())


def vit(**further):
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 80}
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=64, num_labels=3, **further)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


@pytest.mark.parametrize(
    "further", [{}, {"hidden_act": "relu", "qkv_bias": False, "patch_size": 8, "layer_norm_eps": 0.1}]
)
def test_a_vit_of_transformers_gives_its_logits(further, tmp_path):
    model = vit(**further)
    model.save_pretrained(tmp_path)
    with torch.inference_mode():
        expected = model(pixel_values=pixels()).logits
    np.testing.assert_allclose(found(tmp_path), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found(tmp_path, activation="softmax", index=2), expected.softmax(1)[:, 2:], atol=1e-5)


def test_a_model_of_timm_gives_its_logits(tmp_path):
    import timm

    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=2, pretrained=False).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    with torch.inference_mode():
        expected = model(pixels())
    np.testing.assert_allclose(found(tmp_path), expected, rtol=1e-4, atol=1e-5)


def test_another_kind_of_model_is_refused_with_what_to_do(tmp_path):
    vit().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["SiglipForImageClassification"]}))
    with pytest.raises(ConfigError, match=r"names \['SiglipForImageClassification'\].*export another model to ONNX"):
        found(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "mish"}))
    with pytest.raises(ConfigError, match=r"its config.json and its weights do not fit together \(KeyError: 'mish'"):
        found(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(ConfigError, match=r"do not fit together .*Missing key"):
        found(tmp_path)
