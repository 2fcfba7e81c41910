"""The committed defects: each says which promise it breaks and which tests are to fail, and still applies."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def defects() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("defects_bench", ROOT / "benchmarks" / "tests" / "defects.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for their module
    spec.loader.exec_module(module)
    return module


def test_each_defect_names_its_promise_and_tests_that_exist(defects: ModuleType) -> None:
    files = sorted(defects.FOLDER.glob("*.patch"))
    assert len(files) >= 30
    missing = {}
    for defect in map(defects.read, files):
        for test in defect.tests:
            file, _, name = test.partition("::")
            there = (ROOT / file).exists() and (not name or f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"))
            if not there:
                missing.setdefault(defect.file.name, []).append(test)
    assert missing == {}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout of git")
def test_each_defect_applies(defects: ModuleType) -> None:
    command = ["git", "apply", "--check", *map(str, sorted(defects.FOLDER.glob("*.patch")))]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
