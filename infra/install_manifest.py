"""Write what follows from ``k8s/base``, above all ``k8s/install.yaml``: ``python -m infra.install_manifest``.

``kubectl apply -f k8s/`` reads the YAML files directly in ``k8s/``; the kustomize overlays read ``k8s/base``. One
folder cannot serve both: kubectl would apply ``kustomization.yaml`` as a manifest, and an overlay may not build on a
folder above itself.
"""

import hashlib
import json
import re
import sys
from pathlib import Path

import yaml

FOLDER = Path(__file__).parents[1] / "k8s"
HEADER = "# Written by `make generate` from k8s/base. Change the files there, then run it again.\n"
COMPONENTS_SETTINGS = "settings-of-components.yaml"
_NAME = re.compile(r"(?m)^(kind: Job\nmetadata:\n  name: setup-\d+-\d+-\d+)(?:-[0-9a-f]{8})?$")


def settings_of_components(base: Path) -> str:
    """Return the text of the manifest that gives ``settings.yaml`` to components, which run in KFP's namespace.

    Args:
        base: the folder of the manifests.
    """
    settings = yaml.safe_load((base / "settings.yaml").read_text(encoding="utf-8"))
    settings["metadata"]["namespace"] = "kubeflow"
    made = yaml.safe_dump(settings, sort_keys=False, width=120)
    return f"# Written by `make generate` from settings.yaml: components run in Kubeflow's namespace.\n{made}"


def named_by_content(base: Path) -> str:
    """Return the text of ``setup.yaml`` with the digest of what the setup job does at the end of the job's name.

    A Job cannot be changed once made. So a job that does something else (another image, other settings) is another job,
    which runs, and one that does the same is the same job, which does not run again.

    Args:
        base: the folder of the manifests.
    """
    text = (base / "setup.yaml").read_text(encoding="utf-8")
    (job,) = [document for document in yaml.safe_load_all(text) if document["kind"] == "Job"]
    settings = yaml.safe_load((base / "settings.yaml").read_text(encoding="utf-8"))["data"]
    digest = hashlib.sha256(json.dumps([job["spec"], settings], sort_keys=True).encode()).hexdigest()[:8]
    return _NAME.sub(rf"\g<1>-{digest}", text)


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
    """Write the files."""
    base = FOLDER / "base"
    (base / COMPONENTS_SETTINGS).write_text(settings_of_components(base), encoding="utf-8")
    (base / "setup.yaml").write_text(named_by_content(base), encoding="utf-8")
    (FOLDER / "install.yaml").write_text(joined(base), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
