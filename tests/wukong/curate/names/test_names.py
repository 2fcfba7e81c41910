"""Person names: the tagger against first principles, the finder against labelled captions, and any string at all."""

import importlib.util
import itertools
import random
import sys
import tracemalloc
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wukong.curate import names
from wukong.curate.names import tagger, word_lists
from wukong.curate.text.simplified import simplify
from wukong.errors import DataError

TEXT = st.text(max_size=40) | st.text("刘亦菲李宁·C罗的在演员王先生《》 ＡＢ１２張曼玉\ud800\x00", max_size=25)

_FOLDER = Path(__file__).parents[4] / "benchmarks" / "curate" / "names"


def _script(name):
    """A script of the benchmark as a module; fit.py imports score.py by its name."""
    spec = importlib.util.spec_from_file_location(name, _FOLDER / f"{name}.py")
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


score = _script("score")
fit = _script("fit")


def masked(*captions, care="balanced"):
    return names.mask(captions, care)


def test_names_are_masked_and_the_rest_is_left():
    captions = {
        "刘亦菲古装造型高清写真图片": "<人名>古装造型高清写真图片",
        "演员王宝强、刘昊然出席发布会": "演员<人名>、<人名>出席发布会",
        "C罗倒钩世界波": "<人名>倒钩世界波",
        "迈克尔·乔丹扣篮": "<人名>扣篮",
        "古力娜扎红毯照": "<人名>红毯照",
        "張曼玉舊照片": "<人名>舊照片",
        "李建国教授讲课现场": "<人名>教授讲课现场",
        "摄影师张伟明在公园里拍照": "摄影师<人名>在公园里拍照",
    }
    assert dict(zip(captions, masked(*captions), strict=True)) == captions


def test_what_is_no_name_is_left():
    captions = [
        "李宁男款跑步鞋", "周大福黄金项链", "张家界天门山", "安静的午后时光", "白色连衣裙", "高清无水印素材",
        "张老师的公开课", "老李烧烤店",
        "鲍鱼", "书桌", "向右箭头", "石榴", "金鱼",
        "ＡＢＣ字母卡片", "１２３４５号楼", "“安全第一”标语", "", "   ", "<人名>",
    ]  # fmt: skip
    assert masked(*captions) == captions


def test_a_brand_is_a_person_when_something_only_a_person_does_is_near():
    assert masked("李宁点燃北京奥运会主火炬", "李宁运动鞋") == ["<人名>点燃北京奥运会主火炬", "李宁运动鞋"]


def test_more_care_finds_no_fewer_names():
    captions = [text for text, _ in score.read("general")]
    found = {care: sum(map(len, names.find(captions, care))) for care in ("precise", "balanced", "thorough")}
    assert found["precise"] < found["balanced"] < found["thorough"]


def test_labelled_captions_are_found_as_well_as_when_they_were_fitted():
    result = score.measure("general", names.find, draws=1)
    assert result["exact precision"][0] >= 0.95
    assert result["exact recall"][0] >= 0.92
    assert result["nameless captions hit"][0] <= 0.015


def test_the_parts_share_no_caption():
    parts = [{text for text, _ in score.read(part)} for part in ("apart", *(path.stem for path in score.tuning()))]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert len(parts[0]) >= 400


@given(st.lists(TEXT, max_size=6), st.sampled_from(["precise", "balanced", "thorough"]))
@settings(deadline=None, max_examples=60)
def test_any_string_is_taken_and_only_spans_change(captions, care):
    for caption, spans, result in zip(captions, names.find(captions, care), names.mask(captions, care), strict=True):
        assert all(0 <= start < end <= len(caption) for start, end in spans)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
        outside = [c for place, c in enumerate(caption) if not any(start <= place < end for start, end in spans)]
        assert result.replace(names.MASK, "", len(spans)) == "".join(outside) or names.MASK in caption
        assert len(result) == len(outside) + len(spans) * len(names.MASK)
        assert names.mask([result], care) == [result]


@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.integers(1, 4), st.integers(-16, 64)), max_size=7, unique_by=lambda c: c[:2]
    )
)
def test_the_best_set_is_the_best_of_all_sets(candidates):
    spans, scores = [(start, start + size) for start, size, _ in candidates], [value / 4 for *_, value in candidates]
    sums = []
    for chosen in itertools.product((False, True), repeat=len(spans)):
        some = sorted(span for span, taken in zip(spans, chosen, strict=True) if taken)
        if all(before[1] <= after[0] for before, after in itertools.pairwise(some)):
            sums.append(sum(value for value, taken in zip(scores, chosen, strict=True) if taken))
    found = names.best(spans, scores)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(found))
    assert sum(scores[spans.index(span)] for span in found) == max(sums)


def test_a_name_in_a_long_caption_is_found_wherever_the_windows_end():
    filler = "高清素材图片免费下载"
    for before in range(0, 300, 7):
        text = (filler * 40)[:before] + "演员王宝强出席发布会" + filler * 12
        assert names.find([text]) == [[(before + 2, before + 5)]]


@given(st.integers(1, 2000))
def test_every_place_of_a_caption_is_inner_to_one_window(length):
    text = "一" * length
    inner = [
        start + place
        for start, window in names._windows(text)
        for place in range(len(window))
        if names._is_inner(place, window, start, length)
    ]
    assert inner == list(range(length))


def test_a_long_caption_takes_no_more_memory_than_many_short_ones():
    names.find(["猫"])
    tracemalloc.start()
    assert len(names.find(["猫abc " * 20_000])[0]) == 0
    assert len(names.find(["王宝强和李冰冰在北京" * 10_000])[0]) > 15_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 * 2**20


def test_a_text_is_read_the_same_alone_and_in_a_batch():
    texts = ["刘亦菲古装造型", "李宁点燃火炬吧", "猫", "", "安静的午后时光", "C罗进球"]
    for text, spans in zip(texts, tagger.load().read(texts), strict=True):
        assert spans == pytest.approx(tagger.load().read([text])[0], abs=1e-5)


def _tagger(hidden=3, seed=0):
    """A tagger with few states and random weights, and the model in torch with the same ones."""
    torch.manual_seed(seed)
    numbers, vectors = {"刘": 0, "亦": 1, "菲": 2, "在": 3}, torch.randn(5, tagger.VECTOR).numpy()
    model = fit.Model(vectors, hidden)
    with torch.no_grad():
        for weight in model.weights.values():
            weight.copy_(torch.randn(weight.shape) * (0.3 if weight.dim() > 1 else 1))
    words = word_lists.NameWords({"刘亦菲": {0}, "在": {1, 3}, "亦菲": {7}})
    return (
        tagger.Tagger(model.exported(), vectors, numbers, words),
        model.eval(),
        (numbers, len(vectors) - 1, words),
    )


def _paths(scores, steps):
    """Every path of tags that is allowed through the scores of one text, with its power."""
    tags = tagger.TAGS
    for path in itertools.product(range(len(tags)), repeat=len(scores)):
        allowed = tagger.FIRST[path[0]] and tagger.LAST[path[-1]]
        if allowed and all(tagger.FOLLOWS[pair] for pair in itertools.pairwise(path)):
            value = sum(scores[place, tag] for place, tag in enumerate(path))
            yield path, np.exp(value + sum(steps[pair] for pair in itertools.pairwise(path)))


def test_probabilities_are_those_of_trying_every_path():
    fitted, model, _ = _tagger()
    texts = ["刘亦菲在", "在在刘在", "X菲亦刘"]
    scores, steps = fitted.scores(texts).astype(float), model.exported()["steps"].astype(float)
    for row, found in enumerate(fitted.read(texts)):
        expected, total = defaultdict(float), 0.0
        for path, power in _paths(scores[:, row], steps):
            total += power
            for start, tag in enumerate(path):
                if tag == tagger.SINGLE:
                    expected[start, start + 1] += power
                if tag == tagger.BEGINS:
                    expected[start, path.index(tagger.ENDS, start) + 1] += power
        likely = {span: power / total for span, power in expected.items() if power / total >= 0.01}
        assert found == pytest.approx(likely, abs=1e-4)


def test_scores_and_likelihood_are_those_of_the_model_that_is_fitted(monkeypatch):
    monkeypatch.setattr(fit, "MISSING", ())
    monkeypatch.setattr(fit, "MISSING_ONE", 0)
    fitted, model, tables = _tagger(seed=1)
    captions = [("刘亦菲在X", [(0, 3)]), ("在刘", [(1, 2)]), ("菲菲", [])]
    ids, marks, there, tags = fit.batch(captions, *tables, random.Random(0))
    with torch.no_grad():
        scores, loss = model.scores(ids, marks, there), model.loss(ids, marks, there, tags)
    likelihood, steps = [], model.exported()["steps"].astype(float)
    for row, (text, spans) in enumerate(captions):
        mine = fitted.scores([text])[:, 0]
        np.testing.assert_allclose(scores[row, : len(text)], mine, atol=1e-5)
        powers = dict(_paths(mine.astype(float), steps))
        labelled = {
            path: power
            for path, power in powers.items()
            if [(i, path.index(3, i) + 1) if tag == 1 else (i, i + 1) for i, tag in enumerate(path) if tag in (1, 4)]
            == spans
        }
        assert len(labelled) == 1
        likelihood.append(np.log(sum(labelled.values()) / sum(powers.values())))
    assert float(loss) == pytest.approx(-np.mean(likelihood), abs=1e-4)


class _Recorded:
    """A tagger that gives what it is told, and keeps what it was asked."""

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    def read(self, texts):
        self.asked += texts
        return [self.answers.get(text, {}) for text in texts]


def test_a_committee_asks_the_others_where_the_first_suspects_a_name():
    first = _Recorded({"甲": {(0, 1): 0.6}, "乙": {(0, 1): 0.02}})
    second = _Recorded({"甲": {(0, 1): 0.9, (1, 2): 0.5}})
    read = tagger.Committee([first, second]).read(["甲", "乙", "丙"])
    assert (first.asked, second.asked) == (["甲", "乙", "丙"], ["甲"])
    # Odds of 1.5 and 9, and of 0.005 to 0.995 and 1.
    odds = {(0, 1): (1.5 * 9) ** 0.5, (1, 2): (0.005 / 0.995) ** 0.5}
    assert read[0] == pytest.approx({span: value / (1 + value) for span, value in odds.items()})
    assert read[1:] == [{}, {}]


def test_a_gru_step_is_the_textbooks():
    generator = np.random.default_rng(1)
    hidden = 8
    gates = generator.normal(size=(2, hidden, 2 * hidden)).astype(np.float32)
    candidate = generator.normal(size=(2, hidden, hidden)).astype(np.float32)
    inputs = generator.normal(size=(3, 2, 6 * hidden)).astype(np.float32)
    got = tagger._bidirectional(inputs, gates, candidate)
    for text, (order, way) in itertools.product(range(2), [((0, 1, 2), 0), ((2, 1, 0), 1)]):
        state = np.zeros(hidden)
        for place in order:
            x = inputs[place, text, way * 3 * hidden : (way + 1) * 3 * hidden].astype(float)
            update = 1 / (1 + np.exp(-(x[:hidden] + state @ gates[way][:, :hidden])))
            reset = 1 / (1 + np.exp(-(x[hidden : 2 * hidden] + state @ gates[way][:, hidden:])))
            new = np.tanh(x[2 * hidden :] + (reset * state) @ candidate[way])
            state = (1 - update) * state + update * new
            np.testing.assert_allclose(got[place, text, way * hidden : (way + 1) * hidden], state, atol=1e-5)


@given(
    st.text("甲乙丙", max_size=12),
    st.dictionaries(
        st.text("甲乙丙", min_size=1, max_size=5), st.sets(st.integers(0, 7), min_size=1), min_size=1, max_size=8
    ),
)
def test_marks_are_those_of_looking_at_every_string(text, kinds):
    expected = np.zeros((len(text), len(word_lists.MARKS)))
    for start, end in itertools.combinations(range(len(text) + 1), 2):
        for kind, place in itertools.product(kinds.get(text[start:end], ()), range(start, end)):
            for at, here in (("first", place == start), ("last", place == end - 1), ("inner", start < place < end - 1)):
                if here:
                    expected[place, word_lists.MARKS.index(f"{at} of a {word_lists.KINDS[kind]}")] = 1
    np.testing.assert_array_equal(word_lists.marks(word_lists.NameWords(kinds).find(text), len(text)), expected)


def test_the_lists_know_what_they_should():
    words = word_lists.load()

    def kinds(text):
        bits, start, end = words.find(text)
        whole = [bit for bit, low, high in zip(bits, start, end, strict=True) if (low, high) == (0, len(text))]
        return {kind for number, kind in enumerate(word_lists.KINDS) if whole and whole[0] >> number & 1}

    assert "person" in kinds("刘亦菲")
    assert kinds("李宁") >= {"brand"}
    assert "place" in kinds("黑龙江省")
    assert "word" in kinds("安静") or "dictionary name" in kinds("安静")
    assert kinds("欧阳") >= {"surname"}
    assert kinds("佐藤") >= {"japanese surname"}


@pytest.mark.parametrize("damage", [lambda data: data[:-4], lambda data: data[:5], lambda data: b"\x01" + data[1:]])
def test_damaged_vectors_are_explained(tmp_path, damage):
    import jieba

    source = Path(jieba.__file__).parent / "lac_small" / "model_baseline" / "fc_4.b_0"
    (tmp_path / "fc_4.b_0").write_bytes(damage(source.read_bytes()))
    with pytest.raises(DataError, match=r"fc_4\.b_0"):
        tagger.read_tensor(tmp_path / "fc_4.b_0", (57,))


def test_simplified_forms_keep_places():
    text = "張曼玉舊照片，發展與頭髮"
    assert simplify(text) == "张曼玉旧照片，发展与头发"
    assert len(simplify(text)) == len(text)
