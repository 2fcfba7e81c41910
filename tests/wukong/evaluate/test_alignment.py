from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from cli.main import app
from wukong.config.model import Model as Settings
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.errors import ConfigError, DataError
from wukong.evaluate import alignment
from wukong.model import saved_model
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.model.saved_model import SavedModel

COLOURS = {"红": (255, 0, 0), "绿": (0, 255, 0), "蓝": (0, 0, 255), "黑": (0, 0, 0), "白": (255, 255, 255)}


def trained(similarity: str = "token", **image: object) -> SavedModel:
    torch.manual_seed(0)
    settings = Settings.model_validate(
        {
            "image": {"name": "resnet18", "weights": "random", "image_size": 128, **image},
            "text": {"layers": 1, "heads": 2, "width": 16},
            "embedding": 8,
            "similarity": similarity,
        }
    )
    tower = ImageEncoder(settings.image, with_weights=False)
    tokenizer = Tokenizer(packaged_vocabulary())
    return SavedModel(DualEncoder(settings, tokenizer, tower).eval(), tokenizer)


class Seeing(SavedModel):
    """A model whose patch is the mean colour there, 5 x 5 patches, and whose word is that colour."""

    def encode_image(self, pictures: object, batch_size: int = 32, *, pool: bool = True) -> torch.Tensor:
        assert not pool, "what is shown are patches"
        (picture,) = pictures  # type: ignore[misc]
        pixels = np.asarray(picture.resize((80, 80), Image.Resampling.NEAREST), np.float32) / 127.5 - 1
        cells = torch.from_numpy(pixels.reshape(5, 16, 5, 16, 3).mean((1, 3))).reshape(1, 25, 3)
        return torch.cat([cells, torch.zeros(1, 25, 5)], 2)

    def encode_text(self, texts: list[str], batch_size: int = 256, strict: bool = True) -> saved_model.Texts:
        rows = []
        for character in ["", *texts[0], ""]:
            colour = torch.tensor(COLOURS.get(character, (127.5, 127.5, 127.5))) / 127.5 - 1
            rows.append(torch.cat([colour, torch.zeros(5)]))
        return saved_model.Texts(torch.stack(rows)[None], torch.ones(1, len(rows), dtype=torch.bool))


def seeing() -> Seeing:
    saved = trained()
    saved.model.image.token_count = 25  # type: ignore[union-attr]
    return Seeing(saved.model, saved.tokenizer)


def halves() -> Image.Image:
    picture = Image.new("RGB", (80, 80), COLOURS["红"])
    picture.paste(COLOURS["蓝"], (48, 0, 80, 80))
    return picture


def test_each_patch_takes_the_most_similar_of_all_tokens() -> None:
    saved = trained()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8))
    found = alignment.align(saved, picture, "一只猫", "猫")
    assert found.tokens == ("[CLS]", "一", "只", "猫", "[SEP]")
    assert found.highlighted == {3}
    patches, words = saved.encode_image(picture)[0], saved.encode_text(["一只猫"]).vectors[0]
    assert found.best.shape == (4, 4)
    for place in range(16):
        products = [float(patches[place] @ word) for word in words]
        assert int(found.best.flatten()[place]) == max(range(5), key=products.__getitem__)
        assert float(found.similarity.flatten()[place]) == pytest.approx(max(products), abs=1e-5)


@pytest.mark.parametrize("pooling", ["areas", "attention"])
def test_all_patches_are_shown_of_a_model_that_pools_them(pooling: str) -> None:
    saved = trained(tokens=4, pooling=pooling)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8))
    assert saved.encode_image(picture).shape == (1, 4, 8)
    found = alignment.align(saved, picture, "一只猫", "猫")
    patches, words = saved.encode_image(picture, pool=False)[0], saved.encode_text(["一只猫"]).vectors[0]
    assert patches.shape == (16, 8) and found.best.shape == (4, 4)
    assert torch.equal(found.best.flatten(), (patches @ words.T).argmax(1))
    if pooling == "areas":
        plain = trained()
        plain.model.load_state_dict(saved.model.state_dict())
        torch.testing.assert_close(patches, plain.encode_image(picture)[0])


def test_patches_lie_where_the_words_thing_is() -> None:
    found = alignment.align(seeing(), halves(), "红蓝")
    assert found.highlighted == {1, 2}
    assert found.best.tolist() == [[1, 1, 1, 2, 2]] * 5


def test_the_drawing_marks_highlighted_patches_and_lists_the_words() -> None:
    try:
        alignment.font(12)
    except ConfigError:
        pytest.skip("no font with Chinese characters is installed")
    saved, blue = seeing(), COLOURS["蓝"]
    none, right = (np.asarray(alignment.draw(alignment.align(saved, halves(), "红蓝", word))) for word in ("红", "蓝"))
    assert none.shape == right.shape
    assert tuple(none[30, 600]) == blue  # the corner of a patch that is not highlighted stays as it is
    assert right[30, 600, 0] > 60 and tuple(right[30, 600]) != blue  # one that is gets red
    assert (none[:, 700:] < 128).any()  # the words are beside the picture


def test_without_a_font_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(alignment, "_FONT_FOLDERS", (str(tmp_path),))
    with pytest.raises(ConfigError, match=r"fonts-noto-cjk.*--font FILE"):
        alignment.font(12)
    (tmp_path / "x.ttf").write_bytes(b"no font")
    with pytest.raises(ConfigError, match=r"x\.ttf cannot be read"):
        alignment.font(12, tmp_path / "x.ttf")


def test_what_cannot_be_aligned_is_refused() -> None:
    with pytest.raises(DataError, match=r"model\.similarity=token"):
        alignment.align(trained("global"), halves(), "红")
    with pytest.raises(DataError, match="'狗' is not in '一只猫'"):
        alignment.align(trained(), halves(), "一只猫", "狗")


def test_the_command_writes_a_png_and_prints_the_words(tmp_path: Path) -> None:
    try:
        alignment.font(12)
    except ConfigError:
        pytest.skip("no font with Chinese characters is installed")
    saved = trained()
    saved_model.save(tmp_path.as_uri() + "/model", saved.model, saved.tokenizer)
    halves().save(tmp_path / "halves.png")
    arguments = ["--model", str(tmp_path / "model"), "--image", str(tmp_path / "halves.png"), "--text", "蓝色"]
    result = CliRunner().invoke(app, ["align", *arguments, "--output", str(tmp_path / "out.png")])
    assert result.exit_code == 0, result.output
    assert "1  蓝" in result.output and "4 x 4 patches" in result.output
    with Image.open(tmp_path / "out.png") as opened:
        assert opened.format == "PNG" and opened.width > 900
