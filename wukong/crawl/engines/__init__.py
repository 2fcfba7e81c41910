"""Sources of pairs, one file each: every module of this folder assigns a ``Searched`` or a ``Listed`` to ``SOURCE``.

To add a search engine or a kind of list, add a file; nothing else names it. ``wukong/crawl/source.py`` has the types.
"""

import pkgutil
from importlib import import_module

from wukong.crawl.source import Listed, Searched, Source

__all__ = ["REGISTRY", "Source"]


def _registered() -> dict[str, Source]:
    """The source of every module of this folder by its name: search engines, then lists of what is on the web.

    Raises:
        TypeError: a module has no ``SOURCE``, or its name is not the module's.
    """
    registered: list[Source] = []
    for module in pkgutil.iter_modules(__path__):
        source = getattr(import_module(f"{__name__}.{module.name}"), "SOURCE", None)
        if not isinstance(source, Searched | Listed) or source.name != module.name:
            raise TypeError(
                f"wukong/crawl/engines/{module.name}.py assigns no Searched or Listed with the name {module.name!r} to "
                "SOURCE: each file here is one source"
            )
        registered.append(source)
    registered.sort(key=lambda source: (not source.searched, source.reads_files, source.name))
    return {source.name: source for source in registered}


REGISTRY = _registered()
"""All sources by the name that ``crawl.engine`` gives them."""
