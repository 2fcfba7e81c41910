"""Ask Docker's client about images."""

import json
from collections.abc import Mapping
from typing import Any

from infra.images import program


def inspect(image: str) -> dict[str, Any]:
    """Return what ``docker image inspect`` says of an image.

    Raises:
        StackError: Docker does not have it.
    """
    about: dict[str, Any]
    (about,) = json.loads(program.run("docker", "image", "inspect", image))
    return about


def digest_in_registry(image: str, about: Mapping[str, Any]) -> str:
    """Return the digest that an image has in the registry of its name; empty if it was neither pushed nor pulled.

    Args:
        image: its name, with or without tag and digest.
        about: what ``inspect`` says of it.
    """
    named = (each.partition("@") for each in about.get("RepoDigests") or [])
    return next((digest for name, _, digest in named if name == repository(image)), "")


def repository(image: str) -> str:
    """Return the name of an image without tag and digest. A registry's port is no tag."""
    host, slash, path = image.partition("@")[0].rpartition("/")
    return f"{host}{slash}{path.partition(':')[0]}"
