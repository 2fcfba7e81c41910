"""Exports to open_clip, opened by open_clip: in a process of its own, from another folder, without this project."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import consumers
import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from wukong.errors import ConfigError
from wukong.evaluate import adapters
from wukong.export import parts, run
from wukong.model.saved_model import SavedModel

pytestmark = pytest.mark.long

PAGE = Path(__file__).parents[4] / "docs" / "export.md"
LOADS = """
import json, os, sys

import numpy, torch
from PIL import Image

folder, work = sys.argv[1:]
os.chdir(work)
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
model.eval()
pictures = [preprocess(Image.open(f"pictures/{name}")) for name in sorted(os.listdir("pictures"))]
captions = json.load(open("captions.json"))
with torch.no_grad():
    images = model.encode_image(torch.stack(pictures), normalize=True)
    cleaned = model.encode_text(tokenizer(captions), normalize=True)
    tokenizer.clean_fn = str
    ids = tokenizer(captions)
    texts = model.encode_text(ids, normalize=True)
assert "wukong" not in sys.modules
bias = numpy.nan if model.logit_bias is None else model.logit_bias.item()
scale = model.logit_scale.exp().item()
numpy.savez("opened.npz", images=images, texts=texts, cleaned=cleaned, ids=ids, scale=scale, bias=bias)
"""
TINY = {
    "image": {"name": "test_vit", "image_size": 32, "weights": "random"},
    "text": {"layers": 1, "heads": 2, "width": 64},
}
"""At another resolution than timm's, so that timm finds the tower by the folder too."""


def opened(
    folder: Path, work: Path, pictures: Sequence[Image.Image], captions: Sequence[str]
) -> dict[str, npt.NDArray[Any]]:
    """What open_clip gives for pictures and captions."""
    (work / "pictures").mkdir(parents=True)
    for number, picture in enumerate(pictures):
        picture.save(work / "pictures" / f"{number:03}.png")
    (work / "captions.json").write_text(json.dumps(captions), "utf-8")
    consumers.run(Path(sys.executable), LOADS, folder, work)
    return dict(np.load(work / "opened.npz"))


def squares(size: int) -> list[Image.Image]:
    """Pictures that every view leaves as they are: black, white, fine checks and stripes, noise, saturated colours."""
    drawn = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size]
    planes = [np.zeros((size, size)), np.full((size, size), 255), 255 * ((rows + columns) % 2), 255 * (rows // 4 % 2)]
    pixels = [np.repeat(plane[..., None], 3, 2) for plane in planes]
    pixels += [drawn.integers(0, 256, (size, size, 3)), 255 * drawn.integers(0, 2, (size, size, 3))]
    pixels += [np.broadcast_to(colour, (size, size, 3)) for colour in ((255, 0, 0), (0, 255, 255))]
    return [Image.fromarray(each.astype(np.uint8)) for each in pixels]


def is_shifted(picture: Image.Image, size: int) -> bool:
    """Whether half of an odd border is rounded up by ``ImageOps.pad``, to even, where open_clip cuts it off."""
    shorter = round(min(picture.size) * size / max(picture.size))
    return (size - shorter) % 4 == 3


def assert_same(theirs: npt.NDArray[Any], ours: torch.Tensor) -> None:
    np.testing.assert_allclose(theirs, ours.numpy(), atol=parts.TOLERANCE, rtol=0)


def test_a_model_that_sees_whole_pictures_gives_its_vectors_in_open_clip(lite0: SavedModel, tmp_path: Path) -> None:
    """Also a picture after which ReLU6 would cut off what the last block gives, did the factor not prevent it."""
    checks = run.export(lite0, "open_clip", tmp_path / "clip")
    pictures, same, captions = parts.sample_pictures(24, seed=1), squares(224), parts.sample_captions(200, seed=1)
    found = opened(tmp_path / "clip", tmp_path / "work", [*same, *pictures], captions)
    assert_same(found["images"][: len(same)], lite0.encode_image(same))
    ours = lite0.encode_image(pictures).numpy()
    cosines = (found["images"][len(same) :] * ours).sum(1)
    shifted = np.array([is_shifted(each, 224) for each in pictures])
    assert 0 < shifted.sum() < len(pictures)
    assert cosines[~shifted].min() > 1 - 1e-6 and 0.98 < cosines[shifted].min() < 1 - 1e-6
    ids = lite0.tokenizer(captions)
    np.testing.assert_array_equal(found["ids"][:, : ids.shape[1]], ids.numpy())
    assert_same(found["texts"], lite0.encode_text(captions, strict=False).vectors)
    assert found["scale"] == pytest.approx(1 / 0.07) and np.isnan(found["bias"])
    values = {check.of: check.value for check in checks}
    assert values["vectors of 16 pictures, through preprocess"] > 0.98
    assert values["pixels of 16 pictures, through preprocess"] == np.mean(
        [not is_shifted(each, 224) for each in parts.sample_pictures(16)]
    )


def test_a_model_that_sees_the_middle_gives_its_vectors_in_open_clip(clip_vit: SavedModel, tmp_path: Path) -> None:
    """And what open_clip changes in a text by itself is what ``docs/export.md`` says."""
    run.export(clip_vit, "open_clip", tmp_path / "clip")
    pictures, same = parts.sample_pictures(12, seed=2), ["一只猫", "红色的苹果,和绿色的苹果", "ABC 123"]
    changed, cleaned = ["猫，狗", "“猫”", "猫&amp;狗"], ["猫,狗", '"猫"', "猫&狗"]
    found = opened(tmp_path / "clip", tmp_path / "work", pictures, [*same, *changed])
    assert_same(found["images"], clip_vit.encode_image(pictures))
    assert_same(found["texts"], clip_vit.encode_text([*same, *changed]).vectors)
    assert_same(found["cleaned"], clip_vit.encode_text([*same, *cleaned]).vectors)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"image": {"name": "resnet50_clip.openai", "image_size": 64}}, id="rn50"),
        pytest.param({"image": {"name": "swin_tiny_patch4_window7_224", "image_size": 64, "view": "crop"}}, id="swin"),
        pytest.param({"image": {"name": "vit_small_patch14_dinov2", "image_size": 56}}, id="dinov2"),
        pytest.param({"image": {"name": "test_efficientnet", "image_size": 64, "block": 4}}, id="SiLU after the block"),
        pytest.param({**TINY, "embedding": None}, id="no projections"),
        pytest.param({**TINY, "loss": "sigmoid"}, id="sigmoid"),
    ],
)
def test_other_towers_and_settings_give_their_vectors(
    settings: dict[str, Any], built: Callable[[dict[str, object]], SavedModel], tmp_path: Path
) -> None:
    import open_clip

    whole = {"text": {"layers": 1, "heads": 2, "width": 48}, "embedding": 24, **settings}
    saved = built({**whole, "image": {"weights": "random", **settings["image"]}})
    run.export(saved, "open_clip", tmp_path / "clip")
    module, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'clip'}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'clip'}")
    module.eval()
    shown, captions = squares(saved.model.settings.image.image_size), ["猫", "一只黑色的狗"]
    with torch.no_grad():
        theirs = module.encode_image(torch.stack([preprocess(each) for each in shown]), normalize=True)
        texts = module.encode_text(tokenizer(captions), normalize=True)
    assert_same(theirs.numpy(), saved.encode_image(shown))
    assert_same(texts.numpy(), saved.encode_text(captions).vectors)
    assert module.logit_scale.item() == saved.model.log_scale.item()
    assert (module.logit_bias is None) == (saved.model.bias is None)
    assert saved.model.bias is None or module.logit_bias.item() == saved.model.bias.item()


@pytest.mark.parametrize("architecture", ["rn50", "rn101", "vit-b-32", "vit-b-16", "vit-l-14", "swin-l", "dinov2-s"])
def test_the_paper_s_towers_are_those_that_open_clip_builds(architecture: str) -> None:
    """By names and sizes of all weights, without memory for them."""
    import timm
    from open_clip.timm_model import TimmModel

    from wukong.config import model as settings

    name = settings.architecture(architecture)["image"]["name"]
    with torch.device("meta"):
        theirs = TimmModel(name, 256, pool="", proj="linear", proj_bias=True).trunk.state_dict()
        ours = timm.create_model(name, num_classes=0).state_dict()
    assert {key: value.shape for key, value in theirs.items()} == {key: value.shape for key, value in ours.items()}


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"similarity": "token"}, r"a vector for each token.*--to onnx"),
        ({"embedding": 65}, r"widens 64 numbers to 65.*at most 64"),
        ({"image": {**TINY["image"], "block": 2}}, r"ends at block 2.*only the last block of an EfficientNet"),
        ({"image": {"name": "test_efficientnet", "image_size": 32, "weights": "random", "block": 2}}, "only the last"),
        (
            {"image": {"name": "test_efficientnet_gn", "image_size": 32, "weights": "random", "block": 4}},
            "the norm or the activation",
        ),
    ],
)  # fmt: skip
def test_a_model_that_open_clip_cannot_hold_is_refused(
    settings: dict[str, Any], why: str, built: Callable[[dict[str, object]], SavedModel], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"open_clip cannot hold this model: .*{why}"):
        run.export(built({**TINY, "embedding": 32, **settings}), "open_clip", tmp_path / "clip")
    assert not (tmp_path / "clip").exists()


def test_a_folder_that_was_moved_opens_after_the_line_of_the_page(
    built: Callable[[dict[str, object]], SavedModel], tmp_path: Path
) -> None:
    saved = built({**TINY, "embedding": 32})
    run.export(saved, "open_clip", tmp_path / "here")
    moved = tmp_path / "an other place" / "clip"
    moved.parent.mkdir()
    (tmp_path / "here").rename(moved)
    with pytest.raises(ConfigError, match=f"{tmp_path}/here"):  # open_clip's message names the path that is wrong
        adapters.load(f"open_clip:local-dir:{moved}")
    (line,) = re.findall(r"^sed .*open_clip_config\.json$", PAGE.read_text("utf-8"), re.MULTILINE)
    subprocess.run(["sh", "-c", line], cwd=moved, check=True)
    found = opened(moved, tmp_path / "work", squares(32), ["猫", "一只狗"])
    assert_same(found["images"], saved.encode_image(squares(32)))
    assert_same(found["texts"], saved.encode_text(["猫", "一只狗"]).vectors)
