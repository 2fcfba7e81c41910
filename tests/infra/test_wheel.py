"""The wheel beside another project: it takes none of that project's names, and has what the library needs."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from infra.images import build
from wukong.commands import panels
from wukong.commands.main import _PLATFORM

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
PLATFORM = [
    command.name or command.callback.__name__
    for command in import_module("cli.main").app.registered_commands
    if command.callback and command.callback.__module__.startswith("cli.")
]
Run = Callable[..., subprocess.CompletedProcess[str]]


def packages_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {top for name in archive.namelist() if not (top := name.partition("/")[0]).endswith(".dist-info")}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages of an environment with the wheel and another project; dependencies are this environment's."""
    folder = tmp_path_factory.mktemp("wheel")
    build.copy_tracked(folder / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    made = ["wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", str(folder / "source")]
    subprocess.run([*pip, *made], check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("*.whl")
    assert packages_of(wheel) == {"wukong"}
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    installed = ["--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*pip, *installed], check=True, capture_output=True, text=True)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    for name in ("components", "cli"):
        (packages / name).mkdir()
        (packages / name / "__init__.py").write_text("OTHER = True\n")
    # After the environment's own packages. A path file of that folder, such as the checkout's, is not read.
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return packages


@pytest.fixture
def run(site: Path, tmp_path: Path) -> Run:
    """Run a program of that environment far from the checkout."""

    def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "WUKONG_HOME")}
        command = [str(site.parents[2] / "bin" / program), *arguments]
        return subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, check=False)

    return run


def test_another_projects_packages_stay_its_own(run: Run, site: Path) -> None:
    ended = run("python", "-c", "import cli, components, wukong; print(cli.OTHER, components.OTHER, wukong.__file__)")
    assert ended.stdout.split() == ["True", "True", str(site / "wukong" / "__init__.py")], ended.stderr
    for name in ("infra", "pipelines", "ray_jobs"):
        assert "ModuleNotFoundError" in run("python", "-c", f"import {name}").stderr


def test_the_librarys_commands_work_and_the_platforms_say_what_they_need(run: Run, tmp_path: Path) -> None:
    shown = run("wukong", "--help")
    commands = [name for name in panels.COMMANDS if f"│ {name} " in shown.stdout]
    assert commands == [name for name in panels.COMMANDS if name not in PLATFORM], shown.stderr
    (tmp_path / "my.yaml").write_text("name: x\ncrawl: {engine: urls, endpoint: 'file:///list.csv'}\n")
    printed = run("wukong", "config", "--config", "my.yaml")
    assert '"name": "x"' in printed.stdout, printed.stderr
    for name in commands:
        assert run("wukong", name, "--help").returncode == 0, name
    for name in PLATFORM:
        refused = run("wukong", name)
        assert refused.returncode == 1 and refused.stdout == ""
        assert f"`wukong {name}` needs the platform" in refused.stderr and "make install" in refused.stderr
    assert "No such command" in run("wukong", "nothing").stderr


def test_the_data_of_packages_are_found(run: Run, site: Path) -> None:
    code = """
from wukong.curate import names, sensitive_words
from wukong.evaluate import class_names
print(names.mask(["刘亦菲古装造型"]), len(sensitive_words.load()) > 0, [*class_names._FOLDER.glob("*.tsv")] != [])
"""
    ended = run("python", "-c", code)
    assert ended.stdout.split() == ["['<人名>古装造型']", "True", "True"], ended.stderr
    tracked = subprocess.run(
        ["git", "-C", REPOSITORY, "ls-files", "wukong"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    # Of the catalogue of messages the compiled form is read.
    needed = [name for name in tracked if (REPOSITORY / name).is_file() and not name.endswith(".po")]
    assert [name for name in needed if not (site / name).is_file()] == []


def test_the_wheel_of_the_images_has_the_platform_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = build._pip
    monkeypatch.setattr(build, "_pip", lambda *arguments: pip(*arguments, "--no-build-isolation"))
    build.make_project(tmp_path / "project", tmp_path)
    (wheel,) = (tmp_path / "project").glob("*.whl")
    assert packages_of(wheel) == {"wukong", *_PLATFORM}
