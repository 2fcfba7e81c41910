"""What the files of a folder register: to add a rule, a set or a target, one adds a file, and nothing else names it."""

import pkgutil
import re
import sys
from importlib import import_module
from typing import Protocol, TypeVar


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_Kind = TypeVar("_Kind", bound=_Named)


def registered(package: str, attribute: str, *kinds: type[_Kind]) -> dict[str, _Kind]:
    """Import every module of a package, and return what each assigns to an attribute, by its name.

    Args:
        package: the package's name.
        attribute: what each module assigns.
        kinds: classes of which it is one. Its name is the module's, perhaps with - or . in the place of _.

    Raises:
        TypeError: a module assigns nothing of these classes, or something with another name.
    """
    found: dict[str, _Kind] = {}
    for module in pkgutil.iter_modules(sys.modules[package].__path__):
        each = getattr(import_module(f"{package}.{module.name}"), attribute, None)
        if not isinstance(each, kinds) or re.sub("[-.]", "_", each.name) != module.name:
            folder, kind = package.replace(".", "/"), " or ".join(each.__name__ for each in kinds)
            raise TypeError(
                f"{folder}/{module.name}.py assigns no {kind} with the name {module.name!r} to {attribute}: each file "
                "here assigns one"
            )
        found[each.name] = each
    return found
