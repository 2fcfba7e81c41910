"""Build the container images: ``python -m infra.images.build [IMAGE ...]``, by default all three.

First the project's own wheel (``build/project``) and a wheelhouse (``build/wheelhouse``): every wheel an image needs,
in the versions that the constraints name, and for each image the list of them with their hashes. An index is asked only
when requirements have changed. Then ``docker build``, without a network.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from infra.install import CPU_INDEX, FILES
from wukong import installed
from wukong.errors import StackError
from wukong.manifest import code_revision

ACCELERATORS = ("cpu", "cuda")
_HERE = Path(__file__).parent
_PROJECT = _HERE.parents[1]
_WHEEL = installed.DISTRIBUTION.replace("-", "_")
# pip installs itself into no image; the others build the project.
_TOOLS = ("pip", "setuptools", "wheel")
# torch names each of its own parts in one exact version.
_PARTS_OF_TORCH = re.compile(r"nvidia-|cuda-|triton")


@dataclass(frozen=True)
class Image:
    """What one image holds.

    Attributes:
        extras: of the project; what they name is installed.
        alone: what is installed without what it says it needs.
        torch: takes the constraints of an accelerator too.
    """

    extras: tuple[str, ...]
    alone: tuple[str, ...] = ()
    torch: bool = False


IMAGES = {
    # Crawling, validating and training are done on Ray: only its image has what they need.
    "data": Image(("curate", "kfp", "track", "report")),
    # Of the packages installed alone a file each is needed: the vocabulary of the Chinese BERT, a DINOv2-small.
    "ray": Image(
        ("crawl", "curate", "validate", "train", "ray", "ray-head", "track"),
        alone=FILES,
        torch=True,
    ),
    "mlflow": Image(("mlflow-server",)),
}
"""By name: the target in the Dockerfile, and the last part of the image's name."""


def version() -> str:
    """The project's version, which is the images' tag."""
    return str(_project()["version"])


def tag(image: str, accelerator: str = "cpu") -> str:
    """Name and tag of an image, as the manifests and pipelines have it.

    Under ``localhost`` no registry of the world answers: an image that is missing is not found, rather than somebody's.
    """
    return f"localhost/wukong/{image}:{version()}" + ("-cuda" if accelerator == "cuda" else "")


def make_project(folder: Path, wheelhouse: Path) -> None:
    """Build the project's wheel from the files that git tracks, as they stand in the checkout.

    Args:
        folder: gets the wheel, pip's, and the list ``project.txt``.
        wheelhouse: has the tools to build it.

    Raises:
        StackError: this is no git checkout, or the project cannot be built.
    """
    tracked = _output(["git", "-C", str(_PROJECT), "ls-files", "-z"]).split("\0")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as copy:
        for name in filter(None, tracked):
            source, target = _PROJECT / name, Path(copy, name)
            if source.is_symlink() or source.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target, follow_symlinks=False)
        _pip("wheel", "--no-deps", "--no-index", f"--find-links={wheelhouse}", f"--wheel-dir={folder}", copy)
    (wheel,) = folder.glob(f"{_WHEEL}-*.whl")
    (folder / "project.txt").write_text(f"{_line(installed.DISTRIBUTION, version(), wheel)}\n", encoding="utf-8")
    for pip in wheelhouse.glob("pip-*.whl"):
        shutil.copy2(pip, folder)


def make_wheelhouse(folder: Path, project: Path, image: str, accelerator: str) -> Path:
    """Put every wheel of an image into a folder and write the list of them, unless both are there already.

    Args:
        folder: the wheelhouse, which images share.
        project: where the project's wheel lies.
        image: name in ``IMAGES``.
        accelerator: ``cpu`` or ``cuda``: which torch.

    Returns:
        The list: a requirements file with one exact version and its hash a line, the project left out.

    Raises:
        StackError: pip failed, or something is needed that the constraints do not name in one version.
    """
    wanted, constraints = IMAGES[image], _constraints(image, accelerator)
    listed = folder / (f"{image}-{accelerator}.txt" if wanted.torch else f"{image}.txt")
    key = _key(wanted, constraints)
    if listed.exists() and listed.read_text(encoding="utf-8").startswith(key):
        return listed
    (wheel,) = project.glob(f"{_WHEEL}-*.whl")
    # By its path: no index has the project.
    required = f"{wheel}[{','.join(wanted.extras)}]"
    into = ["wheel", f"--wheel-dir={folder}", f"--find-links={folder}"]
    bounds = [f"--constraint={file}" for file in constraints]
    if wanted.torch and accelerator == "cpu":
        _pip(*into, "--no-deps", f"--index-url={CPU_INDEX}", *bounds, "torch", "torchvision")
    _pip(*into, *bounds, required)
    asked = ["install", "--dry-run", "--ignore-installed", "--report=-", "--no-index", f"--find-links={folder}"]
    wheels = _chosen(_pip(*asked, *bounds, required))
    if wanted.alone:
        _pip(*into, "--no-deps", *wanted.alone)
        wheels |= _chosen(_pip(*asked, "--no-deps", *wanted.alone))
    del wheels[installed.DISTRIBUTION]
    (folder / wheel.name).unlink()
    pinned = _pinned([file.read_text(encoding="utf-8") for file in constraints] + list(wanted.alone))
    loose = sorted(name for name in wheels if name not in pinned and not _PARTS_OF_TORCH.match(name))
    if loose:
        raise StackError(
            f"the {image} image needs {', '.join(f'{name}=={wheels[name][0]}' for name in loose)}: "
            f"add the versions you want to {_HERE.relative_to(_PROJECT)}/constraints.txt"
        )
    lines = [_line(name, found, wheel) for name, (found, wheel) in sorted(wheels.items())]
    listed.write_text("\n".join([key, *lines]) + "\n", encoding="utf-8")
    return listed


def build(image: str, accelerator: str, base_image: str | None, cache: bool = True) -> str:
    """Build one image from the wheelhouse and tag it.

    Args:
        image: name in ``IMAGES``.
        accelerator: ``cpu`` or ``cuda``.
        base_image: a Debian image with the Python this runs with; None for the Dockerfile's.
        cache: take over what an earlier build has done.

    Returns:
        The tag.

    Raises:
        StackError: Docker failed, or there is none.
    """
    arguments = {
        "PYTHON_VERSION": f"{sys.version_info.major}.{sys.version_info.minor}",
        "VERSION": version(),
        "REVISION": code_revision(),
        "SOURCE_DATE_EPOCH": _output(["git", "-C", str(_PROJECT), "log", "-1", "--format=%ct"]).strip(),
        **({"ACCELERATOR": accelerator} if IMAGES[image].torch else {}),
        **({"BASE_IMAGE": base_image} if base_image else {}),
    }
    command = ["docker", "build", f"--file={_HERE / 'Dockerfile'}", f"--target={image}", "--network=none"]
    command += [f"--build-arg={name}={value}" for name, value in arguments.items()]
    if not cache:
        command.append("--no-cache")
    made = tag(image, accelerator)
    _run([*command, f"--tag={made}", str(_PROJECT)], {"DOCKER_BUILDKIT": "1"})
    return made


def check_docker() -> None:
    """See that Docker's client can build with BuildKit, which the Dockerfile needs for its mounts.

    Docker's client before version 23 brings BuildKit; later ones need the plugin buildx.

    Raises:
        StackError: there is no client, or it lacks buildx; the message says what to install.
    """
    said = _output(["docker", "--version"])
    version = re.search(r"\d+", said)
    if version is None or int(version[0]) < _CLIENT_WITHOUT_BUILDKIT:
        return
    plugin = subprocess.run(["docker", "buildx", "version"], capture_output=True, check=False)  # noqa: S607
    if plugin.returncode:
        raise StackError(
            f"Docker's plugin buildx is missing ({said.strip()}); the images are built with it. Install it: "
            "apt-get install docker-buildx (Debian 13, Ubuntu), docker-buildx-plugin (Docker's own packages), "
            "dnf install docker-buildx (Fedora); on Debian 12 its docker.io package needs no plugin"
        )


_CLIENT_WITHOUT_BUILDKIT = 23


def _project() -> Mapping[str, Any]:
    table: dict[str, Any] = tomllib.loads((_PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def _constraints(image: str, accelerator: str) -> list[Path]:
    files = [_PROJECT / "constraints.txt", _HERE / "constraints.txt"]
    return [*files, _HERE / f"torch-{accelerator}.txt"] if IMAGES[image].torch else files


def _key(wanted: Image, constraints: Sequence[Path]) -> str:
    """The first line of a list, which tells whether it is still the right one."""
    project = _project()
    said = [
        json.dumps([asdict(wanted), sys.version, project["dependencies"], project["optional-dependencies"]]),
        *(file.read_text(encoding="utf-8") for file in constraints),
    ]
    return f"# {hashlib.sha256(chr(0).join(said).encode()).hexdigest()}"


def _pinned(texts: Sequence[str]) -> set[str]:
    """Names that constraints give in one version."""
    lines = [line.split("#")[0].strip() for text in texts for line in text.splitlines()]
    return {_normal(line.split("==")[0]) for line in lines if "==" in line}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _chosen(report: str) -> dict[str, tuple[str, Path]]:
    """Version and wheel by name, of what pip reports that it would install."""
    return {
        _normal(entry["metadata"]["name"]): (
            entry["metadata"]["version"],
            Path(unquote(urlsplit(entry["download_info"]["url"]).path)),
        )
        for entry in json.loads(report)["install"]
    }


def _line(name: str, version: str, wheel: Path) -> str:
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}"


def _pip(*arguments: str) -> str:
    return _output([sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments])


def _output(command: Sequence[str]) -> str:
    """What a command writes; what it complains of goes to our standard error."""
    return _run(command, {}, subprocess.PIPE)


def _run(command: Sequence[str], environment: Mapping[str, str], output: int | None = None) -> str:
    try:
        done = subprocess.run(  # noqa: S603
            command, env={**os.environ, **environment}, stdout=output, text=True, check=False
        )
    except FileNotFoundError as error:
        raise StackError(
            f"the program {command[0]!r} is not installed; images are built with git and docker"
        ) from error
    if done.returncode:
        raise StackError(f"{' '.join(command[:4])} ... ended with status {done.returncode}; what it said is above")
    return done.stdout or ""


def main(arguments: list[str] | None = None) -> int:
    """Build the images that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m infra.images.build", description=__doc__.split("\n", 1)[0])
    parser.add_argument("images", nargs="*", metavar="IMAGE", help=f"of {', '.join(IMAGES)}; by default all")
    parser.add_argument("--accelerator", choices=ACCELERATORS, default="cpu", help="of the ray image (default: cpu)")
    parser.add_argument(
        "--base-image",
        default=os.environ.get("BASE_IMAGE") or None,
        help="what all build on, by default $BASE_IMAGE or the Dockerfile's; infra/images/base.sh makes one",
    )
    parser.add_argument("--wheelhouse-only", action="store_true", help="stop before docker build")
    options = parser.parse_args(arguments)
    wheelhouse, project = _PROJECT / "build" / "wheelhouse", _PROJECT / "build" / "project"
    if unknown := set(options.images) - IMAGES.keys():
        parser.error(f"there is no image {', '.join(sorted(unknown))}")
    try:
        if not options.wheelhouse_only:
            check_docker()
        if not list(wheelhouse.glob("pip-*.whl")):
            _pip("wheel", f"--wheel-dir={wheelhouse}", f"--constraint={_HERE / 'constraints.txt'}", *_TOOLS)
        make_project(project, wheelhouse)
        for image in options.images or IMAGES:
            listed = make_wheelhouse(wheelhouse, project, image, options.accelerator)
            sys.stdout.write(f"{listed.relative_to(_PROJECT)}\n")
            if not options.wheelhouse_only:
                sys.stdout.write(f"{build(image, options.accelerator, options.base_image)}\n")
            sys.stdout.flush()
    except StackError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
