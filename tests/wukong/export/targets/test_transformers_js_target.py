import copy
import json
import os
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image, ImageOps

from tests.wukong.export.consumers import ENVIRONMENTS, only_by_hand
from wukong.errors import ConfigError
from wukong.export import parts
from wukong.export.run import export
from wukong.model.saved_model import SavedModel

pytestmark = pytest.mark.long
PACKAGE = "@huggingface/transformers@4.3.2"
LOWEST = {"lite0": 0.95, "clip_vit": 0.99}
"""Cosine of a picture's vector in Node and here that the processor of the other must reach, which resizes otherwise."""
CLOSE = 0.02
"""By how much a similarity may differ there."""


@pytest.fixture(scope="module")
def folders(lite0: SavedModel, clip_vit: SavedModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exports")
    for name, saved in (("lite0", lite0), ("clip_vit", clip_vit)):
        export(saved, "transformers.js", folder / name)
    return {name: folder / name for name in ("lite0", "clip_vit")}


@pytest.fixture(params=["lite0", "clip_vit"])
def exported(request: pytest.FixtureRequest, folders: dict[str, Path]) -> tuple[SavedModel, Path]:
    return request.getfixturevalue(request.param), folders[request.param]


def session(folder: Path, name: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(folder / "onnx" / f"{name}.onnx", providers=["CPUExecutionProvider"])


def normalised(folder: Path, picture: Image.Image) -> np.ndarray:
    """Pixels as the other's processor gives them to a model, before it pads: float32 [3, height, width]."""
    config = json.loads((folder / "preprocessor_config.json").read_text())
    pixels = np.asarray(picture, np.float32) * np.float32(config["rescale_factor"])
    scaled = (pixels - np.float32(config["image_mean"])) / np.float32(config["image_std"])
    return scaled.transpose(2, 0, 1).astype(np.float32)


@pytest.mark.parametrize("suffix", ["", "_quantized"])
def test_the_files_have_the_names_types_and_shapes_of_clip(exported: tuple[SavedModel, Path], suffix: str) -> None:
    """As in models/clip/modeling_clip.js: which file a class opens, which outputs its users take."""
    _, folder = exported
    ids, mask = ("input_ids", "tensor(int64)", 2), ("attention_mask", "tensor(int64)", 2)
    pixels = ("pixel_values", "tensor(float)", 4)
    wanted = {
        "text_model": ([ids, mask], {"text_embeds"}),
        "vision_model": ([pixels], {"image_embeds"}),
        "model": ([ids, mask, pixels], {"logits_per_image", "logits_per_text", "text_embeds", "image_embeds"}),
    }
    for name, (inputs, outputs) in wanted.items():
        opened = session(folder, name + suffix)
        assert [(each.name, each.type, len(each.shape)) for each in opened.get_inputs()] == inputs
        assert {each.name for each in opened.get_outputs()} == outputs
    assert json.loads((folder / "config.json").read_text())["model_type"] == "clip"


def test_equal_pixels_and_ids_give_equal_vectors(exported: tuple[SavedModel, Path]) -> None:
    saved, folder = exported
    drawn = np.random.default_rng(0).integers(0, 256, (5, 224, 224, 3), np.uint8)
    squares = [Image.fromarray(each) for each in drawn]
    pixels = np.stack([normalised(folder, square) for square in squares])
    captions = ["一只猫", "红色的苹果和绿色的苹果", "雪", "a", "", "很" * 80]
    ids = saved.tokenizer(captions).numpy()
    text = {"input_ids": ids, "attention_mask": (ids != saved.tokenizer.pad).astype(np.int64)}
    images = session(folder, "vision_model").run(None, {"pixel_values": pixels})[0]
    texts = session(folder, "text_model").run(None, text)[0]
    np.testing.assert_allclose(images, saved.encode_image(squares), atol=1e-5)
    np.testing.assert_allclose(texts, saved.encode_text(captions, strict=False).vectors, atol=1e-5)
    names = ["logits_per_image", "logits_per_text", "image_embeds", "text_embeds"]
    logits, turned, *vectors = session(folder, "model").run(names, {**text, "pixel_values": pixels})
    np.testing.assert_allclose(logits, images @ texts.T * float(saved.model.scale), atol=1e-3)
    np.testing.assert_array_equal(turned, logits.T)
    for found, wanted in zip(vectors, (images, texts), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_caption_that_is_cut_off_ends_as_ours(exported: tuple[SavedModel, Path]) -> None:
    """The other's tokenizer cuts what is too long and keeps no [SEP] (``truncateHelper`` in tokenization_utils.js)."""
    saved, folder = exported
    caption = "红色的苹果和绿色的苹果在桌子上" * 4
    ids = np.array([[saved.tokenizer.cls, *saved.tokenizer.encode(["红色的苹果和绿色的苹果在桌子上" * 2])[0][1:31], 0]])
    ids[0, 31] = saved.tokenizer.encode(["子"])[0][1]  # whatever comes next
    found = session(folder, "text_model").run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
    np.testing.assert_allclose(found, saved.encode_text(caption, strict=False).vectors, atol=1e-5)


def test_the_mask_hides_tokens(exported: tuple[SavedModel, Path]) -> None:
    saved, folder = exported
    ids = np.pad(saved.tokenizer(["红色的苹果"]).numpy(), ((0, 0), (0, 3)), constant_values=100)
    mask = np.array([[1] * (ids.shape[1] - 3) + [0] * 3])
    found = session(folder, "text_model").run(None, {"input_ids": ids, "attention_mask": mask})[0]
    np.testing.assert_allclose(found, saved.encode_text("红色的苹果").vectors, atol=1e-5)


def test_a_padded_picture_is_moved_to_the_middle_of_a_white_square(lite0: SavedModel, folders: dict[str, Path]) -> None:
    """The other pads with zeros, right and below; ``ImageOps.pad`` has the picture in the middle, on white."""
    folder = folders["lite0"]
    pictures = [*parts.sample_pictures(6), Image.new("RGB", (100, 60), "white"), Image.new("RGB", (50, 333), "black")]
    pixels = np.zeros((len(pictures), 3, 224, 224), np.float32)
    for row, picture in zip(pixels, pictures, strict=True):
        resized = normalised(folder, ImageOps.contain(picture, (224, 224), Image.Resampling.BICUBIC))
        row[:, : resized.shape[1], : resized.shape[2]] = resized
    found = session(folder, "vision_model").run(None, {"pixel_values": pixels})[0]
    np.testing.assert_allclose(found, lite0.encode_image(pictures), atol=1e-5)


def test_what_it_cannot_hold_is_refused(lite0: SavedModel, token_wise: SavedModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a vector for every patch .* `model.similarity: global`"):
        export(token_wise, "transformers.js", tmp_path / "token")
    black = copy.deepcopy(lite0)
    assert black.model.image is not None
    black.model.image.mean.zero_()
    with pytest.raises(ConfigError, match=r"the mean 0, so that black is 0, .* `model.image.view: crop`"):
        export(black, "transformers.js", tmp_path / "black")
    assert not list(tmp_path.iterdir())


VECTORS = """
import fs from "node:fs";
import path from "node:path";
import {
  AutoProcessor, AutoTokenizer, CLIPTextModelWithProjection, CLIPVisionModelWithProjection, env, load_image, pipeline,
} from "@huggingface/transformers";

const [folder, given] = process.argv.slice(2);
const { pictures, captions, tokenized } = JSON.parse(fs.readFileSync(given));
env.allowRemoteModels = false;
env.localModelPath = path.dirname(folder);
const name = path.basename(folder), dtype = "fp32";
const tokenizer = await AutoTokenizer.from_pretrained(name);
const processor = await AutoProcessor.from_pretrained(name);
const text = await CLIPTextModelWithProjection.from_pretrained(name, { dtype });
const vision = await CLIPVisionModelWithProjection.from_pretrained(name, { dtype });
const row = ({ data, dims }, i) => [...data.slice(i * dims[1], (i + 1) * dims[1])];
const rows = (found) => Array.from({ length: found.dims[0] }, (_, i) => row(found, i));
const { text_embeds } = await text(tokenizer(captions, { padding: true, truncation: true }));
const loaded = await Promise.all(pictures.map((each) => load_image(each)));
const { image_embeds } = await vision(await processor(loaded));
const ids = tokenized.map((each) => tokenizer.encode(each));
const classify = await pipeline("zero-shot-image-classification", name, { dtype });
const classes = await classify(pictures[0], captions.slice(0, 4), { hypothesis_template: "{}" });
console.log(JSON.stringify({ texts: rows(text_embeds), images: rows(image_embeds), ids, classes }));
"""


@pytest.fixture(scope="module")
def packages() -> Path:
    """A folder in which ``@huggingface/transformers`` is installed."""
    folder = ENVIRONMENTS / "transformers.js"
    installed = folder / "node_modules" / "@huggingface" / "transformers" / "package.json"
    if not installed.is_file() or json.loads(installed.read_text())["version"] != PACKAGE.rpartition("@")[2]:
        folder.mkdir(parents=True, exist_ok=True)
        # Without what it gets for GPUs.
        skip = {"ONNXRUNTIME_NODE_INSTALL": "skip", "ONNXRUNTIME_NODE_INSTALL_CUDA": "skip"}
        npm = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), PACKAGE]
        subprocess.run(npm, check=True, env={**os.environ, **skip}, timeout=1800)
    return folder


def node(packages: Path, script: Path, *arguments: object, **environment: str) -> str:
    program = packages / script.name
    if program != script:
        shutil.copy(script, program)  # imports are looked up beside the script
    command = ["node", str(program), *map(str, arguments)]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=600, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@only_by_hand
def test_node_gives_our_tokens_and_vectors(exported: tuple[SavedModel, Path], packages: Path, tmp_path: Path) -> None:
    saved, folder = exported
    pictures = parts.sample_pictures(24)
    files = [str(tmp_path / f"{number}.png") for number in range(len(pictures))]
    for picture, file in zip(pictures, files, strict=True):
        picture.save(file)
    captions, tokenized = ["一只熊猫在吃竹子", "雪", *parts.sample_captions(60)], parts.sample_captions(5000)
    given = tmp_path / "given.json"
    given.write_text(json.dumps({"pictures": files, "captions": captions, "tokenized": tokenized}))
    (packages / "vectors.mjs").write_text(VECTORS)
    found = json.loads(node(packages, packages / "vectors.mjs", folder, given))
    longest = saved.tokenizer.max_tokens
    for ids, wanted in zip(found["ids"], saved.tokenizer.encode(tokenized), strict=True):
        assert ids == wanted if len(ids) <= longest else ids[: longest - 1] == wanted[: longest - 1]
    texts = saved.encode_text(captions, strict=False).vectors
    torch.testing.assert_close(torch.tensor(found["texts"]), texts, atol=1e-5, rtol=0)
    images = saved.encode_image(pictures)
    cosines = (torch.tensor(found["images"]) * images).sum(1)
    assert cosines.min() > LOWEST[folder.name], cosines
    scores = torch.tensor({each["label"]: each["score"] for each in found["classes"]}[captions[0]])
    logits = float(saved.model.scale) * torch.tensor(found["images"][0]) @ texts[:4].T
    torch.testing.assert_close(scores, logits.softmax(0)[0], atol=1e-3, rtol=0)


@only_by_hand
@pytest.mark.skipif("WUKONG_EXPORT_MODEL" not in os.environ, reason="it names a trained model of whole pictures")
def test_node_ranks_pictures_for_a_chinese_query_as_we_do(packages: Path, tmp_path: Path) -> None:
    """With a trained model (``WUKONG_EXPORT_MODEL``) and pictures (``WUKONG_EXPORT_PICTURES``)."""
    import wukong

    saved = wukong.load(os.environ["WUKONG_EXPORT_MODEL"])
    files = sorted(Path(os.environ["WUKONG_EXPORT_PICTURES"]).glob("*.jpg"))[:6]
    export(saved, "transformers.js", tmp_path / "demo")
    script = Path(__file__).with_name("search.mjs")
    for query in (file.with_suffix(".txt").read_text().splitlines()[0] for file in files):
        lines = node(packages, script, tmp_path / "demo", query, *files).splitlines()
        found = {Path(line.split(" ", 1)[1]): float(line.split(" ", 1)[0]) for line in lines}
        wanted = saved.encode_image(files) @ saved.encode_text(query).vectors[0]
        ours = dict(zip(files, wanted.tolist(), strict=True))
        assert found == pytest.approx(ours, abs=CLOSE)
        # Two that we find equally similar, up to what resizing changes, may stand in either order.
        ranked = sorted(found, key=found.__getitem__, reverse=True)
        assert all(ours[first] > ours[second] - CLOSE for first, second in pairwise(ranked))
        assert ranked[0] == max(ours, key=ours.__getitem__)
