"""Models as ONNX files: this project's export beside the model that it came from, and graphs as transformers.js has."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers_models as tiny
from PIL import Image
from torchvision import transforms

from wukong.config.model import Model as Settings
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.errors import ConfigError, DataError
from wukong.evaluate import adapters
from wukong.evaluate.model import OwnModel
from wukong.evaluate.protocol import OWN, PROTOCOLS
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.model.saved_model import SavedModel

pytestmark = pytest.mark.long
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

TEXTS = ["一只猫", "ABC的照片", "一只猫坐在窗前" * 40]


def pictures() -> list[Image.Image]:
    drawn = np.random.default_rng(0)
    return [Image.fromarray(drawn.integers(0, 256, (*shape, 3), np.uint8)) for shape in ((50, 70), (91, 64), (64, 64))]


def own_model(**settings: Any) -> SavedModel:
    torch.manual_seed(0)
    parsed = Settings.model_validate({"text": {"layers": 1, "heads": 2, "width": 16}, "embedding": 8, **settings})
    tokenizer = Tokenizer(packaged_vocabulary())
    model = DualEncoder(parsed, tokenizer, ImageEncoder(parsed.image, with_weights=False)).eval()
    return SavedModel(model, tokenizer)


TOWER = {"name": "resnet18", "weights": "random", "image_size": 64}
MODELS = {
    "one vector": {"image": TOWER, "similarity": "global"},
    "token-wise": {"image": {**TOWER, "view": "crop"}, "similarity": "token", "match_text_cls": True},
    "token-wise without [CLS]": {"image": TOWER, "similarity": "token", "match_text_cls": False},
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[SavedModel, Path]]:
    pytest.importorskip("onnxscript")
    from wukong.export.run import export

    made = {}
    for number, (name, settings) in enumerate(MODELS.items()):
        folder, saved = tmp_path_factory.mktemp("onnx") / str(number), own_model(**settings)
        export(saved, "onnx", folder)
        made[name] = (saved, folder)
    return made


@pytest.mark.parametrize("name", MODELS)
def test_an_export_gives_the_numbers_of_its_model(name: str, exported: dict[str, tuple[SavedModel, Path]]) -> None:
    saved, folder = exported[name]
    own, found = OwnModel(saved, "own"), adapters.load(f"onnx:{folder}")
    assert (found.token_wise, found.name) == (own.token_wise, f"onnx:{folder}")
    for rules in (*PROTOCOLS.values(), OWN):
        images, texts = own.encode_images(pictures(), rules), own.encode_texts(TEXTS, rules)
        theirs, their_texts = found.encode_images(pictures(), rules), found.encode_texts(TEXTS, rules)
        torch.testing.assert_close(theirs, images, atol=1e-5, rtol=0)
        torch.testing.assert_close(their_texts.vectors, texts.vectors, atol=1e-5, rtol=0)
        ours, scores = own.similarity(images, texts), found.similarity(theirs, their_texts)
        torch.testing.assert_close(scores.image_to_text, ours.image_to_text, atol=1e-5, rtol=0)
        torch.testing.assert_close(scores.text_to_image, ours.text_to_image, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.image_to_text(theirs, their_texts), ours.image_to_text, atol=1e-5, rtol=0)
    if own.token_wise:
        assert torch.equal(their_texts.counted, texts.counted)


def test_graphs_settings_and_vocabulary_are_what_a_digest_is_of(
    exported: dict[str, tuple[SavedModel, Path]], tmp_path: Path
) -> None:
    digests = {name: adapters.load(f"onnx:{folder}").digest for name, (_, folder) in exported.items()}
    assert len(set(digests.values())) == len(MODELS)
    shutil.copytree(exported["one vector"][1], tmp_path / "copied")
    assert adapters.load(f"onnx:{tmp_path / 'copied'}").digest == digests["one vector"]


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ("gone", ConfigError, "there is no folder"),
        ("no graph", ConfigError, r"has image\.onnx and text\.onnx.*vision_model\.onnx and text_model\.onnx"),
        ("damaged", DataError, r"onnxruntime does not load text\.onnx"),
        ("swapped", DataError, r"onnxruntime does not run image\.onnx"),
        ("settings", DataError, "settings or its vocabulary cannot be read"),
        ("vocabulary", DataError, "trained with the packaged vocabulary"),
    ],
)
def test_a_damaged_folder_is_refused(
    wrong: str, error: type[Exception], message: str, exported: dict[str, tuple[SavedModel, Path]], tmp_path: Path
) -> None:
    folder = tmp_path / "exported"
    if wrong != "gone":
        shutil.copytree(exported["one vector"][1], folder)
    if wrong == "no graph":
        (folder / "text.onnx").unlink()
    elif wrong == "damaged":
        (folder / "text.onnx").write_bytes((folder / "text.onnx").read_bytes()[:1000])
    elif wrong == "swapped":
        shutil.copyfile(folder / "text.onnx", folder / "image.onnx")
    elif wrong == "settings":
        (folder / "config.json").write_text('{"text": {"layers": 0}}', "utf-8")
    elif wrong == "vocabulary":
        entries = packaged_vocabulary().rstrip("\n").split("\n")
        (folder / "vocab.txt").write_text("\n".join([*entries[:670], *reversed(entries[670:])]), "utf-8")
    with pytest.raises(error, match=message) as raised:
        adapters.load(f"onnx:{folder}")
    assert "\n" not in str(raised.value)


def test_an_accelerator_that_onnxruntime_lacks_is_named(
    exported: dict[str, tuple[SavedModel, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters.saved_model, "device_of", torch.device)
    with pytest.raises(ConfigError, match=r"has no CUDAExecutionProvider.*onnxruntime-gpu"):
        adapters.load(f"onnx:{exported['one vector'][1]}", "cuda")


def graphs(folder: Path, width: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Write a text graph that adds the vectors of a text's tokens, and an image graph that projects mean colours."""
    from onnx import TensorProto, helper, numpy_helper

    drawn = np.random.default_rng(0)
    table, colours = (drawn.normal(size=shape).astype(np.float32) for shape in ((21128, 6), (3, width)))
    integers, floats = TensorProto.INT64, TensorProto.FLOAT
    made = {
        "text_model.onnx": helper.make_graph(
            [
                helper.make_node("Gather", ["table", "input_ids"], ["vectors"]),
                helper.make_node("Unsqueeze", ["attention_mask", "last"], ["column"]),
                helper.make_node("Cast", ["column"], ["real"], to=floats),
                helper.make_node("Mul", ["vectors", "real"], ["counted"]),
                helper.make_node("ReduceSum", ["counted", "second"], ["text_embeds"], keepdims=0),
            ],
            "text",
            [helper.make_tensor_value_info(name, integers, ["n", "t"]) for name in ("input_ids", "attention_mask")],
            [helper.make_tensor_value_info("text_embeds", floats, ["n", 6])],
            [
                numpy_helper.from_array(table, "table"),
                numpy_helper.from_array(np.array([2]), "last"),
                numpy_helper.from_array(np.array([1]), "second"),
            ],
        ),
        "vision_model.onnx": helper.make_graph(
            [
                helper.make_node("ReduceMean", ["pixel_values", "sides"], ["means"], keepdims=0),
                helper.make_node("MatMul", ["means", "colours"], ["image_embeds"]),
            ],
            "image",
            [helper.make_tensor_value_info("pixel_values", floats, ["n", 3, 32, 32])],
            [helper.make_tensor_value_info("image_embeds", floats, ["n", width])],
            [numpy_helper.from_array(colours, "colours"), numpy_helper.from_array(np.array([2, 3]), "sides")],
        ),
    }
    folder.mkdir(parents=True)
    for file, graph in made.items():
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), folder / file)
    return table, colours


def test_graphs_of_a_model_of_transformers_are_given_what_its_processor_gives(tmp_path: Path) -> None:
    package = pytest.importorskip("transformers")
    tiny.save(package, "chinese_clip", tmp_path)
    (tmp_path / "model.safetensors").unlink()  # the folders of transformers.js have none
    table, colours = graphs(tmp_path / "onnx")
    found, rules = adapters.load(f"onnx:{tmp_path}"), PROTOCOLS["clip-benchmark"]
    bicubic = transforms.InterpolationMode.BICUBIC
    square = transforms.Compose([transforms.Resize(32, bicubic), transforms.CenterCrop(32)])
    processor, tokenizer = package.AutoImageProcessor, package.AutoTokenizer
    shown = [square(picture) for picture in pictures()]
    pixels = processor.from_pretrained(tmp_path)(images=shown, return_tensors="np")["pixel_values"]
    ids = tokenizer.from_pretrained(tmp_path)(TEXTS, truncation=True, max_length=52)["input_ids"]
    images = F.normalize(torch.from_numpy(pixels.mean((2, 3)) @ colours), dim=-1)
    texts = F.normalize(torch.from_numpy(np.stack([table[each].sum(0) for each in ids])), dim=-1)
    torch.testing.assert_close(found.encode_images(pictures(), rules), images, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.encode_texts(TEXTS, rules).vectors, texts, atol=1e-5, rtol=0)
    digest = found.digest
    shutil.move(tmp_path / "onnx" / "text_model.onnx", tmp_path)
    shutil.move(tmp_path / "onnx" / "vision_model.onnx", tmp_path)
    assert adapters.load(f"onnx:{tmp_path}").digest == digest


def test_graphs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    package = pytest.importorskip("transformers")
    tiny.save(package, "chinese_clip", tmp_path)
    graphs(tmp_path / "onnx", width=7)
    with pytest.raises(ConfigError, match="7 numbers for pictures and of 6 for texts"):
        adapters.load(f"onnx:{tmp_path}")
    shutil.copyfile(tmp_path / "onnx" / "text_model.onnx", tmp_path / "onnx" / "vision_model.onnx")
    with pytest.raises(DataError, match=r"vision_model\.onnx gives text_embeds, and none of image_embeds"):
        adapters.load(f"onnx:{tmp_path}")
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "bert"}), "utf-8")
    with pytest.raises(ConfigError, match=r"model_type is 'bert'; supported in this form are altclip, chinese_clip"):
        adapters.load(f"onnx:{tmp_path}")
