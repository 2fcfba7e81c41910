"""Models of transformers: tiny ones with random weights, against their own forward with their own processors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers_models as tiny
from PIL import Image, ImageOps
from torchvision import transforms

from wukong.errors import ConfigError, DataError
from wukong.evaluate import adapters
from wukong.evaluate.adapters.transformers import FAMILIES
from wukong.evaluate.protocol import OWN, PROTOCOLS

pytestmark = pytest.mark.slow
transformers = pytest.importorskip("transformers")

LONG = "一只猫坐在窗前" * 40
TEXTS = ["一只猫", "ABC的照片", "红色苹果 Cat", LONG]
LONGEST = {"altclip": 77, "chinese_clip": 52, "clip": 77, "metaclip_2": 77, "siglip": 64, "siglip2": 64}
LOWER = ("siglip", "siglip2")


@pytest.fixture(autouse=True)
def _code_is_copied_to_a_folder_of_the_test(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place of the user's cache."""
    copied = str(tmp_path_factory.mktemp("modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", copied)
    monkeypatch.syspath_prepend(copied)


def picture(i: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(i).integers(0, 256, (50, 70, 3), np.uint8))


def theirs(folder: Path, shown: list[Image.Image], texts: list[str], longest: int, fill: int = 0) -> Any:
    """What the model's class computes of squares and texts, both as its own processor and tokenizer give them."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    seen = transformers.AutoImageProcessor.from_pretrained(folder)(images=shown, return_tensors="pt")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    cut = tokenizer(texts, truncation=True, max_length=longest)
    padding = {"padding": "max_length", "max_length": fill} if fill else {"padding": True}
    with torch.inference_mode():
        return model(**seen, **tokenizer.pad(cut, return_tensors="pt", **padding))


@pytest.mark.parametrize("kind", tiny.MODELS)
def test_a_model_gives_the_vectors_of_its_own_class(kind: str, tmp_path: Path) -> None:
    module: Any = tiny.save(transformers, kind, tmp_path)
    found = adapters.load(f"transformers:{tmp_path}")
    bicubic = transforms.InterpolationMode.BICUBIC
    squares = {
        "clip-benchmark": transforms.Compose([transforms.Resize(32, bicubic), transforms.CenterCrop(32)]),
        "cn-clip": transforms.Resize((32, 32), bicubic),
    }
    texts = [text.lower() for text in TEXTS] if kind in LOWER else TEXTS
    for name, square in squares.items():
        rules = PROTOCOLS[name]
        shown = [picture(0), picture(1)]
        longest = min(rules.context or LONGEST[kind], LONGEST[kind])
        written = [text.lower() for text in texts] if name == "cn-clip" else texts
        expected = theirs(tmp_path, [square(each) for each in shown], written, longest, 64 if kind in LOWER else 0)
        images, encoded = found.encode_images(shown, rules), found.encode_texts(TEXTS, rules)
        torch.testing.assert_close(images, F.normalize(expected.image_embeds, dim=-1), atol=2e-6, rtol=0)
        torch.testing.assert_close(encoded.vectors, F.normalize(expected.text_embeds, dim=-1), atol=2e-6, rtol=0)
        logits = expected.logits_per_image - (module.logit_bias.detach() if kind in LOWER else 0)
        torch.testing.assert_close(found.scale * (images @ encoded.vectors.T), logits, atol=1e-4, rtol=1e-5)
        alone = found.encode_texts(TEXTS[:1], rules).vectors  # of another padded length
        torch.testing.assert_close(alone, encoded.vectors[:1], atol=2e-6, rtol=0)
    assert not torch.allclose(found.encode_images(shown, PROTOCOLS["paper"]), images, atol=1e-3)
    shorter = found.encode_texts([LONG], PROTOCOLS["paper"]).vectors  # 32 tokens
    assert not torch.allclose(shorter, encoded.vectors[3:], atol=1e-4), "the context did not cut"


def test_a_digest_is_of_weights_settings_and_vocabulary(tmp_path: Path) -> None:
    tiny.save(transformers, "altclip", tmp_path)
    digest = adapters.load(f"transformers:{tmp_path}").digest
    assert adapters.load(f"transformers:{tmp_path}/").digest == digest
    for file, before, after in (
        ("config.json", '"num_attention_heads": 2', '"num_attention_heads": 4'),
        ("tokenizer.json", "猫", "狗"),
    ):
        text = (tmp_path / file).read_text("utf-8")
        assert before in text
        (tmp_path / file).write_text(text.replace(before, after), "utf-8")
        changed = adapters.load(f"transformers:{tmp_path}").digest
        assert changed != digest, "classes that one model embedded would be taken for the other's"
        digest = changed


CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel


class OneConfig(PretrainedConfig):
    model_type = "one_of_my_own"

    def __init__(self, text_width=8, image_size=32, max_position_embeddings=20, **more):
        super().__init__(**more)
        self.text_width, self.image_size = text_width, image_size
        self.max_position_embeddings = max_position_embeddings


class One(PreTrainedModel):
    config_class = OneConfig

    def __init__(self, config):
        super().__init__(config)
        self.texts = torch.nn.Embedding(21128, config.text_width)
        self.images = torch.nn.Linear(3, 8)
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.0))
        self.post_init()

    def get_image_features(self, pixel_values):
        return self.images(pixel_values.mean((2, 3)))

    def get_text_features(self, input_ids, attention_mask):
        return (self.texts(input_ids) * attention_mask[:, :, None]).sum(1)
"""


def with_code(folder: Path, code: str = CODE, **settings: int) -> torch.nn.Module:
    """Save a model whose class is in a file beside its weights."""
    names: dict[str, Any] = {}
    exec(code, names)
    torch.manual_seed(0)
    module: torch.nn.Module = names["One"](names["OneConfig"](**settings)).eval()
    tiny.save(transformers, "chinese_clip", folder)
    module.save_pretrained(folder)  # type: ignore[operator]
    (folder / "one.py").write_text(code, "utf-8")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["auto_map"] = {"AutoConfig": "one.OneConfig", "AutoModel": "one.One"}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return module


def test_code_beside_the_weights_runs_only_if_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = with_code(tmp_path)
    monkeypatch.setattr("sys.stdin", None)  # transformers would ask whether it may
    with pytest.raises(ConfigError, match=rf"would run on this machine.*transformers:with-code:{tmp_path}"):
        adapters.load(f"transformers:{tmp_path}")
    found = adapters.load(f"transformers:with-code:{tmp_path}")
    rules = PROTOCOLS["clip-benchmark"]
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path)(TEXTS, truncation=True, max_length=20)["input_ids"]
    texts = torch.stack([module.texts(torch.tensor(each)).sum(0) for each in ids])
    torch.testing.assert_close(found.encode_texts(TEXTS, rules).vectors, F.normalize(texts, dim=-1))
    assert found.scale == pytest.approx(np.exp(2))
    (tmp_path / "one.py").write_text(CODE + "\nMORE = 1\n", "utf-8")
    assert adapters.load(f"transformers:with-code:{tmp_path}").digest != found.digest


TOKEN_WISE = (
    CODE
    + """
    @property
    def _tokens(self):
        from types import SimpleNamespace

        return lambda vectors: SimpleNamespace(token_embeddings=vectors, pooler_output=None)

    def get_image_features(self, pixel_values):
        rows = pixel_values.unflatten(2, (4, 8)).mean((3, 4))
        return self._tokens(self.images(rows.transpose(1, 2)))

    def get_text_features(self, input_ids, attention_mask):
        return self._tokens(self.texts(input_ids))
"""
)


@pytest.mark.parametrize("match_text_cls", [True, False])
def test_a_model_with_a_vector_for_each_token_is_measured_token_by_token(match_text_cls: bool, tmp_path: Path) -> None:
    """As this project exports one: ``token_embeddings``, and its similarity in ``config.json``."""
    module: Any = with_code(tmp_path, TOKEN_WISE)
    changed(tmp_path, "config.json", similarity="token", match_text_cls=match_text_cls)
    changed(tmp_path, "preprocessor_config.json", view="whole")
    found = adapters.load(f"transformers:with-code:{tmp_path}")
    whole = ImageOps.pad(picture(0), (32, 32), Image.Resampling.BICUBIC, color=(255, 255, 255))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    pixels = processor(images=[whole], return_tensors="pt")["pixel_values"]
    patches = F.normalize(module.get_image_features(pixels).token_embeddings.detach(), dim=-1)
    images, texts = found.encode_images([picture(0)], OWN), found.encode_texts(TEXTS, OWN)
    torch.testing.assert_close(images, patches, atol=1e-6, rtol=0)
    scores = found.similarity(images, texts)
    for number, ids in enumerate(transformers.AutoTokenizer.from_pretrained(tmp_path)(TEXTS)["input_ids"]):
        cut = [*ids[:19], ids[-1]] if len(ids) > 20 else ids
        products = patches[0] @ F.normalize(module.texts(torch.tensor(cut)).detach(), dim=-1).T
        to_text = products[:, 0 if match_text_cls else 1 :].amax(1).mean()
        torch.testing.assert_close(scores.image_to_text[0, number], to_text, atol=1e-6, rtol=0)
        torch.testing.assert_close(scores.text_to_image[0, number], products[:, 1:].amax(0).mean(), atol=1e-6, rtol=0)


FG_CLIP_2 = """
import torch
from transformers import PretrainedConfig, PreTrainedModel


class Side(PretrainedConfig):
    pass


class Fgclip2Config(PretrainedConfig):
    model_type = "fgclip2"

    def __init__(self, text_config=None, vision_config=None, **more):
        super().__init__(**more)
        self.text_config, self.vision_config = Side(**(text_config or {})), Side(**(vision_config or {}))


class Fgclip2Model(PreTrainedModel):
    config_class = Fgclip2Config

    def __init__(self, config):
        super().__init__(config)
        text = config.text_config
        self.tokens = torch.nn.Embedding(400, 8)
        self.short = torch.nn.Parameter(torch.randn(text.max_position_embeddings, 8))
        self.long = torch.nn.Parameter(torch.randn(text.longtext_len, 8))
        self.patches = torch.nn.Linear(768, 8)
        self.logit_scale = torch.nn.Parameter(torch.randn(1))
        self.logit_bias = torch.nn.Parameter(torch.randn(1))
        self.post_init()

    def get_image_features(self, pixel_values=None, pixel_attention_mask=None, spatial_shapes=None):
        places = torch.arange(pixel_values.shape[1]) * spatial_shapes[:, :1] / 100
        return (self.patches(pixel_values) * places[:, :, None] * pixel_attention_mask[:, :, None]).sum(1)

    def get_text_features(self, input_ids=None, attention_mask=None, walk_type="short"):
        positions = {"short": self.short, "long": self.long}[walk_type]
        return (self.tokens(input_ids) * positions).sum(1)
"""


def test_fg_clip_2_reads_short_and_long_texts_by_its_two_ways(tmp_path: Path) -> None:
    """A stand-in with the methods of its published code: short texts are 64 tokens, long ones 196, with padding."""
    names: dict[str, Any] = {}
    exec(FG_CLIP_2, names)
    torch.manual_seed(0)
    sides = {"text_config": {"max_position_embeddings": 64, "longtext_len": 196}, "vision_config": {"patch_size": 16}}
    module = names["Fgclip2Model"](names["Fgclip2Config"](**sides)).eval()
    module.save_pretrained(tmp_path)
    (tmp_path / "modeling_fgclip2.py").write_text(FG_CLIP_2, "utf-8")
    auto = {"AutoConfig": "modeling_fgclip2.Fgclip2Config", "AutoModelForCausalLM": "modeling_fgclip2.Fgclip2Model"}
    changed(tmp_path, "config.json", auto_map=auto)
    tokenizer = tiny.gemma(transformers)
    tokenizer.save_pretrained(tmp_path)
    processor = transformers.Siglip2ImageProcessor(max_num_patches=9, patch_size=16)
    processor.save_pretrained(tmp_path)
    found = adapters.load(f"transformers:with-code:{tmp_path}")
    texts = ["一只猫", "ABC", "一只猫坐在窗前" * 9, "一只猫坐在窗前" * 20, LONG]  # 63 characters and [EOS] are short
    for name, ways in (
        ("clip-benchmark", [(64, "short")] * 3 + [(196, "long")] * 2),
        ("paper", [(32, "short")] * 5),
    ):
        vectors = found.encode_texts(texts, PROTOCOLS[name]).vectors
        for text, (longest, way), vector in zip(texts, ways, vectors, strict=True):
            ids = tokenizer(text.lower(), truncation=True, max_length=longest)["input_ids"]
            filled = torch.tensor([ids + [0] * ((64 if way == "short" else 196) - len(ids))])
            expected = module.get_text_features(filled, walk_type=way)[0].detach()
            torch.testing.assert_close(vector, F.normalize(expected, dim=-1), atol=1e-5, rtol=0)
    square = transforms.Compose(
        [transforms.Resize(48, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(48)]
    )
    seen = processor(images=[square(picture(0))], return_tensors="pt")
    images = found.encode_images([picture(0)], PROTOCOLS["clip-benchmark"])
    expected = F.normalize(module.get_image_features(**seen).detach(), dim=-1)
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)


def test_vectors_of_two_widths_are_refused(tmp_path: Path) -> None:
    with_code(tmp_path, text_width=6)
    with pytest.raises(ConfigError, match="8 numbers for pictures and of 6 for texts"):
        adapters.load(f"transformers:with-code:{tmp_path}")


def test_code_that_does_not_run_is_an_error_in_one_line(tmp_path: Path) -> None:
    with_code(tmp_path)
    (tmp_path / "one.py").write_text("from transformers.modeling_gone import nothing\n" + CODE, "utf-8")
    with pytest.raises(ConfigError, match=r"transformers \d.* does not load .*modeling_gone") as raised:
        adapters.load(f"transformers:with-code:{tmp_path}")
    assert "\n" not in str(raised.value)


def changed(folder: Path, file: str, **settings: object) -> None:
    config = json.loads((folder / file).read_text("utf-8"))
    (folder / file).write_text(json.dumps(config | settings), "utf-8")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("pickle", "no weights in safetensors.*save_pretrained"),
        ("type", r"model_type is 'bert3' and it brings no code; the types are altclip, chinese_clip, clip, fgclip2"),
        ("no config", "there is no config.json"),
        ("broken config", "config.json cannot be read"),
        ("truncated", "does not load .*afetensor"),
        ("wider", "does not load"),
        ("normalisation", "image processor does not scale pixels"),
    ],
)
def test_what_cannot_be_measured_is_refused(wrong: str, message: str, tmp_path: Path) -> None:
    module = tiny.save(transformers, "chinese_clip", tmp_path)
    weights = tmp_path / "model.safetensors"
    if wrong == "pickle":
        weights.unlink()
        torch.save(module.state_dict(), tmp_path / "pytorch_model.bin")
    elif wrong == "type":
        changed(tmp_path, "config.json", model_type="bert3")
    elif wrong == "no config":
        (tmp_path / "config.json").unlink()
    elif wrong == "broken config":
        (tmp_path / "config.json").write_text("[", "utf-8")
    elif wrong == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif wrong == "wider":
        changed(tmp_path, "config.json", projection_dim=17)
    else:
        changed(tmp_path, "preprocessor_config.json", do_normalize=False)
    with pytest.raises(ConfigError, match=message) as raised:
        adapters.load(f"transformers:{tmp_path}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["chinese_clip", "clip"])
def test_a_model_without_its_vocabulary_is_refused(kind: str, tmp_path: Path) -> None:
    """Without its files transformers makes a tokenizer with a few special tokens."""
    tiny.save(transformers, kind, tmp_path)
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(DataError, match=r"the vocabulary knows 0 of \d+ words"):
        adapters.load(f"transformers:{tmp_path}")


def test_a_missing_weight_is_not_made_at_random(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tiny.save(transformers, "clip", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"lacks 1 of the model's weights, for instance visual_projection\.weight"):
        adapters.load(f"transformers:{tmp_path}")
    state["visual_projection.weight"] = torch.full((16, 32), torch.nan)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match="not finite"):
        adapters.load(f"transformers:{tmp_path}")


def test_a_name_that_the_hub_does_not_give_is_an_error_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[Any] = []

    def fetch(name: str, **how: Any) -> str:
        asked.append((name, how["revision"], how["allow_patterns"]))
        raise huggingface_hub.errors.LocalEntryNotFoundError("ConnectError: Name or service not known\nTry again.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with pytest.raises(ConfigError, match=r"no folder 'owner/name@refs/pr/3', and from the hub.*not known") as raised:
        adapters.load("transformers:owner/name@refs/pr/3")
    assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match="from the hub"):
        adapters.load("transformers:with-code:owner/name")
    (first, revision, files), (second, none, more) = asked
    assert (first, revision, second, none) == ("owner/name", "refs/pr/3", "owner/name", None)
    assert "*.py" not in files and "*.py" in more and not [each for each in more if "bin" in each or "pt" in each]
    for wrong in (f"{tmp_path}/gone", "gone", "a/b/c"):
        with pytest.raises(ConfigError, match=r"no folder .*OWNER/NAME"):
            adapters.load(f"transformers:{wrong}")
    tiny.save(transformers, "clip", tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    assert adapters.load("transformers:owner/name").name == "transformers:owner/name"


def test_every_class_of_transformers_that_is_supported_has_a_tiny_model() -> None:
    assert {kind for kind, family in FAMILIES.items() if not family.with_code} == set(tiny.MODELS)
