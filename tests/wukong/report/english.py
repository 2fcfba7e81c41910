"""What an English reader has of a page in both languages: the page as it is without the switch and without Chinese."""

import re
from html.parser import HTMLParser

from wukong.report import template


def english(page: str) -> str:
    """Return the HTML of a page in English alone; fails for a page without exactly one switch."""
    switch = template.fill("language.html.j2", {})
    assert page.count(switch) == 1
    parser = _English()
    parser.feed(re.sub(r' data-zh-[\w-]+="[^"]*"', "", page.replace(switch, "")))
    return "".join(parser.kept)


class _English(HTMLParser):
    """Leaves out the texts in Chinese, and the elements around those in English."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.kept: list[str] = []
        self._spans: list[str] = []

    def _keep(self, text: str) -> None:
        if "in-zh" not in self._spans:
            self.kept.append(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        name = dict(attrs).get("class") or ""
        if tag == "span":
            self._spans.append(name)
        if (tag, name) not in {("span", "in-en"), ("span", "in-zh")}:
            self._keep(self.get_starttag_text() or "")

    def handle_endtag(self, tag: str) -> None:
        if tag != "span" or self._spans[-1] not in {"in-en", "in-zh"}:
            self._keep(f"</{tag}>")
        if tag == "span":
            self._spans.pop()

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._keep(self.get_starttag_text() or "")

    def handle_data(self, data: str) -> None:
        self._keep(data)

    def handle_entityref(self, name: str) -> None:
        self._keep(f"&{name};")

    def handle_charref(self, name: str) -> None:
        self._keep(f"&#{name};")

    def handle_decl(self, decl: str) -> None:
        self._keep(f"<!{decl}>")
