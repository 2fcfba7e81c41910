"""What is found before the first stage with torch: a model that cannot be built, weights of another one."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from wukong.config.experiment import Experiment
from wukong.errors import ConfigError
from wukong.stages import preflight_model
from wukong.store import storage

pytestmark = pytest.mark.slow


def test_its_weights_are_counted_without_memory_for_them(experiment: Callable[..., Experiment]) -> None:
    size = preflight_model.check_model(experiment("model.text={layers: 1, heads: 2, width: 64}", "model.embedding=32"))
    text = 21_128 * 64 + 32 * 64 + 2 * 64 + 12 * 64**2 + 13 * 64
    assert size.image < size.weights
    assert size.weights - size.image == pytest.approx(text + (1280 + 64) * 32, rel=0.02)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["model.image.name=resnet18"], r"model\.image\.weights: no package holds resnet18"),
        (["model.image.name=resnet1"], r"model\.image\.name: timm has no model 'resnet1'"),
        (["model.image.block=99"], r"model\.image\.block"),
        (["model.embedding=null"], r"model\.embedding: .* pictures have 1280 numbers and those of captions 768"),
        (["finetune.lock=99"], r"finetune\.lock: .* layer groups, not 99"),
    ],
)
def test_a_model_that_cannot_be_built_names_the_key(
    experiment: Callable[..., Experiment], overrides: list[str], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        preflight_model.check_model(experiment(*overrides))


def test_weights_of_another_tower_are_refused(experiment: Callable[..., Experiment], tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    for name in ("test_vit", "test_vit2"):
        state = {key: value.contiguous() for key, value in timm.create_model(name).state_dict().items()}
        save_file(state, tmp_path / f"{name}.safetensors")
    folder = storage.from_path(tmp_path)
    tower = "model.image={name: test_vit, weights: %s/%s.safetensors}"
    for harmless in ("test_vit", "nothing"):  # of what is not there, check_world speaks
        preflight_model.check_weights(experiment(tower % (folder, harmless)))
    with pytest.raises(ConfigError, match=r"model\.image\.weights: .* does not fit .*`wukong weights get test_vit "):
        preflight_model.check_weights(experiment(tower % (folder, "test_vit2")))


def test_a_text_encoder_of_another_size_or_vocabulary_is_refused(
    experiment: Callable[..., Experiment], tmp_path: Path
) -> None:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}
    BertModel(BertConfig(vocab_size=8, **sizes), add_pooling_layer=False).save_pretrained(tmp_path)
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (tmp_path / "own.txt").write_text("\n".join([*specials, "猫", "狗", "鸟"]), encoding="utf-8")
    folder = storage.from_path(tmp_path)
    own, text = (
        f"model.text.vocabulary={folder}/own.txt",
        f"model.text={{layers: 1, heads: 2, width: 32, weights: {folder}}}",
    )
    preflight_model.check_weights(experiment(text, own))
    with pytest.raises(ConfigError, match=r"model\.text\.weights: .*entries of the vocabulary: 8 instead of 21128"):
        preflight_model.check_weights(experiment(text))
    with pytest.raises(ConfigError, match=r"layers: 1 instead of 2.*Name the vocab\.txt that belongs to them"):
        preflight_model.check_weights(experiment(text, own, "model.text.layers=2"))
    (tmp_path / "own.txt").write_text("猫\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"the WordPiece vocabulary of 1 entries lacks \[PAD\]"):
        preflight_model.check_weights(experiment(text, own))


def test_a_hub_that_does_not_answer_is_named(
    experiment: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_url", lambda repository, file: f"http://127.0.0.1:{port}/{repository}/{file}"
    )
    with pytest.raises(ConfigError, match=r"model\.image\.weights: 'hub' does not give timm/resnet18"):
        preflight_model.check_model(experiment("model.image={name: resnet18, weights: hub}"))
