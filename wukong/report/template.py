"""Fill the HTML templates of this folder (Jinja). Values are escaped. A name without a value is an error."""

from collections.abc import Callable, Mapping
from typing import Any

import jinja2


def fill(name: str, values: Mapping[str, Any], filters: Mapping[str, Callable[..., object]] | None = None) -> str:
    """Returns the page that a template makes of some values.

    Args:
        name: file name of the template, below ``wukong/report``.
        values: by the name that the template uses.
        filters: functions that the template applies with ``|``.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("wukong.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= dict(filters or {})
    return environment.get_template(name).render(values)
