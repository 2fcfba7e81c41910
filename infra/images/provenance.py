"""What an image was made of and by whom, as SLSA's provenance (``https://slsa.dev/spec/v1.0/provenance``).

``infra.images.build`` writes it when it has built an image, since nobody knows it later; ``infra.images.sign`` signs.
"""

import json
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path("build/provenance")
_WHEEL = re.compile(r"(?P<name>[\w.-]+)==(?P<version>\S+) --hash=sha256:(?P<digest>[0-9a-f]{64})")


@dataclass(frozen=True)
class Made:
    """How an image was made.

    Attributes:
        repository: address of the source.
        revision: full git revision that was checked out.
        dirty: whether files that git knows differed from it.
        target: the image, a target of the Dockerfile.
        base: name of the base image.
        base_digest: its digest: the registry's, or of one that no registry has, its own ID.
        arguments: what ``docker build`` was given.
        wheels: text of the list of wheels that were installed, with their hashes.
        docker: version of Docker's client.
        began: time in RFC 3339.
        ended: time in RFC 3339.
    """

    repository: str
    revision: str
    dirty: bool
    target: str
    base: str
    base_digest: str
    arguments: Mapping[str, str]
    wheels: str
    docker: str
    began: str
    ended: str


def predicate(made: Made) -> dict[str, Any]:
    """Return the predicate of type ``https://slsa.dev/provenance/v1``."""
    source: dict[str, Any] = {"uri": f"git+{made.repository}@{made.revision}", "digest": {"gitCommit": made.revision}}
    if made.dirty:
        source["annotations"] = {"dirty": True}
    base = {"uri": made.base, "digest": {"sha256": made.base_digest.removeprefix("sha256:")}}
    wheels = [
        {"uri": f"pkg:pypi/{found['name']}@{found['version']}", "digest": {"sha256": found["digest"]}}
        for found in _WHEEL.finditer(made.wheels)
    ]
    builder = f"{made.repository}/blob/{made.revision}/infra/images/build.py"
    return {
        "buildDefinition": {
            "buildType": f"{made.repository}/blob/main/infra/images/build.py",
            "externalParameters": {"target": made.target, "arguments": dict(made.arguments)},
            "internalParameters": {"machine": platform.machine()},
            "resolvedDependencies": [source, base, *wheels],
        },
        "runDetails": {
            "builder": {"id": builder, "version": {"docker": made.docker, "python": platform.python_version()}},
            "metadata": {"startedOn": made.began, "finishedOn": made.ended},
        },
    }


def write(identity: str, made: Made, folder: Path = FOLDER) -> Path:
    """Write it under the ID that Docker gives the image, and return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = file_of(identity, folder)
    file.write_text(json.dumps(predicate(made), indent=1) + "\n", encoding="utf-8")
    return file


def file_of(identity: str, folder: Path = FOLDER) -> Path:
    """Return where the provenance of the image with this ID is written."""
    return folder / f"{identity.replace(':', '-')}.json"


def source_of(said: Mapping[str, Any]) -> str:
    """Return the git revision that a predicate names, with ``-dirty`` if the checkout differed from it; else empty."""
    for each in said["buildDefinition"]["resolvedDependencies"]:
        if revision := each["digest"].get("gitCommit"):
            return f"{revision}-dirty" if each.get("annotations", {}).get("dirty") else str(revision)
    return ""
