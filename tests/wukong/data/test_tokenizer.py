import random
from pathlib import Path

import pytest
from transformers import BertTokenizer

from wukong.data.tokenizer import VOCABULARY_SIZE, Tokenizer, packaged_vocabulary
from wukong.errors import DataError


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(packaged_vocabulary())


def captions(count: int) -> list[str]:
    generator = random.Random(0)
    words = ["猫", "红色的苹果", "旗:中国", "iPod", "TikTok", "2024年", "café", "ＡＢＣ", "１２", "🙂", "한국"]
    words += ["日本語", "don't", "𠮷野家", "<人名>", "，", "。", "『』", "a-b_c", "\t", " ", "\u200b", "x"]
    return ["".join(generator.choices(words, k=generator.randint(0, 14))) for _ in range(count)]


def test_the_vocabulary_has_the_papers_size(tokenizer: Tokenizer) -> None:
    assert len(tokenizer) == VOCABULARY_SIZE


def test_ids_equal_those_of_the_bert_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text(packaged_vocabulary(), encoding="utf-8")
    theirs = BertTokenizer(str(vocabulary), do_lower_case=True)
    texts = captions(5_000)
    expected = theirs(texts, truncation=True, max_length=32)["input_ids"]
    assert tokenizer.encode(texts) == expected


def test_a_batch_is_padded_to_its_longest_caption(tokenizer: Tokenizer) -> None:
    ids = tokenizer(["猫", "红色的苹果", ""])
    assert ids.shape == (3, 7)
    assert ids[2].tolist() == [tokenizer.cls, tokenizer.sep, *[tokenizer.pad] * 5]
    assert tokenizer(["很" * 10_000]).shape == (1, 32)


def test_lengths_count_the_whole_caption(tokenizer: Tokenizer) -> None:
    texts = [*captions(200), "很" * 10_000, "", "猫" * 30, "猫" * 31]
    whole = Tokenizer(packaged_vocabulary(), 20_000).encode(texts)
    assert tokenizer.lengths(texts) == [len(ids) for ids in whole]


def test_a_vocabulary_without_special_tokens_is_refused() -> None:
    with pytest.raises(DataError, match=r"\[CLS\]"):
        Tokenizer("[PAD]\n[UNK]\n猫\n")
