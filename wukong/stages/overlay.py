"""What an installation on Kubernetes has for the stages: the sizes of its pods and of its object store.

They are read from the manifests that ``kubectl kustomize FOLDER`` or ``kustomize build FOLDER`` prints; no cluster is
asked.
"""

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from wukong import stages
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError
from wukong.stages import prices, ray_job
from wukong.stages.capacity import Capacity, Pods
from wukong.stages.ray_job import Settings, StageSettings

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
    if ray_job.CONFIG_MAP not in maps:
        raise ConfigError(f"--overlay: {place} has no ConfigMap ray-job in the namespace wukong")
    template, settings = ray_job.parse({"template.yaml": "{}"} | maps[ray_job.CONFIG_MAP]["data"], str(place))
    of_all = maps.get("wukong-settings", {})
    holds = of_all.get("data", {}).get(STORE_CAPACITY)
    urls = of_all.get("metadata", {}).get("annotations", {}).get(SIZED_FOR)
    return replace(
        capacity_of(experiment, template, settings),
        store=int(amount_of(holds)) if holds else None,
        sized_for=None if urls is None else int(urls),
        prices=of_all.get("data", {}).get(prices.VARIABLE, ""),
    )


def capacity_of(experiment: Experiment, template: Mapping[str, Any], settings: Settings) -> Capacity:
    """Return what an installation gives an experiment's stages.

    Args:
        experiment: says how many workers its trainings have.
        template: a RayJob manifest; its volume ``tmp`` limits the temporary files of a pod.
        settings: what stages may use.
    """
    groups = template.get("spec", {}).get("rayClusterSpec", {}).get("workerGroupSpecs", ())
    volumes = (volume for group in groups for volume in group["template"]["spec"].get("volumes", ()))
    limit = next((each.get("emptyDir", {}).get("sizeLimit") for each in volumes if each["name"] == "tmp"), None)
    disk = None if limit is None else int(amount_of(limit))
    return Capacity(
        cores=1,  # of stages that are components
        pods={name: pods_of(name, experiment, settings, disk) for name in stages.JOBS},
        head_memory=int(amount_of(settings.head.memory)) if settings.head else None,
        gpus_per_pod=settings.gpu.gpus_per_pod,
    )


def pods_of(stage: str, experiment: Experiment, settings: Settings, disk: int | None = None) -> Pods:
    """Return what each worker of a stage has.

    For a training stage the experiment decides how many workers there are and whether they have GPUs. Another stage has
    GPUs only if it runs a model.

    Args:
        stage: its name.
        experiment: the experiment.
        settings: what stages may use.
        disk: bytes of the temporary files of a pod, which its workers or the tasks on its cores share.
    """
    asked, entry = settings.stages.get(stage, StageSettings()), stages.of(stage)
    workers, gpus = asked.workers, asked.gpus if entry.runs_model(experiment) else 0
    sharing: int | str = gpus or asked.cpus
    if entry.trains:
        training = stages.training_of(experiment, stage)
        workers, gpus = training.workers, training.gpus_per_worker
        sharing = settings.gpu.gpus_per_pod if gpus else 1
    share = disk // sharing if disk is not None and isinstance(sharing, int) else None
    memory, shared_memory = (int(amount_of(size)) for size in (asked.memory, asked.shared_memory))
    return Pods(workers, asked.cpus, gpus, memory, shared_memory, share)


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
