"""A marked text is English, and Chinese where it is shown: fields, parts that were joined, and what stays."""

import gettext
import io
import json
import pickle
from collections.abc import Iterator

import numpy as np
import pytest
from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from hypothesis import given
from hypothesis import strategies as st

from wukong.runtime import language
from wukong.runtime.language import _, chinese, chinese_of, joined, ngettext, restored

_TEXTS: dict[str | tuple[str, str], str | tuple[str, ...]] = {
    "{path}: there is no column {name}": "{path}：没有 {name} 列",
    "{count:,} pictures": "{count:,} 张图片",
    "{file} has changed since {time}": "{file} 在 {time} 之后有改动",
    "{name} and {name}": "{name} 与 {name}",
    ("{count} seed", "{count} seeds"): ("{count} 个随机种子",),
    "the folder": "文件夹",
    "JPEG, PNG or GIF": "JPEG、PNG 或 GIF",
    "100 % {of}": "全部",
}


@pytest.fixture(autouse=True)
def catalogue(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    made, compiled = Catalog(locale="zh"), io.BytesIO()
    for each, translation in _TEXTS.items():
        made.add(each, translation)
    write_mo(compiled, made)
    compiled.seek(0)
    theirs = gettext.GNUTranslations(compiled)
    monkeypatch.setattr(language, "_catalogue", lambda: theirs)
    yield


@pytest.mark.parametrize(
    ("text", "english", "in_chinese"),
    [
        (_("the folder"), "the folder", "文件夹"),
        (_("no text of the catalogue"), "no text of the catalogue", "no text of the catalogue"),
        (_("100 % {of}"), "100 % {of}", "全部"),
        (_("{count:,} pictures").format(count=1234), "1,234 pictures", "1,234 张图片"),
        (_("{path}: there is no column {name}").format(path="a{b}", name="%s"), "a{b}: there is no column %s",
         "a{b}：没有 %s 列"),
        (_("{name} and {name}").format(name=_("the folder")), "the folder and the folder", "文件夹与文件夹"),
        (_("{file} has changed since {time}").format(file=_("the folder"), time=_("JPEG, PNG or GIF")),
         "the folder has changed since JPEG, PNG or GIF", "文件夹在 JPEG、PNG 或 GIF 之后有改动"),
        (_("{file} has changed since {time}").format(file="红", time="x"), "红 has changed since x",
         "红 在 x 之后有改动"),
        (_("{unknown} is left").format(unknown=_("the folder")), "the folder is left", "文件夹 is left"),
        (ngettext("{count} seed", "{count} seeds", 1).format(count=1), "1 seed", "1 个随机种子"),
        (ngettext("{count} seed", "{count} seeds", 2).format(count=2), "2 seeds", "2 个随机种子"),
        (joined([_("the folder"), "name"], ": "), "the folder: name", "文件夹：name"),
        (joined([_("the folder"), _("{count:,} pictures").format(count=2)], ", "), "the folder, 2 pictures",
         "文件夹, 2 张图片"),
        (_("{name} and {name}").format(name=joined([_("the folder")], " ")), "the folder and the folder",
         "文件夹与文件夹"),
    ],
)  # fmt: skip
def test_a_text_is_english_and_knows_its_chinese(text: str, english: str, in_chinese: str) -> None:
    assert (text, chinese(text)) == (english, in_chinese)
    assert json.loads(json.dumps({text: [text]})) == {english: [english]}
    assert chinese(pickle.loads(pickle.dumps(text))) == in_chinese, "a text may come from another process"


class _LocalError(Exception):
    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}")


def test_a_text_with_an_error_can_be_sent() -> None:
    text = _("{path}: there is no column {name}").format(path=_LocalError("a", "b"), name=np.float32(0.5))
    assert chinese(pickle.loads(pickle.dumps(text))) == "a: b：没有 0.5 列"
    assert chinese(_("{count:,} pictures").format(count=np.int32(1234))) == "1,234 张图片"


def test_a_plain_text_is_looked_up_whole() -> None:
    assert [chinese(each) for each in ("the folder", "2 pictures", "")] == ["文件夹", "2 pictures", ""]


def test_a_file_keeps_the_chinese_of_texts_with_fields() -> None:
    document = {
        "says": _("{count:,} pictures").format(count=2),
        "names": [_("the folder"), joined([_("the folder"), "x"], ": "), "red"],
        "value": 0.5,
    }
    known = chinese_of(document)
    assert known == {"2 pictures": "2 张图片", "the folder: x": "文件夹：x"}, "others are found by themselves"
    read = restored(json.loads(json.dumps(document)), json.loads(json.dumps(known)))
    assert read == document
    assert chinese(read["says"]) == "2 张图片"
    assert [chinese(each) for each in read["names"]] == ["文件夹", "文件夹：x", "red"]


@given(st.text(), st.text())
def test_no_value_changes_a_text(name: str, path: str) -> None:
    made = _("{path}: there is no column {name}").format(path=path, name=name)
    assert (made, chinese(made)) == (f"{path}: there is no column {name}", f"{path}：没有 {name} 列")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "zh_TW"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "en_US.UTF-8", "LANGUAGE": "zh:en"}, "zh"),
        ({}, "en"),
    ],
)
def test_the_locale_chooses(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str) -> None:
    for name in ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert language.chosen() == expected
    assert language.translated(_("the folder")) == ("文件夹" if expected == "zh" else "the folder")
