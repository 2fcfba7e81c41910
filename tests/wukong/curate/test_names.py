"""Person names: the tagger against first principles, the finder against labelled captions, and any string at all."""

import importlib.util
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wukong.curate import lac, name_spans, name_words, names
from wukong.curate.simplified import simplify
from wukong.errors import DataError

TEXT = st.text(max_size=40) | st.text("刘亦菲李宁·C罗的在演员王先生《》 ＡＢ１２張曼玉\ud800\x00", max_size=25)

_spec = importlib.util.spec_from_file_location(
    "name_score", Path(__file__).parents[3] / "benchmarks" / "curate" / "names" / "score.py"
)
score = importlib.util.module_from_spec(_spec)
sys.modules["name_score"] = score
_spec.loader.exec_module(score)


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
    captions = [text for text, _ in score.read("tuning")]
    found = {care: sum(map(len, names.find(captions, care))) for care in ("precise", "balanced", "thorough")}
    assert found["precise"] < found["balanced"] < found["thorough"]


def test_labelled_captions_are_found_as_well_as_when_they_were_fitted():
    result = score.measure("tuning", score.with_wukong, draws=1)
    assert result["exact precision"][0] >= 0.95
    assert result["exact recall"][0] >= 0.92
    assert result["nameless captions hit"][0] <= 0.015


def test_the_parts_share_no_caption():
    parts = {part: {text for text, _ in score.read(part)} for part in ("tuning", "apart")}
    assert len(parts["tuning"] & parts["apart"]) == 0
    assert sum(map(len, parts.values())) >= 400


@pytest.mark.parametrize("weights", ["gate", "score"])
def test_the_committed_weights_are_of_the_features(weights):
    loaded = getattr(names.load_weights(), weights)
    extra = name_spans.LAC_FEATURES if weights == "score" else ()
    assert len(loaded) == len(name_spans.FEATURES) + len(extra)


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


def test_a_text_is_read_the_same_alone_and_in_a_batch():
    texts = ["刘亦菲古装造型", "李宁点燃火炬吧", "猫", "", "安静的午后时光", "C罗进球"]
    for text, reading in zip(texts, lac.load().read(texts), strict=True):
        alone = lac.load().read([text])[0]
        np.testing.assert_allclose(alone.begins, reading.begins, atol=1e-5)
        np.testing.assert_allclose(alone.names, reading.names, atol=1e-5)
        assert reading.begins.shape == (len(text), len(lac.GROUPS))
        assert reading.names.shape == (len(text), lac.LONGEST)


def test_probabilities_are_those_of_trying_every_path():
    # A model of five tags: two kinds of name, begun and gone on, and one more word.
    few = lac.Lac.__new__(lac.Lac)
    generator = np.random.default_rng(0)
    length, texts, tags = 4, 3, 5
    start, stop, steps = generator.normal(size=5), generator.normal(size=5), generator.normal(size=(5, 5))
    few._first_tag, few._last_tag, few._steps = (np.exp(a).astype(np.float32) for a in (start, stop, steps))
    few._names = [(0, 1), (2, 3)]
    few._groups = np.zeros((2, tags), np.float32)
    few._groups[0, [0, 2]] = few._groups[1, 4] = 1
    emissions = generator.normal(size=(length, texts, tags)).astype(np.float32)
    begins, found = few._posteriors(emissions)
    for text in range(texts):
        expected_begins, expected = np.zeros((length, 2)), np.zeros((length, lac.LONGEST))
        total = 0.0
        for path in itertools.product(range(tags), repeat=length):
            value = start[path[0]] + stop[path[-1]] + sum(emissions[place, text, tag] for place, tag in enumerate(path))
            power = np.exp(value + sum(steps[before, after] for before, after in itertools.pairwise(path)))
            total += power
            for place, tag in enumerate(path):
                expected_begins[place] += power * few._groups[:, tag]
                if tag in (0, 2):
                    end = place + 1
                    while end < length and path[end] == tag + 1:
                        end += 1
                    expected[place, end - place - 1] += power
        np.testing.assert_allclose(begins[text], expected_begins / total, atol=1e-5)
        np.testing.assert_allclose(found[text], expected / total, atol=1e-5)


def test_a_gru_step_is_the_textbooks():
    generator = np.random.default_rng(1)
    gates, candidate = generator.normal(size=(128, 256)) * 0.1, generator.normal(size=(128, 128)) * 0.1
    weights = (gates.astype(np.float32), candidate.astype(np.float32))
    inputs = generator.normal(size=(3, 2, 768)).astype(np.float32)
    got = lac._bidirectional(inputs, weights, weights)
    for text, (order, half) in itertools.product(range(2), [((0, 1, 2), 0), ((2, 1, 0), 1)]):
        state = np.zeros(128)
        for place in order:
            x = inputs[place, text, half * 384 : half * 384 + 384].astype(float)
            update = 1 / (1 + np.exp(-(x[:128] + state @ gates[:, :128])))
            reset = 1 / (1 + np.exp(-(x[128:256] + state @ gates[:, 128:])))
            new = np.tanh(x[256:] + (reset * state) @ candidate)
            state = (1 - update) * state + update * new
            np.testing.assert_allclose(got[place, text, half * 128 : half * 128 + 128], state, atol=1e-5)


def test_words_and_names_are_lacs():
    reading = lac.load().read(["百度是一家高科技公司，李彦宏创办"])[0]
    groups = list(lac.GROUPS)
    assert reading.begins[0, groups.index("organisation")] > 0.9
    assert reading.begins[8, groups.index("noun")] > 0.9
    assert reading.begins[11, groups.index("person")] > 0.9
    assert reading.names[11, 2] > 0.9


def test_the_dictionary_is_segmented_as_trying_every_way_does():
    words = name_words.load()
    for text in ("春季新款男士夹克外套", "江南水乡古镇", "刘亦菲在北京", "A猫"):
        segmented = words.segment(text)

        def ways(part):
            yield from ([part],) if not part else ()
            for end in range(1, len(part) + 1):
                yield from ([part[:end], *rest] for rest in ways(part[end:]))

        def likely(way):
            known = [words.words if len(word) > 1 else words.characters for word in way if word]
            parts = zip((word for word in way if word), known, strict=True)
            return sum(table.get(word, name_words.UNKNOWN if len(word) == 1 else -np.inf) for word, table in parts)

        best = max(map(likely, ways(text)))
        assert segmented.upto[-1] == pytest.approx(best)
        assert segmented.onward[0] == pytest.approx(best)
        assert segmented.without(0, len(text)) == pytest.approx(likely(list(text)) - best)


@pytest.mark.parametrize("damage", [lambda data: data[:-4], lambda data: data[:5], lambda data: b"\x01" + data[1:]])
def test_a_damaged_model_is_explained(tmp_path, damage):
    import jieba

    source = Path(jieba.__file__).parent / "lac_small" / "model_baseline" / "fc_4.b_0"
    (tmp_path / "fc_4.b_0").write_bytes(damage(source.read_bytes()))
    with pytest.raises(DataError, match=r"fc_4\.b_0"):
        lac.read_tensor(tmp_path / "fc_4.b_0", (57,))


def test_simplified_forms_keep_places():
    text = "張曼玉舊照片，發展與頭髮"
    assert simplify(text) == "张曼玉旧照片，发展与头发"
    assert len(simplify(text)) == len(text)
