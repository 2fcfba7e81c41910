"""Find the services of this machine's embedded stack, for programs whose environment does not name any.

Programs find the object store and MLflow by environment variables. If no variable names an object store, the variables
are read from ``environment.json`` in the home folder of the stack on this machine; only its user may read this file.
Variables that are set always take precedence. A home decides where a program sends its data, so one that is another
user's, or that others may write, is refused (``require_own``), and a file may set no other variables than a stack's
(``forwarded.BY_A_STACK``).
"""

import json
import os
import pwd
import socket
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from wukong.errors import ConfigError, StackError
from wukong.runtime import forwarded

FILE = "environment.json"
HOME = "WUKONG_HOME"
CONNECT_TO = "WUKONG_CONNECT_TO"
"""Addresses that the crawler connects to in place of the hosts' own (``wukong.crawl.addresses``)."""

_FOLDER = ".wukong"
_LOOPBACK = "127.0.0.1"  # where a stack listens
_CONNECT_SECONDS = 10.0
_LISTS = ("NO_PROXY", "no_proxy")
_NAMED_BY = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CONFIG_FILE",
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "KUBERNETES_SERVICE_HOST",
)
"""If one of these variables is set, the object store is configured, or this machine has no stack of its own."""


def home() -> Path:
    """Return the home folder in which to start a stack: ``$WUKONG_HOME``, or ``.wukong`` here or in a folder above.

    If there is none of these, it is ``.wukong`` here.

    Raises:
        StackError: it is not this user's own.
    """
    return _chosen() or Path(_FOLDER).absolute()


def find_home() -> Path | None:
    """Return the home folder of an existing stack: like ``home``, or else that of the last stack started; or None.

    Raises:
        StackError: it is not this user's own.
    """
    if chosen := _chosen():
        return chosen
    last = next(iter(homes()), None)
    if last is not None:
        require_own(last)
    return last


def make(folder: Path) -> Path:
    """Make a home folder, for its user alone, if it is missing; return it.

    Raises:
        OSError: it cannot be made.
        StackError: it is there and not this user's own.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    require_own(folder)
    return folder


def require_own(path: Path) -> None:
    """Check that a home, or a file in it, is this user's and that nobody else may write it; a missing one is nobody's.

    A group that may write counts as others, also where it has one member: a group can grow.

    Raises:
        StackError: it is another user's, or others may write it.
    """
    try:
        # A link is looked at too: who owns it says where it leads.
        linked, found = path.lstat(), path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    user = os.geteuid()
    for owner in (linked.st_uid, found.st_uid):
        if owner != user:
            raise StackError(
                f"{path} belongs to {_name(owner)} and not to {_name(user)}: what lies there could redirect your "
                "programs, so it is not used. Set WUKONG_HOME to a folder of your own, or work as its owner"
            )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StackError(
            f"other users may write {path}, and could redirect your programs by it: if you know all that is in it, "
            f"`chmod go-w {path}` lets it be used; else set WUKONG_HOME to another folder"
        )


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)


def homes() -> list[Path]:
    """Return the home folders of all stacks that were started on this machine and are still there, the last first."""
    try:
        return homes_in(list_of_homes().read_bytes())
    except OSError:
        return []


def homes_in(content: bytes) -> list[Path]:
    """Return the home folders that the content of ``list_of_homes`` names and that are still there."""
    lines = os.fsdecode(content).splitlines()
    return [folder for line in lines if line.strip() and is_home(folder := Path(line.strip()))]


def list_of_homes() -> Path:
    """Return the file that has the homes of all stacks, one a line, the last first."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "wukong" / "home"


def other_homes(here: Path | None) -> list[Path]:
    """Return ``homes`` without one of them."""
    return [folder for folder in homes() if here is None or folder.resolve() != here.resolve()]


def elsewhere(home: Path | None = None) -> str:
    """Return what an error adds about other homes, which the user may have meant; empty if there are none.

    Args:
        home: where was looked; None for ``find_home``.
    """
    here = home or find_home()
    used = read_variables(here) if here is not None and is_home(here) else {}
    if is_named() and any(os.environ.get(name) != used[name] for name in used if name.startswith("AWS_")):
        return ""  # the user has a store of their own
    others = other_homes(here)
    listed = ", ".join(map(str, others))
    return f" (looked in {here}; WUKONG_HOME names another home: {listed})" if others else ""


def cache() -> Path:
    """Return the folder of what is fetched or computed once: ``$WUKONG_CACHE``, or ``~/.cache/wukong``."""
    named = os.environ.get("WUKONG_CACHE")
    return Path(named) if named else Path.home() / ".cache/wukong"


def is_home(folder: Path) -> bool:
    """Return whether a stack has been started in a folder."""
    return (folder / FILE).is_file()


def merged(variables: Mapping[str, str]) -> dict[str, str]:
    """Merge variables with this process's environment: entries of list variables that the user has set are kept."""
    joined = dict(variables)
    for name in _LISTS:
        if name in joined:
            own_hosts = os.environ.get(name) or os.environ.get(name.swapcase()) or ""
            joined[name] = ",".join(dict.fromkeys(filter(None, [*own_hosts.split(","), *joined[name].split(",")])))
    if CONNECT_TO in joined:
        ours = {entry.partition("=")[0].lower() for entry in joined[CONNECT_TO].split(",")}
        own = [entry.strip() for entry in os.environ.get(CONNECT_TO, "").split(",")]
        kept = [entry for entry in own if entry and entry.partition("=")[0].strip().lower() not in ours]
        joined[CONNECT_TO] = ",".join([*kept, joined[CONNECT_TO]])
    return joined


def read_variables(folder: Path) -> dict[str, str]:
    """Read the variables in the ``environment.json`` of a stack's home folder.

    Raises:
        ConfigError: there is no such file, it cannot be read, or it sets what no stack sets.
        StackError: the folder or the file is not this user's own.
    """
    path = folder / FILE
    require_own(folder)
    require_own(path)
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(f"no stack has run in {folder}: `wukong up` starts one, WUKONG_HOME names another") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): `wukong up` writes it again") from error
    if not isinstance(value, dict) or not all(isinstance(entry, str) for entry in value.values()):
        raise ConfigError(f"{path} does not contain variables: `wukong up` writes it again")
    if unknown := sorted(value.keys() - forwarded.BY_A_STACK):
        raise ConfigError(
            f"{path} has variables that no stack sets ({', '.join(map(repr, unknown))}): `wukong up` writes it again"
        )
    return value


def is_named(place: str = "s3://") -> bool:
    """Return whether environment variables configure the service of an ``s3://`` or ``models:/`` address."""
    if place.startswith("s3://"):
        return any(name in os.environ for name in _NAMED_BY)
    return "MLFLOW_TRACKING_URI" in os.environ


_SERVICES: Mapping[str, Callable[[], bool]] = {
    "AWS_": lambda: is_named("s3://"),
    "MLFLOW_": lambda: is_named("models:/"),
    "RAY_": lambda: "RAY_ADDRESS" in os.environ,
}
"""By the prefix of its variables whether a service is configured."""


def use_for(place: str) -> None:
    """Connect to this machine's stack if an address needs it and no environment variable configures its service.

    Variables of other services that are configured stay as they are: whoever has an MLflow of their own and opens an
    address in the stack's object store keeps that MLflow.

    Args:
        place: an address; addresses of files need no stack.

    Raises:
        ConfigError: the stack's ``environment.json`` cannot be read.
        StackError: the stack is stopped, or its home is not this user's own.
    """
    if place.startswith(("s3://", "models:/", "runs:/")) and not is_named(place):
        folder = find_home()
        if folder is not None and is_home(folder):
            own = tuple(prefix for prefix, named in _SERVICES.items() if named())
            variables = read_variables(folder)
            _require_running(
                folder, variables, "AWS_ENDPOINT_URL_S3" if place.startswith("s3://") else "MLFLOW_TRACKING_URI"
            )
            os.environ.update(merged({name: variables[name] for name in variables if not name.startswith(own)}))


def connect(folder: Path | None = None) -> None:
    """Set this process's environment variables to the addresses and credentials of this machine's stack.

    Afterwards MLflow, Ray and all S3 clients in this process use the stack.

    Args:
        folder: home folder of the stack; None for the stack that ``wukong status`` shows.

    Raises:
        ConfigError: there is no stack, or its ``environment.json`` cannot be read.
        StackError: it is stopped, or its home is not this user's own.
    """
    chosen = folder or find_home()
    if chosen is None:
        raise ConfigError("no stack is found from here: `wukong up` starts one, WUKONG_HOME names its home")
    variables = read_variables(chosen)
    _require_running(chosen, variables, "AWS_ENDPOINT_URL_S3")
    os.environ.update(merged(variables))


def _require_running(folder: Path, variables: Mapping[str, str], name: str) -> None:
    """Check that a service of a stack takes connections at the address in one of its variables."""
    parts = urlsplit(variables.get(name, ""))
    if parts.hostname != _LOOPBACK or parts.port is None:
        return
    try:
        socket.create_connection((_LOOPBACK, parts.port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise StackError(
            f"the stack of {folder} is stopped, nothing answers at {variables[name]}: `wukong up` starts it"
            + elsewhere(folder)
        ) from error


def _chosen() -> Path | None:
    chosen = _named_or_above()
    if chosen is not None:
        require_own(chosen)
    return chosen


def _named_or_above() -> Path | None:
    if named := os.environ.get(HOME):
        return Path(named).absolute()
    here = Path.cwd()
    return next((folder / _FOLDER for folder in (here, *here.parents) if (folder / _FOLDER).is_dir()), None)
