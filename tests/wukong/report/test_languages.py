"""Pages in both languages: what is written twice, and what a reader sees in a real Chromium, with axe."""

import gettext
import io
import re
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import every_page
import pytest
from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from chromium import PATIENCE
from english import english
from markupsafe import Markup

from wukong.report import languages, template
from wukong.runtime import language

PAGES = (
    *("report", "report, framed", "evaluation", "evaluation of one model", "comparison"),
    *("promotion", "promotion of the first", "promotion, forced", "table 5", "table 6", "table 7"),
    *("card", "card without sources", "summary of training content"),
)
LOCALES = {"en": "en-US", "zh-CN": "zh-CN"}
ENGLISH = re.compile(r"[A-Za-z][A-Za-z'’-]+(?: [A-Za-z][A-Za-z'’-]*){3,}")
"""Four English words."""
CHINESE = re.compile("[\u4e00-\u9fff]")
TEXTS = """() => {
  for (const element of document.querySelectorAll("details")) element.open = true;
  const walker = document.createTreeWalker(document.documentElement, NodeFilter.SHOW_TEXT), found = [];
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if ((element.checkVisibility() || element.tagName === "TITLE") && !element.closest("code, pre, script, style"))
      found.push([element.closest("[lang]").getAttribute("lang"), walker.currentNode.data]);
  }
  return found;
}"""
"""The visible texts of a page with their languages, but for code; its title too."""
ATTRIBUTES = """() => [...document.querySelectorAll("[alt], [title], [aria-label]")].flatMap(element =>
  ["alt", "title", "aria-label"].filter(name => element.hasAttribute(name)).map(name => element.getAttribute(name)))"""
Open = Callable[..., Any]


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalogue of its own."""
    texts = {
        "<b>{name}</b> has {count:,} pictures": "<b>{name}</b> 有 {count:,} 张图像",
        "a picture of {thing}": "{thing}的图像",
        "the cat": "猫",
        "all is well.": "一切正常。",
        "{count:,} rows": "{count:,} 行",
    }
    catalogue, compiled = Catalog(locale="zh"), io.BytesIO()
    for each, translation in texts.items():
        catalogue.add(each, translation)
    write_mo(compiled, catalogue)
    made = gettext.GNUTranslations(io.BytesIO(compiled.getvalue()))
    monkeypatch.setattr(language, "_catalogue", lambda: made)


@pytest.mark.usefixtures("known")
def test_a_message_has_its_values_in_both_languages() -> None:
    made = languages.both("<b>{name}</b> has {count:,} pictures", name="a&b", count=1234)
    assert made.english == "<b>a&amp;b</b> has 1,234 pictures"
    assert made.chinese == "<b>a&amp;b</b> 有 1,234 张图像"
    assert made == (
        '<span class="in-en" lang="en"><b>a&amp;b</b> has 1,234 pictures</span>'
        '<span class="in-zh" lang="zh-CN"><b>a&amp;b</b> 有 1,234 张图像</span>'
    )


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("value", "in_english", "in_chinese"),
    [
        ("<i>", "&lt;i&gt;", "&lt;i&gt;"),
        (Markup("<i>x</i>"), "<i>x</i>", "<i>x</i>"),
        ("猫", '<span lang="zh-CN">猫</span>', '<span lang="zh-CN">猫</span>'),
        ("a cat and a dog", '<span lang="en">a cat and a dog</span>', '<span lang="en">a cat and a dog</span>'),
        ("{x} & {0}", "{x} &amp; {0}", "{x} &amp; {0}"),
    ],
)
def test_a_value_is_escaped_and_has_its_own_language(value: str, in_english: str, in_chinese: str) -> None:
    made = languages.both("a picture of {thing}", thing=value)
    assert (made.english, made.chinese) == (f"a picture of {in_english}", f"{in_chinese}的图像")


@pytest.mark.usefixtures("known")
def test_what_is_in_both_languages_is_a_part_of_each_once() -> None:
    made = languages.both("a picture of {thing}", thing=languages.spoken("the cat"))
    assert (made.english, made.chinese) == ("a picture of the cat", "猫的图像")
    assert languages.attribute("alt", "a picture of {thing}", thing=languages.spoken("the cat")) == (
        'alt="a picture of the cat" data-zh-alt="猫的图像"'
    )


@pytest.mark.usefixtures("known")
def test_a_text_is_found_in_the_catalogue_or_stays() -> None:
    rows = language._("{count:,} rows").format(count=12)
    assert languages.spoken(rows).chinese == "12 行"
    assert languages.spoken("<x>") == "&lt;x&gt;", "one word has no language"
    assert languages.spoken("no <such> text") == '<span lang="en">no &lt;such&gt; text</span>'
    assert languages.spoken("没有 text") == '<span lang="zh-CN">没有 text</span>'
    together = languages.sentences(["all is well.", rows])
    assert (together.english, together.chinese) == ("all is well. 12 rows", "一切正常。12 行")


@pytest.mark.usefixtures("known")
def test_attributes_and_titles_cannot_be_left() -> None:
    nasty = '" onload="x" <b>&'
    escaped = "&#34; onload=&#34;x&#34; &lt;b&gt;&amp;"
    assert languages.attribute("title", "a picture of {thing}", thing=nasty) == (
        f'title="a picture of {escaped}" data-zh-title="{escaped}的图像"'
    )
    assert languages.title("a picture of {thing}", thing=nasty) == (
        f'<title data-zh-text="{escaped}的图像">a picture of {escaped}</title>'
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [("一只猫", ' lang="zh-CN"'), ("two 猫 here", ' lang="zh-CN"'), ("of the author", ' lang="en"')]
    + [(text, "") for text in ("", "MIT", "12.5 %", "a/b c/d"[:3], "2026-01-01 10:00", "12 s")],
)
def test_a_name_or_a_number_has_no_language(text: str, expected: str) -> None:
    assert languages.lang(text) == expected


def test_a_page_beside_a_report_names_its_run_in_both_languages() -> None:
    switch = template.fill("language.html.j2", {})
    page = f"<html><head>{languages.title('Runs')}</head><body>{switch}<main><svg><title>T</title></svg></main>"
    placed = template.beside_report(page, 'a"<b', {"Report": "report.html", "<b>": "b.html"})
    named = "a&#34;&lt;b · "
    assert f'<title data-zh-text="{named}运行">{named}Runs</title>' in placed and "<title>T</title>" in placed
    nav = re.findall("<nav.*</nav>", placed)[0]
    assert 'lang="zh-CN">报告<' in nav and ">&lt;b&gt;</a>" in nav and nav.count("report.html") == 1
    other = template.beside_report("<title>T</title><body><p>", "run", {"Report": "report.html"})
    assert other == '<title>run · T</title><body>\n<nav class="pages"><a href="report.html">Report</a></nav><p>'


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    made = every_page.pages(tmp_path_factory.mktemp("samples"))
    assert tuple(made) == PAGES
    for name, html in made.items():
        (folder / f"{name}.html").write_text(html, "utf-8")
        (folder / f"{name}, english.html").write_text(english(html), "utf-8")
    return {name: folder / f"{name}.html" for name in made}


@pytest.fixture
def visit(browser: Any) -> Iterator[Open]:
    """Opens a page for a reader; no page has an error of a script, or asks for anything but itself."""
    contexts: list[Any] = []
    wrong: list[str] = []

    def visited(page: Path, locale: str, **options: Any) -> Any:
        context = browser.new_context(locale=locale, **options)
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        opened = context.new_page()
        opened.on("pageerror", lambda error: wrong.append(str(error)))
        opened.on(
            "request", lambda asked: None if asked.url.startswith(("file:", "data:")) else wrong.append(asked.url)
        )
        opened.goto(page.as_uri())
        return opened

    yield visited
    for context in contexts:
        context.close()
    assert wrong == []


EACH_PAGE = pytest.mark.parametrize(
    "name", [name if name in ("report", "promotion") else pytest.param(name, marks=pytest.mark.long) for name in PAGES]
)


def wrongly_marked(texts: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Texts that are said to be of another language than they are."""
    chinese = [(told, text) for told, text in texts if CHINESE.search(text)]
    others = [(told, text) for told, text in texts if ENGLISH.search(text) and not CHINESE.search(text)]
    return [each for each in chinese if each[0] != "zh-CN"] + [each for each in others if each[0] != "en"]


@pytest.mark.slow
@EACH_PAGE
def test_a_chinese_reader_sees_english_only_where_the_data_are_english(
    visit: Open, pages: dict[str, Path], name: str
) -> None:
    page = visit(pages[name], LOCALES["zh-CN"])
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    texts = page.evaluate(TEXTS)
    assert sum(bool(CHINESE.search(text)) for _, text in texts) >= 8
    assert [text for _, text in texts if ENGLISH.search(text) and text.strip() not in every_page.IN_ENGLISH] == []
    assert [text for text in page.evaluate(ATTRIBUTES) if ENGLISH.search(text)] == []
    assert wrongly_marked(texts) == []


@pytest.mark.slow
@EACH_PAGE
def test_an_english_reader_sees_the_page_without_chinese(visit: Open, pages: dict[str, Path], name: str) -> None:
    """As it is where all that is not English is taken away from its HTML."""
    bilingual = visit(pages[name], LOCALES["en"])
    alone = visit(pages[name].with_stem(f"{name}, english"), LOCALES["en"])
    assert bilingual.evaluate("document.querySelector('main').innerText") == (
        alone.evaluate("document.querySelector('main').innerText")
    )
    assert bilingual.evaluate(ATTRIBUTES) == alone.evaluate(ATTRIBUTES)
    assert bilingual.title() == alone.title() != ""
    pictures = "[...document.querySelectorAll('img, image')].length"
    assert bilingual.evaluate(pictures) == alone.evaluate(pictures)
    assert wrongly_marked(bilingual.evaluate(TEXTS)) == []


@pytest.mark.long
@pytest.mark.parametrize(("spoken", "width", "colour"), [("en", 360, "light"), ("zh-CN", 1280, "dark")])
@pytest.mark.parametrize("name", PAGES)
def test_no_page_has_a_serious_finding(
    visit: Open, pages: dict[str, Path], name: str, spoken: str, width: int, colour: str
) -> None:
    viewport = {"width": width, "height": 800}
    page = visit(pages[name], LOCALES[spoken], viewport=viewport, color_scheme=colour)
    page.evaluate(TEXTS)  # opens what is folded
    page.evaluate(resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in ("serious", "critical")] == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    switch, heading = (page.locator(each).bounding_box() for each in (".language", "h1"))
    assert switch["x"] + switch["width"] <= width - 10 and switch["height"] >= 24
    words = page.evaluate("""() => {
      const range = document.createRange();
      range.selectNodeContents(document.querySelector("h1"));
      return [...range.getClientRects()].map(each => [each.right, each.top]);
    }""")
    assert all(right <= switch["x"] or top >= switch["y"] + switch["height"] for right, top in words), "none overlaps"
    assert heading["y"] < 200


@pytest.mark.slow
def test_the_chosen_language_is_kept(visit: Open, pages: dict[str, Path]) -> None:
    page = visit(pages["report"], LOCALES["en"])
    chart = page.locator(".curve svg")
    assert (page.title(), chart.get_attribute("aria-label")) == (
        "demo · first-7 · Wukong report",
        "loss from 5.0 to 1.25",
    )
    page.get_by_role("button", name="中文", exact=True).click()
    for _ in range(2):
        assert page.evaluate("document.documentElement.lang") == "zh-CN"
        assert page.locator("h2").first.inner_text() == "跨模态检索"
        assert page.title() == "demo · first-7 · Wukong 报告"
        assert chart.get_attribute("aria-label") == "损失：从 5.0 到 1.25"
        page.reload()
    page.goto(pages["card"].as_uri())
    assert page.evaluate("document.documentElement.lang") == "zh-CN", "for the other pages too"
    page.get_by_role("button", name="English", exact=True).click()
    assert page.locator("h2").first.inner_text() == "In numbers"
    page.goto(pages["report"].as_uri())
    assert page.evaluate("document.documentElement.lang") == "en"
    assert chart.get_attribute("aria-label") == "loss from 5.0 to 1.25"


@pytest.mark.slow
def test_a_page_in_a_frame_without_storage_has_its_switch(visit: Open, pages: dict[str, Path]) -> None:
    outer = pages["report, framed"].with_name("outer.html")
    outer.write_text(f'<iframe sandbox="allow-scripts" src="{pages["report, framed"].name}"></iframe>')
    frame = visit(outer, LOCALES["zh-CN"]).frames[1]
    assert frame.evaluate("(() => { try { return localStorage.length; } catch { return 'none'; } })()") == "none"
    for button, shown in (("English", "跨模态检索"), ("中文", "Retrieval"), ("English", "跨模态检索")):
        assert frame.locator("h2").first.inner_text() == shown
        frame.get_by_role("button", name=button, exact=True).click()


@pytest.mark.slow
def test_without_a_script_a_page_is_english_and_has_no_switch(visit: Open, pages: dict[str, Path]) -> None:
    page = visit(pages["report"], LOCALES["zh-CN"], java_script_enabled=False)
    assert page.locator("h2").first.inner_text() == "Retrieval"
    assert not page.locator("[data-language]").is_visible()
