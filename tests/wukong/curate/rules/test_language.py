"""The language check, and when it is off."""

from rule_samples import judge


def test_a_caption_that_is_not_chinese_is_dropped():
    assert judge(["a cat", "ねこ", "一只猫"]) == ["language", "language", None]


def test_whoever_keeps_captions_without_chinese_characters_keeps_other_languages():
    assert judge(["a cat", "ねこ"], min_length=0) == [None, None]
