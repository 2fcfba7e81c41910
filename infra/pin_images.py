"""Pin the images of manifests to digests: ``python -m infra.pin_images FOLDER... [--unpin]``, then ``make generate``.

It gets the digests from the registry with crane, skopeo or docker, whichever is installed. It replaces
``image: NAME:TAG`` by ``image: NAME:TAG@sha256:...`` in every YAML file of the folder, also in manifests that are text
in a ConfigMap, and the value of a patch whose path ends in ``/image``.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

from wukong.commands.output import echo, print_data
from wukong.errors import StackError

_IMAGE = re.compile(
    r"(?P<key>\bimage: |/image\n +value: )(?P<name>[\w./:-]*[\w-]:[\w.-]+)(?P<digest>@sha256:[0-9a-f]{64})?"
)
_LOCAL = re.compile(r"\blocalhost/[\w./-]+:[\w.-]+")  # a name that never leads to a registry
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TOOLS = {
    "crane": ("crane", "digest", "{image}"),
    "skopeo": ("skopeo", "inspect", "--format", "{{{{.Digest}}}}", "docker://{image}"),
    "docker": ("docker", "buildx", "imagetools", "inspect", "--format", "{{{{.Manifest.Digest}}}}", "{image}"),
}


def pin(*folders: Path) -> dict[str, str]:
    """Pin every image in the YAML files of folders; digests that are already there are updated.

    Returns:
        The digest of each image.

    Raises:
        StackError: an image has the default name, which is in no registry; no tool is installed; or a registry does not
            have an image. Then no file is changed.
    """
    texts = {file: file.read_text(encoding="utf-8") for folder in folders for file in sorted(folder.glob("*.yaml"))}
    local = _LOCAL.search("".join(texts.values()))
    if local:
        raise StackError(
            f"{local[0]} is in no registry, so it has no digest: push the images to your registry, write its name into "
            'the manifests (docs/cluster.md, "Images"), and pin them then'
        )
    images = sorted({match["name"] for text in texts.values() for match in _IMAGE.finditer(text)})
    digests = {image: _digest(image) for image in images}
    for file, text in texts.items():
        changed = _IMAGE.sub(lambda match: f"{match['key']}{match['name']}@{digests[match['name']]}", text)
        if changed != text:
            file.write_text(changed, encoding="utf-8")
    return digests


def unpin(*folders: Path) -> None:
    """Remove the digests."""
    for file in [file for folder in folders for file in sorted(folder.glob("*.yaml"))]:
        text = file.read_text(encoding="utf-8")
        file.write_text(_IMAGE.sub(lambda match: match["key"] + match["name"], text), encoding="utf-8")


def _digest(image: str) -> str:
    tool = next((name for name in _TOOLS if shutil.which(name)), None)
    if tool is None:
        raise StackError(f"digests come from a registry; to get them, install one of {', '.join(_TOOLS)}")
    command = [part.format(image=image) for part in _TOOLS[tool]]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    match = _DIGEST.search(answer.stdout)
    if answer.returncode or match is None:
        raise StackError(f"{tool} found no digest of {image}: {(answer.stderr or answer.stdout).strip()[:500]}")
    return match[0]


def main(arguments: list[str] | None = None) -> int:
    """Pin or unpin the images, and print the digests."""
    parser = argparse.ArgumentParser(prog="python -m infra.pin_images", description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="k8s/base, the components and the overlay in use",
    )
    parser.add_argument("--unpin", action="store_true", help="remove the digests")
    options = parser.parse_args(arguments)
    if options.unpin:
        unpin(*options.folders)
        return 0
    try:
        digests = pin(*options.folders)
    except StackError as error:
        echo(f"error: {error}", err=True)
        return 1
    for image, digest in digests.items():
        print_data(f"{image}@{digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
