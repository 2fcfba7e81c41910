"""Sign images that were built here and pushed: ``python -m infra.images.sign --key KEY IMAGE...``.

Beside each image in its registry are then a signature, the list of what is in it (CycloneDX, by the program syft) and
of what it was made (SLSA's provenance, ``infra.images.provenance``), by one key. ``cosign generate-key-pair`` makes it.
"""

import argparse
import getpass
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from infra.images import cosign, docker, program, provenance
from wukong.commands.output import echo, print_data
from wukong.errors import StackError
from wukong.runtime.language import translated

_PASSWORD = "COSIGN_PASSWORD"  # noqa: S105 - the name of cosign's variable


def sign(image: str, key: str, made: Path) -> str:
    """Sign an image and what is known of it, and return its name with its digest.

    Args:
        image: its name in a registry, as it was pushed.
        key: the private key: a file, or a key server as cosign names it.
        made: folder of what the build has written down.

    Raises:
        StackError: it was not pushed or not built here, or cosign, syft or Docker refuse.
    """
    about = docker.inspect(image)
    digest = docker.digest_in_registry(image, about)
    if not digest:
        raise StackError(f"{image} was not pushed from here: docker push {image}, and sign it then")
    file = provenance.file_of(about["Id"], made)
    if not file.exists():
        raise StackError(
            f"{image} was not built here, so nobody can say of what it was made ({file} is not there): sign it where "
            "`make images` has built it"
        )
    exact = f"{docker.repository(image)}@{digest}"
    content = program.run("syft", "scan", "--output=cyclonedx-json", f"registry:{exact}")
    cosign.attest(exact, key, cosign.SBOM, json.loads(content))
    cosign.attest(exact, key, cosign.PROVENANCE, json.loads(file.read_text(encoding="utf-8")))
    cosign.sign(exact, key)  # last: who finds a signature finds the rest
    return exact


def _asked() -> str:
    try:
        return getpass.getpass(translated("Password of the key: "))
    except EOFError as error:
        raise StackError(f"the key has a password: set {_PASSWORD}, where nobody can be asked") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Sign the images, and print their names with digests."""
    parser = argparse.ArgumentParser(prog="python -m infra.images.sign", description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help=translated("names in a registry, as they were pushed")
    )
    parser.add_argument(
        "--key",
        required=True,
        help=translated(
            "the private key: a file, or a key server as cosign names it; its password is asked for, or COSIGN_PASSWORD"
        ),
    )
    parser.add_argument(
        "--provenance",
        type=Path,
        default=provenance.FOLDER,
        metavar="FOLDER",
        help=translated(f"where the build has written of what images were made, by default {provenance.FOLDER}"),
    )
    options = parser.parse_args(arguments)
    try:
        if _PASSWORD not in os.environ and Path(options.key).is_file():
            os.environ[_PASSWORD] = _asked()  # once, and not for each signature
        for image in options.images:
            print_data(sign(image, options.key, options.provenance))
    except StackError as error:
        echo(f"error: {error}", err=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
