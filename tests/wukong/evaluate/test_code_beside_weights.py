"""No code beside a model's weights runs, unless ``with-code`` is written: each adapter, each way to name a folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wukong.errors import WukongError
from wukong.evaluate import adapters

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz")
TINY: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}
AUTO_MAP = {
    "AutoConfig": "planted.Config",
    "AutoModel": "planted.Model",
    "AutoImageProcessor": "planted.Processor",
    "AutoTokenizer": ["planted.Tokenizer", None],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with Python that leaves a file when it runs, under the names by which a program could find it."""
    code = f"open({str(tmp_path / 'ran')!r}, 'w').close()\nraise SystemExit('planted')\n"
    made = tmp_path / "model"
    made.mkdir()
    for name in ("planted", "__init__", "hubconf", "handler", "sitecustomize", "modeling_wukong", "custom"):
        (made / f"{name}.py").write_text(code)
    (made / "vocab.txt").write_text("\n".join(WORDS))
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json", "model.json", "modules.json"):
        (made / name).write_text(json.dumps({"model_type": "planted", "auto_map": AUTO_MAP, "trust_remote_code": True}))
    (made / "model.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    return made


def open_clip_settings(folder: Path, **of_text: Any) -> None:
    settings = {**TINY, "text_cfg": {**TINY["text_cfg"], "hf_tokenizer_name": "any", **of_text}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": {}}))


KEYS: list[dict[str, Any]] = [
    {"trust_remote_code": True},
    {"trust_remote_code": True, "clean": "canonicalize"},
    {"code_revision": "main", "tokenizer_file": "x"},
]


@pytest.mark.parametrize("keys", [*KEYS, {}])
@pytest.mark.parametrize("on_hub", [False, True])
def test_open_clip_runs_no_code_that_its_settings_ask_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], on_hub: bool
) -> None:
    pytest.importorskip("open_clip")
    open_clip_settings(folder, tokenizer_kwargs=keys)
    (folder / "model.safetensors").unlink()
    if on_hub:
        if not keys:
            pytest.skip("transformers asks before it runs what a repository of the hub names")
        monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda _, name, **__: str(folder / name))
        monkeypatch.setattr("open_clip.create_model", lambda *_, **__: pytest.fail("open_clip was called"))
    uri = "open_clip:hf-hub:owner/name" if on_hub else f"open_clip:local-dir:{folder}"
    with pytest.raises(WukongError, match=r"code that lies beside the weights.*open_clip:with-code:"):
        adapters.load(uri)
    assert not (folder.parent / "ran").exists()


def test_open_clip_runs_it_where_that_is_written(folder: Path) -> None:
    pytest.importorskip("open_clip")
    open_clip_settings(folder, tokenizer_kwargs={"trust_remote_code": True})
    (folder / "model.safetensors").unlink()  # with it, open_clip fails before it opens the tokenizer
    with pytest.raises((SystemExit, WukongError)):
        adapters.load(f"open_clip:with-code:local-dir:{folder}")
    assert (folder.parent / "ran").exists(), "so the other tests would see it"


@pytest.mark.parametrize("kind", sorted(adapters.REGISTRY))
@pytest.mark.parametrize(
    "form", [lambda path: f"{path}", lambda path: f"local-dir:{path}", lambda path: f"ViT-B-16/{path}"]
)
def test_no_adapter_runs_code_of_a_folder(folder: Path, kind: str, form: Callable[[Path], str]) -> None:
    open_clip_settings(folder)
    with pytest.raises(WukongError):
        adapters.load(f"{kind}:{form(folder)}")
    assert not (folder.parent / "ran").exists()


def test_a_model_of_this_project_runs_no_code_of_its_folder(folder: Path) -> None:
    with pytest.raises(WukongError):
        adapters.load(str(folder))
    assert not (folder.parent / "ran").exists()
