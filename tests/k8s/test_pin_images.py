import hashlib
import shutil
from pathlib import Path

import pytest
import yaml
from manifests import FOLDER, Installation, pods

from infra import pin_images
from wukong.errors import StackError

# A registry client that answers every image with the digest of its name, as skopeo would.
SKOPEO = """#!/bin/sh
for last; do :; done
case "$last" in *unknown*) echo "manifest unknown" >&2; exit 1;; esac
printf 'sha256:%s\\n' "$(printf %s "${last#docker://}" | sha256sum | cut -d' ' -f1)"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the manifests, and no registry client but the one above."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "skopeo").write_text(SKOPEO)
    (tools / "skopeo").chmod(0o755)
    for name in ("sha256sum", "cut"):
        (tools / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(tools))
    shutil.copytree(FOLDER / "base", tmp_path / "base")
    return tmp_path / "base"


def test_every_image_is_pinned_and_unpinned(folder: Path) -> None:
    before = {file.name: file.read_text() for file in folder.iterdir()}
    digests = pin_images.pin(folder)
    manifests = Installation(
        document
        for file in sorted(folder.glob("*.yaml"))
        if file.name != "kustomization.yaml"
        for document in yaml.safe_load_all(file.read_text())
    )
    used = {container["image"] for pod in pods(manifests) for container in pod.containers}
    assert used == {f"{image}@{digest}" for image, digest in digests.items()}
    assert digests["postgres:17.11"] == "sha256:" + hashlib.sha256(b"postgres:17.11").hexdigest()
    pin_images.pin(folder)
    pin_images.unpin(folder)
    assert {file.name: file.read_text() for file in folder.iterdir()} == before


def test_an_image_that_no_registry_knows_changes_nothing(folder: Path) -> None:
    (folder / "zz.yaml").write_text("image: mine/unknown:1\n")
    before = {file.name: file.read_text() for file in folder.iterdir()}
    with pytest.raises(StackError, match=r"mine/unknown:1: manifest unknown"):
        pin_images.pin(folder)
    assert {file.name: file.read_text() for file in folder.iterdir()} == before


def test_without_a_registry_client_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(StackError, match="install one of crane, skopeo, docker"):
        pin_images.pin(folder)
