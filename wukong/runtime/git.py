"""Questions to git about a checkout. It may be a stranger's, so no program that its own config names is run."""

import os
import subprocess
from pathlib import Path

_SAFE = ("-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}")
_ENVIRONMENT = {
    "GIT_ALLOW_PROTOCOL": "",  # missing objects would be fetched by a program that the config names
    "GIT_OPTIONAL_LOCKS": "0",
}


def ask(folder: Path, *arguments: str) -> str | None:
    """Return what git says in a folder; None if it refuses, or is not installed."""
    try:
        done = subprocess.run(  # noqa: S603
            ["git", "-C", str(folder), *_SAFE, *arguments],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **_ENVIRONMENT},
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def is_changed(top: Path) -> bool | None:
    """Return whether a file that git knows differs from the last commit; None if it is not known.

    Args:
        top: folder of the checkout. If its own config names filters, git would run them to compare files, so it is
            not asked.
    """
    filters = ask(top, "config", "--includes", "--show-scope", "--name-only", "--get-regexp", r"^filter\.") or ""
    if any(line.startswith(("local\t", "worktree\t")) for line in filters.splitlines()):
        return None
    changed = ask(top, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=dirty")
    return None if changed is None else bool(changed)
