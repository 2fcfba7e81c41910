"""The first task of a pipeline: what cannot be run ends here, before any pod of a stage."""

from pathlib import Path

import pytest
import yaml

from components.configure import configure
from wukong import storage
from wukong.errors import ConfigError
from wukong.stages import WHOLE_RUN

HOLDOUTS = [{"name": "h", "source": "*", "captions": "unseen"}]


def configured(
    tmp_path: Path, overrides: list[str], *, run: str = "first", stages: tuple[str, ...] = WHOLE_RUN
) -> tuple[str, str, str]:
    (tmp_path / "urls.csv").write_text("url,caption\n")
    value = {
        "name": "x",
        "storage": storage.from_path(tmp_path / "data"),
        "crawl": {"engine": "urls", "endpoint": storage.from_path(tmp_path / "urls.csv")},
        "filter": {"split": {"held_out_captions": 0.1, "holdouts": HOLDOUTS}},
    }
    text = yaml.safe_dump(value)
    return configure.python_func(text, overrides, -1, -1, -1.0, -1, -1, run, "kfps-own", False, list(stages))


def test_what_can_be_run_is_handed_on(tmp_path: Path) -> None:
    _, run, start = configured(tmp_path, [])
    assert (run, start) == ("first", "")
    assert configured(tmp_path, [], run="")[1] == "kfps-own"


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("filter.split.holdouts=[]", r"filter\.split\.holdouts: there is none"),
        ("crawl.endpoint=file:///none.csv", r"crawl\.endpoint: file:///none\.csv is no list of URLs"),
        ("model.image.weights=file:///none", r"model\.image\.weights: file:///none does not exist"),
        ("model.image.weights=packge", r"model\.image\.weights: .*'packge'"),
    ],
)
def test_what_cannot_be_run_is_named(tmp_path: Path, override: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        configured(tmp_path, [override])


def test_a_name_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run name '\.\./x'"):
        configured(tmp_path, [], run="../x")


def test_a_data_set_needs_neither_hold_out_nor_weights(tmp_path: Path) -> None:
    none = ["filter.split.holdouts=[]", "model.image.weights=file:///none"]
    configured(tmp_path, none, stages=("crawl", "filter", "validate", "release"))


def test_measuring_again_needs_no_list(tmp_path: Path) -> None:
    configured(tmp_path, ["crawl.endpoint=file:///gone.csv"], stages=("evaluate",))
