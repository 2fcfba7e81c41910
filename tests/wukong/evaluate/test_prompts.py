import runpy

import pytest

from wukong.errors import DataError
from wukong.evaluate import prompts
from wukong.installed import installed_file


def carried() -> list[str]:
    path = installed_file("cn_clip", "cn_clip/eval/imagenet_zeroshot_templates.py", "pip install cn-clip==1.6.0")
    return [template("{}") for template in runpy.run_path(str(path))["openai_imagenet_template"]]


def test_the_authors_prompts_are_those_that_cn_clip_carries() -> None:
    assert list(prompts.of("authors")) == carried()
    assert len(prompts.of("authors")) == 80 and len(set(prompts.of("authors"))) == 78


def test_our_prompts_are_80_distinct_ones_and_six_are_the_authors() -> None:
    assert prompts.of("ours") is prompts.PROMPTS
    assert len(set(prompts.of("ours"))) == len(prompts.of("ours")) == 80
    assert tuple(prompt for prompt in prompts.of("ours") if prompt in carried()) == prompts.OF_THE_PAPER
    assert len(prompts.OF_THE_PAPER) == 6


@pytest.mark.parametrize("name", prompts.NAMES)
def test_a_prompt_is_one_sentence_with_one_place_for_the_name(name: str) -> None:
    for prompt in prompts.of(name):
        assert prompt.count("{}") == 1 and prompt.endswith("。") and prompt == prompt.strip()
        assert prompt.format("{猫}").replace("{猫}", "{}") == prompt


def test_unknown_prompts_are_refused_with_what_there_is() -> None:
    with pytest.raises(DataError, match="there are no prompts 'clip'; there are: authors, ours"):
        prompts.of("clip")
