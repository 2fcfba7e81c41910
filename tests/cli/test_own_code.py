"""The code of a run's revision: checked out as it was, with the packages that it asks for."""

import subprocess
import sys
from pathlib import Path

import pytest

from cli import own_code
from wukong.errors import DataError


def _git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def revisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three revisions of a repository: the second asks for other packages. The last one is this checkout."""
    root = tmp_path / "repository"
    root.mkdir()
    _git(root, "init", "--quiet")
    (root / "Makefile").write_text("install:\n\t@mkdir -p .venv/bin && cp constraints.txt .venv/bin/python\n")
    made = []
    for number, constraints in enumerate(("a==1", "a==2", "a==1")):
        (root / "constraints.txt").write_text(constraints)
        (root / "code.py").write_text(f"NUMBER = {number}")
        _git(root, "add", "-A")
        _git(root, "commit", "--quiet", "-m", "x")
        made.append(_git(root, "describe", "--always", "--abbrev=12"))
    monkeypatch.setattr(own_code, "ROOT", root)
    return made


def test_the_packages_here_serve_if_they_are_the_same(revisions: list[str], tmp_path: Path) -> None:
    assert own_code.check_out(revisions[0], tmp_path / "code") == Path(sys.executable)
    assert (tmp_path / "code" / "code.py").read_text() == "NUMBER = 0"
    assert own_code.check_out(revisions[2], tmp_path / "code") == Path(sys.executable), "a folder is used again"
    assert (tmp_path / "code" / "code.py").read_text() == "NUMBER = 2"


def test_other_packages_are_installed_there(revisions: list[str], tmp_path: Path) -> None:
    python = own_code.check_out(revisions[1], tmp_path / "code")
    assert python == tmp_path / "code" / ".venv" / "bin" / "python"
    assert python.read_text() == "a==2"


@pytest.mark.parametrize(
    ("revision", "says"),
    [
        ("0123456789ab", "is not in"),
        ("--upload-pack=touch /tmp/x", "is not in"),
        ("0123456789ab-dirty", "changes that no commit has"),
        ("unknown", "changes that no commit has"),
    ],
)
@pytest.mark.usefixtures("revisions")
def test_a_revision_that_cannot_be_had(revision: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says):
        own_code.check_out(revision, tmp_path / "code")


def test_packages_that_cannot_be_installed_are_said_to_be_so(revisions: list[str], tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / ".venv").touch()  # no folder: what the revision's `make install` makes finds no place
    own_code._git("-C", str(tmp_path / "code"), "init", "--quiet")
    own_code._git("-C", str(tmp_path / "code"), "fetch", "--quiet", str(own_code.ROOT))
    with pytest.raises(DataError, match="could not be installed"):
        own_code.check_out(revisions[1], tmp_path / "code")


def test_a_folder_that_is_no_checkout_has_no_revisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_code, "ROOT", tmp_path)
    with pytest.raises(DataError, match="is not in"):
        own_code.check_out("0123456789ab", tmp_path / "code")
