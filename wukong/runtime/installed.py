"""Find files of installed packages, and the requirements of this project.

The package ``wukong`` on PyPI is another project, so this project's distribution is named ``wukong-vlm``. It is not on
an index yet, so messages and saved models never ask to install it; they name its requirements instead.
"""

import re
import tomllib
from collections.abc import Iterable
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from wukong.errors import ConfigError


def installed_file(package: str, file: str, install: str = "") -> Path:
    """Return the path of a file of an installed package, without importing the package.

    Args:
        package: name of the package on an index.
        file: path of the file, relative to the folder of installed packages.
        install: the command that installs the package, by default ``pip install PACKAGE``.

    Raises:
        ConfigError: the package, or the file in it, is missing.
    """
    install = install or f"pip install {package}"
    try:
        path = Path(str(metadata.distribution(package).locate_file(file)))
    except metadata.PackageNotFoundError as error:
        raise ConfigError(f"{package} is not installed, which contains {file}: run `{install}`") from error
    if not path.is_file():
        raise ConfigError(f"{path} is missing from the package {package}: run `{install} --force-reinstall`")
    return path


DISTRIBUTION = "wukong-vlm"
"""The name of this project's distribution; it is imported as ``wukong``."""


def version() -> str:
    """Return the version of this project."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return str(_project()["version"])


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def requirements(extra: str = "") -> list[str]:
    """Return the requirements of this project in pip's format, without markers.

    Args:
        extra: name of an extra for its requirements; empty for the requirements without extras.

    Raises:
        ConfigError: the project has no such extra.
    """
    always, extras = _declared()
    if extra and extra not in extras:
        raise ConfigError(f"there is no extra {extra!r}; there are {', '.join(sorted(extras))}")
    return list(extras[extra] if extra else always)


def command_for(extra: str) -> str:
    """Return the command that installs the requirements of an extra; it does not install the project itself."""
    return f"pip install {' '.join(repr(entry) for entry in requirements(extra))}"


def pinned(names: Iterable[str]) -> list[str]:
    """Return requirements with the installed versions; for packages that are not installed, the project's own ones.

    The local part of a version, as in ``2.9.0+cpu`` of torch, is left out, because PyPI does not have it.

    Args:
        names: names of packages that the project or one of its extras requires.
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
    """Return the normalised name of a distribution, as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _project() -> dict[str, Any]:
    """Return the section of ``pyproject.toml`` about the project, in a checkout."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    project: dict[str, Any] = tomllib.loads(text)["project"]
    return project


@lru_cache(maxsize=1)
def _declared() -> tuple[list[str], dict[str, list[str]]]:
    """Return the project's requirements without extras, and those of each extra.

    They come from the installed distribution, or from ``pyproject.toml`` in a checkout that is not installed.
    """
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        project = _project()
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
