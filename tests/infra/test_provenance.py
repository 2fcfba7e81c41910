"""What a build writes down of an image, with a Docker whose client is played."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from infra.images import build, provenance

REPOSITORY = Path(__file__).parents[2]
IDENTITY, OF_BASE = f"sha256:{'1d' * 32}", f"sha256:{'ba' * 32}"
CLIENT = """#!/bin/sh
echo "$@" >>{folder}/called
case "$1 $2" in
  "image inspect") case "$3" in
    localhost/*) echo '[{{"Id": "{identity}"}}]';;
    *) [ -e {folder}/pulled ] || exit 1; echo '[{{"Id": "sha256:other", "RepoDigests": ["{base}@{of_base}"]}}]';;
  esac;;
  pull*) touch {folder}/pulled;;
  --version*) echo "Docker version 20.1";;
esac
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with wheels, and a client that has no base image before it pulls one."""
    folder = tmp_path / "project"
    for name in ("wheelhouse", "project"):
        (folder / "build" / name).mkdir(parents=True)
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    (folder / "build" / "wheelhouse" / "mlflow.txt").write_text(f"# key\nmlflow==3.17.2 --hash=sha256:{'a' * 64}\n")
    (folder / "build" / "project" / "project.txt").write_text(f"wukong-vlm==0.1.0 --hash=sha256:{'b' * 64}\n")
    git(folder, "init", "--quiet")
    git(folder, "add", "pyproject.toml")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--quiet", "--message=one")
    monkeypatch.setattr(build, "_PROJECT", folder)
    tools = tmp_path / "bin"
    tools.mkdir()
    base = "python"
    (tools / "docker").write_text(CLIENT.format(folder=tmp_path, identity=IDENTITY, base=base, of_base=OF_BASE))
    (tools / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    return folder


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True).stdout


def written(project: Path) -> dict[str, Any]:
    file = project / "build" / "provenance" / f"sha256-{'1d' * 32}.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def test_a_build_names_revision_base_and_every_wheel(project: Path, tmp_path: Path) -> None:
    assert build.build("mlflow", "cpu", "python:3.11") == build.tag("mlflow")
    said = written(project)
    revision = git(project, "rev-parse", "HEAD").strip()
    source, base, *wheels = said["buildDefinition"]["resolvedDependencies"]
    assert source["digest"] == {"gitCommit": revision} and "annotations" not in source
    assert base == {"uri": "python:3.11", "digest": {"sha256": "ba" * 32}}
    assert {each["uri"]: each["digest"]["sha256"][0] for each in wheels} == {
        "pkg:pypi/mlflow@3.17.2": "a",
        "pkg:pypi/wukong-vlm@0.1.0": "b",
    }
    assert said["buildDefinition"]["externalParameters"]["target"] == "mlflow"
    assert said["runDetails"]["builder"]["version"]["docker"] == "Docker version 20.1"
    assert provenance.source_of(said) == revision
    called = (tmp_path / "called").read_text().splitlines()
    assert [line.split()[0] for line in called].index("pull") < [line.split()[0] for line in called].index("build")


def test_a_checkout_that_was_changed_says_so(project: Path) -> None:
    with (project / "pyproject.toml").open("a") as file:
        file.write("\n")
    build.build("mlflow", "cpu", "python:3.11")
    assert provenance.source_of(written(project)).endswith("-dirty")


def test_a_base_without_a_registry_is_named_by_its_own_digest(project: Path) -> None:
    build.build("mlflow", "cpu", "localhost/wukong/base:local")
    (_, base, *_) = written(project)["buildDefinition"]["resolvedDependencies"]
    assert base == {"uri": "localhost/wukong/base:local", "digest": {"sha256": "1d" * 32}}
