"""The set-up of the virtual environment, with a fake pip that installs nothing and records its arguments."""

import importlib.metadata
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from infra import install

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A virtual environment whose Python records its arguments, on a disk with room."""
    monkeypatch.setattr(install.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100 * 10**9})())
    folder = tmp_path / "venv"
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    log = tmp_path / "asked"
    python.write_text(
        f"#!{sys.executable}\nimport json, sys\nopen({str(log)!r}, 'a').write(json.dumps(sys.argv[1:])+'\\n')\n"
    )
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return folder


def asked(folder: Path) -> list[list[str]]:
    return [json.loads(line) for line in (folder.parent / "asked").read_text().splitlines()]


def test_everything_is_installed_within_the_constraints(environment: Path) -> None:
    assert install.main([str(environment), "--torch", "cuda"]) == 0
    pip, project, files, compiled = asked(environment)
    assert pip[-1].startswith("pip>=")
    assert project[-2:] == ["--editable", f"{REPOSITORY}[all,dev]"]
    assert project[project.index("--constraint") + 1] == str(REPOSITORY / "constraints.txt")
    assert "--no-deps" in files
    assert all("--no-compile" in command for command in (project, files))
    assert compiled[:2] == ["-m", "compileall"] and compiled[-1] == str(environment)
    assert (environment / ".installed").exists()
    assert (environment / ".torch").read_text() == "cuda\n"


def test_every_pin_can_be_installed_on_the_oldest_python() -> None:
    """With one that cannot, pip tries every version of torch before it gives up."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    oldest = f"{project['requires-python'].removeprefix('>=')}.0"
    pins = re.findall(r"^([\w.-]+)==(.+)$", (REPOSITORY / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    told, refused = 0, []
    for name, version in pins:
        try:
            metadata = importlib.metadata.metadata(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an environment of the newest versions, or an extra that is not installed
        if metadata["Version"] == version:
            told += 1
            if not SpecifierSet(metadata.get("Requires-Python") or "").contains(oldest):
                refused.append(f"{name}=={version} needs Python {metadata['Requires-Python']}")
    assert refused == []
    if told < len(pins) / 2:
        pytest.skip("this environment has other versions than the pinned ones")


def test_everything_has_all_extras_but_those_of_images_alone() -> None:
    """What ships and is not installed is tested nowhere."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]

    def joined(names: list[str]) -> set[str]:
        own = [need.split("[")[1][:-1].split(",") for name in names for need in extras[name] if "wukong-vlm[" in need]
        return {*names}.union(*map(joined, own))

    assert extras.keys() - joined(["all", "dev"]) == {"ray-head", "mlflow-server"}


@pytest.mark.parametrize("kind", ["editable", "wheel"])
def test_the_project_is_built_without_a_warning(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("setuptools", "77")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    packages = ("cli/", "components/", "infra/", "pipelines/", "ray_jobs/", "wukong/")
    for name in filter(None, listed.split("\0")):
        if name.startswith(packages) or name in ("pyproject.toml", "README.md", "LICENSE"):
            (tmp_path / "project" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, tmp_path / "project" / name)
    build = f"from setuptools import build_meta; build_meta.build_{kind}({str(tmp_path)!r})"
    command = [sys.executable, "-P", "-c", build]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    made = subprocess.run(command, cwd=tmp_path / "project", env=variables, capture_output=True, text=True, check=True)
    assert "arning" not in made.stderr, made.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        pth = [files.read(name).decode().strip() for name in files.namelist() if name.endswith(".pth")]
    assert pth == ([str(tmp_path / "project")] if kind == "editable" else [])


def test_all_modules_but_tests_are_compiled_and_a_template_does_not_stop_it(tmp_path: Path) -> None:
    made = {
        "package/module.py": "x = 1\n",
        "package/template.py": "x = {% name %}\n",
        "package/tests/test_it.py": "x = 1\n",
    }
    for name, text in made.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    install._compile(Path(sys.executable), tmp_path)
    assert [path.name.split(".")[0] for path in tmp_path.rglob("*.pyc")] == ["module"]


def test_newest_versions_ignore_the_constraints(environment: Path) -> None:
    assert install.main([str(environment), "--torch", "cuda", "--newest"]) == 0
    assert not any("--constraint" in command for command in asked(environment))


def test_cpu_builds_come_first_from_their_own_index(environment: Path) -> None:
    assert install.main([str(environment), "--torch", "cpu"]) == 0
    _, torch, project, *_ = asked(environment)
    assert torch[torch.index("--index-url") + 1] == "https://download.pytorch.org/whl/cpu"
    assert {part.split(">=")[0] for part in torch[-2:]} == {"torch", "torchvision"}
    assert "--index-url" not in project


def test_the_installed_builds_are_the_default(environment: Path) -> None:
    (environment / ".torch").write_text("cpu\n")
    assert install.builds("", environment) == "cpu"
    assert install.builds("cuda", environment) == "cuda"


def test_other_builds_need_a_new_environment(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The installed torch meets the requirement, so pip would keep its builds."""
    (environment / ".torch").write_text("cuda\n")
    made: list[Path] = []

    def create(folder: Path, with_pip: bool) -> None:
        made.append(folder)
        shutil.copytree(environment.parent / "copy", folder)

    shutil.copytree(environment, environment.parent / "copy")
    (environment / "old").touch()
    monkeypatch.setattr(install.venv, "create", create)
    assert install.main([str(environment), "--torch", "cpu"]) == 0
    assert made == [environment]
    assert not (environment / "old").exists()


def test_a_failing_pip_leaves_no_stamp(environment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (environment / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    assert install.main([str(environment), "--torch", "cpu"]) == 1
    assert not (environment / ".installed").exists()
    assert "pip could not install" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("missing", "said"),
    [("git", "git is not installed"), ("ensurepip", "apt-get install python3-venv"), ("disk", "TORCH=cpu needs")],
)
def test_a_missing_requirement_is_reported_before_anything_is_done(
    environment: Path, missing: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if missing == "git":
        monkeypatch.setenv("PATH", str(environment))
    elif missing == "ensurepip":
        monkeypatch.setitem(sys.modules, "ensurepip", None)
        monkeypatch.setattr(install.importlib.util, "find_spec", lambda name: None)
    else:
        monkeypatch.setattr(install.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 3 * 10**9})())
    assert install.main([str(environment), "--torch", "cuda"]) == 1
    assert said in capsys.readouterr().err
    assert not (environment.parent / "asked").exists()


@pytest.mark.parametrize(
    ("torch", "recorded", "again"),
    [("", "cpu", False), ("cpu", "cpu", False), ("cuda", "cpu", True), ("cpu", None, True)],
)
def test_make_installs_again_for_other_builds(tmp_path: Path, torch: str, recorded: str | None, again: bool) -> None:
    """The commands that ``make install`` would run for an environment that is up to date."""
    (tmp_path / "infra").mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "infra/install.py"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/.installed").touch()
    if recorded:
        (tmp_path / ".venv/.torch").write_text(f"{recorded}\n")
    command = ["make", "--dry-run", "install", f"TORCH={torch}"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert ("-m infra.install" in said) == again
