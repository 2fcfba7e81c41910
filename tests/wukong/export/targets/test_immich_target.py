import json
import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

from tests.wukong.export.consumers import environment, only_by_hand, run
from wukong.data.images import evaluation_view
from wukong.errors import ConfigError
from wukong.export import parts
from wukong.export.run import export
from wukong.export.target import Options
from wukong.export.targets import immich
from wukong.model.saved_model import SavedModel

pytestmark = pytest.mark.long
NAME = "XLM-Roberta-Base-ViT-B-32__laion5b_s13b_b90k"
NEEDS = (
    *("aiocache>=0.12.1,<1.0", "fastapi>=0.95.2,<1.0", "gunicorn>=21.1.0", "httpx>=0.28", "huggingface-hub>=1.0,<2.0"),
    *("insightface>=0.7.3,<1.0", "numpy<2.4.0", "opencv-python-headless>=4.7.0.72,<5.0", "orjson>=3.9.5"),
    *("pillow>=12.2,<13", "pydantic-settings>=2.5.2,<3", "python-multipart>=0.0.6,<1.0", "rich>=13.4.2"),
    *("uvicorn[standard]>=0.22.0,<1.0", "rapidocr>=3.1.0"),
)
"""The dependencies of machine-learning/pyproject.toml of Immich 2.7.5, and what its test client needs."""


@pytest.fixture(scope="module")
def exported(clip_vit: SavedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "immich"
    export(clip_vit, "immich", folder)
    return folder / "clip" / NAME


def test_the_graphs_have_the_names_types_and_shapes_that_the_server_asks_for(exported: Path) -> None:
    """As in immich_ml/models/clip: ``{"image": float32}``, ``{"text": int32}``, the vector is the first output."""
    found = {}
    for kind in ("visual", "textual"):
        session = onnxruntime.InferenceSession(exported / kind / "model.onnx", providers=["CPUExecutionProvider"])
        (given,), (vector,) = session.get_inputs(), session.get_outputs()
        found[kind] = (given.name, given.type, given.shape[1:], vector.type, vector.shape[1:])
    assert found["visual"] == ("image", "tensor(float)", [3, 224, 224], "tensor(float)", [512])
    assert found["textual"] == ("text", "tensor(int32)", [32], "tensor(float)", [512])
    assert json.loads((exported / "config.json").read_text())["text_cfg"]["context_length"] == 32


def test_captions_become_our_tokens_and_vectors(exported: Path, clip_vit: SavedModel) -> None:
    config = json.loads((exported / "textual" / "tokenizer_config.json").read_text())
    tokenizer = Tokenizer.from_file(str(exported / "textual" / "tokenizer.json"))
    tokenizer.enable_padding(
        length=32, pad_token=config["pad_token"], pad_id=tokenizer.token_to_id(config["pad_token"])
    )
    tokenizer.enable_truncation(max_length=32)
    captions = parts.sample_captions(5000)
    ids = [tokenizer.encode(" ".join(caption.split())).ids for caption in captions]
    assert ids == clip_vit.tokenizer(captions).tolist()
    session = onnxruntime.InferenceSession(exported / "textual" / "model.onnx", providers=["CPUExecutionProvider"])
    for caption, row in zip(captions[:20], ids, strict=False):
        vector = session.run(None, {"text": np.array([row], np.int32)})[0][0]
        wanted = clip_vit.encode_text(caption, strict=False).vectors[0]
        np.testing.assert_allclose(vector, np.pad(wanted, (0, 512 - 32)), atol=1e-5)


def test_pixels_become_our_vectors(exported: Path, clip_vit: SavedModel) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8))
    config = json.loads((exported / "visual" / "preprocess_cfg.json").read_text())
    assert (config["size"], config["interpolation"]) == ([224, 224], "bicubic")
    pixels = (np.asarray(picture, np.float32) / 255 - np.float32(config["mean"])) / np.float32(config["std"])
    session = onnxruntime.InferenceSession(exported / "visual" / "model.onnx", providers=["CPUExecutionProvider"])
    vector = session.run(None, {"image": pixels.transpose(2, 0, 1)[None]})[0][0]
    np.testing.assert_allclose(vector, np.pad(clip_vit.encode_image(picture)[0], (0, 512 - 32)), atol=1e-5)


def test_the_square_of_a_picture_is_ours_up_to_a_pixel(exported: Path, clip_vit: SavedModel) -> None:
    server = immich.Server(clip_vit, exported)
    for picture in parts.sample_pictures(24):
        ours = np.asarray(evaluation_view(picture, 224, "crop"), np.int16)
        theirs = np.asarray(server.square(picture), np.int16)
        moved = [ours, np.roll(ours, 1, 0), np.roll(ours, -1, 0), np.roll(ours, 1, 1), np.roll(ours, -1, 1)]
        # Without the borders, around which np.roll turns.
        assert min(np.abs(theirs - each)[2:-2, 2:-2].mean() for each in moved) < 2.5


def test_what_the_server_cannot_hold_is_refused(
    lite0: SavedModel, clip_vit: SavedModel, token_wise: SavedModel, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"trained to see whole pictures .* pass --measure-on DATA"):
        export(lite0, "immich", tmp_path / "whole")
    with pytest.raises(ConfigError, match=r"a vector for every patch .* `model.similarity: global`"):
        export(token_wise, "immich", tmp_path / "token")
    with pytest.raises(ConfigError, match=r"knows no model 'mine'.* leave --name out, or give a name such as XLM"):
        export(clip_vit, "immich", tmp_path / "name", Options(name="mine"))
    assert not list(tmp_path.iterdir())


def test_a_name_decides_the_folder_and_the_width(clip_vit: SavedModel, tmp_path: Path) -> None:
    export(clip_vit, "immich", tmp_path / "immich", Options(name="RN50x4__openai"))
    place = tmp_path / "immich" / "clip" / "RN50x4__openai"
    session = onnxruntime.InferenceSession(place / "textual" / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].shape[1] == 640


def test_a_model_of_whole_pictures_is_exported_with_what_it_loses(lite0: SavedModel, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number, picture in enumerate(parts.sample_pictures(12)):
        picture.save(data / f"{number}.png")
        (data / f"{number}.txt").write_text(f"第{number}张图片")
    checks = export(lite0, "immich", tmp_path / "immich", Options(measure_on=str(data)))
    measured = {(check.of.partition(" on ")[0], check.measure): check for check in checks}
    for direction in ("R@1 text to image", "R@1 image to text"):
        before, after = measured[direction, "before"].value, measured[direction, "after"].value
        assert measured[direction, "difference"].value == pytest.approx(after - before)
        low, high = (measured[direction, f"difference, 95 % interval {end}"].value for end in ("from", "to"))
        assert low <= after - before <= high
    assert "on 12 pictures of " in measured["R@1 text to image", "before"].of


SERVER = """
import io, json, os, sys
cache, source, pictures, captions = sys.argv[1:]
os.environ["MACHINE_LEARNING_CACHE_FOLDER"], os.environ["HF_HUB_OFFLINE"] = cache, "1"
sys.path.insert(0, source)
from fastapi.testclient import TestClient
from immich_ml.main import app

name, found = NAME, {"visual": [], "textual": []}
with TestClient(app) as client:
    for kind, inputs in (("visual", json.loads(pictures)), ("textual", json.loads(captions))):
        for each in inputs:
            given = {"files": {"image": open(each, "rb")}} if kind == "visual" else {}
            text = {} if kind == "visual" else {"text": each}
            entries = json.dumps({"clip": {kind: {"modelName": name}}})
            answer = client.post("/predict", data={"entries": entries, **text}, **given)
            assert answer.status_code == 200, answer.text
            found[kind].append(json.loads(answer.json()["clip"]))
print(json.dumps(found))
"""


@only_by_hand
@pytest.mark.skipif("WUKONG_IMMICH_SOURCE" not in os.environ, reason="it names the folder machine-learning of Immich")
def test_the_server_itself_answers_with_our_vectors(exported: Path, clip_vit: SavedModel, tmp_path: Path) -> None:
    """``POST /predict`` of Immich's own application, in an environment with its dependencies."""
    python = environment("immich", NEEDS)
    files = []
    for number, picture in enumerate(parts.sample_pictures(8)):
        files.append(str(tmp_path / f"{number}.png"))
        picture.save(files[-1])
    captions = ["一只熊猫在吃竹子", "红色的苹果", *parts.sample_captions(20)]
    script = SERVER.replace("NAME", repr(NAME), 1)
    source = os.environ["WUKONG_IMMICH_SOURCE"]
    printed = run(python, script, exported.parents[1], source, json.dumps(files), json.dumps(captions))
    found = json.loads(printed.splitlines()[-1])
    texts = torch.tensor(found["textual"])[:, :32]
    torch.testing.assert_close(texts, clip_vit.encode_text(captions, strict=False).vectors, atol=1e-5, rtol=0)
    images = torch.tensor(found["visual"])[:, :32]
    assert (images * clip_vit.encode_image(files)).sum(1).min() > immich.LEAST_COSINE
    here = immich.Server(clip_vit, exported).pictures([Image.open(file) for file in files])
    torch.testing.assert_close(images, here, atol=1e-4, rtol=0)
