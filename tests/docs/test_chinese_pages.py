"""Each Chinese page follows its English page: what changes in one fails here until it changes in the other."""

import posixpath
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
INDEX = "docs/zh/index.md"
ENGLISH = {
    "README.zh-CN.md": "README.md",
    **{f"docs/zh/{file.name}": f"docs/{file.name}" for file in sorted((ROOT / "docs" / "zh").glob("*.md"))},
}
"""By Chinese page, its English page."""

FOLLOWING = [page for page in ENGLISH if page != INDEX]
"""The index lists pages, so it is not a translation of the English one."""

NUMBER = re.compile(r"\d+(?:[.,]\d+)+|\d+(?= ?%)")
"""A number that both languages write alike: one with a point or comma, or a percentage."""

EMPHASIS = re.compile(r"(\w?)(\*+)([^*\n]+)\2(?=(\w?))")
"""The character before it, the asterisks, its text, and the character after it."""


def _text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def _blocks(text: str) -> list[Token]:
    return MarkdownIt().enable("table").parse(text)


def _inline(text: str) -> Iterator[tuple[int, Token]]:
    """What stands in the lines of a text, each with the number of its section."""
    section = 0
    for block in _blocks(text):
        section += block.type == "heading_open"
        yield from ((section, token) for token in block.children or [])


def _linked(page: str, text: str) -> list[str]:
    """Where links lead: an address elsewhere, a path in the repository, perhaps with a heading; or a heading here."""
    addresses = [unquote(str(token.attrGet("href"))) for _, token in _inline(text) if token.type == "link_open"]
    headings = _anchors(text)
    return [
        f"heading {headings.index(address[1:])}" if address.startswith("#") else _resolved(page, address)
        for address in addresses
    ]


def _anchors(text: str) -> list[str]:
    """The anchors of a page's headings, as the site makes them."""
    blocks = _blocks(text)
    titles = [after for before, after in pairwise(blocks) if before.type == "heading_open"]
    words = [re.sub(r"[^\w\s-]", "", "".join(part.content for part in title.children or [])) for title in titles]
    return [re.sub(r"[-\s]+", "-", each.strip().lower()) for each in words]


def _resolved(page: str, address: str) -> str:
    return address if "://" in address else posixpath.normpath(posixpath.join(posixpath.dirname(page), address))


def _named(text: str) -> list[tuple[int, str]]:
    return [(section, token.content) for section, token in _inline(text) if token.type == "code_inline"]


# --- what is the same in both languages


def skeleton(_page: str, text: str) -> list[str]:
    """Headings with their levels, paragraphs, items, rows and cells in order, and code blocks with what is in them."""
    return [
        f"{block.type} {block.tag} {block.info} {'' if block.type == 'inline' else block.content}"
        for block in _blocks(text)
    ]


def links(page: str, text: str) -> list[str]:
    """What is linked. A sentence may name it in another order."""
    return sorted(ENGLISH.get(target, target) for target in _linked(page, text))


def images(page: str, text: str) -> list[str]:
    """The images in order."""
    return [_resolved(page, str(token.attrGet("src"))) for _, token in _inline(text) if token.type == "image"]


def code(_page: str, text: str) -> list[str]:
    """The keys, commands and files that each section names."""
    return sorted({f"{section}: {ENGLISH.get(name, name)}" for section, name in _named(text)})


def numbers(_page: str, text: str) -> list[str]:
    """The numbers of each section."""
    lines = [(section, token.content) for section, token in _inline(text) if token.type == "text"]
    return sorted({f"{section}: {number}" for section, line in lines for number in NUMBER.findall(line)})


FACTS: tuple[Callable[[str, str], list[str]], ...] = (skeleton, links, images, code, numbers)


@pytest.mark.parametrize("facts", FACTS, ids=lambda facts: facts.__name__)
@pytest.mark.parametrize("page", FOLLOWING)
def test_a_chinese_page_has_what_its_english_page_has(page: str, facts: Callable[[str, str], list[str]]) -> None:
    assert facts(page, _text(page)) == facts(ENGLISH[page], _text(ENGLISH[page]))


@pytest.mark.parametrize(
    ("page", "old", "new", "facts"),
    [
        ("tutorial", "make run TORCH=cpu", "make run", skeleton),
        ("tutorial", "## 5. Go on", "### 5. Go on", skeleton),
        ("tutorial", "The last lines are addresses", "One more sentence.\n\nThe last lines are addresses", skeleton),
        ("serving", "| labels | 2 to 32 |\n", "", skeleton),
        ("tutorial", "(own-data.md)", "(training.md)", links),
        ("comparing", "[unit](evaluation.md#intervals)", "[unit](evaluation.md)", links),
        ("tutorial", "images/report.png", "images/alignment.png", images),
        ("how-to", "`crawl.max_queries`", "`crawl.most_queries`", code),
        ("tutorial", "41.3 %", "41.4 %", numbers),
        ("comparing", "4 %", "5 %", numbers),
    ],
)
def test_a_change_of_an_english_page_is_found(
    page: str, old: str, new: str, facts: Callable[[str, str], list[str]]
) -> None:
    chinese, english = f"docs/zh/{page}.md", f"docs/{page}.md"
    changed = _text(english).replace(old, new)
    assert changed != _text(english)
    assert facts(chinese, _text(chinese)) != facts(english, changed)


# --- what is not


@pytest.mark.parametrize("page", ENGLISH)
def test_a_page_leads_to_itself_in_the_other_language_first(page: str) -> None:
    assert _linked(page, _text(page))[0] == ENGLISH[page]
    assert _linked(ENGLISH[page], _text(ENGLISH[page]))[0] == page


@pytest.mark.parametrize("page", ENGLISH)
def test_a_chinese_page_leads_to_chinese_pages_where_there_are_any(page: str) -> None:
    files = {target.partition("#")[0] for target in _linked(page, _text(page))}
    files |= {name for _, name in _named(_text(page))}
    assert files & set(ENGLISH.values()) == {ENGLISH[page]}


def test_the_index_has_every_page_in_chinese_or_english() -> None:
    pages = {f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md")} - set(ENGLISH.values())
    chinese = {page for page in FOLLOWING if page.startswith("docs/")}
    assert set(_linked(INDEX, _text(INDEX))) == pages | chinese | {ENGLISH[INDEX]}


@pytest.mark.parametrize("page", ENGLISH)
def test_emphasis_begins_and_ends_with_a_character(page: str) -> None:
    """CommonMark, and so GitHub, shows the asterisks of **注意：**这样 as they are."""
    assert _no_emphasis(_text(page)) == []


def test_emphasis_that_is_none_is_found() -> None:
    assert _no_emphasis("**注意：**这样，**注意**：这样，用**“引号”**，用“**引号**”。") == ["注意：", "“引号”"]


def _no_emphasis(text: str) -> list[str]:
    return [
        emphasis
        for before, _, emphasis, after in EMPHASIS.findall(text)
        if (before and not emphasis[0].isalnum()) or (after and not emphasis[-1].isalnum())
    ]
