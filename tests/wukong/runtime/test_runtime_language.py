"""A text becomes Chinese where the catalogue has its message: fields, parts that were joined, and what stays."""

import gettext
import io

import pytest
from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from hypothesis import given
from hypothesis import strategies as st

from wukong.runtime import language

_MESSAGES = {
    "{path}: there is no column {name}": "{path}：没有 {name} 列",
    "{path}: there is no file": "{path}：没有这个文件",
    "{count:n} pictures": "{count} 张图片",
    "did you mean {name}?": "您是不是想写 {name}？",
    "nothing is to be done": "没有要做的事",
    "Home  {home}\nand below": "主目录 {home}\n及以下",
    "pictures": "图片",
    "write {{}} for {name} and {name}": "{name} 请写成 {{}}",
    "cannot read {path}: {error}. Put it back": "无法读取 {path}：{error}。请恢复",
    "{file} has changed since {time}": "{file} 在 {time} 之后有改动",
    "the folder": "文件夹",
    "JPEG, PNG or GIF": "JPEG、PNG 或 GIF",
}


def _compiled(messages: dict[str, str]) -> bytes:
    catalogue = Catalog(locale="zh")
    for each, translation in messages.items():
        catalogue.add(each, translation)
    written = io.BytesIO()
    write_mo(written, catalogue)
    return written.getvalue()


@pytest.fixture(scope="module")
def catalogue() -> language.Catalogue:
    return language.Catalogue(language.entries(_compiled(_MESSAGES)))


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("nothing is to be done", "没有要做的事"),
        ("  nothing is\n to be done\n", "  没有要做的事\n"),
        ("Home  /a b\nand below", "主目录 /a b\n及以下"),
        ("/a b/c.csv: there is no column url", "/a b/c.csv：没有 url 列"),
        ("/a/pictures: there is no file", "/a/pictures：没有这个文件"),
        ("1,234 pictures", "1,234 张图片"),
        ("1.2e-05 pictures", "1.2e-05 张图片"),
        ("many pictures", "many pictures"),
        ("x.csv: there is no column urll; did you mean url?", "x.csv：没有 urll 列；您是不是想写 url？"),
        ("there is no column a in b, c or d: there is no file", "there is no column a in b, c or d：没有这个文件"),
        ("cannot read a: the folder: there is no column b, c. Put it back", "无法读取 a：文件夹：没有 b, c 列。请恢复"),
        ("a: there is no file\n  b: there is no column c\n d: e f", "a：没有这个文件\n  b：没有 c 列\n d: e f"),
        ("the folder has changed since JPEG, PNG or GIF", "文件夹在 JPEG、PNG 或 GIF 之后有改动"),
        ("the folder has changed since a, b and c", "文件夹在 a, b 和 c 之后有改动"),
        ("红 has changed since x", "红 在 x 之后有改动"),
        ("pictures", "图片"),
        ("name: pictures", "name: pictures"),
        ("write {} for a and a", "a 请写成 {}"),
        ("write {} for a and b", "write {} for a and b"),
        ("", ""),
        ("\n", "\n"),
    ],
)
def test_translates(catalogue: language.Catalogue, english: str, chinese: str) -> None:
    assert catalogue.translate(english) == chinese


def test_reads_what_gettext_reads() -> None:
    compiled = _compiled(_MESSAGES)
    theirs = gettext.GNUTranslations(io.BytesIO(compiled))
    assert {each: theirs.gettext(each) for each in _MESSAGES} == _MESSAGES
    assert {each: text for each, text in language.entries(compiled).items() if each} == _MESSAGES


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"])))
def test_a_text_without_a_message_stays(text: str) -> None:
    words = language.Catalogue({"no text has these words": "没有"})
    assert words.translate(text) == text


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
