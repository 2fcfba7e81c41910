import pytest
import torch
from transformers import BertConfig, BertModel

from wukong.errors import DataError
from wukong.model.text import TextEncoder

LAYERS, HEADS, WIDTH, VOCABULARY = 3, 4, 32, 50


@pytest.fixture
def theirs() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=16,
        initializer_range=0.5,
    )
    return BertModel(config, add_pooling_layer=False).eval()


@pytest.fixture
def ours(theirs: BertModel) -> TextEncoder:
    """A text encoder with the weights of transformers' BERT."""
    encoder = TextEncoder(VOCABULARY, LAYERS, HEADS, WIDTH, max_tokens=16).eval()
    bert = theirs.state_dict()
    # We have no second segment: its embedding of the first is a constant that joins the positions.
    state = {
        "tokens.weight": bert["embeddings.word_embeddings.weight"],
        "positions.weight": bert["embeddings.position_embeddings.weight"]
        + bert["embeddings.token_type_embeddings.weight"][0],
        "norm.weight": bert["embeddings.LayerNorm.weight"],
        "norm.bias": bert["embeddings.LayerNorm.bias"],
    }
    for number in range(LAYERS):
        for kind in ("weight", "bias"):
            layer = f"encoder.layer.{number}"
            parts = [bert[f"{layer}.attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
            state[f"layers.{number}.qkv.{kind}"] = torch.cat(parts)
            for name, other in {
                "attended": "attention.output.dense",
                "norm1": "attention.output.LayerNorm",
                "expand": "intermediate.dense",
                "contract": "output.dense",
                "norm2": "output.LayerNorm",
            }.items():
                state[f"layers.{number}.{name}.{kind}"] = bert[f"{layer}.{other}.{kind}"]
    encoder.load_state_dict(state)
    return encoder


def batch() -> torch.Tensor:
    ids = torch.randint(1, VOCABULARY, (5, 9), generator=torch.Generator().manual_seed(1))
    for row, length in enumerate((9, 2, 5, 1, 7)):
        ids[row, length:] = 0
    return ids


def test_hidden_states_are_those_of_bert(ours: TextEncoder, theirs: BertModel) -> None:
    ids = batch()
    real = ids != 0
    with torch.inference_mode():
        expected = theirs(ids, attention_mask=real.long()).last_hidden_state
        torch.testing.assert_close(ours(ids)[real], expected[real], rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_bert(ours: TextEncoder, theirs: BertModel) -> None:
    ids = batch()
    direction = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(2))
    (ours(ids)[:, 0] * direction).sum().backward()
    (theirs(ids, attention_mask=(ids != 0).long()).last_hidden_state[:, 0] * direction).sum().backward()
    expected = theirs.embeddings.word_embeddings.weight.grad
    assert ours.tokens.weight.grad is not None
    torch.testing.assert_close(ours.tokens.weight.grad[1:], expected[1:], rtol=1e-3, atol=1e-4)


def test_a_caption_does_not_depend_on_its_batch(ours: TextEncoder) -> None:
    ids = batch()
    with torch.inference_mode():
        torch.testing.assert_close(ours(ids)[1, :2], ours(ids[1:2, :2])[0], rtol=1e-4, atol=1e-5)


def test_captions_longer_than_the_positions_are_refused(ours: TextEncoder) -> None:
    with pytest.raises(DataError, match="17 tokens"):
        ours(torch.ones(1, 17, dtype=torch.long))
