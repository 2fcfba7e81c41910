"""The page in a real Chromium, with axe, in both languages: skipped, and said so, where there is no Chromium."""

import re
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import colours
import filtered
import pytest
from chromium import PATIENCE
from search_site import HOSTILE, Site, running, served

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.slow
WIDTHS = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 360, "height": 740}}
ENGLISH, CHINESE = "en-US", "zh-CN"
NAMES = set(
    re.findall(
        r"[A-Za-z]{2,}", f"Wukong JSON API Prometheus CLS SEP JPEG PNG WebP GIF BMP AVIF MiB colours, token {HOSTILE}"
    )
)
"""Latin words of a Chinese page: names, and what the tests put there."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(tmp_path_factory.mktemp("site")) as started:
        yield started


@pytest.fixture
def open_page(browser: Any, site: Site) -> Iterator[Callable[[str], Any]]:
    """Opens a page of a browser in a language; it fetches nothing from elsewhere and has no error of a script."""
    contexts: list[Any] = []
    elsewhere: list[str] = []
    errors: list[str] = []

    def opened_in(locale: str) -> Any:
        context = browser.new_context(viewport=WIDTHS["desktop"], base_url=site.address, locale=locale)
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        opened = context.new_page()
        opened.on(
            "request",
            lambda asked: None if asked.url.startswith((site.address, "data:")) else elsewhere.append(asked.url),
        )
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.on("console", lambda said: errors.append(said.text) if "Content Security" in said.text else None)
        opened.on("dialog", lambda dialog: (errors.append(f"dialog {dialog.message}"), dialog.dismiss()))
        return opened

    yield opened_in
    for context in contexts:
        context.close()
    assert elsewhere == []
    assert errors == []


@pytest.fixture
def page(open_page: Callable[[str], Any]) -> Any:
    return open_page(ENGLISH)


def visit(page: Any, path: str) -> None:
    """Open a page; once more if the machine's network interfaces have changed, for which Chromium drops requests."""
    try:
        page.goto(path)
    except playwright.Error as error:
        if "net::ERR_NETWORK_CHANGED" not in str(error):
            raise
        page.goto(path)


def findings(page: Any) -> list[str]:
    """Serious and critical findings of axe, and whether the page is wider than the window."""
    page.evaluate(resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")["violations"]
    wide = page.evaluate("document.documentElement.scrollWidth > innerWidth")
    serious = [each["id"] for each in found if each["impact"] in ("serious", "critical")]
    return serious + ["wider than the window"] * wide


def shown(page: Any) -> list[tuple[str, str]]:
    """What a person sees or hears of a page, but code and the title: each text with its language."""
    return page.evaluate(
        """() => {
          const texts = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
          const add = (text, element) => text?.trim() && texts.push([text, element.closest("[lang]").lang]);
          while (walker.nextNode()) {
            const element = walker.currentNode.parentElement;
            if (element.checkVisibility() && !element.closest("code")) add(walker.currentNode.data, element);
          }
          for (const element of document.querySelectorAll("[alt], [placeholder], [aria-label], [title]"))
            for (const name of ["alt", "placeholder", "aria-label", "title"]) add(element.getAttribute(name), element);
          return texts;
        }"""
    )


def foreign(page: Any) -> set[str]:
    """The words of a Chinese page that are neither Chinese nor names."""
    texts = [text for text, _ in shown(page) if text != "English"] + [page.title()]
    return set(re.findall(r"[A-Za-z]{2,}", " ".join(texts))) - NAMES


def paths(site: Site) -> list[str]:
    return [
        "/",
        "/?q=红蓝",
        "/?q=red apple",
        "/pictures/none",
        f"/pictures/{site.key_of_hostile}?q={'红' * 60}",
        "/?q=猫狗",
        f"/?q={'红' * 50}",
        "/?q=%E2%80%8B",
        f"/pictures/{site.key_of_hostile}?text=黑&labels=红,绿,黑",
        f"/pictures/{site.key_of_hostile}?labels=红",
        "/?q=红&word=色",
        "/about",
    ]


@pytest.mark.long
@pytest.mark.parametrize(("width", "colour", "locale"), [("desktop", "dark", ENGLISH), ("phone", "light", CHINESE)])
def test_no_page_has_a_serious_finding(
    open_page: Callable[[str], Any], site: Site, width: str, colour: str, locale: str
) -> None:
    """And each names the model in its title."""
    page = open_page(locale)
    page.set_viewport_size(WIDTHS[width])
    page.emulate_media(color_scheme=colour)
    for path in paths(site):
        visit(page, path)
        assert findings(page) == [], path
        assert page.title().endswith(" · colours, token"), path


@pytest.fixture(scope="module")
def filtered_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Pictures of which the data know all that people filter by."""
    known = filtered.columns(filtered.rows())
    with served(filtered.opened(tmp_path_factory.mktemp("filtered"), known)[0]) as started:
        yield started


@pytest.mark.parametrize(
    ("width", "colour"), [("phone", "light"), pytest.param("desktop", "dark", marks=pytest.mark.long)]
)
def test_the_form_of_filters_and_the_pages_have_no_serious_finding(
    browser: Any, filtered_site: Site, width: str, colour: str
) -> None:
    context = browser.new_context(viewport=WIDTHS[width], base_url=filtered_site.address, color_scheme=colour)
    context.set_default_timeout(PATIENCE)
    opened = context.new_page()
    asked = "source=example.com&min_width=64&since=2024-01-05&until=2024-02-20&word=图&fold=true"
    for path in (f"/?q=红&{asked}", "/?q=红&page=2", "/?q=红&licence=none", "/?q=红&since=x", "/about"):
        visit(opened, path)
        assert findings(opened) == [], path
    context.close()


def test_a_person_filters_and_turns_pages_without_a_script(browser: Any, filtered_site: Site) -> None:
    context = browser.new_context(java_script_enabled=False, viewport=WIDTHS["phone"], base_url=filtered_site.address)
    context.set_default_timeout(PATIENCE)
    opened = context.new_page()
    visit(opened, "/")
    assert not opened.locator("#source").is_visible()
    opened.locator(".filters summary").click()
    opened.get_by_label("From the site").fill("example.com")
    opened.get_by_label("At least so wide, in pixels").fill("64")
    opened.get_by_label("Show near-duplicates once").check()
    opened.fill("#q", "红")
    opened.press("#q", "Enter")
    opened.locator(".score").first.wait_for()
    asked = {"q": "红", "source": "example.com", "min_width": 64, "fold": True}
    answers = [filtered_site.ask("/api/search", **asked, top=24, page=page).json for page in (1, 2)]
    keys = [[hit["picture"] for hit in each["results"]] for each in answers]
    assert len(keys[0]) == 24 and 0 < len(keys[1]) < 24

    def shown() -> list[str]:
        return [each.get_attribute("href").split("/")[2].partition("?")[0] for each in opened.locator(".grid a").all()]

    assert shown() == keys[0]
    assert opened.locator(".turn a").all_inner_texts() == ["Next page"]
    opened.locator(".turn a").click()
    opened.locator(".turn", has_text="Page 2").wait_for()
    assert shown() == keys[1]
    assert opened.input_value("#source") == "example.com" and opened.locator("#fold").is_checked()
    opened.locator(".turn a", has_text="Previous page").click()
    opened.locator(".turn", has_text="Page 1").wait_for()
    assert shown() == keys[0]
    context.close()


def test_operators_see_how_the_server_is_doing(browser: Any, filtered_site: Site) -> None:
    context = browser.new_context(viewport=WIDTHS["phone"], base_url=filtered_site.address)
    context.set_default_timeout(PATIENCE)
    opened = context.new_page()
    visit(opened, "/?q=红")
    opened.locator("footer a", has_text="About this server").click()
    opened.locator("h1", has_text="About this server").wait_for()
    said = opened.locator("main").inner_text()
    assert "shard 1 of 1" in said and "answers" in said and "150" in said
    assert "Resident memory in MiB" in said
    row = opened.locator("tr", has=opened.locator("code", has_text=re.compile(r"^/$"))).inner_text()
    assert len(re.findall(r"\d+\.\d", row)) == 3, "the quantiles of the page that was asked for"
    context.close()


def test_a_chinese_page_has_no_english_word(open_page: Callable[[str], Any], site: Site) -> None:
    page = open_page(CHINESE)
    for path in paths(site):
        visit(page, path)
        assert foreign(page) <= set(page.input_value("#q").split()), path
        assert page.locator("html").get_attribute("lang") == "zh-CN"
    none = next(row for row in range(len(site.index.keys)) if not site.captions_of(row))
    visit(page, f"/pictures/{site.index.keys[none]}")
    assert foreign(page) == set()


@pytest.mark.long
def test_each_text_has_its_language(page: Any, site: Site) -> None:
    """On an English page all that is Chinese is marked so, and so is the box in which people type it."""
    for path in paths(site):
        visit(page, path)
        texts = shown(page)
        unmarked = [text for text, lang in texts if re.search(r"[\u4e00-\u9fff]", text) and not lang.startswith("zh")]
        # The share of a label is one text in two languages.
        assert [text for text in unmarked if not text.startswith("Share of ")] == [], path
        assert len(texts) > len(unmarked)
        assert page.locator("#q").get_attribute("lang") == "zh-CN"


def test_the_language_is_chosen_and_kept(page: Any, tmp_path: Path) -> None:
    visit(page, "/")
    switch = page.locator("[data-language]")
    assert switch.inner_text() == "中文" and page.title() == "Search pictures · colours, token"
    switch.click()
    assert switch.inner_text() == "English" and foreign(page) == set()
    page.fill("#q", "红蓝")
    page.press("#q", "Enter")
    page.locator(".score").first.wait_for()
    assert foreign(page) == set()
    page.locator(".grid a").first.click()
    page.wait_for_selector(".patches")
    assert foreign(page) == set()
    assert re.search(r"[\u4e00-\u9fff]", page.locator(".patches").get_attribute("aria-label"))
    file = tmp_path / "mine.png"
    file.write_bytes(colours.encoded(colours.picture("绿", "黑")))
    page.set_input_files("#file", str(file))
    page.locator(".big[src^=data]").wait_for()
    assert foreign(page) == set(), "what the script puts into the page is Chinese, too"
    switch.click()
    assert page.title() == "Your picture · colours, token"
    assert page.locator("h1").inner_text() == "Your picture"
    assert page.locator(".big").get_attribute("alt") == "The picture that is asked about"
    page.reload()
    assert page.locator("html").get_attribute("lang") == "en"


@pytest.mark.parametrize(
    ("path", "numbers"),
    [
        ("/pictures/none", []),
        (f"/?q={'红' * 61}", ["61", "60"]),
        ("/?q=%E2%80%8B", []),
        ("/?q=🧿🧿", []),
        ("/pictures/{key}?text=黑&labels=红", ["1", "2", "4"]),
        (f"/pictures/{{key}}?text={'红' * 50}", ["32"]),
    ],
    ids=["unknown picture", "too long", "nothing", "no vocabulary", "one label", "too many tokens"],
)
def test_a_problem_is_told_in_chinese(
    open_page: Callable[[str], Any], site: Site, path: str, numbers: list[str]
) -> None:
    page = open_page(CHINESE)
    visit(page, path.format(key=site.key_of_hostile))
    said = page.locator("main .problem").inner_text()
    assert re.search(r"[\u4e00-\u9fff]", said) and re.findall(r"\d+", said) == numbers
    assert foreign(page) == set()
    page.locator("[data-language]").click()
    assert not re.search(r"[\u4e00-\u9fff]", page.locator("main .problem").inner_text())


def test_what_is_no_picture_is_refused_in_chinese(open_page: Callable[[str], Any], tmp_path: Path) -> None:
    page = open_page(CHINESE)
    visit(page, "/")
    file, large = tmp_path / "mine.png", tmp_path / "large.png"
    file.write_bytes(b"no picture")
    large.write_bytes(bytes(250_000))
    page.set_input_files("#file", str(file))
    page.wait_for_selector("main .problem")
    assert "JPEG、PNG、WebP、GIF、BMP 或 AVIF" in page.locator(".problem").inner_text()
    assert foreign(page) == set()
    page.set_input_files("#file", str(large))
    page.locator("[data-status]", has_text="MiB").wait_for()
    assert foreign(page) == set()
    page.locator("[data-language]").click()
    assert "choose a smaller one" in page.locator("[data-status]").inner_text(), "the choice counts for what is said"


def test_the_first_page_has_pictures_and_queries_to_choose(page: Any) -> None:
    visit(page, "/")
    assert "The model reads Chinese" in page.locator("main").inner_text()
    assert page.locator(".grid a").count() == 12
    assert page.locator(".score").count() == 0
    examples = page.locator(".examples a").all_inner_texts()
    assert len(examples) == 3
    page.locator(".examples a").nth(1).click()
    page.locator(".score").first.wait_for()
    assert page.input_value("#q") == examples[1] == page.locator("h1 [lang=zh-CN]:visible").first.inner_text()
    assert page.locator(".grid p").first.inner_text() in (examples[1], "和".join(reversed(examples[1].split("和"))))
    assert page.locator(".note").count() == 0


def test_a_query_without_a_chinese_character_is_told_what_the_model_reads(page: Any) -> None:
    for query in ("red apple", "りんご", "🧿🧿"):
        visit(page, f"/?q={query}")
        assert "The model was trained on Chinese text" in page.locator(".note").inner_text()
        assert page.locator(".note a").count() == 3
        assert page.input_value("#q") == query
    for query in ("red 苹果", "紅"):
        visit(page, f"/?q={query}")
        assert page.locator(".note").count() == 0


def test_what_was_asked_stays_in_sight(page: Any, tmp_path: Path) -> None:
    visit(page, "/?q=红蓝")
    assert page.input_value("#q") == "红蓝"
    page.locator(".grid a").first.click()
    page.wait_for_selector(".patches")
    assert page.input_value("#q") == page.input_value("#text") == "红蓝"
    page.fill("#text", "绿")
    page.press("#text", "Enter")
    page.locator(".word", has_text="绿").wait_for()
    page.fill("#labels", "红，绿")
    page.press("#labels", "Enter")
    page.wait_for_selector(".labels")
    assert page.input_value("#q") == "红蓝" and page.input_value("#text") == "绿"
    assert not page.locator("[data-asked]").is_visible()
    file = tmp_path / "mine.png"
    file.write_bytes(colours.encoded(colours.picture("绿", "黑")))
    page.set_viewport_size(WIDTHS["phone"])
    page.set_input_files("#file", str(file))
    thumbnail = page.locator("[data-asked] img")
    thumbnail.wait_for()
    box = thumbnail.bounding_box()
    assert 0 <= box["y"] < 740 and box["width"] == box["height"] > 40, "in sight"
    assert thumbnail.evaluate("image => image.complete && image.naturalWidth") == 64
    assert page.input_value("#q") == ""
    assert page.title() == "Your picture · colours, token"
    assert findings(page) == []


def test_a_global_model_has_no_control_for_what_it_cannot_do(browser: Any, tmp_path: Path) -> None:
    with running(tmp_path, "global") as other:
        context = browser.new_context(viewport=WIDTHS["phone"], base_url=other.address)
        context.set_default_timeout(PATIENCE)
        opened = context.new_page()
        visit(opened, "/")
        assert "patch" not in opened.locator("main").inner_text()
        visit(opened, f"/pictures/{other.key_of_hostile}?q=黑&labels=红,黑")
        assert opened.locator(".labels th[lang]").count() == 2
        assert opened.locator("#text, .patches, #alignment").count() == 0
        assert "patch" not in opened.locator("main h2").all_inner_texts()
        assert opened.input_value("#q") == "黑"
        assert findings(opened) == []
        context.close()


def test_a_person_finds_a_picture_by_keyboard_alone(page: Any) -> None:
    visit(page, "/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Skip to the results"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "中文"
    page.keyboard.press("Tab")
    page.keyboard.type("紅色和藍色")
    page.keyboard.press("Enter")
    page.wait_for_selector(".grid")
    assert page.locator("main .soft").first.inner_text() == "Read as 红色和蓝色"
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector(".patches")
    assert set(page.locator("h1").inner_text()) == set("红色和蓝")
    word = page.locator(".word", has_text="红")
    word.focus()
    page.keyboard.press("Enter")
    assert word.get_attribute("aria-pressed") == "true"
    assert page.locator(".patch.on").count() == 8
    assert {each.get_attribute("data-word") for each in page.locator(".patch.on").all()} == {"1", "4"} - {
        "4" if page.locator("td .word").nth(1).inner_text() == "红" else "1"
    }


def test_a_picture_is_sent_and_asked_about(page: Any, tmp_path: Path) -> None:
    file = tmp_path / "mine.png"
    file.write_bytes(colours.encoded(colours.picture("绿", "黑")))
    visit(page, "/")
    page.set_input_files("#file", str(file))
    page.wait_for_selector(".captions")
    assert page.locator("h1").inner_text() == "Your picture"
    assert page.locator(".captions a").first.inner_text() in ("绿色和黑色", "黑色和绿色")
    assert page.evaluate("document.activeElement.id") == "content"
    page.fill("#labels", "红色，绿色")
    page.press("#labels", "Enter")
    page.wait_for_selector(".labels")
    assert page.locator(".labels th[lang]").first.inner_text() == "绿色"
    page.fill("#text", "黑绿")
    page.press("#text", "Enter")
    page.locator("tr:nth-child(2) .word", has_text="黑").wait_for()
    assert page.locator(".labels th[lang]").first.inner_text() == "绿色"
    assert findings(page) == []


def test_a_picture_is_dropped(page: Any, tmp_path: Path) -> None:
    visit(page, "/")
    page.evaluate(
        """async (bytes) => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], "red.png", {type: "image/png"}));
          document.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
        }""",
        list(colours.encoded(colours.picture("红", "绿"))),
    )
    page.wait_for_selector(".captions")
    assert page.locator(".captions a").first.inner_text() in ("红色和绿色", "绿色和红色")


def test_what_is_no_picture_is_refused_in_words(page: Any, tmp_path: Path) -> None:
    file = tmp_path / "mine.png"
    file.write_bytes(b"no picture")
    visit(page, "/")
    page.set_input_files("#file", str(file))
    page.wait_for_selector("main .problem")
    assert "send JPEG, PNG, WebP" in page.locator(".problem").inner_text()
    large = tmp_path / "large.png"
    large.write_bytes(bytes(250_000))
    page.set_input_files("#file", str(large))
    page.locator("[data-status]", has_text="choose a smaller one").wait_for()


def test_a_hostile_caption_is_shown_as_text(page: Any, site: Site) -> None:
    visit(page, "/?q=黑")
    assert HOSTILE[:60] in str(page.locator(".grid").text_content())
    visit(page, f"/pictures/{site.key_of_hostile}")
    assert HOSTILE in page.locator("h1").inner_text()
    visit(page, "/?q=" + "%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E")
    assert "<img src=x" in page.locator("h1").inner_text()


def test_without_a_script_everything_but_sending_works(browser: Any, site: Site) -> None:
    context = browser.new_context(java_script_enabled=False, base_url=site.address)
    context.set_default_timeout(PATIENCE)
    opened = context.new_page()
    visit(opened, "/")
    assert not opened.locator("#file").is_visible()
    assert not opened.locator("[data-language]").is_visible()
    assert "Everything else works without" in opened.locator("noscript").inner_text()
    opened.fill("#q", "红蓝")
    opened.press("#q", "Enter")
    opened.locator(".grid a").first.click()
    assert opened.locator(".patch").count() == 16
    opened.fill("#labels", "红、黄")
    opened.press("#labels", "Enter")
    assert opened.locator(".labels th[lang]").count() == 2
    context.close()
