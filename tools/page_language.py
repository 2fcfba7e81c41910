"""A hook of the docs site: Chinese pages say that they are Chinese, so that browsers choose Chinese glyphs."""

from typing import Any

FOLDER = "zh/"
"""The Chinese pages, below ``docs/``."""


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Give a page of ``docs/zh`` its language; Material for MkDocs has one for the whole site.

    Args:
        output: the page's HTML.
        page: the page of MkDocs.
        config: the site's configuration of MkDocs.
    """
    if not page.file.src_uri.startswith(FOLDER):
        return output
    before = f'<html lang="{config.theme["language"]}"'
    if before not in output:
        raise ValueError(f"{page.file.src_uri} has no {before}: the theme writes it in another way")
    return output.replace(before, '<html lang="zh-Hans"', 1)
