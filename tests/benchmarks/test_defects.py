"""The committed defects: each says which promise it breaks and which tests are to fail, and still applies."""

import subprocess
from pathlib import Path

import pytest

from benchmarks.tests import defects

ROOT = Path(__file__).parents[2]


def test_each_defect_names_its_promise_and_tests_that_exist() -> None:
    files = sorted(defects.FOLDER.glob("*.patch"))
    assert len(files) >= 30
    missing: dict[str, list[str]] = {}
    for defect in map(defects.read, files):
        for test in defect.tests:
            file, _, name = test.partition("::")
            there = (ROOT / file).exists() and (not name or f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"))
            if not there:
                missing.setdefault(defect.file.name, []).append(test)
    assert missing == {}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout of git")
def test_each_defect_applies() -> None:
    command = ["git", "apply", "--check", *map(str, sorted(defects.FOLDER.glob("*.patch")))]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
