"""Sign images and what is said of them, and check that, with Sigstore's ``cosign`` 3 and a key of the operator.

Signatures and attestations lie beside the image in its registry. Neither a certificate authority nor a public log is
asked: whoever holds the private key vouches, and whoever checks has the public key from them.
"""

import base64
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.images import program
from wukong.errors import StackError

SBOM = ("cyclonedx", "https://cyclonedx.org/bom")
PROVENANCE = ("slsaprovenance1", "https://slsa.dev/provenance/v1")
"""What is attested, by cosign's name and by the type in the statement."""

_SIGNATURE = "https://sigstore.dev/cosign/sign/v1"  # the type by which cosign tells a signature from an attestation


def sign(image: str, key: str) -> None:
    """Sign an image, named by digest, with a private key (a file, or a key server as cosign names it).

    Raises:
        StackError: cosign cannot be run or refuses; the message is its own.
    """
    with _own_services() as (services, roots):
        program.run("cosign", "sign", "--yes", f"--key={key}", *services, *roots, image)


def attest(image: str, key: str, kind: tuple[str, str], predicate: Mapping[str, Any]) -> None:
    """Sign a statement about an image, and put it beside the image.

    Args:
        image: named by digest.
        key: see ``sign``, as for errors.
        kind: ``SBOM`` or ``PROVENANCE``.
        predicate: what is said.
    """
    with _own_services() as (services, roots), tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(predicate, file)
        file.flush()
        given = (f"--type={kind[0]}", f"--predicate={file.name}")
        program.run("cosign", "attest", "--yes", f"--key={key}", *services, *roots, *given, image)


def check_signature(image: str, key: str) -> None:
    """Check that an image, named by digest, has a signature by the key whose public part is given.

    Raises:
        StackError: it has none, or cosign cannot be run; the message is cosign's.
    """
    with _own_services() as (_, roots):
        found = json.loads(program.run("cosign", "verify", "--output=json", f"--key={key}", *_NO_LOG, *roots, image))
    if not any(each["critical"]["type"] == _SIGNATURE for each in found):  # cosign takes an attestation for one too
        raise StackError(f"{image} has attestations by this key, and no signature")


def attested(image: str, key: str, kind: tuple[str, str]) -> Mapping[str, Any]:
    """Return what is attested of an image, named by digest, by the key whose public part is given.

    Args:
        image: named by digest.
        key: the public part.
        kind: ``SBOM`` or ``PROVENANCE``.

    Raises:
        StackError: nothing of the kind is, or cosign cannot be run; the message is cosign's.
    """
    with _own_services() as (_, roots):
        lines = program.run(
            "cosign", "verify-attestation", f"--type={kind[0]}", f"--key={key}", *_NO_LOG, *roots, image
        )
    statements = [json.loads(base64.b64decode(json.loads(line)["payload"])) for line in lines.splitlines()]
    predicate: Mapping[str, Any]
    (*_, predicate) = [each["predicate"] for each in statements if each["predicateType"] == kind[1]]
    return predicate


_NO_LOG = ("--insecure-ignore-tlog=true",)  # cosign's name for: there is no public log


@contextmanager
def _own_services() -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Yield the arguments by which cosign asks nobody but the registry: to sign, and in both directions."""
    with tempfile.TemporaryDirectory() as folder:
        services, roots = Path(folder, "services.json"), Path(folder, "roots.json")
        program.run("cosign", "signing-config", "create", f"--out={services}")
        program.run("cosign", "trusted-root", "create", f"--out={roots}")
        yield (f"--signing-config={services}",), (f"--trusted-root={roots}",)
