"""Ask Docker's client about images."""

import json
from collections.abc import Mapping
from typing import Any

from infra.images import program
from wukong.errors import StackError


def run(*arguments: str, given: str | None = None) -> str:
    """Run Docker's client, and return what it prints.

    Raises:
        StackError: it is not installed, or refuses.
    """
    missing = "the program 'docker' is not installed, which has the images"
    done = program.run(["docker", *arguments], missing, given)
    if done.returncode:
        raise StackError(f"docker {' '.join(arguments[:2])} of {arguments[-1]}: {done.stderr.strip()[:500]}")
    return done.stdout


def inspect(image: str) -> dict[str, Any]:
    """Return what ``docker image inspect`` says of an image.

    Raises:
        StackError: Docker does not have it.
    """
    about: dict[str, Any]
    (about,) = json.loads(run("image", "inspect", image))
    return about


def digest_in_registry(image: str, about: Mapping[str, Any]) -> str:
    """Return the digest that an image has in the registry of its name; empty if it was neither pushed nor pulled.

    Args:
        image: its name, with or without tag and digest.
        about: what ``inspect`` says of it.
    """
    host, slash, path = image.partition("@")[0].rpartition("/")
    repository = f"{host}{slash}{path.partition(':')[0]}"
    named = (each.partition("@") for each in about.get("RepoDigests") or [])
    return next((digest for name, _, digest in named if name == repository), "")
