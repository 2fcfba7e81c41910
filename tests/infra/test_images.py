"""Checks of the images without a Docker engine: their names, their wheelhouse, and rules for the Dockerfile."""

import fnmatch
import hashlib
import importlib.metadata
import json
import re
import subprocess
import threading
import tomllib
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from manifests import installation, named, plain, pods
from packaging.requirements import Requirement

from components.container_image import DATA_IMAGE
from infra import containers
from infra.images import build, hashes
from wukong.errors import StackError

REPOSITORY = Path(__file__).parents[2]
IMAGES = REPOSITORY / "infra" / "images"
DOCKERFILE = (IMAGES / "Dockerfile").read_text(encoding="utf-8")


def test_all_used_image_names_are_built() -> None:
    made = {build.tag(image, accelerator) for image in build.IMAGES for accelerator in build.ACCELERATORS}
    assert {DATA_IMAGE, containers.RAY_IMAGE} <= made
    used = {container["image"] for pod in pods(plain()) for container in pod.containers}
    assert {image for image in used if image.startswith("localhost/")} <= made
    settings = named(plain(), "ConfigMap")["ray-job"]["data"]["settings.yaml"]
    assert set(re.findall(r"localhost/wukong/[\w:.-]+", settings)) <= made


def test_the_settings_of_ray_jobs_say_for_which_version_they_are() -> None:
    data = named(plain(), "ConfigMap")["ray-job"]["data"]
    assert data["version"] == build.version()


def test_the_ray_version_for_kuberay_is_that_of_the_image() -> None:
    """KubeRay uses the version to decide, for instance, whether probes need programs that the image does not have."""
    template = yaml.safe_load(named(plain(), "ConfigMap")["ray-job"]["data"]["template.yaml"])
    (pinned,) = re.findall(r"^ray==(.+)$", (REPOSITORY / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert template["spec"]["rayClusterSpec"]["rayVersion"] == pinned


def stages() -> dict[str, list[tuple[str, str]]]:
    """The instructions of the Dockerfile by stage."""
    found: dict[str, list[tuple[str, str]]] = {"": []}
    joined = re.sub(r"\\\n\s*", "", DOCKERFILE)
    for line in joined.splitlines():
        if not line or line.startswith("#"):
            continue
        instruction, _, value = line.partition(" ")
        if instruction == "FROM":
            found[value.rsplit(" AS ", 1)[1]] = []
        found[list(found)[-1]].append((instruction, value))
    return found


def test_every_image_has_its_stage() -> None:
    made = stages()
    assert build.IMAGES.keys() <= made.keys()
    for image in build.IMAGES:
        assert f"build-{image}" in made, "what builds an image is not in it"


def test_all_stages_use_one_pinned_base() -> None:
    made = stages()
    (base,) = [value for instruction, value in made[""] if value.startswith("BASE_IMAGE=")]
    assert re.fullmatch(r"BASE_IMAGE=python:\d+\.\d+-slim-[a-z]+", base)
    for name, instructions in made.items():
        if name:
            (source,) = [value.split(" AS ")[0] for instruction, value in instructions if instruction == "FROM"]
            assert source == "${BASE_IMAGE}" or source in made, name


@pytest.mark.parametrize("image", build.IMAGES)
def test_an_image_runs_as_an_ordinary_user_and_has_labels(image: str) -> None:
    instructions = stages()[image]
    users = [value for instruction, value in instructions if instruction == "USER"]
    assert users == ["1000:1000"]
    last = [instruction for instruction, _ in instructions].index("USER")
    assert not [value for instruction, value in instructions[last:] if instruction in ("RUN", "COPY", "ADD")]
    labels = " ".join(value for instruction, value in instructions if instruction == "LABEL")
    for label in ("title", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in labels
    (command,) = [value for instruction, value in instructions if instruction == "CMD"]
    assert json.loads(command), "a list, so that signals reach the program and no shell"


def test_no_build_uses_the_network() -> None:
    for name, instructions in stages().items():
        for instruction, value in instructions:
            assert instruction != "ADD", name
            assert not re.search(r"\b(apt-get|apk|curl|wget|npm)\b", value), name
    assert "--no-index" in (IMAGES / "install.sh").read_text(encoding="utf-8")


@pytest.mark.parametrize("script", ["base.sh", "install.sh"])
def test_scripts_parse_and_stop_at_the_first_failure(script: str) -> None:
    subprocess.run(["bash", "-n", str(IMAGES / script)], check=True)
    text = (IMAGES / script).read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text
    assert (IMAGES / script).stat().st_mode & 0o100


def test_the_wheel_contains_all_files_of_the_packages() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert json.loads(build._LIBRARY) == project["packages"]["find"]["include"]
    folders = [pattern.rstrip("*") for pattern in build._PACKAGES]
    listed = subprocess.run(
        ["git", "-C", str(REPOSITORY), "ls-files", *folders], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    patterns = project["package-data"]["*"]
    left_out = [
        name
        for name in listed
        if not name.endswith((".py", ".po"))  # of the catalogue, what is compiled is read
        and not (REPOSITORY / name).is_dir()
        and not any(fnmatch.fnmatch(Path(name).name, pattern) for pattern in patterns)
    ]
    assert {name for name in left_out if not name.startswith("infra/images/")} == set(), "add them to package-data"


def test_both_accelerators_use_the_same_torch_version() -> None:
    versions = [
        re.findall(r"^(\w+)={2,3}([\d.]+)", (IMAGES / f"torch-{name}.txt").read_text(encoding="utf-8"), re.MULTILINE)
        for name in build.ACCELERATORS
    ]
    assert versions[0] == versions[1]
    assert [name for name, _ in versions[0]] == ["torch", "torchvision"]


def test_no_package_is_pinned_twice() -> None:
    pinned = [
        {
            line.split("==")[0].lower().replace("_", "-")
            for line in file.read_text(encoding="utf-8").splitlines()
            if "==" in line
        }
        for file in (REPOSITORY / "constraints.txt", IMAGES / "constraints.txt")
    ]
    assert pinned[0] & pinned[1] == set()


def test_the_committed_hashes_are_those_of_the_pinned_versions() -> None:
    """`make hashes NEWEST=1` writes both; who changes a version alone is told here."""
    pinned = [hashes.versions(file.read_text(encoding="utf-8")) for file in hashes.PINS]
    files = hashes.versions("\n".join(build.FILES))
    text = hashes.HASHES.read_text(encoding="utf-8")
    assert hashes.versions(text) == pinned[0] | pinned[1] | files
    cuda = hashes.CUDA_HASHES.read_text(encoding="utf-8")
    torch = hashes.versions((IMAGES / "torch-cuda.txt").read_text(encoding="utf-8"))
    assert torch.items() <= hashes.versions(cuda).items()
    assert {name for name in hashes.versions(cuda) if not build._PARTS_OF_TORCH.match(name)} == set(torch)
    for entry in re.split(r"\n(?=[\w.-]+==)", text.strip() + "\n" + cuda.strip()):
        assert re.fullmatch(r"[\w.-]+==[^\\]+(\\\n    --hash=sha256:[0-9a-f]{64} ?)+", entry), entry[:80]


@pytest.mark.parametrize("image", build.IMAGES)
def test_what_an_image_needs_is_pinned(image: str) -> None:
    """As far as the packages that are installed here say what they need; what is not installed says nothing."""
    files = (REPOSITORY / "constraints.txt", IMAGES / "constraints.txt", IMAGES / "torch-cuda.txt")
    pinned = {name for file in files for name in hashes.versions(file.read_text(encoding="utf-8"))}
    todo = [(build.installed.normal(build.installed.DISTRIBUTION), extra) for extra in build.IMAGES[image].extras]
    seen = set(todo)
    while todo:
        name, extra = todo.pop()
        try:
            needs = map(Requirement, importlib.metadata.requires(name) or [])
        except importlib.metadata.PackageNotFoundError:
            continue
        for need in needs:
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                found = {(build.installed.normal(need.name), each) for each in ("", *need.extras)} - seen
                seen |= found
                todo += found
    names = {name for name, _ in seen} - {build.installed.normal(build.installed.DISTRIBUTION)}
    assert len(names) > 20
    loose = {name for name in names - pinned if not build._PARTS_OF_TORCH.match(name)}
    assert loose == set(), "add them to infra/images/constraints.txt"


# --- the wheelhouse, from packages that the tests build


def wheel(folder: Path, name: str, version: str, *metadata: str) -> None:
    """An empty package with requirements."""
    info = f"{name}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *metadata]
    files = {
        f"{name}.py": "",
        f"{info}/METADATA": "\n".join(lines) + "\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index of three packages, and a project that needs one of them."""
    for name, version, *metadata in (
        ("alpha", "1.0"),
        ("alpha", "2.0"),
        ("beta", "1.5", "Requires-Dist: gamma"),
        ("gamma", "3.0"),
    ):
        wheel(tmp_path / "index", name, version, *metadata)
    requires = ["Provides-Extra: kept", "Requires-Dist: alpha; extra == 'kept'"]
    wheel(tmp_path / "project", "wukong_vlm", "0.1.0", *requires)
    (tmp_path / "constraints.txt").write_text("Alpha==1.0\n")
    monkeypatch.setattr(build, "_constraints", lambda *_: [tmp_path / "constraints.txt"])
    lines = [
        "{}=={} --hash=sha256:{}".format(*file.name.split("-")[:2], hashlib.sha256(file.read_bytes()).hexdigest())
        for file in (tmp_path / "index").glob("*.whl")
        if file.name.startswith(("alpha-1", "beta"))
    ]
    (tmp_path / "hashes.txt").write_text("\n".join(lines))
    monkeypatch.setattr(build, "HASHES", tmp_path / "hashes.txt")
    monkeypatch.setitem(build.IMAGES, "small", build.Image(("kept",), alone=("beta==1.5",)))
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "index"), "PIP_CONSTRAINT": ""}.items():
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.mark.slow
def test_a_wheelhouse_follows_the_constraints_and_is_built_once(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, project = index / "wheelhouse", index / "project"
    listed = build.make_wheelhouse(folder, project, "small", "cpu")
    _, *lines = listed.read_text().splitlines()
    assert [line.split(" --hash=sha256:")[0] for line in lines] == ["alpha==1.0", "beta==1.5"]
    assert {file.name for file in folder.glob("*.whl")} == {"alpha-1.0-py3-none-any.whl", "beta-1.5-py3-none-any.whl"}
    monkeypatch.setattr(build, "_pip", lambda *_: pytest.fail("an index was asked again"))
    assert build.make_wheelhouse(folder, project, "small", "cpu") == listed


@pytest.mark.slow
@pytest.mark.parametrize("package", ["alpha-1.0", "beta-1.5"])
def test_a_file_that_is_not_the_committed_one_is_refused(
    index: Path, package: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same name and version, other bytes: as of an index that was taken over, or of a wheel in the folder."""
    for folder in ("index", "wheelhouse"):
        (index / folder).mkdir(exist_ok=True)
        wheel(index / folder, *package.split("-"), "Summary: another")
    with pytest.raises(StackError, match="ended with status"):
        build.make_wheelhouse(index / "wheelhouse", index / "project", "small", "cpu")
    assert "DO NOT MATCH THE HASHES" in capfd.readouterr().err
    assert not (index / "wheelhouse" / "small.txt").exists()


@pytest.mark.slow
def test_a_file_without_a_committed_hash_is_refused(index: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = (index / "hashes.txt").read_text().splitlines()
    (index / "hashes.txt").write_text("\n".join(line for line in lines if not line.startswith("alpha")))
    with pytest.raises(StackError, match="ended with status"):
        build.make_wheelhouse(index / "wheelhouse", index / "project", "small", "cpu")
    assert "--require-hashes" in capfd.readouterr().err


@pytest.mark.slow
def test_a_requirement_without_a_constraint_is_refused(index: Path) -> None:
    (index / "constraints.txt").write_text("beta==1.5\n")
    with pytest.raises(StackError, match=r"needs alpha==1\.0: add the versions"):
        build.make_wheelhouse(index / "wheelhouse", index / "project", "small", "cpu")


@pytest.fixture
def torch_index() -> Iterator[str]:
    """An index of PyTorch's kind below ``/whl``, and a network that refuses it below ``/refused``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            has = self.path == "/whl/torch/"
            body = b'<a href="torch-2.13.0-py3-none-any.whl">torch-2.13.0-py3-none-any.whl</a>' if has else b"refused"
            self.send_response(200 if has else 403)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
def test_an_image_for_cpus_gets_cuda_builds_where_the_network_refuses_the_others(
    torch_index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("PIP_NO_INDEX", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    assert build.torch_builds(tmp_path, "ray", "cpu", f"{torch_index}/whl") == "cpu"
    assert capsys.readouterr().err == ""
    assert build.torch_builds(tmp_path, "ray", "cpu", f"{torch_index}/refused") == "cuda"
    said = capsys.readouterr().err
    assert f"{torch_index}/refused" in said
    assert "run on CPUs" in said


def test_no_index_is_asked_for_an_image_without_torch_or_with_complete_wheels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build.subprocess, "run", lambda *_, **__: pytest.fail("an index was asked"))
    assert build.torch_builds(tmp_path, "data", "cpu") == "cpu"
    assert build.torch_builds(tmp_path, "ray", "cuda") == "cuda"
    (tmp_path / "ray-cpu.txt").write_text(build._key(build.IMAGES["ray"], build._constraints("ray", "cpu")) + "\n")
    assert build.torch_builds(tmp_path, "ray", "cpu") == "cpu"


def test_a_missing_docker_engine_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(StackError, match="no Docker engine answers"):
        containers.check_images(DATA_IMAGE)


def test_all_project_images_in_the_installation_are_built() -> None:
    """Also in the overlays."""
    made = {build.tag(image, accelerator) for image in build.IMAGES for accelerator in build.ACCELERATORS}
    for overlay in ("overlays/kind", "overlays/gpu"):
        used = {container["image"] for pod in pods(installation(overlay)) for container in pod.containers}
        assert {image for image in used if image.startswith("localhost/")} <= made


@pytest.mark.parametrize(
    ("version", "buildx", "said"),
    [
        ("Docker version 20.10.24+dfsg1, build 297e128", False, None),
        ("Docker version 28.2.2, build e6534b4", True, None),
        ("Docker version 28.2.2, build e6534b4", False, "apt-get install docker-buildx"),
        ("podman version 4.3.1", True, None),
    ],
)
def test_a_client_without_buildkit_is_reported_before_wheels_are_built(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    version: str,
    buildx: bool,
    said: str | None,
) -> None:
    client = tmp_path / "docker"
    client.write_text(
        f"#!/bin/sh\ncase $1 in --version) echo '{version}';; buildx) exit {int(not buildx)};; *) exit 9;; esac\n"
    )
    client.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    if said is None:
        build.check_docker()
        return
    monkeypatch.setattr(build, "make_project", lambda *_: pytest.fail("work began"))
    monkeypatch.setattr(build, "_pip", lambda *_: pytest.fail("work began"))
    assert build.main([]) == 1
    assert said in capsys.readouterr().err
