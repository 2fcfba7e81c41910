"""Where the services of this machine are, for who has not said it: what a stack on it has written down.

A program that reads ``s3://`` or MLflow finds them in variables of its environment. Where none says which object store
is meant, the variables are taken from ``environment.json`` in the home folder of the stack that runs here, which only
its user may read. What the environment says of itself always counts first.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from wukong.crawl.addresses import CONNECT_TO
from wukong.errors import ConfigError

FILE = "environment.json"
HOME = "WUKONG_HOME"

_FOLDER = ".wukong"
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
"""A variable of these says which object store is meant, or that this is no machine with a stack of its own."""


def home() -> Path:
    """The home folder for a stack to start: ``$WUKONG_HOME``, ``.wukong`` here or in a folder above, or else here."""
    return _chosen() or Path(_FOLDER).absolute()


def find_home() -> Path | None:
    """The home folder of a stack there is: like ``home``, or else where one was started last; None if nowhere."""
    if (chosen := _chosen()) is not None:
        return chosen
    try:
        last = Path(_last_home().read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError):
        return None
    return last if (last / FILE).is_file() else None


def remember(folder: Path) -> None:
    """Note where a stack was started, so that it is found from any folder."""
    target = _last_home()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"{folder}\n", encoding="utf-8")
    except OSError:
        return  # a convenience: without it, WUKONG_HOME says where


def merged(variables: Mapping[str, str]) -> dict[str, str]:
    """Variables joined with this process's own: of lists, what the user has named stays."""
    joined = dict(variables)
    for name in _LISTS:
        if name in joined:
            said = os.environ.get(name) or os.environ.get(name.swapcase()) or ""
            joined[name] = ",".join(dict.fromkeys(filter(None, [*said.split(","), *joined[name].split(",")])))
    if CONNECT_TO in joined:
        ours = {entry.partition("=")[0].lower() for entry in joined[CONNECT_TO].split(",")}
        own = [entry.strip() for entry in os.environ.get(CONNECT_TO, "").split(",")]
        kept = [entry for entry in own if entry and entry.partition("=")[0].strip().lower() not in ours]
        joined[CONNECT_TO] = ",".join([*kept, joined[CONNECT_TO]])
    return joined


def written(folder: Path) -> dict[str, str]:
    """The variables that the stack in a home folder has written down.

    Raises:
        ConfigError: there are none, or they cannot be read.
    """
    path = folder / FILE
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(f"no stack has run in {folder}: `wukong up` starts one, WUKONG_HOME names another") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): `wukong up` writes it anew") from error
    if not isinstance(value, dict) or not all(isinstance(entry, str) for entry in value.values()):
        raise ConfigError(f"{path} does not hold variables: `wukong up` writes it anew")
    return {str(name): entry for name, entry in value.items()}


def is_named(place: str = "s3://") -> bool:
    """Whether the environment itself says where an ``s3://`` or ``models:/`` address lies."""
    if place.startswith("s3://"):
        return any(name in os.environ for name in _NAMED_BY)
    return "MLFLOW_TRACKING_URI" in os.environ


def use_for(place: str) -> None:
    """Take over what this machine's stack has written down, if an address needs it and nothing else says where it is.

    Args:
        place: an address; those of files need nothing.

    Raises:
        ConfigError: what is written down cannot be read.
    """
    if place.startswith(("s3://", "models:/", "runs:/")) and not is_named(place):
        folder = find_home()
        if folder is not None and (folder / FILE).is_file():
            connect(folder)


def connect(folder: Path | None = None) -> None:
    """Put the addresses and credentials of this machine's stack into this process's environment.

    After it, MLflow, Ray and every client of S3 that this process uses find the stack.

    Args:
        folder: the stack's home; None for the one that ``wukong status`` shows.

    Raises:
        ConfigError: there is no stack, or what it has written down cannot be read.
    """
    chosen = folder or find_home()
    if chosen is None:
        raise ConfigError("no stack is found from here: `wukong up` starts one, WUKONG_HOME names its home")
    os.environ.update(merged(written(chosen)))


def _chosen() -> Path | None:
    if named := os.environ.get(HOME):
        return Path(named).absolute()
    here = Path.cwd()
    return next((folder / _FOLDER for folder in (here, *here.parents) if (folder / _FOLDER).is_dir()), None)


def _last_home() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "wukong" / "home"
