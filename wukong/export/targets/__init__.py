"""Targets of ``wukong model export --to``, one file each: every module here assigns a ``Target`` to ``TARGET``.

To add a target, add a file, and its name to ``TARGETS`` in ``wukong/commands/model.py``.
``wukong/export/target.py`` has the type.
"""

import pkgutil
from importlib import import_module

from wukong.export.target import Target

__all__ = ["REGISTRY", "module_name"]


def module_name(target: str) -> str:
    """Return the name of the module that holds a target: ``transformers.js`` is in ``transformers_js``."""
    return target.replace("-", "_").replace(".", "_")


def _registered() -> dict[str, Target]:
    """The target of every module of this folder by its name.

    Raises:
        TypeError: a module has no ``TARGET``, or its name is not the module's.
    """
    registered: dict[str, Target] = {}
    for module in pkgutil.iter_modules(__path__):
        target = getattr(import_module(f"{__name__}.{module.name}"), "TARGET", None)
        if not isinstance(target, Target) or module_name(target.name) != module.name:
            raise TypeError(
                f"wukong/export/targets/{module.name}.py assigns no Target with the name {module.name!r} to TARGET: "
                "each file here is one target"
            )
        registered[target.name] = target
    return registered


REGISTRY = _registered()
"""All targets by the name that ``--to`` gives them."""
