"""The page of one of the paper's Tables 5, 6 and 7, with several models beside the paper's."""

from collections.abc import Mapping
from typing import Any

from wukong.config.evaluators import DIRECTIONS
from wukong.evaluate import paper
from wukong.report import template
from wukong.report.comparison import SIGNS
from wukong.report.evaluation import FILTERS, described


def render(document: Mapping[str, Any]) -> str:
    """Returns the page.

    Args:
        document: what ``wukong.evaluate.paper_tables.table`` returns.
    """
    values = {
        **{key: value for key, value in document.items() if key != "title"},  # templates have a function of that name
        **described(document),
        "labels": {model["label"]: model["label"] for model in document["models"]},
        "methods": paper.MODELS_OF_TABLE_5,
        "directions": DIRECTIONS,
        "signs": SIGNS,
    }
    return template.fill("paper.html.j2", values, FILTERS)
