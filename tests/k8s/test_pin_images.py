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
    for file in (tmp_path / "base").glob("*.yaml"):
        file.write_text(file.read_text().replace("localhost/", "registry.example/"))
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


def test_an_image_that_no_registry_knows_changes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "zz.yaml").write_text("image: mine/unknown:1\n")
    before = {file.name: file.read_text() for file in folder.iterdir()}
    with pytest.raises(StackError, match=r"mine/unknown:1: manifest unknown"):
        pin_images.pin(folder)
    assert pin_images.main([str(folder)]) == 1
    assert "Traceback" not in (told := capsys.readouterr().err) and "mine/unknown:1: manifest unknown" in told
    assert {file.name: file.read_text() for file in folder.iterdir()} == before


def test_without_a_registry_client_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(StackError, match="install one of crane, skopeo, docker"):
        pin_images.pin(folder)


def test_the_default_names_are_refused_with_the_way_on(folder: Path) -> None:
    """They lead to no registry, so that a cluster never pulls somebody else's image under such a name."""
    shutil.copy(FOLDER / "base" / "setup.yaml", folder / "setup.yaml")
    before = {file.name: file.read_text() for file in folder.iterdir()}
    with pytest.raises(StackError, match=r"localhost/wukong/data:\S+ is in no registry.*push the images"):
        pin_images.pin(folder)
    assert {file.name: file.read_text() for file in folder.iterdir()} == before


def test_no_image_of_components_and_overlays_is_left_without_a_digest(folder: Path, tmp_path: Path) -> None:
    """As docs/cluster.md does it: every name in the manifests' folders is renamed and pinned, those of patches too."""
    folders = [folder]
    for source in sorted(each.parent for each in FOLDER.glob("*/*/kustomization.yaml")):
        copied = tmp_path / "all" / source.relative_to(FOLDER)
        shutil.copytree(source, copied)
        folders.append(copied)
    files = [file for each in folders for file in each.glob("*.yaml")]
    for file in files:
        file.write_text(file.read_text().replace("localhost/wukong/", "registry.example/wukong/"))
    before = {file: file.read_text() for file in files}
    pin_images.pin(*folders)
    named = [line for file in files for line in file.read_text().splitlines() if "registry.example/wukong/" in line]
    assert len(named) > 15
    assert [line for line in named if "@sha256:" not in line] == []
    pin_images.unpin(*folders)
    assert {file: file.read_text() for file in files} == before


def test_several_folders_are_pinned_at_once(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "overlay").mkdir()
    (tmp_path / "overlay" / "ray-job.yaml").write_text("data: {settings.yaml: 'image: mine/ray:1'}\n")
    pin_images.pin(folder, tmp_path / "overlay")
    assert "image: mine/ray:1@sha256:" in (tmp_path / "overlay" / "ray-job.yaml").read_text()
    assert "wukong/data:" in (folder / "setup.yaml").read_text()
