import hashlib
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import wukong
from wukong.config.model import Model
from wukong.data import images
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.errors import ConfigError, DataError, StorageError
from wukong.model import saved_model
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.store import storage
from wukong.store.manifest import Stage

SETTINGS = {"image": {"image_size": 64}, "text": {"layers": 1, "heads": 2, "width": 16}, "embedding": 8}


def picture(mode: str, size: tuple[int, int] = (50, 30)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture(scope="module", params=["global", "token"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[DualEncoder, str]:
    torch.manual_seed(0)
    settings = Model.model_validate({**SETTINGS, "similarity": request.param})
    model = DualEncoder(settings, Tokenizer(packaged_vocabulary()), ImageEncoder(settings.image)).eval()
    uri = storage.from_path(tmp_path_factory.mktemp("model"))
    saved_model.save(uri, model, Tokenizer(packaged_vocabulary()))
    return model, uri


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    target = io.BytesIO()
    image.save(target, form)
    return target.getvalue()


def test_a_loaded_model_equals_the_saved_one(saved: tuple[DualEncoder, str]) -> None:
    model, uri = saved
    loaded = wukong.load(uri)
    captions = ["猫", "红色的苹果", "一只鸟"]
    pictures = [picture("RGB"), picture("L"), np.full((2, 2), 7, np.uint8), picture("RGBA", (3, 400))]
    image, text = loaded.encode_image(pictures, batch_size=3), loaded.encode_text(captions, batch_size=2)
    with torch.inference_mode():
        expected = model.embed_text(loaded.tokenizer(captions))
        shown = images.evaluation_view(pictures[1].convert("RGB"), 64)
        pixels = torch.from_numpy(np.array(shown)).permute(2, 0, 1)[None]
        torch.testing.assert_close(image[1:2], model.embed_pixels(pixels))
    torch.testing.assert_close(text.vectors[text.counted.any(1)], expected.vectors[text.counted.any(1)])
    assert loaded.similarity(image, text).shape == (4, 3)
    without = saved_model.load_for_features(uri)
    torch.testing.assert_close(without.encode_text(captions).vectors, text.vectors)


@pytest.mark.parametrize("name", saved_model.FILES)
def test_a_file_of_a_trained_model_with_a_flipped_bit_is_refused(
    saved: tuple[DualEncoder, str], tmp_path: Path, name: str
) -> None:
    stage = Stage(storage.from_path(tmp_path), "pretrain", {})
    for file in saved_model.FILES:
        storage.write_bytes(stage.path(f"model/{file}"), storage.read_bytes(storage.join(saved[1], file)))
    folder, manifest = stage.path("model"), stage.path("manifest.json")
    saved_model.load(folder)
    stage.commit([stage.describe(f"model/{file}") for file in saved_model.FILES])
    saved_model.load(folder)
    whole = storage.read_bytes(storage.join(folder, name))
    for place in (0, len(whole) // 3, len(whole) - 1):
        altered = bytearray(whole)
        altered[place] ^= 1
        storage.write_bytes(storage.join(folder, name), bytes(altered))
        for load in (saved_model.load, saved_model.load_for_features):
            with pytest.raises(StorageError, match=f"model/{name} is not the file that its stage wrote.*{manifest}"):
                load(folder)


def test_all_input_types_of_an_image_give_the_same_vector(saved: tuple[DualEncoder, str], tmp_path: Path) -> None:
    loaded = wukong.load(saved[1])
    image = picture("RGB")
    (tmp_path / "图.png").write_bytes(encoded(image))
    ways = [image, np.asarray(image), encoded(image), tmp_path / "图.png", str(tmp_path / "图.png")]
    ways.append(storage.from_path(tmp_path / "图.png"))
    together = loaded.encode_image(ways)
    for number, way in enumerate(ways):
        torch.testing.assert_close(loaded.encode_image(way)[0], together[number])
        torch.testing.assert_close(together[number], together[0])
    assert torch.equal(loaded.encode_text("猫").vectors, loaded.encode_text(["猫"]).vectors)


def test_similarity_in_blocks_equals_the_formula(
    saved: tuple[DualEncoder, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = wukong.load(Path(saved[1].removeprefix("file://")))
    captions = ["猫", "红色的苹果", "一只鸟", "两只鸟在树上", "雪"]
    image, text = (
        loaded.encode_image([picture("RGB", (20 + 9 * n, 40)) for n in range(4)]),
        loaded.encode_text(captions),
    )
    monkeypatch.setattr(saved_model, "_BLOCK_IMAGES", 3)
    monkeypatch.setattr(saved_model, "_BLOCK_TEXTS", 2)
    if loaded.model.token_wise:
        products = torch.einsum("ipd,jtd->ijpt", image, text.vectors)
        with_cls = torch.cat([torch.ones(len(captions), 1, dtype=torch.bool), text.counted[:, 1:]], 1)
        masked = products.masked_fill(~with_cls[None, :, None], -torch.inf)
        by_image = masked.amax(3).mean(2)
        by_text = (products.amax(2) * text.counted).sum(2) / text.counted.sum(1)
    else:
        by_image = by_text = image @ text.vectors.T
    torch.testing.assert_close(loaded.similarity(image, text), by_image)
    torch.testing.assert_close(loaded.similarity(image, text, side="text"), by_text)


def test_the_saved_model_records_that_it_sees_the_middle_of_an_image(
    saved: tuple[DualEncoder, str], tmp_path: Path
) -> None:
    uri = storage.from_path(tmp_path)
    for name in saved_model.FILES:
        storage.write_bytes(storage.join(uri, name), storage.read_bytes(storage.join(saved[1], name)))
    config = storage.read_json(storage.join(uri, "config.json"))
    config["model"]["image"]["view"] = "crop"
    storage.write_json(storage.join(uri, "config.json"), config)
    long = picture("RGB", (90, 30))
    middle = images.to_tensor([images.evaluation_view(long, 64, "crop")])
    cropped = wukong.load(uri)
    with torch.inference_mode():
        torch.testing.assert_close(cropped.encode_image(long), saved[0].embed_pixels(middle))
    assert not torch.allclose(cropped.encode_image(long), wukong.load(saved[1]).encode_image(long), atol=1e-2)


def test_no_input_gives_an_empty_result_of_the_right_shape(saved: tuple[DualEncoder, str]) -> None:
    loaded = wukong.load(saved[1])
    image, text = loaded.encode_image([]), loaded.encode_text([])
    one_image, one_text = loaded.encode_image(picture("RGB")), loaded.encode_text("猫")
    assert image.shape == (0, *one_image.shape[1:])
    assert text.vectors.shape[0] == 0 and text.vectors.ndim == one_text.vectors.ndim
    assert loaded.similarity(image, one_text).shape == (0, 1)
    assert loaded.similarity(one_image, text).shape == (1, 0)


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("", "caption 1, '', is empty"),
        (" \u3000\n\u200b", "caption 1.* is empty"),
        ("\U0001f600\U0001f984", "caption 1.*no character that the model's vocabulary knows"),
        ("很" * 10_000, "caption 1, '很{20}…', has 10002 tokens and the model reads 32"),
        ("很" * 31, "has 33 tokens"),
        (None, "caption 1 is a NoneType"),
    ],
)
def test_an_unreadable_caption_is_named(saved: tuple[DualEncoder, str], caption: str, message: str) -> None:
    loaded = wukong.load(saved[1])
    with pytest.raises(DataError, match=message):
        loaded.encode_text(["猫", caption])
    if caption is not None:
        vectors = loaded.encode_text(["猫", caption], strict=False).vectors
        assert torch.isfinite(vectors).all()
        cut = loaded.encode_text(["猫", caption[:40]], strict=False)
        torch.testing.assert_close(cut.vectors, vectors)
    loaded.encode_text("很" * 30)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Image.new("L", (1, 1)), "picture 1 is 1 x 1 pixels"),
        (np.zeros((1, 40, 3), np.uint8), "picture 1 is 40 x 1 pixels"),
        (np.zeros((3, 3, 3), np.float32), "picture 1 is an array of float32"),
        (np.zeros((3, 3, 2), np.uint8), r"picture 1 is an array of uint8 \(3, 3, 2\)"),
        (b"no picture", "picture 1 cannot be decoded"),
        (encoded(Image.new("RGB", (30, 30)), "JPEG")[:300], "picture 1 cannot be decoded"),
        (7, "picture 1 is a int"),
    ],
)
def test_an_unreadable_image_is_named(saved: tuple[DualEncoder, str], broken: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        wukong.load(saved[1]).encode_image([picture("RGB"), broken])


def test_vectors_that_are_not_finite_are_named(saved: tuple[DualEncoder, str]) -> None:
    loaded = wukong.load(saved[1])
    image, text = loaded.encode_image([picture("RGB")] * 3), loaded.encode_text(["猫", "狗"])
    image[1, ..., 0] = torch.nan
    with pytest.raises(DataError, match="picture 1 is not finite"):
        loaded.similarity(image, text)
    loaded.model.text.layers[0].expand.bias.fill_(torch.inf)
    with pytest.raises(DataError, match="caption 0 is not finite"):
        loaded.encode_text("猫")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config, _state: config["model"].update(embedding=9), r"image_head\.weight \(8 x \d+ instead of 9 x"),
        (lambda config, _state: config["model"]["text"].update(layers=2), r"it lacks text\.layers\.1\.qkv\.weight"),
        (lambda _config, state: state.pop("image_head.bias"), r"it lacks image_head\.bias"),
        (lambda _config, state: state.update(extra=torch.ones(1)), "the model has not, extra"),
        (lambda _config, state: state["text_head.bias"].fill_(torch.nan), r"finite in text_head\.bias"),
        (lambda config, _state: config["model"].update(widht=1), "does not describe a model"),
        (lambda config, _state: config.update(format=9), "was written by another version of Wukong"),
    ],
    ids=["another width", "another depth", "missing", "extra", "not a number", "unknown key", "another format"],
)
def test_files_that_do_not_belong_together_are_refused(
    saved: tuple[DualEncoder, str], tmp_path: Path, change: Callable[[Any, Any], object], message: str
) -> None:
    uri = storage.from_path(tmp_path)
    for name in saved_model.FILES:
        storage.write_bytes(storage.join(uri, name), storage.read_bytes(storage.join(saved[1], name)))
    config, state = storage.read_json(storage.join(uri, "config.json")), load_file(tmp_path / "model.safetensors")
    change(config, state)
    storage.write_json(storage.join(uri, "config.json"), config)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=message):
        wukong.load(uri)


def permuted(vocabulary: str) -> str:
    """The same entries, the special ones at their places and all others in another order."""
    entries = vocabulary.rstrip("\n").split("\n")
    return "\n".join([*entries[:106], *reversed(entries[106:])])


@pytest.mark.parametrize("read", [wukong.load, saved_model.load_for_features])
def test_a_permuted_vocabulary_of_the_same_size_is_refused(
    saved: tuple[DualEncoder, str], tmp_path: Path, read: Callable[[str], object]
) -> None:
    uri = storage.from_path(tmp_path)
    for name in saved_model.FILES:
        storage.write_bytes(storage.join(uri, name), storage.read_bytes(storage.join(saved[1], name)))
    read(uri)
    (tmp_path / "vocab.txt").write_bytes(permuted(packaged_vocabulary()).encode("utf-8"))
    with pytest.raises(DataError, match=r"trained with the vocabulary of SHA-256 45bbac6b….*21128 entries"):
        read(uri)


def test_a_vocabulary_of_ones_own_is_recorded_and_compared(tmp_path: Path) -> None:
    text = {**SETTINGS["text"], "vocabulary": "file:///nowhere/vocab.txt"}
    settings, uri = Model.model_validate({**SETTINGS, "text": text}), storage.from_path(tmp_path)
    tokenizer = Tokenizer(permuted(packaged_vocabulary()))
    saved_model.save(uri, DualEncoder(settings, tokenizer, ImageEncoder(settings.image)), tokenizer)
    wukong.load(uri)
    config = storage.read_json(storage.join(uri, "config.json"))
    assert config["vocabulary_sha256"] == hashlib.sha256((tmp_path / "vocab.txt").read_bytes()).hexdigest()
    (tmp_path / "vocab.txt").write_bytes(packaged_vocabulary().encode("utf-8"))
    with pytest.raises(DataError, match="trained with the vocabulary of SHA-256"):
        wukong.load(uri)
    del config["vocabulary_sha256"]
    storage.write_json(storage.join(uri, "config.json"), config)
    with pytest.raises(DataError, match="does not describe a model: 'vocabulary_sha256'"):
        wukong.load(uri)


def test_a_model_is_not_saved_with_another_tokenizer(tmp_path: Path) -> None:
    settings, other = Model.model_validate(SETTINGS), Tokenizer(permuted(packaged_vocabulary()))
    ours = DualEncoder(settings, Tokenizer(packaged_vocabulary()), ImageEncoder(settings.image))
    with pytest.raises(ValueError, match="another vocabulary"):
        saved_model.save(storage.from_path(tmp_path), ours, other)
    with pytest.raises(DataError, match="its settings say"):
        saved_model.save(storage.from_path(tmp_path), DualEncoder(settings, other, ImageEncoder(settings.image)), other)
    assert not list(tmp_path.iterdir())


def test_the_packaged_vocabulary_adds_nothing_to_the_saved_settings(saved: tuple[DualEncoder, str]) -> None:
    """Models that exist keep their bytes."""
    assert storage.read_json(storage.join(saved[1], "config.json")).keys() == {"format", "model"}


def test_a_head_that_is_not_a_matrix_is_refused(saved: tuple[DualEncoder, str], tmp_path: Path) -> None:
    uri = storage.from_path(tmp_path)
    for name in saved_model.FILES:
        storage.write_bytes(storage.join(uri, name), storage.read_bytes(storage.join(saved[1], name)))
    state = load_file(tmp_path / "model.safetensors")
    save_file(state | {"image_head.weight": torch.ones(8)}, tmp_path / "model.safetensors")
    for read in (wukong.load, saved_model.load_for_features):
        with pytest.raises(DataError, match=r"image_head\.weight"):
            read(uri)


def test_a_damaged_or_missing_file_is_named(saved: tuple[DualEncoder, str], tmp_path: Path) -> None:
    uri = storage.from_path(tmp_path)
    for name in ("config.json", "vocab.txt"):
        storage.write_bytes(storage.join(uri, name), storage.read_bytes(storage.join(saved[1], name)))
    with pytest.raises(StorageError, match="safetensors"):
        wukong.load(uri)
    storage.write_bytes(storage.join(uri, "model.safetensors"), b"cut short")
    with pytest.raises(DataError, match=r"model\.safetensors is damaged"):
        wukong.load(uri)


def test_without_heads_both_towers_need_the_same_width(tmp_path: Path) -> None:
    tokenizer = Tokenizer(packaged_vocabulary())
    settings = Model.model_validate({**SETTINGS, "embedding": None, "text": {"layers": 1, "heads": 2, "width": 1280}})
    model = DualEncoder(settings, tokenizer, ImageEncoder(settings.image)).eval()
    saved_model.save(storage.from_path(tmp_path), model, tokenizer)
    loaded = wukong.load(tmp_path)
    pooled = model.image(images.to_tensor([images.evaluation_view(picture("RGB"), 64)])).pooled
    expected = torch.nn.functional.normalize(pooled, dim=1)
    torch.testing.assert_close(loaded.encode_image(picture("RGB")), expected.detach())
    assert saved_model.load_for_features(storage.from_path(tmp_path)).encode_text("猫").vectors.shape == (1, 1280)
    narrow = Model.model_validate({**SETTINGS, "embedding": None})
    with pytest.raises(ConfigError, match="of pictures have 1280 numbers and those of captions 16"):
        DualEncoder(narrow, tokenizer, ImageEncoder(narrow.image))


def test_importing_wukong_does_not_import_torch() -> None:
    command = "import sys, wukong; assert not {'torch', 'pyarrow', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", command], check=True)
    with pytest.raises(AttributeError, match="no attribute 'lood'"):
        wukong.lood  # noqa: B018


def test_transparent_pixels_become_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    encoded = io.BytesIO()
    clear.save(encoded, "PNG")
    assert images.decode(encoded.getvalue()).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(DataError, match=r"x\.jpg cannot be decoded"):
        images.decode(encoded.getvalue()[:40], "x.jpg")


def test_a_random_view_depends_only_on_image_and_number() -> None:
    image = picture("RGB", (80, 60))
    views = [images.augmented_view(image, 32, images.view_seed("ab", view)) for view in (1, 2, 1)]
    torch.manual_seed(5)
    again = images.augmented_view(image, 32, images.view_seed("ab", 1))
    assert np.array_equal(views[0], views[2]) and np.array_equal(views[0], again)
    assert not np.array_equal(views[0], views[1])
