"""What an installation on Kubernetes has for the stages: the sizes of its pods and of its object store.

They are read from the manifests that ``kubectl kustomize FOLDER`` or ``kustomize build FOLDER`` prints; no cluster is
asked.
"""

import re
import shutil
import subprocess
from collections.abc import Mapping
from decimal import Decimal
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

_UNITS = {unit: Decimal(1000) ** power for power, unit in enumerate(("n", "u", "m", "", *"kMGTPE"), -3)}
_UNITS |= {f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", 1)}


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
    memory = {name: int(amount_of(pods[name]["memory"])) for name in pods if "memory" in pods[name]}
    head_memory = int(amount_of(settings["head"]["memory"]))
    urls = of_all.get("metadata", {}).get("annotations", {}).get(SIZED_FOR)
    return Capacity(
        cores=1,  # of stages that are components
        by_stage={name: pods[name].get("cpus", 1) * workers[name] for name in pods},
        gpus={
            name: pods[name].get("gpus", 0) * workers[name]
            for name, entry in ((name, stages.of(name)) for name in pods)
            if entry.runs_model(experiment) and not entry.trains
        },
        disk=_disk(maps["ray-job"]["data"], settings.get("gpu", {}).get("gpus_per_pod", 1)),
        memory=memory,
        held_memory={name: size * workers[name] + head_memory for name, size in memory.items()},
        head_memory=head_memory,
        store=int(amount_of(capacity)) if capacity else None,
        sized_for=None if urls is None else int(urls),
        gpus_per_pod=settings.get("gpu", {}).get("gpus_per_pod", 1),
        prices=of_all.get("data", {}).get(prices.VARIABLE, ""),
    )


def _disk(data: Mapping[str, str], together: int | str) -> int | None:
    """Return the bytes of temporary files of a worker of a training, where the template limits those of a pod."""
    if "template.yaml" not in data or not isinstance(together, int):
        return None
    (workers,) = yaml.safe_load(data["template.yaml"])["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = [each["emptyDir"] for each in workers["template"]["spec"]["volumes"] if each["name"] == "tmp"]
    return int(amount_of(limits[0]["sizeLimit"])) // together if limits and "sizeLimit" in limits[0] else None


def amount_of(quantity: str | float) -> Decimal:
    """Return what a Kubernetes quantity stands for, such as ``500m`` of a core or ``500Gi`` of memory.

    Raises:
        ConfigError: it is none.
    """
    number, unit = parts_of(quantity)
    return number * _UNITS[unit]


def parts_of(quantity: str | float) -> tuple[Decimal, str]:
    """Return the number and the unit of a Kubernetes quantity.

    Raises:
        ConfigError: it is none.
    """
    parts = re.fullmatch(r"(\d*\.?\d+(?:[eE][+-]?\d+)?)([A-Za-z]*)", str(quantity).strip(), re.ASCII)
    if parts is None or parts[2] not in _UNITS:
        raise ConfigError(f"{quantity!r} is no amount as Kubernetes writes it; write 500m, 500Gi or 12Ti")
    return Decimal(parts[1]), parts[2]


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
