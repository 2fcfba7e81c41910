"""Fill the HTML templates of this folder (Jinja). Values are escaped. A name without a value is an error."""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

import jinja2
from markupsafe import Markup, escape

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


@functools.cache
def environment(package: str, folder: str) -> jinja2.Environment:
    """Returns an environment for the templates of pages in both languages.

    Args:
        package: name of the package that holds them.
        folder: their folder in the package.
    """
    made: Any = jinja2.Environment(
        loader=jinja2.PackageLoader(package, folder),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        extensions=["jinja2.ext.i18n"],
    )
    made.install_gettext_callables(languages.both, languages.both)
    made.globals |= {
        "attribute": languages.attribute,
        "title": languages.title,
        "lang": languages.lang,
        "language_switch": languages.SWITCH,
    }
    made.filters |= {"spoken": languages.spoken, "sentences": languages.sentences}
    return cast("jinja2.Environment", made)


def beside_report(page: str, run: str, links: Mapping[str, str]) -> str:
    """Returns a page that a stage has made, as it lies beside the report of a run that uses the stage's output.

    Args:
        page: the page, which names no run.
        run: name of the run, which the page's title gets.
        links: addresses of the run's other pages, by title. They stand at the page's head.
    """
    in_both = "data-language" in page  # others, such as data docs, are English
    titles = {title: languages.spoken(title) if in_both else escape(title) for title in links}
    shown = Markup("").join(Markup('<a href="{}">{}</a>').format(links[title], titles[title]) for title in links)
    head = "<main>" if "<main>" in page else "<body>"
    named = f"{escape(run)} · "
    placed = re.sub(r"<title[^>]*>", lambda found: found[0] + named, page, count=1)
    placed = placed.replace('<title data-zh-text="', f'<title data-zh-text="{named}', 1)
    return placed.replace(head, f'{head}\n<nav class="pages">{shown}</nav>', 1)
