"""What is asked of a repository that a stranger made: its own config names programs, and none of them may run."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from wukong.runs import origin
from wukong.runtime import git as git_module


def git(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.invalid", "-c", "protocol.file.allow=always")
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


def fsmonitor(folder: Path, program: str) -> None:
    git(folder, "config", "core.fsmonitor", program)


def hook(folder: Path, program: str) -> None:
    file = folder / ".git" / "hooks" / "post-index-change"
    file.write_text(f"#!/bin/sh\n{program}\n")
    file.chmod(0o755)


def hooks_elsewhere(folder: Path, program: str) -> None:
    git(folder, "config", "core.hooksPath", "hooks")
    (folder / ".git" / "hooks").rename(folder / "hooks")
    (folder / "hooks" / "post-index-change").write_text(f"#!/bin/sh\n{program}\n")
    (folder / "hooks" / "post-index-change").chmod(0o755)


def clean_filter(folder: Path, program: str) -> None:
    git(folder, "config", "filter.theirs.clean", program)


def filter_process(folder: Path, program: str) -> None:
    git(folder, "config", "filter.theirs.process", program)


def included_filter(folder: Path, program: str) -> None:
    git(folder, "config", "include.path", "more")
    git(folder, "config", "--file", str(folder / ".git" / "more"), "filter.theirs.clean", program)


def filter_of_worktree(folder: Path, program: str) -> None:
    git(folder, "config", "extensions.worktreeConfig", "true")
    git(folder, "config", "--worktree", "filter.theirs.clean", program)


def submodule(folder: Path, program: str) -> None:
    inner = folder.parent / "inner"
    inner.mkdir()
    (inner / "a").write_text("a")
    for arguments in (("init", "--quiet"), ("add", "a"), ("commit", "--quiet", "-m", "x")):
        git(inner, *arguments)
    git(folder, "submodule", "add", "--quiet", str(inner), "below")
    git(folder, "commit", "--quiet", "-m", "y")
    fsmonitor(folder / "below", program)


def missing_object(folder: Path, program: str) -> None:
    """A tree that is not there is fetched from where the config says, by the program that the config names."""
    command = ["git", "-C", str(folder), "rev-parse", "HEAD^{tree}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    tree = done.stdout.strip()
    (folder / ".git" / "objects" / tree[:2] / tree[2:]).unlink()
    for name, value in (
        ("core.repositoryFormatVersion", "1"),
        ("extensions.partialClone", "origin"),
        ("remote.origin.url", str(folder.parent)),
        ("remote.origin.promisor", "true"),
        ("remote.origin.uploadpack", program),
        ("protocol.file.allow", "always"),
    ):
        git(folder, "config", name, value)


PLANTED = [
    fsmonitor,
    hook,
    hooks_elsewhere,
    clean_filter,
    filter_process,
    included_filter,
    filter_of_worktree,
    submodule,
    missing_object,
]


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_no_program_of_a_strangers_repository_runs(plant: Callable[[Path, str], None], tmp_path: Path) -> None:
    folder, ran = tmp_path / "theirs", tmp_path / "ran"
    folder.mkdir()
    (folder / ".gitattributes").write_text("*.txt filter=theirs\n")
    for name in ("notes.txt", "my.yaml"):
        (folder / name).write_text("name: demo\n")
    for arguments in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "-m", "x")):
        git(folder, *arguments)
    plant(folder, f"touch {ran};")

    def touch() -> None:
        for file in (folder / "notes.txt", folder / "my.yaml"):
            os.utime(file, (file.stat().st_mtime + 10,) * 2)

    touch()
    subprocess.run(["git", "-C", str(folder), "status"], check=False, capture_output=True)
    assert ran.exists(), "git alone runs it"
    ran.unlink()
    touch()
    found = origin.of_file(folder / "my.yaml")
    assert found.revision
    assert found.dirty is (None if "filter" in plant.__name__ or plant is missing_object else False)
    assert not ran.exists()


def test_the_library_asks_git_in_one_place_alone() -> None:
    package = Path(git_module.__file__).parents[1]
    asked = [file.relative_to(package).as_posix() for file in package.rglob("*.py") if '["git"' in file.read_text()]
    assert asked == ["runtime/git.py"]
