"""Who holds which credential: the manifests, RayJobs and compiled pipelines are as the page on security says."""

import re
from pathlib import Path

import yaml
from manifests import named, plain, pods

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
OF_OVERLAYS = {"CronJob/gc", "RayService/search"}


def said(header: str, key: int, held_by: int) -> dict[str, set[str]]:
    """The holders of each Secret, by a table of the page; those of overlays are left out."""
    rows = PAGE.partition(header)[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[re.findall("`([^`]+)`", cell) for cell in row.strip("|").split("|")] for row in rows]
    return {row[key][0]: {*row[held_by]} - OF_OVERLAYS for row in cells}


def holders() -> dict[str, set[str]]:
    """The pods of the installation and of all pipelines, by the Secrets that they get variables from."""
    found: dict[str, set[str]] = {}
    for pod in pods(plain()):
        owner = re.sub(r"^(RayJob/\w+)/\w+$|^(Job/setup).*$", lambda match: match[1] or match[2], pod.owner)
        for container in pod.containers:
            references = [source.get("secretRef") for source in container.get("envFrom", [])]
            references += [entry.get("valueFrom", {}).get("secretKeyRef") for entry in container.get("env", [])]
            for reference in filter(None, references):
                found.setdefault(reference["name"], set()).add(owner)
    for file in (ROOT / "pipelines" / "compiled").glob("*.yaml"):
        _, platform = yaml.safe_load_all(file.read_text(encoding="utf-8"))
        for name, executor in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].items():
            component = re.sub(r"^exec-|-\d+$|-pairs$", "", name)
            for entry in executor["secretAsEnv"]:
                if not entry["optional"]:
                    found.setdefault(entry["secretName"], set()).add(f"component/{component.replace('-', '_')}")
    return found


def test_each_key_is_held_by_the_pods_that_the_page_names() -> None:
    keys = said("| key | held by |", 0, 1)
    held = holders()
    assert keys == {name: held.get(name, set()) for name in keys}
    assert {name for name in held if name.endswith("-s3")} <= keys.keys()


def test_each_user_is_held_by_the_pods_that_the_page_names() -> None:
    """The setup job, which makes the users, has all of their passwords."""
    users = said("| user | Secret | held by |", 1, 2)
    held = holders()
    setup = {"mlflow-admin": set[str]()}
    assert users == {name: held[name] - setup.get(name, {"Job/setup"}) for name in users}
    assert {name for name in held if name.endswith("-mlflow")} | {"mlflow-admin"} == users.keys()


def test_the_search_and_the_collector_are_not_in_the_installation() -> None:
    assert not {"search"} & named(plain(), "RayService").keys() and not {"gc"} & named(plain(), "CronJob").keys()
