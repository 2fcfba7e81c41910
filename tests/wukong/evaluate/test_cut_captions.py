"""Captions that are longer than what a model reads are counted, by each kind of model, and results say how many."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from test_tasks import Knowing, Pixels
from torch import nn

from wukong.commands import output
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.evaluate import foreign, tasks
from wukong.evaluate.adapters import cn_clip, open_clip, wukong_release
from wukong.evaluate.data_set import RetrievalData
from wukong.evaluate.model import OwnModel, count_cut
from wukong.evaluate.protocol import OWN, PROTOCOLS, Protocol
from wukong.evaluate.published import Caption
from wukong.model import released

CHARACTERS = "一只白色的大狗和小猫在绿色草地上跑过来又去看红黄蓝花"


def long(characters: int) -> str:
    """A text of so many Chinese characters, each of which is one token of BERT's vocabulary."""
    return (CHARACTERS * (characters // len(CHARACTERS) + 1))[:characters]


@pytest.mark.parametrize(("rules", "context"), [("paper", 32), ("cn-clip", 52), ("own", 64)])
def test_own_models_count_what_their_tokenizer_and_the_protocol_cut(rules: str, context: int) -> None:
    """[CLS] and [SEP] take two places: a text of 30 characters just fits into 32 tokens."""
    tokenizer = Tokenizer(packaged_vocabulary(), 64)
    model = OwnModel.__new__(OwnModel)
    model._saved = cast("Any", SimpleNamespace(tokenizer=tokenizer))
    protocol = {**PROTOCOLS, "own": OWN}[rules]
    lengths = [1, 20, context - 3, context - 2, context - 1, context, 300]
    assert count_cut(model, [long(each) for each in lengths], protocol) == 3
    assert count_cut(model, [long(context - 2)], protocol) == 0


class Tower(nn.Module):
    """What the adapters ask of a model of others, beside its tokenizer."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = SimpleNamespace(input_resolution=8, image_size=8)
        self.logit_scale = nn.Parameter(torch.zeros(()))


@pytest.mark.parametrize(("rules", "context"), [("paper", 32), ("cn-clip", 52), ("own", 52)])
def test_a_model_of_chinese_clip_counts_what_its_tokenizer_cuts(rules: str, context: int) -> None:
    clip = pytest.importorskip("cn_clip.clip")
    model = cn_clip.from_cn_clip(Tower(), clip.tokenize, "x", "x")
    lengths = [1, 20, context - 3, context - 2, context - 1, context, 300, 1500]
    protocol = {**PROTOCOLS, "own": OWN}[rules]
    assert count_cut(model, [long(each) for each in lengths], protocol) == 4
    assert count_cut(model, [long(context - 2)], protocol) == 0


@pytest.mark.parametrize(("rules", "context"), [("paper", 32), ("clip-benchmark", 77)])
def test_a_model_of_open_clip_counts_the_byte_pairs_that_its_tokenizer_has(rules: str, context: int) -> None:
    tokenizer = pytest.importorskip("open_clip.tokenizer").SimpleTokenizer()
    model = open_clip.from_open_clip(Tower(), tokenizer, "x", "x")
    texts = [long(each) for each in range(5, 60)] + ["a red dog runs over green grass " * 9, "a dog"]
    lengths = [len(tokenizer.encode(text)) + 2 for text in texts]
    assert {context, context + 1} & {*lengths} and 9 < sum(each > context for each in lengths) < len(texts) - 2
    assert count_cut(model, texts, PROTOCOLS[rules]) == sum(each > context for each in lengths)


def test_another_padding_than_zero_makes_no_difference() -> None:
    """As XLM-R's: the padding is 1, and 0 begins a text."""

    def tokenize(texts: list[str], context_length: int) -> torch.Tensor:
        rows = [[*[0, *(9 for _ in text)][: context_length - 1], 2] for text in texts]
        return torch.tensor([row + [1] * (context_length - len(row)) for row in rows])

    tokenize.context_length = 16  # type: ignore[attr-defined]
    model = open_clip.from_open_clip(Tower(), tokenize, "x", "x")
    assert count_cut(model, [long(each) for each in (0, 1, 13, 14, 15, 40)], PROTOCOLS["clip-benchmark"]) == 2


def test_a_released_model_counts_by_the_authors_context_of_32_tokens() -> None:
    module = released.ReleasedModel.__new__(released.ReleasedModel)
    nn.Module.__init__(module)
    module.architecture = cast("Any", SimpleNamespace(image_size=8, token_wise=True))
    model = wukong_release.from_released(module, "x", "x")
    assert count_cut(model, [long(each) for each in (1, 29, 30, 31, 60)], PROTOCOLS["cn-clip"]) == 2


def test_who_cannot_tell_says_nothing() -> None:
    model = foreign.ForeignModel(nn.Linear(1, 1), lambda *_: torch.zeros(1, 1), "x", "x", 1.0, 8)
    assert count_cut(model, [long(300)], PROTOCOLS["paper"]) is None
    assert count_cut(Knowing(["狗"]), [long(300)], PROTOCOLS["paper"]) is None


class Counting(Knowing):
    def count_cut(self, texts: Sequence[str], protocol: Protocol) -> int:
        return sum(len(text) > (protocol.context or 99) - 2 for text in texts)


def retrieval(captions: Sequence[str]) -> RetrievalData:
    held = [Caption(text, (number,)) for number, text in enumerate(captions)]
    numbers = range(len(captions))
    return RetrievalData("mine", "test", [str(n) for n in numbers], held, False, Pixels(list(numbers)), "Mine")


def test_a_result_says_how_many_captions_were_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wukong.evaluate.image_text.TEXTS", 4)  # several blocks of captions
    captions = [f"{chr(ord('甲') + n)}{long(10 if n % 3 else 31)}" for n in range(10)]
    outcome = tasks.measure(Counting(captions), retrieval(captions), PROTOCOLS["paper"])
    assert outcome.sizes == {"images": 10, "captions": 10, "captions_cut": 4}
    assert output.sizes(outcome.sizes) == "10 images, 10 captions, 4 captions cut"
    whole = tasks.measure(Counting(captions), retrieval(captions), PROTOCOLS["cn-clip"])
    assert whole.sizes == {"images": 10, "captions": 10}, "52 tokens cut none"
    silent = tasks.measure(Knowing(captions), retrieval(captions), PROTOCOLS["paper"])
    assert silent.sizes == {"images": 10, "captions": 10}, "a model that does not tell"


def test_the_number_stands_on_the_page() -> None:
    from wukong.evaluate.results import MeasuredModel, document
    from wukong.report import evaluation

    captions = [f"{chr(ord('甲') + n)}{long(31)}" for n in range(10)]
    outcome = tasks.measure(Counting(captions), retrieval(captions), PROTOCOLS["paper"])
    about = [MeasuredModel("pretrained", "counting", "0" * 64, token_wise=False)]
    entry = {**outcome.as_json("pretrained"), "examples": []}
    html = evaluation.render(document(about, {"paper": PROTOCOLS["paper"].describe()}, [entry], {}), {})
    assert "10 captions cut" in html and "captions_cut" not in html
