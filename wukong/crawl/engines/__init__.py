"""Image search engines, one file each: every module of this folder assigns its class to ``ENGINE``.

To add an engine, add a file; nothing else names it. ``wukong/crawl/engine.py`` is the interface.
"""

import pkgutil
from importlib import import_module

from wukong.crawl.engine import Engine


def _registered() -> dict[str, type[Engine]]:
    """The class of every module of this folder by the engine's name, which is the module's.

    Raises:
        TypeError: a module has no ``ENGINE``, or its name is not the module's.
    """
    found: dict[str, type[Engine]] = {}
    for module in pkgutil.iter_modules(__path__):
        engine = getattr(import_module(f"{__name__}.{module.name}"), "ENGINE", None)
        if engine is None or engine.name != module.name:
            raise TypeError(
                f"wukong/crawl/engines/{module.name}.py assigns no class with the name {module.name!r} to ENGINE: each "
                "file here is one search engine"
            )
        found[module.name] = engine
    return found


REGISTRY = _registered()
"""All search engines by the name that ``crawl.engine`` gives them; each is made with ``crawl.endpoint``."""
