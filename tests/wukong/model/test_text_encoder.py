import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertModel, RobertaConfig, RobertaModel

from wukong.errors import ConfigError, DataError, StorageError
from wukong.model import bert
from wukong.model.text_encoder import TextEncoder, packed_size
from wukong.store import storage

LAYERS, HEADS, WIDTH, VOCABULARY = 3, 4, 32, 50
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 4 * WIDTH,
    "initializer_range": 0.5,
}


@pytest.fixture
def theirs() -> BertModel:
    torch.manual_seed(0)
    return BertModel(BertConfig(**SIZES, max_position_embeddings=16), add_pooling_layer=False).eval()


def encoder(max_tokens: int = 16, norm_epsilon: float = 1e-12) -> TextEncoder:
    return TextEncoder(VOCABULARY, LAYERS, HEADS, WIDTH, max_tokens, norm_epsilon=norm_epsilon).eval()


@pytest.fixture
def ours(theirs: BertModel, tmp_path: Path) -> TextEncoder:
    """A text encoder with the weights of transformers' BERT."""
    theirs.save_pretrained(tmp_path / "bert")
    started = encoder()
    bert.start_from(started, storage.from_path(tmp_path / "bert"))
    return started


def batch() -> torch.Tensor:
    ids = torch.randint(1, VOCABULARY, (5, 9), generator=torch.Generator().manual_seed(1))
    for row, length in enumerate((9, 2, 5, 1, 7)):
        ids[row, length:] = 0
    return ids


def test_hidden_states_equal_bert(ours: TextEncoder, theirs: BertModel) -> None:
    ids = batch()
    real = ids != 0
    with torch.inference_mode():
        expected = theirs(ids, attention_mask=real.long()).last_hidden_state
        found = ours(ids)
    torch.testing.assert_close(found[real], expected[real], rtol=1e-5, atol=1e-5)
    assert not found[~real].any()


def test_gradients_equal_bert(ours: TextEncoder, theirs: BertModel) -> None:
    ids = batch()
    direction = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(2))
    (ours(ids)[:, 0] * direction).sum().backward()
    (theirs(ids, attention_mask=(ids != 0).long()).last_hidden_state[:, 0] * direction).sum().backward()
    expected = theirs.embeddings.word_embeddings.weight.grad
    assert ours.tokens.weight.grad is not None
    torch.testing.assert_close(ours.tokens.weight.grad[1:], expected[1:], rtol=1e-3, atol=1e-4)


def test_computing_only_the_first_token_changes_nothing(ours: TextEncoder) -> None:
    direction = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(2))
    for ids in (batch(), batch()[:, :1], batch().clamp(min=1)):  # padded, and twice not
        found = []
        for first in (ours(ids, first=True), ours(ids)[:, 0]):
            gradients = torch.autograd.grad((first * direction).sum(), list(ours.parameters()))
            found.append([first, *gradients])
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_a_caption_does_not_depend_on_its_batch(ours: TextEncoder) -> None:
    ids = batch()
    with torch.inference_mode():
        torch.testing.assert_close(ours(ids)[1, :2], ours(ids[1:2, :2])[0], rtol=1e-4, atol=1e-5)


def test_captions_longer_than_the_positions_are_refused(ours: TextEncoder) -> None:
    with pytest.raises(DataError, match="17 tokens"):
        ours(torch.ones(1, 17, dtype=torch.long))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="5 heads do not divide a width of 32"):
        TextEncoder(VOCABULARY, 1, 5, 32)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_changes_no_gradient(dropout: float) -> None:
    torch.manual_seed(0)
    plain = TextEncoder(VOCABULARY, LAYERS, HEADS, WIDTH, 16, dropout).train()
    kept: list[int] = []
    gradients = []
    for enable in (False, True):
        plain.checkpoint_activations = enable
        plain.zero_grad()
        torch.manual_seed(7)
        saved = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal saved
            saved += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = plain(batch()).square().sum()
        loss.backward()
        kept.append(saved)
        gradients.append([parameter.grad for parameter in plain.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])
    assert kept[1] < kept[0] / 3


def test_training_can_start_from_a_bert_with_heads_and_old_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = BertForMaskedLM(BertConfig(**SIZES, max_position_embeddings=64)).eval()
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in state.items()
    }
    assert any(name.endswith("gamma") for name in renamed) and any(name.startswith("cls.") for name in renamed)
    save_file(renamed, tmp_path / "model.safetensors")
    started = encoder()
    bert.start_from(started, storage.from_path(tmp_path))
    ids = batch()
    with torch.inference_mode():
        expected = theirs.bert(ids, attention_mask=(ids != 0).long()).last_hidden_state
        torch.testing.assert_close(started(ids)[ids != 0], expected[ids != 0], rtol=1e-5, atol=1e-5)


def test_training_can_start_from_a_roberta(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = RobertaConfig(**SIZES, max_position_embeddings=18, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5)
    theirs = RobertaModel(config, add_pooling_layer=False).eval()
    theirs.save_pretrained(tmp_path)
    started = encoder(norm_epsilon=1e-5)
    bert.start_from(started, storage.from_path(tmp_path))
    ids = batch()
    real = ids != 0
    with torch.inference_mode():
        expected = theirs(torch.where(real, ids, 1), attention_mask=real.long()).last_hidden_state
        # RoBERTa treats token 1 as padding.
        rows = ~((ids == 1) & real).any(1)
        torch.testing.assert_close(started(ids)[rows][real[rows]], expected[rows][real[rows]], rtol=1e-5, atol=1e-5)
    assert rows.sum() >= 3


def test_another_architecture_or_a_missing_weight_is_named(theirs: BertModel, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    uri = storage.from_path(tmp_path)
    unequal = "layers: 3 instead of 2; heads: 4 instead of 2; max_tokens 32 where it reads 16"
    with pytest.raises(DataError, match=unequal):
        bert.start_from(TextEncoder(VOCABULARY, 2, 2, WIDTH, 32), uri)
    state = load_file(tmp_path / "model.safetensors")
    value = state.pop("encoder.layer.1.output.dense.bias")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=r"lacks the weight encoder\.layer\.1\.output\.dense\.bias"):
        bert.start_from(encoder(), uri)
    save_file(
        {**state, "encoder.layer.1.output.dense.bias": value, "encoder.adapter.weight": value.clone()},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(DataError, match=r"the model has not, encoder\.adapter\.weight"):
        bert.start_from(encoder(), uri)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    with pytest.raises(DataError, match="'gpt2'"):
        bert.start_from(encoder(), uri)
    with pytest.raises(StorageError, match="nothing at that address"):
        bert.start_from(encoder(), storage.from_path(tmp_path / "elsewhere"))


@pytest.mark.parametrize("name", ["position_embeddings.weight", "token_type_embeddings.weight", "query.weight"])
@pytest.mark.parametrize("shape", [(), (3,), (0, 5), (2, 2, 2)])
def test_weights_of_inconsistent_sizes_are_refused(
    theirs: BertModel, tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    theirs.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    wrong = next(key for key in state if key.endswith(name))
    save_file({**state, wrong: torch.zeros(shape)}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=r"sizes do not belong together|of another size"):
        bert.start_from(encoder(), storage.from_path(tmp_path))


@pytest.mark.parametrize("key", ["pad_token_id", "max_position_embeddings"])
def test_a_config_with_text_instead_of_a_number_is_named(theirs: BertModel, tmp_path: Path, key: str) -> None:
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: "16"}))
    with pytest.raises(DataError, match=f"{key} '16', which is not a whole number"):
        bert.start_from(encoder(), storage.from_path(tmp_path))


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("packed", [24, 30, 45])  # exactly the real tokens, some of padding, all places
def test_packed_padding_changes_neither_states_nor_gradients(ours: TextEncoder, packed: int, first: bool) -> None:
    """BERT computes all places, so their number is no matter there either."""
    ids = batch()
    assert int((ids != 0).sum()) == 24
    found = []
    for number in (None, packed):
        ours.zero_grad()
        states = ours.double()(ids, first, number)
        (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
        found.append([states, *(weight.grad for weight in ours.parameters())])
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)


@given(st.integers(1, 600), st.integers(1, 64), st.floats(0, 1))
def test_packed_sizes_are_few_and_enough(rows: int, length: int, share: float) -> None:
    places = rows * length
    real = round(share * places)
    size = packed_size(real, places)
    assert real <= size <= places
    assert size - real < max(1, places // 32)
    assert len({packed_size(each, places) for each in range(0, places + 1, max(1, places // 200))}) <= 66
