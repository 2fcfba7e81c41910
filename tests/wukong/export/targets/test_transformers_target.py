"""Folders for transformers: opened without this project, towers of all architectures, what is refused."""

import sys
from collections.abc import Callable
from pathlib import Path

import consumers
import numpy as np
import pytest
import torch
from PIL import Image
from timm.layers.activations import QuickGELU
from transformers import AutoModel, AutoProcessor

from wukong.data import images
from wukong.errors import DataError
from wukong.export import parts
from wukong.export.remote.image_processing_wukong import WukongImageProcessor
from wukong.export.run import export
from wukong.export.targets import transformers as target
from wukong.model.dual import Embedded
from wukong.model.saved_model import SavedModel

pytestmark = pytest.mark.long

OPEN = """
import sys
sys.modules["wukong"] = None
import numpy as np, torch
from PIL import Image
from transformers import AutoModel, AutoProcessor
output, *folders = sys.argv[1:]
captions = ["一只猫", "红色的苹果和绿色的苹果", "Café 雪 2024"]
pictures = [Image.open(f"{output}/{number}.png") for number in range(4)]
for folder in folders:
    trusted = folder.endswith("code")
    model = AutoModel.from_pretrained(folder, trust_remote_code=trusted).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=trusted)
    inputs = processor(text=captions, images=pictures, padding=True, return_tensors="pt")
    texts = processor(text=captions, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model(**inputs)
        text = model.get_text_features(**texts).pooler_output
        image = model.get_image_features(**processor(images=pictures, return_tensors="pt")).pooler_output
    for features, wanted in ((text, found.text_embeds), (image, found.image_embeds)):
        assert torch.allclose(torch.nn.functional.normalize(features, dim=-1), wanted, atol=1e-5)
    print(type(model).__name__)
    np.savez(folder + ".npz", image=found.image_embeds, text=found.text_embeds, logits=found.logits_per_image)
"""
CAPTIONS = ["一只猫", "红色的苹果和绿色的苹果", "Café 雪 2024"]
SMALL = {"layers": 1, "heads": 2, "width": 16}
Build = Callable[[dict[str, object]], SavedModel]


def tower(name: str, size: int, **others: object) -> dict[str, object]:
    image = {"name": name, "image_size": size, "weights": "random"}
    return {"image": {**image, **others}, "text": SMALL, "embedding": 8}


def test_it_is_opened_without_this_project(
    lite0: SavedModel, clip_vit: SavedModel, built: Build, tmp_path: Path
) -> None:
    pictures = parts.sample_pictures(4)
    pictures[3] = pictures[3].convert("L")
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    exported = {"code": lite0, "clip": clip_vit, "whole": built(tower("vit_xsmall_patch16_clip_224", 64))}
    for name, saved in exported.items():
        export(saved, "transformers", tmp_path / name)
    printed = consumers.run(Path(sys.executable), OPEN, tmp_path, *(tmp_path / name for name in exported))
    assert printed.split() == ["WukongModel", "ChineseCLIPModel", "ChineseCLIPModel"]
    for name, saved in exported.items():
        found = np.load(tmp_path / f"{name}.npz")
        image, text = saved.encode_image(pictures), saved.encode_text(CAPTIONS)
        np.testing.assert_allclose(found["text"], text.vectors, atol=1e-5)
        cosines = (image.numpy() * found["image"]).sum(1)
        assert cosines.min() > (1 - 1e-5 if name == "code" else 0.999), name
        if name == "code":
            wanted = saved.similarity(image, text) * saved.model.scale.detach()
            np.testing.assert_allclose(found["logits"], wanted, atol=1e-4)
        assert (tmp_path / name / "modeling_wukong.py").is_file() is (name == "code")


@pytest.mark.parametrize(
    "settings",
    [
        tower("resnet50_clip.openai", 64),
        tower("swin_tiny_patch4_window7_224", 64),
        tower("vit_small_patch14_dinov2", 56),
        {**tower("vit_xsmall_patch16_clip_224", 64, tokens=4), "similarity": "token", "match_text_cls": False},
        {
            **tower("vit_xsmall_patch16_clip_224", 64, tokens=3, pooling="attention"),
            "similarity": "token",
            "loss": "sigmoid",
        },
    ],
    ids=["rn50", "swin", "dinov2", "areas", "attention"],
)
def test_other_towers_bring_their_code(settings: dict[str, object], built: Build, tmp_path: Path) -> None:
    saved = built(settings)
    folder = tmp_path / "exported"
    folder.mkdir()
    target.write_model(saved, folder)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    size = saved.model.settings.image.image_size
    pixels = torch.randint(0, 256, (3, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert saved.model.image is not None
    ids = saved.tokenizer(CAPTIONS)
    with torch.no_grad():
        found = model(ids, (pixels / 255 - saved.model.image.mean) / saved.model.image.std, return_loss=True)
        pairs = Embedded(
            saved.model.embed_pixels(pixels), saved.model.embed_text(ids), saved.model.scale, saved.model.bias
        )
        scores, bias = saved.model.similarity(pairs.image, pairs.text), 0 if pairs.bias is None else pairs.bias
        wanted_loss = saved.model.loss(pairs)
    torch.testing.assert_close(found.image_embeds, pairs.image, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.logits_per_image, scores.image_to_text * pairs.scale + bias, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.logits_per_text, scores.text_to_image.T * pairs.scale + bias, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.loss, wanted_loss, atol=1e-4, rtol=0)


@pytest.mark.parametrize("with_masks", [False, True])
def test_every_method_takes_what_the_processor_gives(token_wise: SavedModel, tmp_path: Path, with_masks: bool) -> None:
    target.write_model(token_wise, tmp_path, with_masks=with_masks)
    model = AutoModel.from_pretrained(tmp_path, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    texts = processor(text=CAPTIONS, padding=True, return_tensors="pt")
    pictures = processor(images=parts.sample_pictures(3), return_tensors="pt")
    given = {"get_text_features": texts, "get_image_features": pictures, "forward": {**pictures, **texts}}
    assert set(given) == {name for name in vars(type(model)) if name.startswith(("get_", "forward"))}
    with torch.no_grad():
        found = {name: getattr(model, name)(**inputs) for name, inputs in given.items()}
    assert torch.equal(found["get_text_features"].token_embeddings, found["forward"].text_embeds)
    assert torch.equal(found["get_image_features"].token_embeddings, found["forward"].image_embeds)


def test_openais_towers_with_quick_gelu_need_no_code(built: Build, tmp_path: Path) -> None:
    saved = built(tower("vit_xsmall_patch16_clip_224", 64))
    assert saved.model.image is not None
    for block in saved.model.image.backbone.blocks:
        block.mlp.act = QuickGELU()  # timm has it in large towers only
    folder = tmp_path / "exported"
    folder.mkdir()
    target.write_model(saved, folder)
    model = AutoModel.from_pretrained(folder).eval()
    assert model.config.vision_config.hidden_act == "quick_gelu"
    pixels = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        # The whole picture is on white by a mean of one.
        found = model.get_image_features((pixels / 255 - 1) / saved.model.image.std).pooler_output
        wanted = saved.model.embed_pixels(pixels)
    torch.testing.assert_close(torch.nn.functional.normalize(found, dim=-1), wanted, atol=1e-5, rtol=0)


def test_a_folder_that_is_not_equal_is_refused(built: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "folded_bias", lambda norm, head: norm.bias.detach())
    with pytest.raises(DataError, match="largest difference"):
        export(built(tower("vit_xsmall_patch16_clip_224", 64)), "transformers", tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("view", ["whole", "crop"])
def test_the_code_sees_what_the_model_sees(view: str) -> None:
    drawn = np.random.default_rng(0)
    long = Image.fromarray(drawn.integers(0, 256, (7, 200, 3), np.uint8))
    clear = Image.fromarray(drawn.integers(0, 256, (50, 31, 4), np.uint8), "RGBA")
    grey = Image.fromarray(drawn.integers(0, 256, (40, 90), np.uint8), "L")
    pictures = [long, clear, grey, *parts.sample_pictures(2)]
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    processor = WukongImageProcessor(32, view, mean, std, tokens=9)
    found = processor(pictures, return_tensors="pt")
    squares = [images.evaluation_view(images.to_rgb(picture), 32, view) for picture in pictures]  # type: ignore[arg-type]
    channels = [torch.tensor(value).view(1, 3, 1, 1) for value in (mean, std)]
    wanted = (images.to_tensor(squares) / 255 - channels[0]) / channels[1]
    torch.testing.assert_close(found["pixel_values"], wanted, atol=1e-6, rtol=0)
    assert found["attention_mask"].tolist() == [[1] * 9] * 5
    array = np.asarray(pictures[-1])
    torch.testing.assert_close(processor(array, return_tensors="pt")["pixel_values"], found["pixel_values"][-1:])
