"""Print what is in an image, as JSON. It is run by the image's own Python, with the standard library alone.

``infra.images.sbom`` hands it to a container on standard input.
"""

import json
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

STATUS = Path("/var/lib/dpkg/status")
SYSTEM = Path("/etc/os-release")


def python_packages() -> list[dict[str, str]]:
    """Return the name, version and licence of each distribution that Python finds; an empty licence is not known."""
    found = {}
    for each in metadata.distributions():
        name = each.metadata["Name"]
        said = [line for field in ("License-Expression", "License") for line in each.metadata.get_all(field) or []]
        licence = next((line for line in said if "\n" not in line and line != "UNKNOWN"), "")  # not a whole text
        found[name] = {"name": name, "version": each.version, "licence": licence}
    return [found[name] for name in sorted(found)]


def system_packages(status: Path) -> list[dict[str, str]]:
    """Return the name, version and architecture of each package that dpkg has installed; none where it has no list."""
    found = []
    for fields in paragraphs(status):
        if fields.get("Status") == "install ok installed":
            named = {"name": fields["Package"], "version": fields["Version"], "architecture": fields["Architecture"]}
            found.append(named)
    return sorted(found, key=lambda each: (each["name"], each["architecture"]))


def paragraphs(status: Path) -> Iterator[dict[str, str]]:
    """Yield the fields of each package in dpkg's list, without lines that continue a field."""
    text = status.read_text(encoding="utf-8") if status.exists() else ""
    for paragraph in text.split("\n\n"):
        lines = (line.partition(": ") for line in paragraph.splitlines() if line[:1] != " ")
        yield {name: value for name, _, value in lines}


def system(release: Path) -> str:
    """Return the name of the distribution of Linux, as ``debian``; empty if it is not known."""
    lines = release.read_text(encoding="utf-8").splitlines() if release.exists() else []
    return next((line.removeprefix("ID=").strip('"') for line in lines if line.startswith("ID=")), "")


if __name__ == "__main__":
    contents = {
        "python": platform.python_version(),
        "python_packages": python_packages(),
        "system": system(SYSTEM),
        "system_packages": system_packages(STATUS),
    }
    sys.stdout.write(json.dumps(contents))
