"""Write ``k8s/install.yaml`` from ``k8s/base``: ``python -m infra.install_manifest``.

``kubectl apply -f k8s/`` reads the YAML files directly in ``k8s/``; the kustomize overlays read ``k8s/base``. One
folder cannot serve both: kubectl would apply ``kustomization.yaml`` as a manifest, and an overlay may not build on a
folder above itself.
"""

import sys
from pathlib import Path

import yaml

FOLDER = Path(__file__).parents[1] / "k8s"
HEADER = "# Written by `make manifests` from k8s/base. Change the files there, then run it again.\n"


def joined(base: Path) -> str:
    """Return the text of the files that ``kustomization.yaml`` lists as resources, in its order.

    Args:
        base: the folder of ``kustomization.yaml``.

    Raises:
        FileNotFoundError: a file that it lists is missing.
    """
    listed = yaml.safe_load((base / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    texts = [f"---\n# {base.name}/{name}\n{(base / name).read_text(encoding='utf-8').strip()}\n" for name in listed]
    return HEADER + "".join(texts)


def main() -> int:
    """Write the file."""
    (FOLDER / "install.yaml").write_text(joined(FOLDER / "base"), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
