from pathlib import Path

import pytest
from kfp import dsl

from pipelines import local

pytestmark = pytest.mark.slow


@dsl.component(base_image="python", install_kfp_package=False)
def say(text: str, fail: bool) -> str:
    print(f"saying {text}")
    if fail:
        raise ValueError("no more words")
    return text


@dsl.pipeline
def twice(text: str, fail: bool) -> None:
    first = say(text=text, fail=False)
    say(text=first.output, fail=fail)


def test_components_run_in_order_and_their_lines_are_handed_on(tmp_path: Path) -> None:
    lines: list[str] = []
    local.run(twice, {"text": "悟空", "fail": False}, tmp_path, lines.append)
    assert [line.strip() for line in lines].count("saying 悟空") == 2
    assert not any("\n" in line for line in lines)


def test_a_failing_component_ends_the_run(tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(local.PipelineError):
        local.run(twice, {"text": "悟空", "fail": True}, tmp_path, lines.append)
    assert any("no more words" in line for line in lines)
