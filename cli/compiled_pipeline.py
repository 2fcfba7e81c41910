"""What a compiled pipeline says of itself: its parameters, its tasks, its images, its version."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


def specification(file: Path) -> Any:
    """Return what KFP's compiler has written, ``pipeline_spec`` without what is of Kubernetes alone."""
    return next(yaml.safe_load_all(file.read_text(encoding="utf-8")))


def parameters_of(file: Path) -> Mapping[str, Any]:
    """Return the definitions of a compiled pipeline's parameters, by name."""
    found: Mapping[str, Any] = specification(file)["root"]["inputDefinitions"]["parameters"]
    return found


def version_of(file: Path) -> str:
    """Return the name of a compiled pipeline's version: a digest of its file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def images_of(file: Path) -> tuple[str, ...]:
    """Return the names of the images that a compiled pipeline has."""
    executors = specification(file)["deploymentSpec"]["executors"].values()
    return tuple(sorted({executor["container"]["image"] for executor in executors}))


def titles_of(file: Path) -> dict[str, str]:
    """Return the titles that tasks of a compiled pipeline have in KFP, by their names; groups of tasks are left out."""
    pipeline = specification(file)
    components = pipeline["components"]
    graphs = [pipeline["root"], *components.values()]
    return {
        name: task["taskInfo"]["name"]
        for graph in graphs
        for name, task in graph.get("dag", {}).get("tasks", {}).items()
        if "executorLabel" in components[task["componentRef"]["name"]]
    }
