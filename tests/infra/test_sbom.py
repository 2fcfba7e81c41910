"""What is in an image, listed by a Docker that runs the image's program with this Python."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.images import contents, sbom

IDENTITY, REGISTRYS = (f"sha256:{digit * 64}" for digit in "ab")
LABELS = {
    "org.opencontainers.image.version": "0.1.0",
    "org.opencontainers.image.revision": "f00",
    "maintainer": "somebody",
}


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A client that has one image, and writes down how it was called."""
    about = {"Id": IDENTITY, "RepoDigests": [f"registry.example/data@{REGISTRYS}"], "Config": {"Labels": LABELS}}
    (tmp_path / "about.json").write_text(json.dumps([about]))
    program = tmp_path / "docker"
    program.write_text(
        f'#!/bin/sh\necho "$@" >>{tmp_path}/called\n'
        f'case "$1 $2" in "image inspect") [ "$3" != gone ] && exec cat {tmp_path}/about.json;; '
        f'"run --rm") exec "{sys.executable}" -;; esac\necho "no such image" >&2; exit 1\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path / "called"


def written(folder: Path) -> dict[str, Any]:
    first, second = sorted(folder.iterdir())
    assert [file.name for file in (first, second)] == [f"sha256-{digit * 64}.json" for digit in "ab"]
    assert first.read_bytes() == second.read_bytes(), "the image is found by either digest"
    found: dict[str, Any] = json.loads(first.read_text(encoding="utf-8"))
    return found


def test_an_image_lists_what_it_holds(docker: Path, tmp_path: Path) -> None:
    assert sbom.main(["registry.example:5000/data:1", "--folder", str(tmp_path / "sbom")]) == 0
    found = written(tmp_path / "sbom")
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    container = found["metadata"]["component"]
    assert (container["name"], container["version"]) == ("registry.example:5000/data", "0.1.0")
    assert container["hashes"] == [{"alg": "SHA-256", "content": "a" * 64}]
    assert {each["name"]: each["value"] for each in container["properties"]} == {
        name: value for name, value in LABELS.items() if name != "maintainer"
    }
    references = [each["bom-ref"] for each in found["components"]]
    assert len(set(references)) == len(references)
    ran = next(line for line in docker.read_text().splitlines() if line.startswith("run"))
    assert "--network=none" in ran and "registry.example:5000/data:1" in ran


def test_the_python_distributions_are_those_that_pip_lists(docker: Path, tmp_path: Path) -> None:
    sbom.write("registry.example/data:1", tmp_path / "sbom")
    components = written(tmp_path / "sbom")["components"]
    python = {each["name"]: each["version"] for each in components if each.get("purl", "").startswith("pkg:pypi/")}
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "list", "--format=json"]
    listed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert {each["name"]: each["version"] for each in listed}.items() <= python.items()
    assert all("+" not in each["purl"] for each in components if "purl" in each), "which a URL escapes"


@pytest.mark.skipif(not shutil.which("dpkg-query"), reason="no Debian")
def test_the_systems_packages_are_those_that_dpkg_lists() -> None:
    form = "${Package} ${Version} ${Architecture} ${Status}\n"
    done = subprocess.run(["dpkg-query", "--show", f"--showformat={form}"], check=True, capture_output=True, text=True)
    expected = {tuple(line.split()[:3]) for line in done.stdout.splitlines() if line.endswith("install ok installed")}
    found = contents.system_packages(contents.STATUS)
    assert {(each["name"], each["version"], each["architecture"]) for each in found} == expected
    assert contents.system(contents.SYSTEM) in ("debian", "ubuntu")


def test_a_package_that_was_removed_is_not_in_the_image(tmp_path: Path) -> None:
    (tmp_path / "status").write_text(
        "Package: zlib1g\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1:1.2\nDescription: a\n b: c\n\n"
        "Package: wget\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1.21\n"
    )
    expected = [{"name": "zlib1g", "version": "1:1.2", "architecture": "amd64"}]
    assert contents.system_packages(tmp_path / "status") == expected
    assert contents.system_packages(tmp_path / "none") == []


def test_an_image_that_is_not_there_is_an_error(docker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sbom.main(["gone"]) == 1
    assert "docker image inspect of gone: no such image" in capsys.readouterr().err
