"""The configuration reference says what the types say."""

import re
from collections.abc import Iterator
from types import NoneType
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from tools import config_reference
from wukong.config.experiment import Experiment


def keys(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key that holds a value, by its dotted name; in lists with ``[]``."""
    for name, field in model.model_fields.items():
        kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        (section,) = [kind for kind in kinds if issubclass(kind, BaseModel)] or [None]
        if section is None:
            yield f"{path}{name}", field
        elif section is field.annotation:
            yield from keys(section, f"{path}{name}.")
        else:
            yield f"{path}{name}", field
            yield from keys(section, f"{path}{name}." if NoneType in get_args(field.annotation) else f"{path}{name}[].")


@pytest.fixture(scope="module")
def rows() -> dict[str, list[str]]:
    """The cells of each row by key."""
    lines = config_reference.reference().splitlines()
    found = [line.split("|")[1:-1] for line in lines if line.startswith("| `")]
    rows = [(name, [cell.strip() for cell in cells[1:]]) for cells in found for name in re.findall("`(.+?)`", cells[0])]
    assert len(rows) == len(dict(rows))
    return dict(rows)


def test_the_page_is_fresh() -> None:
    written = config_reference.PAGE.read_text(encoding="utf-8")
    assert written == config_reference.reference(), "run `make generate`"


def test_every_key_is_there_once(rows: dict[str, list[str]]) -> None:
    assert sorted(rows) == sorted(name for name, _ in keys(Experiment))


def test_every_key_has_a_meaning(rows: dict[str, list[str]]) -> None:
    assert [key for key, cells in rows.items() if not cells[3]] == []


def test_type_default_and_range_are_those_of_the_key(rows: dict[str, list[str]]) -> None:
    assert rows["crawl.jpeg_quality"][:3] == ["integer", "`95`", "≥ 1 and ≤ 100"]
    assert rows["crawl.endpoint"][:2] == ["text", "none, must be set"]
    assert rows["crawl.previous"][:2] == ["text or null", "`null`"]
    assert rows["filter.name_care"][:3] == ["text", '`"balanced"`', "`precise`, `balanced`, `thorough`"]
    assert rows["finetune.lock"][:3] == ["text or integer", '`"all"`', "`all`, `none`, > 0"]
    assert rows["pretrain.augmentations"][0] == "list of texts"
    assert rows["model.text.dropout"][2] == "≥ 0 and < 1"
    assert rows["filter.unsafe"][:2] == ["section or null", "`null`"]
    assert rows["filter.unsafe.model.input.mean"][:2] == ["list of 3 numbers", "`[0.0, 0.0, 0.0]`"]
    assert rows["storage"][2] == "<code>^(s3&#124;file)://.+</code>"
