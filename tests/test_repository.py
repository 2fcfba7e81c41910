"""What must be true of the files in git, whatever they hold."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def tracked() -> dict[str, str]:
    """The files in git with their modes."""
    listed = subprocess.run(["git", "ls-files", "-s", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {line.split("\t", 1)[1]: line.split(" ", 1)[0] for line in listed.stdout.split("\0") if line}


def test_there_is_no_symbolic_link() -> None:
    """Some checkouts (Windows, archives, file shares) turn a link into a file that holds a path."""
    assert [name for name, mode in tracked().items() if mode == "120000"] == []
