"""A Prometheus of the Prometheus operator: what it reads and evaluates, by its own API."""

import json
import os
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kube
import table
import yaml

NAMESPACE = "monitoring"
COMPONENTS = Path(__file__).parents[2] / "k8s" / "components"


@dataclass(frozen=True)
class Prometheus:
    """The server.

    Attributes:
        address: of a port that is forwarded to it.
    """

    address: str

    def ask(self, path: str, **query: str) -> Any:
        """The data of an answer of ``/api/v1``."""
        url = f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.loads(answer.read())["data"]

    def value(self, expression: str) -> float | None:
        """The value of a series; None if there is none."""
        found = self.ask("query", query=expression)["result"]
        return float(found[0]["value"][1]) if found else None

    def health(self) -> dict[str, set[str]]:
        """The health of the targets of each PodMonitor of ours: ``up``, ``down``, ``unknown``."""
        found: dict[str, set[str]] = {}
        for target in self.ask("targets", state="active")["activeTargets"]:
            pool = str(target["scrapePool"]).split("/")
            if pool[:2] == ["podMonitor", "wukong"]:
                found.setdefault(pool[2], set()).add(target["health"])
        return found

    def alerts(self) -> dict[str, str]:
        """The health of each alert of ours: ``ok``, ``err``, or ``unknown`` as long as it was not evaluated."""
        groups = self.ask("rules", type="alert")["groups"]
        return {
            rule["name"]: rule["health"]
            for group in groups
            if group["name"].startswith("wukong-")
            for rule in group["rules"]
        }


def shipped_alerts() -> set[str]:
    """The names of the alerts of the component."""
    text = (COMPONENTS / "alerts" / "alerts.yaml").read_text(encoding="utf-8")
    return {rule["alert"] for group in yaml.safe_load(text)["spec"]["groups"] for rule in group["rules"]}


def service() -> str | None:
    """The name of the server's service."""
    found = kube.listed("services", "operated-prometheus=true", NAMESPACE)
    return str(found[0]["metadata"]["name"]) if found else None


def install(overlay: str) -> None:
    """Apply an overlay with the components ``pod-monitors`` and ``alerts``."""
    folder = table.FOLDER / "monitoring"
    folder.mkdir(parents=True, exist_ok=True)
    made = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(COMPONENTS.parents[1] / overlay, folder)],
        "components": [os.path.relpath(COMPONENTS / name, folder) for name in ("pod-monitors", "alerts")],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(made), encoding="utf-8")
    kube.kubectl("apply", "-k", str(folder))
