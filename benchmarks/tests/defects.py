"""Apply each defect of ``defects/`` to a copy of this checkout, and see which of the tests that are to fail do.

A patch is a plausible defect of the product. Before its diff it says which promise it breaks, and which tests are to
fail: files, folders or single tests. The tests of ``make test`` come first, those of ``make test-all`` only if none of
them fails. The first test that fails must pass in the same copy without the patch. The copies hold what git tracks,
also what is not committed. Exit status 1: a defect is not caught, or an entry of the list is wrong.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TEST, TEST_ALL = "not long", "long"
"""By pytest's markers what `make test` runs, and what `make test-all` runs besides."""

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).with_suffix("")
_HEADERS = re.compile(r"Promise: (?P<promise>.+)\nTests: (?P<tests>\S.*)\n\n(?=diff --git )")
_FIRST = re.compile(r"^(?:FAILED|ERROR) (?P<test>.+?)(?: - .*)?$", re.MULTILINE)
_SECONDS = "900"
"""After which a test that a defect makes wait for ever has failed."""
_PASSED, _FAILED, _NONE_CHOSEN = 0, 1, 5  # pytest's exit statuses


@dataclass(frozen=True)
class Defect:
    """A patch, the promise that it breaks with the place where that is written, and the tests that are to fail."""

    file: Path
    promise: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """By which command a defect was caught, empty if by none; the first test that failed, or why none counts."""

    caught: str
    said: str
    seconds: float


def main() -> int:
    """Try the defects one after the other, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = {file.stem: file for file in sorted(FOLDER.glob("*.patch"))}
    parser.add_argument("names", nargs="*", metavar="NAME", help="beginnings of the names of patches; none for all")
    asked = parser.parse_args().names
    if unknown := [name for name in asked if not any(each.startswith(name) for each in known)]:
        parser.error(f"no patch in {FOLDER} is called {', '.join(unknown)}")
    rows = []
    for defect in [read(file) for name, file in known.items() if not asked or name.startswith(tuple(asked))]:
        outcome = attempt(defect)
        rows.append((defect, outcome))
        show(f"{defect.file.stem}: {outcome.caught or 'NOT CAUGHT'} ({outcome.said}, {outcome.seconds:.0f} s)")
    show("\n| patch | promise | caught by | first test that fails | seconds |\n|---|---|---|---|---|")
    for defect, outcome in rows:
        cells = (defect.promise, outcome.caught or "**not caught**", outcome.said, f"{outcome.seconds:.0f}")
        show(f"| {' | '.join((defect.file.stem, *(' '.join(cell.split()) for cell in cells)))} |")
    caught = [outcome.caught for _, outcome in rows]
    by_each = ", ".join(f"{caught.count(command)} by {command}" for command in ("make test", "make test-all"))
    show(f"\n{len(rows)} defects: {by_each}, {caught.count('')} not caught")
    return int("" in caught)


def read(file: Path) -> Defect:
    """Read the headers of a patch.

    Raises:
        ValueError: it has none.
    """
    found = _HEADERS.match(file.read_text(encoding="utf-8"))
    if found is None:
        raise ValueError(f"{file} does not begin with the lines `Promise: ...`, `Tests: ...`, an empty one and a diff")
    return Defect(file, found["promise"], tuple(found["tests"].split()))


def attempt(defect: Defect) -> Outcome:
    """Run the tests of a defect in a copy of the checkout that has it."""
    began, caught, said = time.monotonic(), "", "its tests pass"
    with copied() as folder:
        git("apply", str(defect.file), folder=folder)
        for command, markers in (("make test", TEST), ("make test-all", TEST_ALL)):
            status, output = run_tests(folder, "-m", markers, *defect.tests)
            if status in (_PASSED, _NONE_CHOSEN):
                continue
            found = _FIRST.search(output)
            said = found["test"] if found else f"pytest ended with {status}: {output[-500:]}"
            git("apply", "--reverse", str(defect.file), folder=folder)
            if status == _FAILED and run_tests(folder, said.partition("[")[0])[0] == _PASSED:
                caught = command
            else:
                said = f"no test fails because of the patch alone: {said}"
            break
    return Outcome(caught, said, time.monotonic() - began)


@contextmanager
def copied() -> Iterator[Path]:
    """Make a copy of the checkout as it is now, with its environment."""
    with tempfile.TemporaryDirectory(prefix="defects-") as temporary:
        folder = Path(temporary, "checkout")
        # A commit of what is not committed, or nothing where all is.
        now = git("stash", "create", folder=ROOT) or "HEAD"
        git("worktree", "add", "--quiet", "--detach", str(folder), now, folder=ROOT)
        try:
            (folder / ".venv").symlink_to((ROOT / ".venv").resolve())
            yield folder
        finally:
            git("worktree", "remove", "--force", str(folder), folder=ROOT)


def run_tests(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run tests of a copy until the first fails; return pytest's exit status and its output."""
    options = ("-x", "-q", "-p", "no:cacheprovider", "--timeout", _SECONDS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def git(*arguments: str, folder: Path) -> str:
    """Run git in a folder; return what it says."""
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.strip()


def show(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
