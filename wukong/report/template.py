"""Fill the HTML templates of this folder (Jinja). Values are escaped. A name without a value is an error."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jinja2
from markupsafe import escape

from wukong.report import languages


def fill(name: str, values: Mapping[str, Any], filters: Mapping[str, Callable[..., object]] | None = None) -> str:
    """Returns the page that a template makes of some values.

    Args:
        name: file name of the template, below ``wukong/report``.
        values: by the name that the template uses.
        filters: functions that the template applies with ``|``.
    """
    templates = environment("wukong.report", ".")
    templates.filters |= filters or {}
    return templates.get_template(name).render(values)


def environment(package: str, folder: str) -> jinja2.Environment:
    """Returns an environment for the templates of pages in both languages.

    Args:
        package: name of the package that holds them.
        folder: their folder in the package.
    """
    made = jinja2.Environment(
        loader=jinja2.PackageLoader(package, folder),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.globals |= {
        "_": languages.both,
        "attribute": languages.attribute,
        "title": languages.title,
        "language_switch": languages.SWITCH,
    }
    made.filters["spoken"] = languages.spoken
    return made


def beside_report(page: str, run: str, links: Mapping[str, str]) -> str:
    """Returns a page that a stage has made, as it lies beside the report of a run that uses the stage's output.

    Args:
        page: the page, which names no run.
        run: name of the run, which the page's title gets.
        links: addresses of the run's other pages, by title. They stand at the page's head.
    """
    shown = "".join(f'<a href="{escape(address)}">{escape(title)}</a>' for title, address in links.items())
    head = "<main>" if "<main>" in page else "<body>"
    placed = re.sub(r"(<title[^>]*>|data-zh-text=\")", lambda found: f"{found[0]}{escape(run)} · ", page, count=2)
    return placed.replace(head, f'{head}\n<nav class="pages">{shown}</nav>', 1)
