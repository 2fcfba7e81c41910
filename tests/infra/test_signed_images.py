"""Images that are signed and checked by the real cosign, in a registry on loopback; Docker's client is played.

Where the three programs cannot be had (building them takes minutes) these tests are skipped; the rest needs none:

    go install github.com/google/go-containerregistry/cmd/crane@v0.22.1
    go install github.com/sigstore/cosign/v3/cmd/cosign@v3.1.3
    go install github.com/anchore/syft/cmd/syft@latest
"""

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import api_server
import pytest
import yaml
from free_ports import free_port
from manifests import FOLDER, build, plain, pods, ray_jobs, ray_pods

from infra.images import cosign, docker, program, provenance, sign, verify
from infra.images.provenance import Made
from wukong.errors import StackError
from wukong.stages import overlay

IDENTITY = f"sha256:{'1d' * 32}"
REVISION = "c" * 40
MADE = Made(
    repository="https://git.example/wukong",
    revision=REVISION,
    dirty=False,
    target="data",
    base="python:3.11-slim-bookworm",
    base_digest=f"sha256:{'ba' * 32}",
    arguments={"PYTHON_VERSION": "3.11"},
    wheels=f"# key\nnumpy==2.1.0 --hash=sha256:{'a' * 64}\n",
    docker="Docker version 28",
    began="2026-11-30T10:00:00Z",
    ended="2026-11-30T10:05:00Z",
)


@dataclass
class Registry:
    """A registry on loopback with an image of one file, which a played Docker has pushed.

    Attributes:
        host: its address.
        digest: of the image.
        folder: with two pairs of keys, and what the build has written.
    """

    host: str
    digest: str
    folder: Path

    @property
    def image(self) -> str:
        return f"{self.host}/wukong/data@{self.digest}"

    def sign(self) -> int:
        key = str(self.folder / "cosign.key")
        return sign.main([f"{self.host}/wukong/data:1", "--key", key, "--provenance", str(self.folder / "made")])

    def verify(self, *arguments: str, key: str = "cosign.pub") -> int:
        return verify.main(["--key", str(self.folder / key), *arguments])


def ran(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    missing = [name for name in ("cosign", "crane", "syft") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not on PATH; building them takes minutes (the module says how)")
    monkeypatch.setenv("COSIGN_PASSWORD", "of-the-test")
    for name in ("cosign", "other"):
        ran("cosign", "generate-key-pair", f"--output-key-prefix={tmp_path / name}")
    (tmp_path / "file").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.5\n")
    with tarfile.open(tmp_path / "layer.tar", "w") as layer:
        layer.add(tmp_path / "file", "usr/local/lib/python3.11/site-packages/mine-1.5.dist-info/METADATA")
    port = free_port()
    with subprocess.Popen(
        ["crane", "registry", "serve", "--address", f"127.0.0.1:{port}"], stderr=subprocess.DEVNULL
    ) as server:
        try:
            host = f"127.0.0.1:{port}"
            made = Registry(host, pushed(f"{host}/wukong/data:1", tmp_path / "layer.tar"), tmp_path)
            played_docker(tmp_path, [made.image], monkeypatch)
            provenance.write(IDENTITY, MADE, tmp_path / "made")
            yield made
        finally:
            server.kill()


def pushed(name: str, layer: Path) -> str:
    until = time.monotonic() + 30
    while True:
        done = subprocess.run(["crane", "append", "-f", str(layer), "-t", name], capture_output=True, check=False)
        if done.returncode == 0:
            return ran("crane", "digest", name).strip()
        assert time.monotonic() < until, done.stderr.decode()
        time.sleep(0.1)


def played_docker(folder: Path, digests: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    about = {"Id": IDENTITY, "RepoDigests": digests, "Config": {"Labels": {}}}
    (folder / "about.json").write_text(json.dumps([about]))
    tools = folder / "bin"
    tools.mkdir()
    (tools / "docker").write_text(f'#!/bin/sh\ncase "$1" in image) exec cat {folder}/about.json;; esac\nexit 1\n')
    (tools / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")


def test_what_is_signed_is_found_again(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    assert registry.sign() == 0
    assert capsys.readouterr().out.strip() == registry.image
    assert registry.verify("--image", registry.image, "--write", str(registry.folder / "images.yaml")) == 0
    assert f"signed, revision {REVISION[:12]}, 1 packages listed" in capsys.readouterr().out
    # Without anything of ours: the statement as cosign gives it.
    given = ("--insecure-ignore-tlog=true", f"--key={registry.folder / 'cosign.pub'}", registry.image)
    for kind, type_ in (
        ("cyclonedx", "https://cyclonedx.org/bom"),
        ("slsaprovenance1", "https://slsa.dev/provenance/v1"),
    ):
        envelope = json.loads(ran("cosign", "verify-attestation", f"--type={kind}", *given))
        statement = json.loads(base64.b64decode(envelope["payload"]))
        assert statement["predicateType"] == type_
        if kind == "cyclonedx":
            assert [each["purl"] for each in statement["predicate"]["components"]] == ["pkg:pypi/mine@1.5"]
        assert [each["digest"]["sha256"] for each in statement["subject"]] == [registry.digest.removeprefix("sha256:")]
    dependencies = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert [next(iter(each["digest"].values()))[:4] for each in dependencies] == ["cccc", "baba", "aaaa"]
    (change,) = yaml.safe_load((registry.folder / "images.yaml").read_text())
    assert list(json.loads(change["value"])) == [registry.digest]


def test_what_is_not_signed_or_by_another_key_or_in_part_is_refused(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    patch = registry.folder / "images.yaml"
    asked = ("--image", registry.image, "--write", str(patch))
    assert registry.verify(*asked) == 1
    assert "1 of 1 images are not signed" in capsys.readouterr().err
    key = str(registry.folder / "cosign.key")
    cosign.attest(registry.image, key, cosign.SBOM, {"bomFormat": "CycloneDX", "specVersion": "1.6"})
    assert registry.verify(*asked) == 1  # an attestation is no signature, though cosign takes it for one
    assert "no signature" in capsys.readouterr().err
    cosign.sign(registry.image, key)
    assert registry.verify(*asked) == 1
    assert "provenance" in capsys.readouterr().err
    cosign.attest(registry.image, key, cosign.PROVENANCE, provenance.predicate(MADE))
    assert registry.verify(*asked, key="other.pub") == 1
    assert not patch.exists()
    assert registry.verify(*asked) == 0


def test_a_changed_image_under_the_same_name_is_not_the_signed_one(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    assert registry.sign() == 0
    (registry.folder / "file").write_text("changed")
    with tarfile.open(registry.folder / "layer.tar", "w") as layer:
        layer.add(registry.folder / "file", "file")
    other = pushed(f"{registry.host}/wukong/data:1", registry.folder / "layer.tar")
    assert other != registry.digest
    assert registry.verify("--image", f"{registry.host}/wukong/data:1@{other}") == 1
    assert registry.verify("--image", f"{registry.host}/wukong/data:1") == 1
    assert "is not named by digest" in capsys.readouterr().err
    assert registry.verify("--image", f"{registry.host}/wukong/data:1@{registry.digest}") == 0


def test_an_image_that_has_another_name_on_the_cluster(registry: Registry) -> None:
    assert registry.sign() == 0
    image = f"localhost/wukong/data:1@{registry.digest}"
    assert registry.verify("--image", image) == 1
    assert registry.verify("--image", image, "--kept-at", f"localhost/={registry.host}/") == 0


def test_only_what_was_pushed_and_built_here_is_signed(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (registry.folder / "made" / f"sha256-{'1d' * 32}.json").unlink()
    assert registry.sign() == 1
    assert "was not built here" in capsys.readouterr().err
    shutil.rmtree(registry.folder / "bin")
    played_docker(registry.folder, [f"elsewhere/wukong/data@{registry.digest}"], monkeypatch)
    assert registry.sign() == 1
    assert "was not pushed" in capsys.readouterr().err


def test_what_is_missing_or_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docker").write_text("#!/bin/sh\necho 'Error: no such image' >&2; exit 1\n")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StackError, match="docker image of gone: no such image"):
        docker.inspect("gone")
    with pytest.raises(StackError, match=r"'syft' is not installed; with Go: go install github\.com/anchore/syft"):
        program.run("syft", "scan")


@pytest.mark.parametrize("image", ["127.0.0.1:5000/wukong/data:1", "127.0.0.1:5000/wukong/data"])
def test_the_digest_of_a_registry_is_that_of_the_images_name(image: str) -> None:
    digests = [f"localhost/wukong/data@sha256:{'a' * 64}", f"127.0.0.1:5000/wukong/data@sha256:{'b' * 64}"]
    assert docker.digest_in_registry(image, {"RepoDigests": digests}) == f"sha256:{'b' * 64}"
    assert docker.digest_in_registry("localhost/wukong/ray:1", {"RepoDigests": digests}) == ""
    assert docker.digest_in_registry(image, {"RepoDigests": None}) == ""


@pytest.mark.parametrize("name", ["plain", "overlays/gpu"])
def test_all_images_that_pods_of_an_overlay_run_are_asked_for(name: str) -> None:
    made = plain() if name == "plain" else build(name)
    used = {container["image"] for pod in pods(made) for container in pod.containers}
    assert used <= verify.images_of(made)


def test_of_a_pod_that_runs_it_is_what_it_has_started() -> None:
    identity = f"registry.example/wukong/ray@sha256:{'e' * 64}"
    container = {"name": "ray", "image": "registry.example/wukong/ray:1"}
    status = {"phase": "Running", "containerStatuses": [{"name": "ray", "imageID": identity}]}
    pod: dict[str, Any] = {"kind": "Pod", "spec": {"containers": [container]}, "status": status}
    assert verify.images_of([pod]) == {f"registry.example/wukong/ray:1@sha256:{'e' * 64}"}
    assert verify.images_of([{**pod, "status": {"phase": "Pending"}}]) == {"registry.example/wukong/ray:1"}
    assert verify.images_of([{**pod, "status": {**status, "phase": "Succeeded"}}]) == set()


def test_a_ray_job_that_has_ended_does_not_count() -> None:
    """It is kept for a week, with the images of the version before."""
    of_stage = ray_jobs(plain())["filter"]
    named = {container["image"] for pod in ray_pods("filter", of_stage) for container in pod.containers}
    assert verify.images_of([{**of_stage, "status": {"jobDeploymentStatus": "Running"}}]) >= named
    assert verify.images_of([{**of_stage, "status": {"jobDeploymentStatus": "Complete"}}]) == set()


def test_where_nobody_can_be_asked_a_missing_password_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nobody(_: str) -> str:
        raise EOFError

    monkeypatch.delenv("COSIGN_PASSWORD", raising=False)
    monkeypatch.setattr("getpass.getpass", nobody)
    (tmp_path / "key").touch()
    assert sign.main(["registry.example/wukong/data:1", "--key", str(tmp_path / "key")]) == 1
    assert "set COSIGN_PASSWORD" in capsys.readouterr().err


def test_the_compiled_pipelines_name_the_image_of_components() -> None:
    compiled = FOLDER.parent / "pipelines" / "compiled" / "training.yaml"
    named = verify.images_of(yaml.safe_load_all(compiled.read_text(encoding="utf-8")))
    assert {image.rpartition("/")[2].partition(":")[0] for image in named} == {"data"}


def test_the_patch_puts_the_list_into_the_policy(tmp_path: Path) -> None:
    if not any(shutil.which(name) for name in ("kustomize", "kubectl")):
        pytest.skip("neither kustomize nor kubectl is installed (on Debian: apt-get install kustomize)")
    digest = f"sha256:{hashlib.sha256(b'').hexdigest()}"
    for folder in ("base", "overlays/kind", "components/signed-images"):
        shutil.copytree(FOLDER / folder, tmp_path / folder)
    mine = tmp_path / "overlays" / "mine"
    mine.mkdir()
    (mine / "images.yaml").write_text(verify.patch({f"a/ray:1@{digest}": "signed", f"b/ray@{digest}": "signed"}))
    target = {"kind": "ValidatingAdmissionPolicy", "name": "wukong-signed-images"}
    content = {
        "resources": ["../kind"],
        "components": ["../../components/signed-images"],
        "patches": [{"target": target, "path": "images.yaml"}],
    }
    (mine / "kustomization.yaml").write_text(yaml.safe_dump(content))
    (policy,) = (
        each
        for each in overlay.manifests(mine)
        if (each["kind"], each["metadata"]["name"]) == (target["kind"], target["name"])
    )
    assert policy["spec"]["variables"][0]["name"] == "listed"
    assert list(json.loads(policy["spec"]["variables"][0]["expression"])) == [digest]


def test_of_the_pods_of_components_kubeflows_own_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pods as KFP 2.17 makes them: one of a component, with KFP's launcher, and the driver that prepares it."""
    argo = {"name": "wait", "image": "quay.io/argoproj/argoexec:v4.0.8"}

    def pod(image: str, *started_with: str) -> dict[str, Any]:
        spec = {
            "initContainers": [{"name": name, "image": argo["image"]} for name in ("init", *started_with)],
            "containers": [argo, {"name": "main", "image": image}],
        }
        metadata = {"name": image, "namespace": "kubeflow", "labels": {"pipelines.kubeflow.org/v2_component": "true"}}
        return {"metadata": metadata, "spec": spec, "status": {"phase": "Running"}}

    with api_server.running(tmp_path, monkeypatch) as api:
        api.pods = [
            pod("localhost/wukong/data:0.2.0", "kfp-launcher"),
            pod("ghcr.io/kubeflow/kfp-driver:2.17.0"),
        ]
        for each in plain():
            api.put(each)
        of_components = {"localhost/wukong/data:0.2.0"}
        assert verify.of_cluster("wukong", "kubeflow") == verify.images_of(plain()) | of_components
