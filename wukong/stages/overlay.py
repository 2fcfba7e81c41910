"""What an installation on Kubernetes has for the stages: the sizes of its pods and of its object store.

They are read from the manifests that ``kubectl kustomize FOLDER`` or ``kustomize build FOLDER`` prints; no cluster is
asked.
"""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from wukong import stages
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError
from wukong.stages import prices
from wukong.stages.estimate import Capacity

STORE_CAPACITY = "WUKONG_STORE_CAPACITY"
"""What the object store holds, a Kubernetes quantity: in the ConfigMap ``wukong-settings``; may be empty."""
SIZED_FOR = "wukong/sized-for-urls"
"""Annotation of that ConfigMap: the number of URLs that the installation's sizes are for."""

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_UNITS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50}


def read(place: Path, experiment: Experiment) -> Capacity:
    """Return what an overlay gives an experiment's stages.

    Args:
        place: a folder that kustomize builds, or a file with its output.
        experiment: says how many workers its trainings have.

    Raises:
        ConfigError: there is no such overlay, or nothing that can build it.
    """
    maps = {
        manifest["metadata"]["name"]: manifest
        for manifest in manifests(place)
        if manifest["kind"] == "ConfigMap" and manifest["metadata"].get("namespace") == "wukong"
    }
    if "ray-job" not in maps:
        raise ConfigError(f"--overlay: {place} has no ConfigMap ray-job in the namespace wukong")
    settings = yaml.safe_load(maps["ray-job"]["data"]["settings.yaml"])
    pods = settings["stages"]
    workers = {name: pods[name].get("workers", 1) for name in pods}
    workers |= {name: stages.training_of(experiment, name).workers for name in stages.TRAININGS}
    of_all = maps.get("wukong-settings", {})
    capacity = of_all.get("data", {}).get(STORE_CAPACITY)
    memory = {name: bytes_of(pods[name]["memory"]) for name in pods if "memory" in pods[name]}
    head_memory = bytes_of(settings["head"]["memory"])
    urls = of_all.get("metadata", {}).get("annotations", {}).get(SIZED_FOR)
    return Capacity(
        cores=1,  # of stages that are components
        by_stage={name: pods[name].get("cpus", 1) * workers[name] for name in pods},
        memory=memory,
        held_memory={name: size * workers[name] + head_memory for name, size in memory.items()},
        head_memory=head_memory,
        store=bytes_of(capacity) if capacity else None,
        sized_for=None if urls is None else int(urls),
        gpus_per_pod=settings.get("gpu", {}).get("gpus_per_pod", 1),
        prices=of_all.get("data", {}).get(prices.VARIABLE, ""),
    )


def bytes_of(quantity: str) -> int:
    """Return the bytes of a Kubernetes quantity, such as ``500Gi``.

    Raises:
        ConfigError: it is none.
    """
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]*)", quantity.strip())
    if parts is None or parts[2] not in _UNITS:
        raise ConfigError(f"{quantity!r} is no amount of bytes as Kubernetes writes it; write 500Gi or 12Ti")
    return int(float(parts[1]) * _UNITS[parts[2]])


def manifests(place: Path) -> list[dict[str, Any]]:
    """Return the manifests of an overlay.

    Args:
        place: a folder that kustomize builds, or a file with its output.

    Raises:
        ConfigError: there is no such overlay, or nothing that can build it.
    """
    if place.is_file():
        text = place.read_text(encoding="utf-8")
    elif not (place / "kustomization.yaml").is_file():
        raise ConfigError(f"--overlay: {place} is neither a folder with a kustomization.yaml nor a file of manifests")
    else:
        command = next((name for name in ("kustomize", "kubectl") if shutil.which(name)), None)
        if command is None:
            raise ConfigError(
                "--overlay: neither kubectl nor kustomize is installed here; where one is, `kubectl kustomize "
                f"{place} > overlay.yaml`, then --overlay overlay.yaml"
            )
        arguments = [command, "build" if command == "kustomize" else "kustomize", str(place)]
        built = subprocess.run(arguments, capture_output=True, text=True, check=False)  # noqa: S603 - of these two names
        if built.returncode:
            raise ConfigError(f"--overlay: {' '.join(arguments)} says: {built.stderr.strip()}")
        text = built.stdout
    try:
        return [document for document in yaml.safe_load_all(text) if document]
    except yaml.YAMLError as error:
        raise ConfigError(f"--overlay: {place} is not YAML: {error}") from error
