"""What must be true of the files in git, whatever they hold."""

import subprocess
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]


def tracked() -> dict[str, str]:
    """The files in git with their modes."""
    listed = subprocess.run(["git", "ls-files", "-s", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {line.split("\t", 1)[1]: line.split(" ", 1)[0] for line in listed.stdout.split("\0") if line}


def test_there_is_no_symbolic_link() -> None:
    """Some checkouts (Windows, archives, file shares) turn a link into a file that holds a path."""
    assert [name for name, mode in tracked().items() if mode == "120000"] == []


def test_no_two_test_modules_have_one_name() -> None:
    """Pytest imports them by their names alone: of two, the second one's tests do not run."""
    names = Counter(Path(name).name for name in tracked() if name.startswith("tests/") and name.endswith(".py"))
    assert [name for name, times in names.items() if times > 1 and name != "conftest.py"] == []
