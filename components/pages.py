"""Pages for the UI beside the stages: what keeps one from being shown is a warning, and the run goes on."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


@contextmanager
def warned(page: str) -> Iterator[None]:
    """Make the folder of a page; if the block raises an error, write it into the page, and go on.

    Args:
        page: local path of the page, as Markdown.
    """
    target = Path(page)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except Exception as error:  # whatever it is, the stages before it have done their work
        said = f"This page cannot be shown: {type(error).__name__}: {error}"
        log.warning("%s", said, exc_info=error)
        target.write_text(f"{said}\n", encoding="utf-8")
