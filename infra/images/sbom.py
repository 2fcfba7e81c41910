"""List what is in images: ``python -m infra.images.sbom IMAGE...``, each as CycloneDX JSON in ``build/sbom``.

A container of the image lists its Python distributions and Debian packages itself (``infra.images.contents``), without
a network. The file is named by the image's digests, as the records of a run have them: ``sha256-….json``. What is
compiled into a wheel, such as a library of C, is not listed by itself.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from infra.images import contents, docker
from wukong.commands.output import echo, print_data
from wukong.errors import StackError

FOLDER = Path("build/sbom")
_NAME = re.compile(r"(?P<name>.+?)(:(?P<tag>[\w.-]+))?")
_LABELS = "org.opencontainers.image."


def write(image: str, folder: Path) -> list[Path]:
    """Write the list of an image under each of its digests, and return the files.

    Raises:
        StackError: Docker does not have the image, or it has no Python.
    """
    about, made = listed(image)
    text = json.dumps(made, indent=1) + "\n"
    digests = [about["Id"], *(each.partition("@")[2] for each in about.get("RepoDigests") or [])]
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{digest.replace(':', '-')}.json" for digest in dict.fromkeys(digests)]
    for file in files:
        file.write_text(text, encoding="utf-8")
    return files


def listed(image: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what Docker says of an image, and the list of what it holds.

    Raises:
        StackError: Docker does not have the image, or it has no Python.
    """
    about = docker.inspect(image)
    program = Path(contents.__file__).read_text(encoding="utf-8")
    command = ("run", "--rm", "--interactive", "--network=none", "--entrypoint=python3", image, "-")
    return about, document(image, about, json.loads(docker.run(*command, given=program)))


def document(image: str, about: Mapping[str, Any], inside: Mapping[str, Any]) -> dict[str, Any]:
    """Return the list of an image in the form of CycloneDX 1.6.

    Args:
        image: its name.
        about: what ``docker image inspect`` says of it.
        inside: what ``infra.images.contents`` has printed there.
    """
    labels = about["Config"].get("Labels") or {}
    named = _NAME.fullmatch(image.partition("@")[0])
    name, tag = (named["name"], named["tag"] or "") if named else (image, "")
    container = {
        "type": "container",
        "bom-ref": about["Id"],
        "name": name,
        "version": labels.get(f"{_LABELS}version", tag),
        "hashes": [{"alg": "SHA-256", "content": about["Id"].removeprefix("sha256:")}],
        "properties": [
            {"name": label, "value": value} for label, value in sorted(labels.items()) if label.startswith(_LABELS)
        ],
    }
    system, python = inside["system"], inside["python"]
    components = [{"type": "application", "bom-ref": "python", "name": "python", "version": python}]
    components += [
        _library("pypi", each["name"].lower().replace("_", "-"), each, licence=each["licence"])
        for each in inside["python_packages"]
    ]
    components += [
        _library(f"deb/{system or 'debian'}", each["name"], each, f"?arch={each['architecture']}")
        for each in inside["system_packages"]
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": container},
        "components": components,
    }


def _library(
    kind: str, name: str, package: Mapping[str, str], qualifiers: str = "", *, licence: str = ""
) -> dict[str, Any]:
    address = f"pkg:{kind}/{_escaped(name)}@{_escaped(package['version'])}{qualifiers}"
    made = {"type": "library", "bom-ref": address, "name": package["name"], "version": package["version"]}
    return {**made, "purl": address, **({"licenses": [{"license": {"name": licence}}]} if licence else {})}


def _escaped(text: str) -> str:
    """Return a part of a package's URL: of the signs in names and versions, ``+`` and ``:`` are escaped."""
    return quote(text, safe=".-~_")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the lists, and print where they are."""
    parser = argparse.ArgumentParser(prog="python -m infra.images.sbom", description=__doc__.split("\n", 1)[0])
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="names of images that Docker has")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"by default {FOLDER}")
    options = parser.parse_args(arguments)
    try:
        for image in options.images:
            for file in write(image, options.folder):
                print_data(file)
    except StackError as error:
        echo(f"error: {error}", err=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
