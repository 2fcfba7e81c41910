"""Files of installed packages."""

import importlib.util
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from wukong.errors import ConfigError
from wukong.runtime import installed
from wukong.runtime.installed import installed_file

_JIEBA = Path(importlib.util.find_spec("jieba").origin).parent


def test_a_file_is_found_without_importing_its_package():
    assert installed_file("jieba", "jieba/dict.txt") == _JIEBA / "dict.txt"


def test_a_missing_package_or_file_gives_advice():
    with pytest.raises(ConfigError, match=r"no-such-package is not installed.*pip install no-such-package"):
        installed_file("no-such-package", "x.txt")
    with pytest.raises(ConfigError, match=r"jieba/no\.txt is missing.*pip install jieba==1 --force-reinstall"):
        installed_file("jieba", "jieba/no.txt", "pip install jieba==1")


_PROJECT = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
_TAKEN = "wukong"


def test_the_distribution_has_its_own_name():
    assert _PROJECT["name"] == installed.DISTRIBUTION != _TAKEN
    for group in _PROJECT["optional-dependencies"].values():
        assert all(Requirement(line).name != _TAKEN for line in group)


def test_no_file_installs_the_other_package_of_this_name():
    root = Path(__file__).parents[3]
    tracked = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], capture_output=True, text=True, check=True)
    asks = re.compile(
        r"(?:pip install|pip download|requires?)[^\n]{0,40}['\" ]wukong(?:\[[\w,-]+\])?(?:['\"= ]|$)", re.MULTILINE
    )
    found = []
    for name in filter(None, tracked.stdout.split("\0")):
        path = root / name
        if path.suffix in (".py", ".md", ".toml", ".yaml", ".sh", ".txt", "") and "schemas" not in path.parts:
            text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
            found += [f"{name}: {match[0]}" for match in asks.finditer(text)]
    assert found == []


def test_a_checkout_that_is_not_installed_knows_its_version_and_requirements(monkeypatch):
    def none(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(installed.metadata, "version", none)
    monkeypatch.setattr(installed.metadata, "requires", none)
    installed._declared.cache_clear()
    assert installed.version() == _PROJECT["version"]
    assert installed.requirements() == _PROJECT["dependencies"]
    installed._declared.cache_clear()


def test_requirements_are_the_projects_own():
    assert installed.requirements() and installed.requirements("onnx")
    declared = {Requirement(line).name for line in _PROJECT["optional-dependencies"]["onnx"]}
    assert {Requirement(line).name for line in installed.requirements("onnx")} == declared
    assert installed.command_for("onnx").startswith("pip install 'onnx")
    with pytest.raises(ConfigError, match=r"there is no extra 'onxn'; there are .*onnx"):
        installed.requirements("onxn")


def test_installed_packages_are_pinned_and_others_as_declared(monkeypatch):
    version = metadata.version

    def without_torch(name):
        if name == "torch":
            raise metadata.PackageNotFoundError(name)
        return "1.2.3+cpu" if name == "torchvision" else version(name)

    monkeypatch.setattr(installed.metadata, "version", without_torch)
    asked = next(line for line in _PROJECT["optional-dependencies"]["model"] if Requirement(line).name == "torch")
    assert installed.pinned(["numpy", "torch", "torchvision"]) == [
        f"numpy=={version('numpy')}",
        asked,
        "torchvision==1.2.3",
    ]
