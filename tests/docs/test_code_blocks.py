"""The code blocks of the README, of CONTRIBUTING and of ``docs/`` do what they say.

Every block in ``sh`` or ``python`` is executed in a copy of the repository, except those of ``NOT_EXECUTED``. In all
shell blocks, also in those, and in commands in running text, the words are checked: options of ``wukong``, targets of
``make``, modules, files of this repository. Blocks in ``yaml`` are valid parts of an experiment.
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import typer.core
import typer.main
import yaml
from markdown_it import MarkdownIt
from PIL import Image

from cli.main import app
from infra import corpus, stack
from wukong.config import documents
from wukong.store import storage

ROOT = Path(__file__).parents[2]
PAGES = (
    *("README.md", "CONTRIBUTING.md", "examples/README.md"),
    *sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md")),
)
CHINESE = ("README.zh-CN.md", *sorted(f"docs/zh/{file.name}" for file in (ROOT / "docs" / "zh").glob("*.md")))
"""Their blocks are those of the English pages, by ``test_chinese_pages.py``; here only running text is checked."""

DATA = {"csv", "js", "json", "mermaid", "text", "yaml"}
"""Languages of blocks that are read, not executed."""

IMAGES = {"wukong/data", "wukong/mlflow", "wukong/ray"}
"""Names of images, which look like files."""

CLUSTER = "needs a Kubernetes cluster; tests/k8s checks the manifests and the jobs"
TOKEN_WISE = "needs a token-wise model; tests/wukong/export/targets/test_late_interaction_target.py has some"
NOT_EXECUTED = {
    ("README.md", "make run"): "the whole workflow; tests/end_to_end/test_workflow.py runs it on a sample",
    ("CONTRIBUTING.md", "make install"): "installs, runs and tests everything; continuous integration does so",
    ("CONTRIBUTING.md", "pipx install"): "installs a program and a hook into git",
    ("docs/index.md", "make run"): "the README's two commands",
    ("docs/tutorial.md", "make run"): "the README's command",
    ("docs/tutorial.md", ".venv/bin/wukong run"): "tests/end_to_end/test_after_a_run.py changes this key",
    ("examples/README.md", ".venv/bin/python examples/"): "tests/examples/test_examples.py runs each example",
    ("examples/README.md", "eval"): "needs the demo's stack; tests/end_to_end/test_small_papers.py runs a sample",
    (
        "docs/comparing.md",
        "wukong compare demo-2",
    ): "needs runs; tests/wukong/commands/test_compare_command.py compares some",
    ("docs/comparing.md", "wukong compare demo-seeds"): "needs runs; tests/cli/test_sweep_command.py compares seeds",
    (
        "docs/comparing.md",
        "wukong promote demo/7 --force",
    ): "needs models; tests/wukong/registry/test_aliases.py has some",
    ("docs/comparing.md", "wukong promote demo/7  "): "needs models; tests/wukong/registry/test_aliases.py has some",
    ("docs/comparing.md", "wukong sweep"): "trains the demo; tests/cli/test_sweep_command.py has a sweep over seeds",
    ("docs/comparing.md", "wukong run"): "trains the demo; tests/wukong/registry/test_sweep.py reads the sweep",
    ("docs/how-to.md", "wukong takedown"): "changes a set; tests/end_to_end/test_after_a_run.py takes pairs out of one",
    ("docs/objectives.md", "python benchmarks/train/objectives.py prepare"): "takes hours",
    ("docs/scale.md", "make bench NAME=scale"): "takes hours; tests/benchmarks/test_scale.py runs a small one",
    ("docs/paper.md", "wukong weights"): "needs the hub; tests/wukong/model/test_published_weights.py has one",
    ("docs/paper.md", "wukong check configs/paper/vit-b-32.yaml"): "needs a bucket and Kubeflow Pipelines",
    (
        "docs/paper.md",
        "wukong check configs/paper/*.yaml",
    ): "needs a bucket, and half a minute; tests/cli/test_check.py checks every config",
    (
        "docs/paper.md",
        "wukong submit training --config configs/paper/vit-b-32.yaml",
    ): "needs Kubeflow Pipelines; tests/wukong/commands/test_paper_command.py has runs",
    (
        "docs/paper.md",
        "make test-apart NAME=papers",
    ): "takes minutes; tests/end_to_end/test_small_papers.py runs two of them",
    (
        "docs/paper.md",
        "wukong submit training --config configs/paper/finetune-coco-cn.yaml",
    ): "needs Kubeflow Pipelines; tests/ray_jobs/test_set_training.py fine-tunes on a set",
    ("docs/cluster.md", "make images"): "builds images with Docker; tests/infra/test_images.py tests how",
    ("docs/cluster.md", "make run ARGS='--runner docker'"): "needs the images and Docker",
    ("docs/cluster.md", "syft scan"): "asks Docker; tests/infra/test_signed_images.py lists an image of a registry",
    ("docs/cluster.md", ".venv/bin/python -m infra.pin_images"): "asks registries; tests/k8s/test_pin_images.py",
    ("docs/cluster.md", 'kubectl apply -k "github.com/kubeflow'): CLUSTER,
    ("docs/cluster.md", "helm repo add"): CLUSTER,
    ("docs/cluster.md", "OVERLAY=k8s/base"): CLUSTER,
    ("docs/cluster.md", "for namespace in wukong kubeflow"): CLUSTER,
    ("docs/cluster.md", "make cluster "): "makes one; tests/infra/test_laptop_cluster.py tests how",
    ("docs/cluster.md", "KUBECONFIG="): "changes a cluster",
    ("docs/cluster.md", "kubectl -n wukong port-forward svc/mlflow"): CLUSTER,
    ("docs/ci.md", "from pathlib"): "needs Kubeflow Pipelines; tests/cli/test_submit_json.py submits from Python",
    ("docs/ci.md", "WUKONG_DATA_IMAGE="): "needs a digest and Kubeflow Pipelines; tests/cli/test_submit_json.py pins",
    ("docs/ci.md", "cp examples/ci"): "needs npm and Kubeflow Pipelines; tests/examples/test_ci_examples.py runs it",
    ("docs/cluster.md", "wukong submit"): "needs Kubeflow Pipelines; tests/cli/test_submit.py submits to a server",
    ("docs/cluster.md", "kubectl -n wukong port-forward svc/object-store"): CLUSTER,
    ("docs/cluster.md", "kubectl apply -f k8s/base/00-namespace.yaml"): CLUSTER,
    ("docs/cluster.md", "kubectl -n wukong scale"): CLUSTER,
    ("docs/cluster.md", "kubectl -n wukong create configmap"): CLUSTER,
    (
        "docs/export.md",
        ".venv/bin/wukong model sign exports/onnx",
    ): "needs models; tests/wukong/model/test_signed_versions.py signs some",
    ("docs/export.md", "kubectl -n kubeflow create secret"): CLUSTER,
    (
        "docs/models.md",
        "mlflow models serve",
    ): "serves until it is ended; tests/wukong/export/test_pyfunc_served.py does",
    ("docs/security.md", "cosign generate-key-pair"): "needs cosign and a registry; tests/infra/test_signed_images.py",
    (
        "docs/security.md",
        ".venv/bin/python -m infra.images.verify",
    ): "needs cosign and a registry; tests/infra/test_signed_images.py has both",
    ("docs/serving.md", ".venv/bin/wukong serve"): "serves until it is ended; tests/wukong/serve has servers",
    ("docs/serving.md", ".venv/bin/wukong index export"): "tests/wukong/serve/test_index_export.py has an index",
    ("docs/serving.md", "import lancedb"): "needs LanceDB; tests/wukong/export/test_index_elsewhere.py executes it",
    ("docs/serving.md", "import faiss"): "needs FAISS; tests/wukong/export/test_index_elsewhere.py executes it",
    ("docs/serving.md", "import base64"): "needs a server; tests/wukong/export/test_openai_client.py executes it",
    ("docs/serving.md", "kubectl apply -k $OVERLAY"): CLUSTER,
    ("docs/serving.md", "kubectl -n wukong delete rayservice"): CLUSTER,
    ("docs/serving.md", "serve run"): "needs Ray Serve, and serves until it is ended",
    ("docs/serving.md", "python -m ray_jobs.index"): "needs a cluster; tests/ray_jobs/test_index_job.py runs it on Ray",
    ("docs/operating.md", "for image in data ray mlflow"): "needs the images, Docker and a registry",
    ("docs/operating.md", "kubectl -n wukong get rayjobs"): CLUSTER,
    ("docs/teams.md", "kubectl -n kubeflow create secret"): CLUSTER,
    ("docs/teams.md", ".venv/bin/python -m infra.team vision --cpu"): CLUSTER,
    ("docs/teams.md", ".venv/bin/python -m infra.team vision --delete"): CLUSTER,
    ("docs/teams.md", "kubectl -n vision create rolebinding"): CLUSTER,
    ("docs/teams.md", "kubectl create token"): "needs a cluster; tests/k8s/test_kfp_teams.py submits with tokens",
    ("docs/teams.md", "export WUKONG_CLUSTER"): CLUSTER,
    ("docs/removing.md", "wukong takedown --like"): "changes a set; tests/wukong/publish/test_alike.py takes pairs out",
    ("docs/removing.md", "kubectl -n wukong delete rayjobs --all  "): CLUSTER,
    ("docs/removing.md", "kubectl apply -k $OVERLAY"): CLUSTER,
    ("docs/removing.md", "kubectl -n wukong get secret"): CLUSTER,
    ("docs/removing.md", "for volume in $(jq"): CLUSTER,
    ("docs/removing.md", "kubectl -n wukong delete rayjobs --all\n"): CLUSTER,
    (
        "docs/export.md",
        ".venv/bin/wukong evaluate",
    ): "fetches a set; tests/wukong/export/test_back_again.py measures an export",
    (
        "docs/own-data.md",
        ".venv/bin/wukong evaluate",
    ): "needs a model; tests/wukong/commands/test_evaluate_command.py measures one on a folder",
    (
        "docs/export.md",
        "import mteb",
    ): "needs mteb, and a set; tests/wukong/export/targets/test_sentence_transformers_target.py has a small one",
    ("docs/export.md", ".venv/bin/wukong model export s3://wukong/filip"): TOKEN_WISE,
    ("docs/export.md", "from sentence_transformers import MultiVectorEncoder"): TOKEN_WISE,
    ("docs/export.md", "from pylate"): TOKEN_WISE,
    ("docs/cluster.md", ".venv/bin/pytest tests/k8s"): "tests/k8s is part of this suite; checkov needs an index",
}
"""By page and the beginning of the block: why it is not executed."""

REAL, DRY = "real", "dry run"
WITH_THE_STACK = (
    ("README.md", ".venv/bin/wukong run", REAL),
    ("docs/own-data.md", ".venv/bin/wukong run --data ~/pictures  ", DRY),
    ("docs/own-data.md", ".venv/bin/wukong run --data ~/pictures --set filter.mask_names", DRY),
    ("docs/own-data.md", ".venv/bin/wukong run --data ~/pictures --set pretrain.epochs", DRY),
    ("docs/models.md", "import wukong", REAL),
    ("docs/models.md", "import mlflow", REAL),
    ("docs/own-data.md", "import wukong", REAL),
    ("docs/tutorial.md", ".venv/bin/wukong report", REAL),
    ("docs/tutorial.md", ".venv/bin/wukong show", REAL),
    ("docs/tutorial.md", "import wukong", REAL),
    ("docs/export.md", ".venv/bin/wukong model export models:/demo@champion in-onnx", REAL),
    ("docs/export.md", "import json\n\nimport numpy", REAL),
    ("docs/export.md", ".venv/bin/wukong model export models:/demo@champion in-browsers", REAL),
    ("docs/export.md", ".venv/bin/wukong model export models:/demo@champion in-immich", REAL),
    ("docs/export.md", ".venv/bin/wukong model export models:/demo@champion clip", REAL),
    ("docs/export.md", "import open_clip", REAL),
    ("docs/export.md", ".venv/bin/wukong model export models:/demo@champion hub", REAL),
    ("docs/export.md", ".venv/bin/wukong model export models:/demo@champion in-transformers", REAL),
    ("docs/export.md", "import torch\nfrom PIL import Image\nfrom transformers", REAL),
    ("docs/export.md", ".venv/bin/wukong model export models:/demo@champion in-sentence-transformers", REAL),
    ("docs/export.md", "from PIL import Image\nfrom sentence_transformers", REAL),
    ("README.md", ".venv/bin/wukong status", REAL),
)
"""Blocks that need the embedded stack, in the order in which they are executed in one home.

``wukong run`` gets smaller settings; in a ``DRY`` block it gets ``--dry-run``, which checks all and runs no stage.
"""

USAGE_ERROR = typer.BadParameter.__mro__[1]
"""click's UsageError, which newer versions of typer bring themselves."""

SMALL = (
    *("pretrain.epochs=1", "finetune.epochs=1", "model.image.image_size=64", "model.text.width=32"),
    *("model.text.heads=2", "model.embedding=32", "filter.split.held_out_captions=0.2", "registry.first=any"),
)


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def begins(self, page: str, beginning: str) -> bool:
        return self.page == page and self.text.startswith(beginning)

    @property
    def reason(self) -> str | None:
        """Why it is not executed."""
        return next((reason for (page, start), reason in NOT_EXECUTED.items() if self.begins(page, start)), None)

    @property
    def needs_the_stack(self) -> bool:
        return any(self.begins(page, start) for page, start, _ in WITH_THE_STACK)


def _blocks() -> list[Block]:
    return [
        Block(page, (token.map or [0])[0] + 1, token.info.strip(), token.content)
        for page in PAGES
        for token in MarkdownIt().parse((ROOT / page).read_text(encoding="utf-8"))
        if token.type in ("fence", "code_block")
    ]


BLOCKS = _blocks()
EXECUTED = [block for block in BLOCKS if block.language in ("sh", "python") and block.reason is None]


def _spans(page: str) -> list[str]:
    """What stands in running text and tables as code."""
    tokens = MarkdownIt().enable("table").parse((ROOT / page).read_text(encoding="utf-8"))
    return [child.content for token in tokens for child in token.children or [] if child.type == "code_inline"]


def _commands(text: str) -> list[list[str]]:
    """The words of each command of a shell text, without comments and the file that its output goes to."""
    lines = (shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines())
    return [words[: words.index(">")] if ">" in words else words for words in lines if words]


# --- what is said without executing it


def test_every_block_has_a_language() -> None:
    unknown = [str(block) for block in BLOCKS if block.language not in {"sh", "python", *DATA}]
    assert unknown == [], "fence a block, and name its language after the fence"


@pytest.mark.parametrize(("page", "start"), [*NOT_EXECUTED, *(entry[:2] for entry in WITH_THE_STACK)])
def test_every_entry_of_the_tables_is_one_block(page: str, start: str) -> None:
    assert [str(block) for block in BLOCKS if block.begins(page, start)].__len__() == 1


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "sh"], ids=str)
def test_the_words_of_a_shell_block_exist(block: Block) -> None:
    checked = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    for words in _commands(block.text):
        _check_command(words)


@pytest.mark.parametrize("page", [*PAGES, *CHINESE])
def test_commands_in_running_text_exist(page: str) -> None:
    for span in _spans(page):
        if re.match(r"(\.venv/bin/)?(wukong|make) [a-z]", span):
            _check_command(shlex.split(span), complete=False)


@pytest.mark.parametrize("page", [*PAGES, *CHINESE])
def test_files_named_in_running_text_exist(page: str) -> None:
    for span in _spans(page):
        _check_files([span])


def test_a_wrong_command_is_found() -> None:
    """So that the tests above mean something."""
    for wrong in ("wukong run --no-such-option", "wukong status now", "make no-such-target", "wukong rnu"):
        with pytest.raises(AssertionError):
            _check_command(shlex.split(wrong))
    with pytest.raises(AssertionError):
        _check_command(["python", "-m", "infra.no_such_module"])
    with pytest.raises(AssertionError):
        _check_command(["kubectl", "apply", "-f", "k8s/no-such-file.yaml"])


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=str)
def test_a_yaml_block_is_part_of_an_experiment(block: Block) -> None:
    crawl = {"engine": "files", "endpoint": "file:///pictures"}
    experiment = documents.parse({"name": "page", "crawl": crawl, **yaml.safe_load(block.text)})
    assert experiment.model_fields_set > {"name", "crawl"}


def _check_command(words: list[str], complete: bool = True) -> None:
    """Fail when a command names an option, a target, a module or a file that does not exist.

    Args:
        words: the command.
        complete: whether it may be run as it stands; else arguments that it needs may be missing.
    """
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if not words:
        return  # it only sets a variable
    name, arguments = Path(words[0]).name, words[1:]
    if name == "wukong":
        _check_wukong(arguments, complete)
    elif name == "make":
        planned = subprocess.run(
            ["make", "-n", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False, env=_plain()
        )
        assert planned.returncode == 0, planned.stderr
    elif name.startswith("python") and arguments[:1] == ["-m"]:
        assert importlib.util.find_spec(arguments[1]) is not None, f"there is no module {arguments[1]}"
    _check_files(arguments)


def _check_files(words: list[str]) -> None:
    """Fail when one of the words is a path below a folder of this repository, and there is no such file."""
    for word in words:
        folder, slash, rest = word.partition("/")
        if not slash or folder in ("", "build") or word in IMAGES or not (ROOT / folder).is_dir():
            continue
        placeholder = re.search(r"\b[A-Z][A-Z_]+\b(?!\.md)", rest)
        if re.fullmatch(r"[\w./*-]*", rest) and not placeholder:
            assert list(ROOT.glob(word.rstrip("/"))), f"there is no {word}"


def _check_wukong(arguments: list[str], complete: bool) -> None:
    command = typer.main.get_command(app)
    path = "wukong"
    while isinstance(command, typer.core.TyperGroup):
        assert arguments, f"{path} needs a command"
        assert arguments[0] in command.commands, f"there is no {path} {arguments[0]}"
        path, command, arguments = f"{path} {arguments[0]}", command.commands[arguments[0]], arguments[1:]
    if complete:
        try:
            command.make_context(path, list(arguments))
        except USAGE_ERROR as error:
            raise AssertionError(f"{path} {shlex.join(arguments)}: {error}") from error
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in arguments if word.startswith("--")} <= {*known, "--help"}, path


# --- executed


def _plain() -> dict[str, str]:
    """The environment without what a test's own run says of services and make."""
    return {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("WUKONG_", "AWS_", "MLFLOW_", "RAY_", "MAKE", "MFLAGS", "XDG_"))
    }


class Clone:
    """A copy of the repository with a ``.venv`` and a user's home, as somebody has it who follows the pages."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.user = folder / "wukong", folder / "user"
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.folder / name)
        programs = self.folder / ".venv" / "bin"
        programs.mkdir(parents=True)
        self.user.mkdir()
        for program in Path(sys.executable).parent.iterdir():
            _write_program(programs / program.name, f'exec {shlex.quote(str(program))} "$@"')
        small = shlex.join([part for value in SMALL for part in ("--set", value)])
        # First, so that what a page sets itself counts.
        fitting = "--corpus-size 100 --set pretrain.batch_size=32 --set finetune.batch_size=32"
        sample = f'case "$*" in *--data*) ;; *) sample="{fitting}";; esac'
        run = f'shift; {sample}; exec {shlex.quote(sys.executable)} -m cli.main run {small} $DRY_RUN $sample "$@"'
        _write_program(
            programs / "wukong",
            f'if [ "$1" = run ]; then {run}; fi\nexec {shlex.quote(sys.executable)} -m cli.main "$@"',
        )
        (self.folder / ".venv" / ".installed").touch()
        self.environment = {
            **_plain(),
            "HOME": str(self.user),
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(self.folder),
            "WUKONG_CACHE": str(corpus.cache_folder()),
            "COLUMNS": "200",
        }

    def execute(self, block: Block, text: str | None = None, dry: bool = False) -> str:
        program = {"sh": ["bash", "-euo", "pipefail"], "python": [sys.executable, "-"]}[block.language]
        done = subprocess.run(
            program,
            cwd=self.folder,
            env={**self.environment, "DRY_RUN": "--dry-run" if dry else ""},
            input=text or block.text,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def _write_program(file: Path, text: str) -> None:
    file.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    file.chmod(0o755)


@pytest.fixture(scope="module")
def clone_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Clone]:
    """A clone for each page, in which its blocks are executed one after the other."""
    return cache(lambda page: Clone(tmp_path_factory.mktemp("clone")))


@pytest.mark.long
@pytest.mark.parametrize("block", [b for b in EXECUTED if not b.needs_the_stack], ids=str)
def test_a_block_does_what_it_says(block: Block, clone_of: Callable[[str], Clone]) -> None:
    clone_of(block.page).execute(block)


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A clone with pictures, in which the blocks that need the stack are executed one after the other."""
    made = Clone(tmp_path_factory.mktemp("clone"))
    pictures = made.user / "pictures"
    pictures.mkdir()
    colours = {"红色": (220, 20, 30), "绿色": (20, 160, 40), "蓝色": (30, 40, 220), "黄色": (230, 220, 40)}
    shapes = (
        "方块",
        "圆形",
        "三角形",
        "条纹",
        "星形",
        "心形",
        "箭头",
        "云朵",
        "山峰",
        "波浪",
        "房子",
        "树木",
        "桥梁",
        "船只",
    )
    rows = ["path,caption"]
    for number, (colour, shape) in enumerate(product(colours, shapes)):
        picture = Image.new("RGB", (96, 64), colours[colour])
        picture.paste((number, 255 - number, number * 4), (number % 60, 4, number % 60 + 30, 50))
        picture.save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(f"{colour}的{shape}\n", encoding="utf-8")
        rows.append(f"{pictures}/{number}.png,{colour}的{shape}")
    (pictures / "broken.jpg").write_bytes(b"no picture")
    (pictures / "broken.txt").write_text("坏的图片", encoding="utf-8")
    (made.folder / "pictures.csv").write_text("\n".join(rows), encoding="utf-8")
    lists = made.user / "wukong_release"
    lists.mkdir()
    urls = "".join(f"https://site.test/{number}.jpg,第{number}张图片\n" for number in range(400))
    (lists / "wukong_100m_0.csv").write_text(f"url,caption\n{urls}", encoding="utf-8")
    (made.folder / "my.yaml").write_text((ROOT / "configs" / "own-data.yaml").read_text().replace("256", "16"))
    for animal in ("cat", "dog"):
        picture.save(made.folder / f"{animal}.jpg")
    yield made
    stack.down(made.folder / ".wukong")


@pytest.mark.long
@pytest.mark.parametrize(("page", "start", "how"), WITH_THE_STACK)
def test_a_block_does_what_it_says_with_the_stack(
    page: str, start: str, how: str, user: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = (block for block in BLOCKS if block.begins(page, start))
    text = block.text
    if "models:/demo" in text or "s3://wukong/demo" in text:
        # The model that the README's commands have trained: of the pictures, not of the whole demo.
        text = text.replace("models:/demo@", "models:/pictures@")
        for name, value in stack.load(user.folder / ".wukong").environment().items():
            monkeypatch.setenv(name, value)
        (weights,) = storage.list_files("s3://wukong/pictures/finetune", "model/model.safetensors")
        text = text.replace("s3://wukong/demo/finetune/KEY/model", weights.rpartition("/")[0])
    if block.begins("README.md", ".venv/bin/wukong run"):
        # The run of the demo is that of tests/end_to_end: here it is only checked.
        text = re.sub(r"(--config configs/demo\.yaml)", r"\1 --dry-run", text)
        said = user.execute(block, text)
        assert re.search(r"held-out\.text to image +\d\.\d{3}", said)
        assert "Not downloaded: not image 1" in said
        assert said.count("Nothing was run") == 2
        assert list((user.folder / ".wukong" / "runs").glob("pictures-*/report.html"))
    else:
        user.execute(block, text, dry=how == DRY)
