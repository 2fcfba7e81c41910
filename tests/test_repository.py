"""What must be true of the files in git, whatever they hold."""

import re
import subprocess
import tomllib
from collections import Counter
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

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


def requirements() -> list[Requirement]:
    """All that pyproject.toml asks for."""
    read = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = read["project"]["optional-dependencies"].values()
    listed = [
        *read["build-system"]["requires"],
        *read["project"]["dependencies"],
        *(each for of in extras for each in of),
    ]
    return [Requirement(each) for each in listed if not each.startswith("wukong-vlm")]


def test_no_bound_admits_a_version_with_a_known_hole() -> None:
    """By the table of docs/dependencies.md."""
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8").partition("keep out known holes")[2]
    rows = re.findall(r"^\| ([a-z0-9, -]+) \| ([0-9.]+) \|", page.partition("\n## ")[0], re.MULTILINE)
    mended = {canonicalize_name(name): Version(version) for names, version in rows for name in names.split(", ")}
    assert len(mended) > 15
    held = [each for each in requirements() if canonicalize_name(each.name) in mended]
    assert {canonicalize_name(each.name) for each in held} == mended.keys()
    admitted = [
        str(each)
        for each in held
        if not any(
            one.operator == ">=" and Version(one.version) >= mended[canonicalize_name(each.name)]
            for one in each.specifier
        )
    ]
    assert admitted == []


def test_the_bounds_admit_the_pinned_versions() -> None:
    pinned = {}
    for file in ("constraints.txt", "infra/images/constraints.txt", "infra/images/torch-cpu.txt"):
        for name, version in re.findall(
            r"^([\w.-]+)==([^\s;]+)", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE
        ):
            pinned[canonicalize_name(name)] = version
    wrong = [
        f"{each}: {pinned[name]}"
        for each in requirements()
        if (name := canonicalize_name(each.name)) in pinned
        and not each.specifier.contains(pinned[name], prereleases=True)
    ]
    assert wrong == []
