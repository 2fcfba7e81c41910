"""Sources of pairs, one file each: every module of this folder assigns a ``Searched`` or a ``Listed`` to ``SOURCE``.

To add a search engine or a kind of list, add a file; nothing else names it. ``wukong/crawl/source.py`` has the types.
"""

from wukong.crawl.source import Listed, Searched, Source
from wukong.runtime.registered import registered

__all__ = ["REGISTRY", "Source"]

_SOURCES: dict[str, Source] = registered(__name__, "SOURCE", Searched, Listed)

REGISTRY = dict(sorted(_SOURCES.items(), key=lambda each: (not each[1].searched, each[1].reads_files, each[0])))
"""All sources by the name that ``crawl.engine`` gives them: search engines, then lists of what is on the web."""
