"""Finding and masking names: labelled captions, any string at all, and the choice of spans against all choices."""

import importlib.util
import itertools
import tracemalloc
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from wukong.curate import names
from wukong.curate.names import word_lists
from wukong.curate.text.simplified import simplify

TEXT = st.text(max_size=40) | st.text("刘亦菲李宁·C罗的在演员王先生《》 ＡＢ１２張曼玉\ud800\x00", max_size=25)


def _script(name):
    """A script of the benchmark as a module."""
    path = Path(__file__).parents[4] / "benchmarks" / "curate" / "names" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


score = _script("score")


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


def test_a_character_of_an_ordinary_word_is_no_name():
    """Words of the dictionary whose last character is one of given names, as 梅 of 话梅 (a dried plum)."""
    single, _ = word_lists.surnames()
    given = {name[-1] for name in word_lists.read_list("people.txt") if len(name) in (2, 3) and name[0] in single}
    names_too = {"nr", "ns", "nt", "nz"}
    words = [word for word, _, flag in word_lists.dictionary() if len(word) == 2 and flag[:2] not in names_too]
    words = ["话梅", "叫安", "人武", *[word for word in words if word[1] in given and word[0] not in single][::40]]
    captions = [f"我拍的{word}。" for word in words]
    for care in ("balanced", "thorough"):
        for word, caption in zip(words, masked(*captions, care=care), strict=True):
            assert caption.endswith("。"), word
            assert caption != f"我拍的{word[0]}<人名>。", word
    assert masked("我拍的话梅。", "杨梅。") == ["我拍的话梅。", "杨梅。"]


@given(
    st.sampled_from(["李建国", "张伟明", "王宝强", "李小梅"]),
    st.sampled_from(["。", "！", "？", "，", "…", "、", "”", "."]),
)
@settings(deadline=None, max_examples=40)
def test_a_mark_behind_a_name_stays(name, mark):
    assert masked(f"演员{name}{mark}", f"{name}{mark}") == [f"演员<人名>{mark}", f"<人名>{mark}"]


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
def test_the_chosen_spans_have_the_greatest_sum_of_all_choices(candidates):
    spans, scores = [(start, start + size) for start, size, _ in candidates], [value / 4 for *_, value in candidates]
    sums = []
    for chosen in itertools.product((False, True), repeat=len(spans)):
        some = sorted(span for span, taken in zip(spans, chosen, strict=True) if taken)
        if all(before[1] <= after[0] for before, after in itertools.pairwise(some)):
            sums.append(sum(value for value, taken in zip(scores, chosen, strict=True) if taken))
    found = names.best_intervals(spans, scores)
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
    assert len(names.find(["猫abc " * 4_000])[0]) == 0
    assert len(names.find(["王宝强和李冰冰在北京" * 2_000])[0]) > 3_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 48 * 2**20


def test_simplified_forms_keep_places():
    text = "張曼玉舊照片，發展與頭髮"
    assert simplify(text) == "张曼玉旧照片，发展与头发"
    assert len(simplify(text)) == len(text)
