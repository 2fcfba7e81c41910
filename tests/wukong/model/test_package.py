import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wukong import storage
from wukong.config import Model
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.errors import DataError
from wukong.model import package
from wukong.model.dual import DualEncoder
from wukong.model.image import ImageEncoder

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
    package.save(uri, model, Tokenizer(packaged_vocabulary()))
    return model, uri


def test_a_loaded_model_is_the_one_that_was_saved(saved: tuple[DualEncoder, str]) -> None:
    model, uri = saved
    loaded = package.load(uri)
    captions = ["猫", "", "红色的苹果" * 100, "\U0001f600"]
    pictures = [picture("RGB"), picture("L"), np.zeros((1, 1), np.uint8), picture("RGBA", (3, 400))]
    image, text = loaded.encode_image(pictures, batch_size=3), loaded.encode_text(captions, batch_size=3)
    with torch.inference_mode():
        expected = model.embed_text(loaded.tokenizer(captions))
    torch.testing.assert_close(text.vectors[text.counted.any(1)], expected.vectors[text.counted.any(1)])
    similarity = loaded.similarity(image, text)
    assert similarity.shape == (4, 4)
    assert torch.isfinite(similarity).all()
    without = package.load_for_features(uri)
    torch.testing.assert_close(without.encode_text(captions).vectors, text.vectors)


def test_files_that_do_not_belong_together_are_refused(saved: tuple[DualEncoder, str], tmp_path: Path) -> None:
    uri = storage.from_path(tmp_path)
    for name in package.FILES:
        storage.write_bytes(storage.join(uri, name), storage.read_bytes(storage.join(saved[1], name)))
    config = storage.read_json(storage.join(uri, "config.json"))
    config["model"]["embedding"] = 9
    storage.write_json(storage.join(uri, "config.json"), config)
    with pytest.raises(DataError, match="do not belong together"):
        package.load(uri)
    storage.write_bytes(storage.join(uri, "model.safetensors"), b"cut short")
    with pytest.raises(DataError, match="damaged"):
        package.load(uri)


def test_an_array_that_is_no_picture_is_refused(saved: tuple[DualEncoder, str]) -> None:
    with pytest.raises(DataError, match="picture 1 is an array of float32"):
        package.load(saved[1]).encode_image([picture("RGB"), np.zeros((3, 3, 3), np.float32)])


def test_transparency_is_white() -> None:
    from wukong.data import images

    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    encoded = io.BytesIO()
    clear.save(encoded, "PNG")
    assert images.decode(encoded.getvalue()).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(DataError, match=r"x\.jpg cannot be decoded"):
        images.decode(encoded.getvalue()[:40], "x.jpg")


def test_a_random_view_depends_on_picture_and_number_alone() -> None:
    from wukong.data import images

    image = picture("RGB", (80, 60))
    views = [images.augmented_view(image, 32, images.view_seed("ab", view)) for view in (1, 2, 1)]
    torch.manual_seed(5)
    again = images.augmented_view(image, 32, images.view_seed("ab", 1))
    assert np.array_equal(views[0], views[2]) and np.array_equal(views[0], again)
    assert not np.array_equal(views[0], views[1])
