import runpy
from pathlib import Path

import pytest

from wukong.errors import ConfigError, DataError
from wukong.evaluate import prompts
from wukong.runtime.installed import installed_file


def carried() -> list[str]:
    path = installed_file("cn_clip", "cn_clip/eval/imagenet_zeroshot_templates.py", "pip install cn-clip==1.6.0")
    return [template("{}") for template in runpy.run_path(str(path))["openai_imagenet_template"]]


def test_the_authors_prompts_are_those_that_cn_clip_carries() -> None:
    assert list(prompts.of("authors")) == carried()
    assert len(prompts.of("authors")) == 80 and len(set(prompts.of("authors"))) == 78


def test_our_prompts_are_80_distinct_ones_and_six_are_the_authors() -> None:
    assert prompts.of("ours") is prompts.PROMPTS
    assert len(set(prompts.of("ours"))) == len(prompts.of("ours")) == 80
    assert sum(prompt in carried() for prompt in prompts.of("ours")) == 6


def test_chinese_clips_prompts_are_those_that_its_own_script_takes() -> None:
    """The package's file is run here; the product only reads it."""
    path = installed_file("cn_clip", "cn_clip/eval/cvinw_zeroshot_templates.py", "pip install cn-clip==1.6.0")
    lists = runpy.run_path(str(path))
    script = path.with_name("zeroshot_evaluation.py").read_text("utf-8")
    for data_set, theirs, name, count, distinct in (
        ("flowers102", "oxford-flower-102", "flower_templates", 32, 32),
        ("food101", "food-101", "food_templates", 21, 21),
        ("aircraft", "fgvc-aircraft-2013b-variants102", "aircraft_templates", 100, 100),
        ("eurosat", "eurosat_clip", "eurosat_templates", 24, 24),
        ("imagenet", "openai", "openai_templates", 183, 179),
        ("caltech101", "openai", "openai_templates", 183, 179),
    ):
        assert f'"{theirs}": {name}' in script
        found = prompts.of("cn-clip", data_set)
        assert list(found) == [template("{}") for template in lists[name]]
        assert (len(found), len(set(found))) == (count, distinct)
        assert all(prompt.count("{}") == 1 for prompt in found)


@pytest.mark.parametrize("name", ["authors", "ours"])
def test_a_list_without_prompts_for_some_sets_is_the_same_for_all(name: str) -> None:
    assert prompts.of(name, "flowers102") == prompts.of(name)


def test_prompts_of_another_version_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.py").write_text("openai_templates = [lambda c: f'{c}']")
    monkeypatch.setattr(prompts, "installed_file", lambda *_: tmp_path / "x.py")
    prompts._chinese_clip.cache_clear()
    with pytest.raises(ConfigError, match=r"has not the prompts of cn-clip 1\.6\.0.*pip install --no-deps cn-clip"):
        prompts.of("cn-clip")


@pytest.mark.parametrize("name", ["authors", "ours"])
def test_a_prompt_is_one_sentence_with_one_place_for_the_name(name: str) -> None:
    for prompt in prompts.of(name):
        assert prompt.count("{}") == 1 and prompt.endswith("。") and prompt == prompt.strip()
        assert prompt.format("{猫}").replace("{猫}", "{}") == prompt


def test_unknown_prompts_are_refused_with_what_there_is() -> None:
    with pytest.raises(DataError, match="there are no prompts 'clip'; there are: authors, ours, cn-clip"):
        prompts.of("clip")
