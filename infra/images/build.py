"""Build the container images: ``python -m infra.images.build [IMAGE ...]``, by default all three.

It first builds the project's own wheel (``build/project``) and a wheelhouse (``build/wheelhouse``): all wheels that an
image needs, in the versions of the constraints, and for each image a list of them with their hashes. It asks an index
only if requirements have changed, and takes only files whose hashes are committed (``infra/images/hashes.py``). The CPU
builds of torch are taken as PyTorch's index gives them. Then it runs ``docker build`` without a network, and writes
down of what the image was made (``build/provenance``), which ``infra.images.sign`` signs.
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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from infra.images import docker, program, provenance
from infra.images.hashes import CUDA_HASHES, HASHES, PINS, versions
from infra.install import CPU_INDEX, FILES
from wukong.commands.output import echo, print_data
from wukong.errors import StackError
from wukong.runtime import installed
from wukong.store.manifest import code_revision

ACCELERATORS = ("cpu", "cuda")
_HERE = Path(__file__).parent
_PROJECT = _HERE.parents[1]
WHEELHOUSE, PROJECT = Path("build/wheelhouse"), Path("build/project")
_DEFAULT_BASE = re.compile(r"^ARG BASE_IMAGE=(\S+)$", re.MULTILINE)
_WHEEL = installed.DISTRIBUTION.replace("-", "_")
# pip installs the wheels, and the others build the project; no image contains them.
_TOOLS = ("pip", "setuptools")
_LIBRARY = '["wukong*"]'
_PACKAGES = ("wukong*", "cli*", "components*", "infra*", "pipelines*", "ray_jobs*")
"""What setuptools puts into the project's wheel, as pyproject.toml says it, and what into the images'."""
# torch requires an exact version of each of its own parts.
_PARTS_OF_TORCH = re.compile(r"nvidia-|cuda-|triton")


@dataclass(frozen=True)
class Image:
    """The content of one image.

    Attributes:
        extras: extras of the project whose requirements are installed.
        alone: packages that are installed without their requirements.
        torch: whether the constraints of an accelerator are used too.
    """

    extras: tuple[str, ...]
    alone: tuple[str, ...] = ()
    torch: bool = False


IMAGES = {
    # Crawling, validating and training run on Ray: only its image has their requirements.
    "data": Image(("curate", "kfp", "track", "report", "sign")),
    # One file of each package in ``alone`` is needed: the vocabulary of the Chinese BERT, and a DINOv2-small.
    "ray": Image(
        ("crawl", "curate", "pictures", "validate", "train", "ray", "ray-head", "ray-serve", "serve", "sign", "track"),
        alone=FILES,
        torch=True,
    ),
    "mlflow": Image(("mlflow-server",)),
}
"""The images by name; the name is the target in the Dockerfile and the last part of the image's name."""


def version() -> str:
    """Return the project's version, which is the tag of the images."""
    return str(_project()["version"])


def tag(image: str, accelerator: str = "cpu") -> str:
    """Return name and tag of an image, as manifests and pipelines use it.

    The name begins with ``localhost``, where no public registry answers. So a missing image is an error, and somebody
    else's image is never used.
    """
    return f"localhost/wukong/{image}:{version()}" + ("-cuda" if accelerator == "cuda" else "")


def make_project(folder: Path, wheelhouse: Path) -> None:
    """Build the project's wheel, with the packages of the platform: an image is an environment of the project's own.

    Args:
        folder: where the wheel, pip's wheel, and the list ``project.txt`` are written.
        wheelhouse: folder with the wheels of the build tools.

    Raises:
        StackError: this is not a git checkout, or the project cannot be built.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as copy:
        copy_tracked(Path(copy))
        pyproject = Path(copy, "pyproject.toml")
        library = pyproject.read_text(encoding="utf-8")
        if _LIBRARY not in library:
            raise StackError(
                f"pyproject.toml does not have {_LIBRARY}, which is where the platform's packages are added"
            )
        pyproject.write_text(library.replace(_LIBRARY, json.dumps([*_PACKAGES])), encoding="utf-8")
        _pip("wheel", "--no-deps", "--no-index", f"--find-links={wheelhouse}", f"--wheel-dir={folder}", copy)
    (wheel,) = folder.glob(f"{_WHEEL}-*.whl")
    (folder / "project.txt").write_text(f"{_line(installed.DISTRIBUTION, version(), wheel)}\n", encoding="utf-8")
    for pip in wheelhouse.glob("pip-*.whl"):
        shutil.copy2(pip, folder)


def copy_tracked(folder: Path) -> None:
    """Copy the files that git tracks, with their content in the checkout.

    Raises:
        StackError: this is not a git checkout.
    """
    for name in filter(None, _output(["git", "-C", str(_PROJECT), "ls-files", "-z"]).split("\0")):
        source, target = _PROJECT / name, folder / name
        if source.is_symlink() or source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target, follow_symlinks=False)


def torch_builds(folder: Path, image: str, accelerator: str, index: str = CPU_INDEX) -> str:
    """Return which builds of torch an image gets: those of its accelerator, or CUDA's where CPU builds cannot be had.

    CPU builds are in an index of PyTorch's own, which many networks refuse. CUDA builds are on PyPI and run on CPUs
    too, so the image gets these then; its name stays the same. Wheels that were fetched before need no index.

    Args:
        folder: the wheelhouse.
        image: name in ``IMAGES``.
        accelerator: ``cpu`` or ``cuda``.
        index: the index of the CPU builds.
    """
    if accelerator != "cpu" or not IMAGES[image].torch or _listed(folder, image, "cpu")[1]:
        return accelerator
    asked = [sys.executable, "-m", "pip", "--disable-pip-version-check", "index", "versions", "torch"]
    done = subprocess.run(  # noqa: S603
        [*asked, f"--index-url={index}", "--retries=1", "--timeout=15"], capture_output=True, text=True, check=False
    )
    if not done.returncode:
        return "cpu"
    said = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
    echo(
        f"note: {index} gives no CPU builds of torch ({said}). The {image} image gets PyPI's CUDA builds, which run on "
        f"CPUs too: it has {_CUDA_GIGABYTES} GB, most of them libraries that CPUs do not use",
        err=True,
    )
    return "cuda"


_CUDA_GIGABYTES = 6.4  # of the ray image


def make_wheelhouse(folder: Path, project: Path, image: str, builds: str) -> Path:
    """Put all wheels of an image into a folder and write the list of them, unless this was done before.

    Args:
        folder: the wheelhouse, which all images share.
        project: folder of the project's wheel.
        image: name in ``IMAGES``.
        builds: the builds of torch, ``cpu`` or ``cuda``.

    Returns:
        The list: a requirements file with an exact version and its hash on each line, without the project.

    Raises:
        StackError: pip failed, or the constraints do not pin the version of a requirement.
    """
    wanted, constraints = IMAGES[image], _constraints(image, builds)
    listed, complete = _listed(folder, image, builds)
    if complete:
        return listed
    (wheel,) = project.glob(f"{_WHEEL}-*.whl")
    # The project is installed from its path, because no index has it.
    required = f"{wheel}[{','.join(wanted.extras)}]"
    into = ["wheel", f"--wheel-dir={folder}", f"--find-links={folder}"]
    bounds = [f"--constraint={file}" for file in constraints]
    hashed = [HASHES, CUDA_HASHES] if wanted.torch and builds == "cuda" else [HASHES]
    if wanted.torch and builds == "cpu":
        _pip(*into, "--no-deps", f"--index-url={CPU_INDEX}", *bounds, "torch", "torchvision")
        hashed.append(_hashes_of_torch(folder, constraints[-1]))
    verified = ["--require-hashes", *(f"--constraint={file}" for file in hashed)]
    # pip takes a hash of a file on this machine only from a requirements file.
    line = f"{installed.DISTRIBUTION}[{','.join(wanted.extras)}] @ {wheel.absolute().as_uri()} {_hash(wheel)}\n"
    folder.mkdir(parents=True, exist_ok=True)
    requirement = folder / f"{image}-project.txt"
    requirement.write_text(line, encoding="utf-8")
    _pip(*into, *verified, f"--requirement={requirement}")
    dry_run = [
        "install",
        "--isolated",
        "--dry-run",
        "--ignore-installed",
        "--report=-",
        "--no-index",
        f"--find-links={folder}",
    ]
    wheels = _reported_wheels(_pip(*dry_run, *bounds, required))
    if wanted.alone:
        _pip(*into, *verified, "--no-deps", *wanted.alone)
        wheels |= _reported_wheels(_pip(*dry_run, "--no-deps", *wanted.alone))
    del wheels[installed.DISTRIBUTION]
    (folder / wheel.name).unlink()
    texts = [*(file.read_text(encoding="utf-8") for file in constraints), *wanted.alone]
    pinned = {name for text in texts for name in versions(text)}
    loose = sorted(name for name in wheels if name not in pinned and not _PARTS_OF_TORCH.match(name))
    if loose:
        raise StackError(
            f"the {image} image needs {', '.join(f'{name}=={wheels[name][0]}' for name in loose)}: "
            f"add the versions you want to {_HERE.relative_to(_PROJECT)}/constraints.txt"
        )
    lines = [_line(name, version, wheel) for name, (version, wheel) in sorted(wheels.items())]
    listed.write_text("\n".join([_key(wanted, constraints), *lines]) + "\n", encoding="utf-8")
    return listed


def _listed(folder: Path, image: str, builds: str) -> tuple[Path, bool]:
    """Return the list of an image's wheels, and whether it is complete for the requirements as they are now."""
    wanted = IMAGES[image]
    listed = folder / (f"{image}-{builds}.txt" if wanted.torch else f"{image}.txt")
    key = _key(wanted, _constraints(image, builds))
    return listed, listed.exists() and listed.read_text(encoding="utf-8").startswith(key)


def build(image: str, accelerator: str, base_image: str | None, cache: bool = True, builds: str = "") -> str:
    """Build one image from the wheelhouse and tag it.

    Args:
        image: name in ``IMAGES``.
        accelerator: ``cpu`` or ``cuda``, which the tag says.
        base_image: a Debian image with the same version of Python as this process; None for the Dockerfile's.
        cache: whether Docker may reuse layers of an earlier build.
        builds: the builds of torch, if they are not the accelerator's own (see ``torch_builds``).

    Returns:
        The tag.

    Raises:
        StackError: Docker failed, or there is none.
    """
    base = base_image or _DEFAULT_BASE.findall((_HERE / "Dockerfile").read_text(encoding="utf-8"))[0]
    base_digest, began = _digest_of_base(base), _now()
    arguments = {
        "PYTHON_VERSION": f"{sys.version_info.major}.{sys.version_info.minor}",
        "VERSION": version(),
        "REVISION": code_revision(),
        "SOURCE_DATE_EPOCH": _output(["git", "-C", str(_PROJECT), "log", "-1", "--format=%ct"]).strip(),
        **({"ACCELERATOR": builds or accelerator} if IMAGES[image].torch else {}),
        **({"BASE_IMAGE": base_image} if base_image else {}),
    }
    command = ["docker", "build", f"--file={_HERE / 'Dockerfile'}", f"--target={image}", "--network=none"]
    command += [f"--build-arg={name}={value}" for name, value in arguments.items()]
    if not cache:
        command.append("--no-cache")
    made = tag(image, accelerator)
    _run([*command, f"--tag={made}", str(_PROJECT)], {"DOCKER_BUILDKIT": "1"})
    wheels = [_listed(_PROJECT / WHEELHOUSE, image, builds or accelerator)[0], _PROJECT / PROJECT / "project.txt"]
    provenance.write(
        docker.inspect(made)["Id"],
        provenance.Made(
            repository=_project()["urls"]["Repository"],
            revision=_output(["git", "-C", str(_PROJECT), "rev-parse", "HEAD"]).strip(),
            dirty=bool(_output(["git", "-C", str(_PROJECT), "status", "--porcelain", "--untracked-files=no"])),
            target=image,
            base=base,
            base_digest=base_digest,
            arguments=arguments,
            wheels="".join(each.read_text(encoding="utf-8") for each in wheels),
            docker=program.run("docker", "--version").strip(),
            began=began,
            ended=_now(),
        ),
        _PROJECT / provenance.FOLDER,
    )
    return made


def _digest_of_base(base: str) -> str:
    """Return the digest of the base image, which is pulled if Docker does not have it: the build takes that one."""
    try:
        about = docker.inspect(base)
    except StackError:
        program.run("docker", "pull", base)
        about = docker.inspect(base)
    return docker.digest_in_registry(base, about) or str(about["Id"])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def check_docker() -> None:
    """Check that Docker's client can build with BuildKit, which the Dockerfile needs for its mounts.

    Docker's client before version 23 contains BuildKit; later ones need the plugin buildx.

    Raises:
        StackError: there is no client, or it lacks buildx; the message says what to install.
    """
    reported = _output(["docker", "--version"])
    version = re.search(r"\d+", reported)
    if version is None or int(version[0]) < _CLIENT_WITHOUT_BUILDKIT:
        return
    plugin = subprocess.run(["docker", "buildx", "version"], capture_output=True, check=False)  # noqa: S607
    if plugin.returncode:
        raise StackError(
            f"Docker's plugin buildx is missing ({reported.strip()}); the images are built with it. Install it: "
            "apt-get install docker-buildx (Debian 13, Ubuntu), docker-buildx-plugin (Docker's own packages), "
            "dnf install docker-buildx (Fedora); on Debian 12 its docker.io package needs no plugin"
        )


_CLIENT_WITHOUT_BUILDKIT = 23


def _project() -> Mapping[str, Any]:
    table: dict[str, Any] = tomllib.loads((_PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def _constraints(image: str, accelerator: str) -> list[Path]:
    files = list(PINS)
    return [*files, _HERE / f"torch-{accelerator}.txt"] if IMAGES[image].torch else files


def _hashes_of_torch(folder: Path, pins: Path) -> Path:
    """Write down the hashes of the CPU builds that are in the wheelhouse: no others are taken after this."""
    wheels = {
        name: next(folder.glob(f"{name}-{version}-*.whl"))
        for name, version in versions(pins.read_text(encoding="utf-8")).items()
    }
    made = folder / "torch-cpu-hashes.txt"
    lines = [_line(name, version, wheels[name]) for name, version in versions(pins.read_text(encoding="utf-8")).items()]
    made.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return made


def _key(wanted: Image, constraints: Sequence[Path]) -> str:
    """Return the first line of a list: a digest that changes with the requirements."""
    project = _project()
    inputs = [
        json.dumps([asdict(wanted), sys.version, project["dependencies"], project["optional-dependencies"]]),
        *(file.read_text(encoding="utf-8") for file in constraints),
    ]
    return f"# {hashlib.sha256(chr(0).join(inputs).encode()).hexdigest()}"


def _reported_wheels(report: str) -> dict[str, tuple[str, Path]]:
    """Return version and wheel of each package that pip would install, from pip's report."""
    return {
        installed.normal(entry["metadata"]["name"]): (
            entry["metadata"]["version"],
            Path(unquote(urlsplit(entry["download_info"]["url"]).path)),
        )
        for entry in json.loads(report)["install"]
    }


def _line(name: str, version: str, wheel: Path) -> str:
    return f"{name}=={version} {_hash(wheel)}"


def _hash(wheel: Path) -> str:
    return f"--hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}"


def _pip(*arguments: str) -> str:
    return _output([sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments])


def _output(command: Sequence[str]) -> str:
    """Run a command and return its standard output; its standard error is not captured."""
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
        raise StackError(f"{' '.join(command[:4])} ... ended with status {done.returncode}; its output is above")
    return done.stdout or ""


def main(arguments: list[str] | None = None) -> int:
    """Build the requested images."""
    parser = argparse.ArgumentParser(prog="python -m infra.images.build", description=__doc__.split("\n", 1)[0])
    parser.add_argument("images", nargs="*", metavar="IMAGE", help=f"of {', '.join(IMAGES)}; by default all")
    parser.add_argument("--accelerator", choices=ACCELERATORS, default="cpu", help="of the ray image (default: cpu)")
    parser.add_argument(
        "--base-image",
        default=os.environ.get("BASE_IMAGE") or None,
        help="base of all images, by default $BASE_IMAGE or the Dockerfile's; infra/images/base.sh builds one",
    )
    parser.add_argument("--wheelhouse-only", action="store_true", help="stop before docker build")
    options = parser.parse_args(arguments)
    wheelhouse, project = _PROJECT / WHEELHOUSE, _PROJECT / PROJECT
    if unknown := set(options.images) - IMAGES.keys():
        parser.error(f"there is no image {', '.join(sorted(unknown))}")
    try:
        if not options.wheelhouse_only:
            check_docker()
        if not list(wheelhouse.glob("pip-*.whl")):
            verified = ("--require-hashes", f"--constraint={HASHES}", "--no-deps")
            _pip("wheel", f"--wheel-dir={wheelhouse}", *verified, *_TOOLS)
        make_project(project, wheelhouse)
        for image in options.images or IMAGES:
            builds = torch_builds(wheelhouse, image, options.accelerator)
            listed = make_wheelhouse(wheelhouse, project, image, builds)
            print_data(listed.relative_to(_PROJECT))
            if not options.wheelhouse_only:
                print_data(build(image, options.accelerator, options.base_image, builds=builds))
    except StackError as error:
        echo(f"error: {error}", err=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
