import pytest
import torch
from tokenizers import Tokenizer as HuggingFaceTokenizer
from torch import nn
from transformers import AutoTokenizer, BertConfig, BertModel

from wukong.export import parts
from wukong.model.saved_model import SavedModel

pytestmark = pytest.mark.slow


def test_the_text_tower_is_hugging_faces_bert(lite0: SavedModel) -> None:
    config = BertConfig.from_dict(parts.bert_config(lite0.model, lite0.tokenizer))
    bert = BertModel(config, add_pooling_layer=False).eval()
    bert.load_state_dict(parts.bert_state(lite0.model.text))
    ids = lite0.tokenizer(parts.sample_captions(64))
    with torch.no_grad():
        theirs = bert(ids, attention_mask=(ids != lite0.tokenizer.pad).long()).last_hidden_state
        ours = lite0.model.text(ids)
    real = ids != lite0.tokenizer.pad
    torch.testing.assert_close(theirs[real], ours[real], atol=1e-5, rtol=0)


def test_a_bias_is_folded_into_the_norm_before_it() -> None:
    torch.manual_seed(0)
    norm, head = nn.LayerNorm(48), nn.Linear(48, 16)
    nn.init.normal_(norm.bias)
    folded = nn.LayerNorm(48)
    folded.load_state_dict({"weight": norm.weight, "bias": parts.folded_bias(norm, head)})
    inputs = torch.randn(20, 5, 48)
    wanted = head(norm(inputs).mean(1))
    torch.testing.assert_close(folded(inputs).mean(1) @ head.weight.T, wanted, atol=1e-5, rtol=0)
    assert parts.folded_bias(norm, nn.Linear(48, 64)) is None, "a wide head's bias is in no tower"


def test_the_tokenizer_is_read_by_others(lite0: SavedModel, tmp_path) -> None:  # type: ignore[no-untyped-def]
    parts.write_tokenizer(lite0.tokenizer, tmp_path)
    captions = parts.sample_captions(5000)
    wanted = lite0.tokenizer.encode(captions)
    found = AutoTokenizer.from_pretrained(tmp_path)(captions, truncation=True)["input_ids"]
    assert found == wanted
    rust = HuggingFaceTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    rust.enable_truncation(lite0.tokenizer.max_tokens)
    assert [each.ids for each in rust.encode_batch(captions)] == wanted
