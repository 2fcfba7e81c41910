"""The page of a decision about the alias: whether it moves, and each reason with its numbers."""

from collections.abc import Mapping
from typing import Any

from wukong.report import template


def render(decision: Mapping[str, Any]) -> str:
    """Returns the page.

    Args:
        decision: result of ``wukong.registry.promotion.Decision.as_json``.
    """
    filters = {"percent": lambda value: f"{100 * value:.1f}", "signed": lambda value: f"{100 * value:+.1f}"}
    return template.fill("promotion.html.j2", decision, filters | {"short": lambda value: f"{value:.2g}"})
