"""The wheel: beside another project, and alone with what it requires.

Beside another project it takes none of that project's names, and has what the library needs. Alone it loads a model
with what its extra ``model`` brings.
"""

import os
import shlex
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable, Iterable
from importlib import import_module, metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from infra.images import build
from wukong.commands import panels
from wukong.commands.main import _PLATFORM
from wukong.config.model import Model
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.model import saved_model
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.store import storage

pytestmark = pytest.mark.long

REPOSITORY = Path(__file__).parents[2]
PLATFORM = [
    command.name or command.callback.__name__
    for command in import_module("cli.main").app.registered_commands
    if command.callback and command.callback.__module__.startswith("cli.")
]
Run = Callable[..., subprocess.CompletedProcess[str]]
ASKED = {
    *("numpy", "pydantic", "pyyaml", "rich", "typer"),
    *("pillow", "safetensors", "timm", "tokenizers", "torch", "torchvision"),
}
"""What the project and its extra ``model`` require."""
BROUGHT = {
    "annotated-types, pydantic-core, typing-extensions, typing-inspection": "pydantic",
    "markdown-it-py, mdurl, pygments": "rich",
    "annotated-doc, shellingham": "typer",
    "huggingface-hub": "timm and tokenizers",
    "anyio, click, h11, hf-xet, httpcore2, httpx2, idna, packaging, tqdm, truststore": "huggingface-hub",
    "filelock, fsspec, jinja2, markupsafe, mpmath, networkx, sympy": "torch",
}
"""What these bring, and which of them does."""
SOMETIMES = {"setuptools"}
"""What some of their versions bring: setuptools newer torch, and torch for newer versions of Python."""


def packages_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {top for name in archive.namelist() if not (top := name.partition("/")[0]).endswith(".dist-info")}


PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build.copy_tracked(folder / "source")
    made = ["wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", str(folder / "source")]
    subprocess.run([*PIP, *made], check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("*.whl")
    assert packages_of(wheel) == {"wukong"}
    return wheel


def environment(folder: Path, wheel: Path) -> Path:
    """The folder of packages of a new environment, in which the wheel is installed, and nothing else."""
    venv.create(folder, with_pip=False)
    installed = ["--python", str(folder / "bin" / "python"), "install", "--no-deps", "--no-index", str(wheel)]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # where the checkout may be
    subprocess.run([*PIP, *installed], check=True, capture_output=True, text=True, env=clean)
    (packages,) = folder.glob("lib/python*/site-packages")
    return packages


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages of an environment with the wheel and another project; dependencies are this environment's."""
    packages = environment(tmp_path_factory.mktemp("beside"), wheel)
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


# --- alone, with what it requires


def required(wheel: Path) -> list[Requirement]:
    (info,) = (folder for folder in zipfile.Path(wheel).iterdir() if folder.name.endswith(".dist-info"))
    return [Requirement(line) for line in metadata.PathDistribution(info).requires or ()]


def closure(needs: Iterable[Requirement], extra: str = "") -> set[str]:
    """The distributions that requirements name, and all that these need, as those that are installed here say it."""
    todo, found = [(need, extra) for need in needs], set[tuple[str, str]]()
    while todo:
        need, wanted = todo.pop()
        if need.marker is None or need.marker.evaluate({"extra": wanted}):
            name = canonicalize_name(need.name)
            new = {(name, each) for each in ("", *need.extras)} - found
            found |= new
            todo += [(Requirement(line), given) for _, given in new for line in metadata.requires(name) or ()]
    return {name for name, _ in found}


def alone(folder: Path, wheel: Path, extra: str) -> Path:
    """The Python of an environment of the wheel and what it requires, and no other package: these are links to ours."""
    packages = environment(folder, wheel)
    for name in closure(required(wheel), extra):
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(str(distribution.locate_file(top)))
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return alone(tmp_path_factory.mktemp("bare"), wheel, "")


@pytest.fixture(scope="module")
def with_model(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return alone(tmp_path_factory.mktemp("with_model"), wheel, "model")


def program(python: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-I", "-c", code, *arguments]
    clean = {
        "PATH": os.environ["PATH"],
        "AWS_ACCESS_KEY_ID": "none",
        "MLFLOW_TRACKING_URI": "none",
        "HF_HUB_OFFLINE": "1",
    }
    return subprocess.run(command, cwd=python.parent, env=clean, capture_output=True, text=True, check=False)


def names_in(python: Path) -> set[str]:
    code = "from importlib import metadata; print(*(each.name for each in metadata.distributions()))"
    return {canonicalize_name(name) for name in program(python, code).stdout.split()} - {"wukong-vlm"}


def test_loading_a_model_requires_what_is_listed_here_and_no_more(wheel: Path, bare: Path, with_model: Path) -> None:
    brought = {name for names in BROUGHT for name in names.split(", ")}
    there = {name for name in names_in(with_model) if not build._PARTS_OF_TORCH.match(name)}
    assert there - SOMETIMES == ASKED | brought
    asked = {need.name for need in required(wheel) if not need.marker or need.marker.evaluate({"extra": "model"})}
    assert asked == ASKED
    assert names_in(bare) < there
    assert not names_in(bare) & {"torch", "pillow", "pyarrow"}


LOAD = """
import sys
before = set(sys.modules)
import wukong
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names))
model = wukong.load(sys.argv[1])
image, text = model.encode_image(sys.argv[2]), model.encode_text("红色的苹果")
print(*sorted({name.split(".")[0] for name in sys.modules} & {"rich", "typer"}))
print(*image.shape[1:], "|", *text.vectors.shape[1:], "|", model.similarity(image, text).item())
"""


@pytest.mark.parametrize("similarity", ["global", "token"])
def test_a_model_is_loaded_with_the_extra_alone(with_model: Path, tmp_path: Path, similarity: str) -> None:
    """Its tower was made with weights of a package, and its vocabulary is a package's: it needs neither any more."""
    given = {"image": {"image_size": 64}, "text": {"layers": 1, "heads": 2, "width": 16}, "embedding": 8}
    settings = Model.model_validate({**given, "similarity": similarity})
    assert (settings.image.weights, settings.text.vocabulary) == ("package", "package")
    torch.manual_seed(0)
    tokenizer = Tokenizer(packaged_vocabulary())
    model = DualEncoder(settings, tokenizer, ImageEncoder(settings.image)).eval()
    saved_model.save(storage.from_path(tmp_path / "model"), model, tokenizer)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")

    ended = program(with_model, LOAD, str(tmp_path / "model"), str(tmp_path / "picture.png"))
    assert ended.returncode == 0, ended.stderr
    first, shown, computed = ended.stdout.split("\n")[:3]
    assert first == "wukong", "`import wukong` imports nothing else"
    assert shown == "", "what only the command line needs is not imported"
    ours = saved_model.SavedModel(model, tokenizer)
    image, text = ours.encode_image(pixels), ours.encode_text("红色的苹果")
    shapes = [" ".join(map(str, vectors.shape[1:])) for vectors in (image, text.vectors)]
    assert computed.split(" | ")[:2] == shapes
    assert float(computed.split(" | ")[2]) == pytest.approx(ours.similarity(image, text).item(), abs=1e-5)


def test_what_is_missing_is_said_with_the_command_that_installs_it(wheel: Path, bare: Path, with_model: Path) -> None:
    said = program(bare, "import wukong; wukong.load('/model')").stderr.splitlines()[-1]
    assert "wukong.load needs torch, which is not installed: run `pip install " in said
    offered = shlex.split(said.split("`")[1])[2:]
    asked = [need for need in required(wheel) if str(need.marker) == 'extra == "model"']
    assert sorted(offered) == sorted(f"{need.name}{need.specifier}" for need in asked)
    for place, package in {"s3://bucket/model": "pyarrow", "models:/demo@champion": "mlflow-skinny"}.items():
        said = program(with_model, f"import wukong; wukong.load({place!r})").stderr.splitlines()[-1]
        assert f"StorageError: cannot open {place}" in said and said.endswith(f"run `pip install {package}`")
    command = program(bare, "from wukong.commands.main import main; main()")
    assert (command.returncode, command.stdout) == (1, "") and "Traceback" not in command.stderr
    assert command.stderr.endswith("run `pip install pyarrow`\n")
