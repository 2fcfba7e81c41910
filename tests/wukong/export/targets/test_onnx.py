import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

from cli.main import app
from wukong.config.model import Model
from wukong.data import images
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.errors import DataError
from wukong.export import parts
from wukong.export.run import export
from wukong.export.target import Options
from wukong.export.targets import onnx
from wukong.model import saved_model
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.store import storage

pytestmark = pytest.mark.long
LITE0 = {"name": "tf_efficientnet_lite0", "image_size": 64}
DINOV2 = {"name": "vit_small_patch14_dinov2", "image_size": 56, "weights": "random"}


def saved(folder: Path, image: dict[str, object], similarity: str) -> saved_model.SavedModel:
    torch.manual_seed(0)
    text = {"layers": 2, "heads": 2, "width": 16}
    settings = Model.model_validate({"image": image, "text": text, "embedding": 8, "similarity": similarity})
    tokenizer = Tokenizer(packaged_vocabulary())
    model = DualEncoder(settings, tokenizer, ImageEncoder(settings.image)).eval()
    saved_model.save(storage.from_path(folder), model, tokenizer)
    return saved_model.load(folder)


@pytest.mark.parametrize(("image", "similarity"), [(LITE0, "global"), (DINOV2, "token")])
def test_both_towers_equal_torch_for_any_batch_size(tmp_path: Path, image: dict[str, object], similarity: str) -> None:
    loaded = saved(tmp_path / "model", image, similarity)
    result = CliRunner().invoke(app, ["model", "export", str(tmp_path / "model"), str(tmp_path / "onnx")])
    assert result.exit_code == 0, result.output
    assert "image.onnx" in result.output and "text.onnx" in result.output
    towers = {
        file: onnxruntime.InferenceSession(tmp_path / "onnx" / file, providers=["CPUExecutionProvider"])
        for file in (onnx.IMAGE, onnx.TEXT)
    }
    size = loaded.model.settings.image.image_size
    for count in (1, 5):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 3, size, size), np.uint8)
        (found,) = towers[onnx.IMAGE].run(None, {"pixels": pixels})
        with torch.no_grad():
            np.testing.assert_allclose(found, loaded.model.embed_pixels(torch.from_numpy(pixels)), atol=1e-4)
    for captions in (["猫"], ["红色的苹果" * 10, "雪", "一只鸟"]):
        ids = loaded.tokenizer(captions)
        vectors, counted = towers[onnx.TEXT].run(None, {"ids": ids.numpy()})
        with torch.no_grad():
            expected = loaded.model.embed_text(ids)
        np.testing.assert_array_equal(counted, expected.counted)
        real = (ids != loaded.tokenizer.pad).numpy() if similarity == "token" else slice(None)
        np.testing.assert_allclose(vectors[real], expected.vectors.numpy()[real], atol=1e-4)
    assert (tmp_path / "onnx" / "vocab.txt").read_bytes() == packaged_vocabulary().encode()
    assert json.loads((tmp_path / "onnx" / "config.json").read_text())["similarity"] == similarity


def test_a_file_with_other_outputs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = saved(tmp_path / "model", {"name": "test_vit", "weights": "random"}, "global")
    write = torch.onnx.export

    def write_another(*arguments: object, **named: object) -> None:
        write(*arguments, **named)
        loaded.model.image_head.bias.add_(1.0)

    monkeypatch.setattr(torch.onnx, "export", write_another)
    with pytest.raises(DataError, match=r"image\.onnx differs from torch by"):
        export(loaded, "onnx", tmp_path / "onnx")
    assert not any(tmp_path.glob("*onnx*")), "a half-written folder was left"


@pytest.mark.parametrize(("model", "least"), [("lite0", 0.9), ("clip_vit", 0.999)])
def test_files_in_int8_are_small_and_near(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, least: float
) -> None:
    loaded = request.getfixturevalue(model)
    export(loaded, "onnx", tmp_path / "onnx", Options(int8=True))
    for name in ("image", "text"):
        large, small = ((tmp_path / "onnx" / f"{name}{end}.onnx").stat().st_size for end in ("", "_int8"))
        assert small < 0.35 * large
    pictures, captions = parts.sample_pictures(16, seed=5), parts.sample_captions(64, seed=5)
    size, view = loaded.model.settings.image.image_size, loaded.model.settings.image.view
    pixels = images.to_tensor([images.evaluation_view(picture, size, view) for picture in pictures]).numpy()
    opened = [
        onnxruntime.InferenceSession(tmp_path / "onnx" / f"{name}_int8.onnx", providers=["CPUExecutionProvider"])
        for name in ("image", "text")
    ]
    found = (
        opened[0].run(None, {"pixels": pixels})[0],
        opened[1].run(None, {"ids": loaded.tokenizer(captions).numpy()})[0],
    )
    wanted = loaded.encode_image(pictures), loaded.encode_text(captions, strict=False).vectors
    cosines = [(ours.numpy() * theirs).sum(1).min() for ours, theirs in zip(wanted, found, strict=True)]
    assert min(cosines) > least and cosines[1] > 0.99
    assert max(cosines) < 1 - 1e-7, "they are not in int8"
