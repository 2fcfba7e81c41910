"""The page in a real Chromium, with axe: skipped, and said so, where there is no Chromium."""

import shutil
import warnings
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import colours
import pytest
from search_site import HOSTILE, Site, running

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.slow
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 120_000
"""Milliseconds, for a busy machine."""
WIDTHS = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 360, "height": 740}}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(tmp_path_factory.mktemp("site")) as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        warnings.warn("NO CHROMIUM: the search page is not tested in a browser", stacklevel=1)
        pytest.skip("no Chromium on this machine: install chromium to test the search page")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"], timeout=PATIENCE)
        yield started
        started.close()


@pytest.fixture
def page(browser: Any, site: Site) -> Iterator[Any]:
    """A page that fetches nothing from elsewhere and has no error of a script."""
    context = browser.new_context(viewport=WIDTHS["desktop"], base_url=site.address)
    context.set_default_timeout(PATIENCE)
    opened = context.new_page()
    elsewhere: list[str] = []
    errors: list[str] = []
    opened.on(
        "request", lambda asked: None if asked.url.startswith((site.address, "data:")) else elsewhere.append(asked.url)
    )
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda message: errors.append(message.text) if "Content Security" in message.text else None)
    opened.on("dialog", lambda dialog: (errors.append(f"dialog {dialog.message}"), dialog.dismiss()))
    yield opened
    context.close()
    assert [url for url in elsewhere if not url.startswith((site.address, "data:"))] == []
    assert errors == []


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


@pytest.mark.parametrize("colour", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_has_a_serious_finding(page: Any, site: Site, width: str, colour: str) -> None:
    """And each names the model in its title."""
    page.set_viewport_size(WIDTHS[width])
    page.emulate_media(color_scheme=colour)
    for path in (
        "/",
        "/?q=红蓝",
        "/?q=red apple",
        "/pictures/none",
        f"/pictures/{site.key_of_hostile}?q={'红' * 60}",
        "/?q=猫狗",
        "/?q=%E2%80%8B",
        f"/pictures/{site.key_of_hostile}?text=黑&labels=红,绿,黑",
        f"/pictures/{site.key_of_hostile}?labels=红",
    ):
        visit(page, path)
        assert findings(page) == [], path
        assert page.title().endswith(" · colours, token"), path


def test_the_first_page_has_pictures_and_queries_to_choose(page: Any) -> None:
    visit(page, "/")
    assert "The model reads Chinese" in page.locator("main").inner_text()
    assert page.locator(".grid a").count() == 12
    assert page.locator(".score").count() == 0
    examples = page.locator(".examples a").all_inner_texts()
    assert len(examples) == 3
    page.locator(".examples a").nth(1).click()
    page.locator(".score").first.wait_for()
    assert page.input_value("#q") == examples[1] == page.locator("h1 span").inner_text()
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
    assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
    page.keyboard.press("Tab")
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
    opened.fill("#q", "红蓝")
    opened.press("#q", "Enter")
    opened.locator(".grid a").first.click()
    assert opened.locator(".patch").count() == 16
    opened.fill("#labels", "红、黄")
    opened.press("#labels", "Enter")
    assert opened.locator(".labels th[lang]").count() == 2
    context.close()
