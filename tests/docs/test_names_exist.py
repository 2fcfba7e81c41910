"""Names of modules, functions, keys and files in pages, docstrings and comments are those of this tree."""

import ast
import importlib
import io
import json
import re
import subprocess
import tokenize
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from wukong.config.experiment import Experiment

ROOT = Path(__file__).parents[2]
PACKAGES = ("wukong", "cli", "components", "pipelines", "ray_jobs", "infra", "tools")
OURS = tuple(f"{package}." for package in PACKAGES)
LISTED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
TEXTS = [name for name in LISTED if name.endswith((".md", ".py", ".ipynb")) and name != "CHANGELOG.md"]
MODULES = {
    name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    for name in LISTED
    if name.endswith(".py") and name.partition("/")[0] in PACKAGES
}

DOTTED = re.compile(rf"(?<![\w./:-])(?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+(?![\w/-])")
QUOTED = re.compile(r"(?<!`)(`{1,2})([a-z_]\w*(?:\.[A-Za-z_]\w*)+)(?:\(\))?\1(?!`)")
PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(PACKAGES)})/[\w/.-]*\w")
PLACEHOLDER = re.compile(r"\b[A-Z][A-Z_]+\b(?!\.md)")

DATA = {
    ".csv",
    ".arrow",
    ".f16",
    ".faiss",
    ".html",
    ".json",
    ".jsonl",
    ".npy",
    ".onnx",
    ".parquet",
    ".safetensors",
    ".sig",
    ".txt",
    ".yaml",
}
NO_MODULES = {
    **dict.fromkeys(("wukong.attempts", "wukong.attempts.KEY", "wukong.history.ALIAS"), "tag of MLflow"),
    **dict.fromkeys(
        ("wukong.chosen", "wukong.cost", "wukong.gate", "wukong.origin", "wukong.evaluation.uri"), "tag of MLflow"
    ),
    **dict.fromkeys(("wukong.source", "wukong.images"), "tag of MLflow"),
    **dict.fromkeys(("data.captions", "data.labels", "settings.validation"), "attribute of a variable"),
    "experiment.held_out_tasks": "attribute of a variable",
    **dict.fromkeys(("metrics.enabled", "metrics.serviceMonitor.enabled"), "key of a chart of Helm"),
    **dict.fromkeys(("imagenet_zeroshot_templates.py", "zeroshot_evaluation.py"), "file of another project"),
    "wukong_release.zip": "file of another project",
    "pipelines.kubeflow.org": "group of KFP's API, and audience of its tokens",
    "corpus.wukong.test": "host",
    "filter.max_repetition": "key of a rule in examples/",
    "tags.bias": "name of a tensor",
}
"""What looks like a module's name and is none."""
OF_OTHERS = {"cn_clip", "onnx", "open_clip", "transformers"}
"""Packages of others with an adapter of the same name: what is named in them is theirs."""


def _lines(name: str) -> Iterator[tuple[int, str]]:
    """The lines of a page, or of a module's docstrings and comments, with their numbers."""
    text = (ROOT / name).read_text(encoding="utf-8")
    if not name.endswith(".py"):
        yield from enumerate(text.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield from enumerate(node.value.value.splitlines(), node.lineno)


@cache
def _exists(dotted: str) -> bool:
    """Whether a dotted name is a module, or a name in one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        if (module := ".".join(parts[:length])) in MODULES:
            return _has(importlib.import_module(module), parts[length:])
    return False


def _has(value: Any, names: list[str]) -> bool:
    """Whether an object has an attribute, or a class a field, that has the next one, and so on."""
    if not names:
        return True
    if isinstance(value, type) and any(names[0] in vars(each).get("__annotations__", {}) for each in value.__mro__):
        return True
    return hasattr(value, names[0]) and _has(getattr(value, names[0]), names[1:])


def _is_key(names: list[str], section: Any = Experiment) -> bool:
    """Whether names lead from a section of an experiment, or from one below it, to a key."""
    if not names:
        return True
    if not (isinstance(section, type) and issubclass(section, BaseModel)):
        return False
    fields = {}
    for name, field in section.model_fields.items():
        kinds = [kind for kind in get_args(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        fields[name] = next(iter(kinds), field.annotation)  # of a section that may be null, the section
    return (names[0] in fields and _is_key(names[1:], fields[names[0]])) or any(
        _is_key(names, inner) for inner in fields.values()
    )


def wrong_names(line: str) -> list[str]:
    """The names in a line that this tree does not have."""
    wrong = [name for name in DOTTED.findall(line) if not _exists(name)]
    for _, name in QUOTED.findall(line):
        first, *rest = name.split(".")
        named = [module for module in MODULES if module.rpartition(".")[2] == first]
        if name.endswith(".py"):
            wrong += [] if any(Path(each).name == name for each in LISTED) else [name]
        elif named and first not in (*PACKAGES, *OF_OTHERS) and not _is_key([first, *rest]):
            wrong += [] if any(_exists(".".join([module, *rest])) for module in named) else [name]
    for path in PATH.findall(line):
        is_file = "." in path or path.count("/") > 1  # else it may be an image or a label of Kubernetes
        wrong += [path] if is_file and not PLACEHOLDER.search(path) and not list(ROOT.glob(path)) else []
    return [name for name in wrong if name not in NO_MODULES and Path(name).suffix not in DATA]


@pytest.mark.parametrize("folder", sorted({name.partition("/")[0] for name in TEXTS}))
def test_names_exist(folder: str) -> None:
    names = [name for name in TEXTS if name.partition("/")[0] == folder]
    assert [f"{name}:{n}: {wrong}" for name in names for n, line in _lines(name) for wrong in wrong_names(line)] == []


@pytest.mark.parametrize("folder", ["benchmarks", "examples", "notebooks"])
def test_used_names_exist(folder: str) -> None:
    """In files that no type checker reads and that not every run of the tests executes."""
    names = [name for name in TEXTS if name.startswith(f"{folder}/") and not name.endswith(".md")]
    assert [f"{name}: {dotted}" for name in names for dotted in lost_names(_code(name))] == []


def lost_names(code: str) -> list[str]:
    """The names of this tree that code imports, or takes from a module that it imports, and that are not there."""
    lost = []
    for tree in _trees(code):
        nodes = list(ast.walk(tree))
        imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
        imported = {
            alias.asname or alias.name: f"{node.module}.{alias.name}" for node in imports for alias in node.names
        }
        ours = {name: dotted for name, dotted in imported.items() if dotted.startswith(OURS)}
        variables = {node.arg for node in nodes if isinstance(node, ast.arg)}
        variables |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        asked = list(ours.values())
        for node in nodes:
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id not in variables:
                asked += [f"{dotted}.{node.attr}"] if (dotted := ours.get(node.value.id)) in MODULES else []
        lost += [dotted for dotted in asked if not _exists(dotted)]
    return lost


def _trees(code: str) -> Iterator[ast.Module]:
    """The code, and the code in its strings, such as of a process that it starts."""
    tree = ast.parse(code)
    yield tree
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "import " in node.value:
            with suppress(SyntaxError):
                yield ast.parse(node.value)


def _code(name: str) -> str:
    """The code of a module, or of a notebook's cells."""
    text = (ROOT / name).read_text(encoding="utf-8")
    if not name.endswith(".ipynb"):
        return text
    return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code")


def test_wrong_names_are_found() -> None:
    """So that the test above means something."""
    wrong = ("wukong.tracking.log_stage", "`tracking.log_stage`", "`metric_sender.py`", "wukong/run_records.py")
    assert [wrong_names(f"See {name}.") for name in wrong] == [[name.strip("`")] for name in wrong]
    code = "CODE = '''\nfrom ray_jobs import __main__ as driver, features\ndriver._connect()\nfeatures.run()\n'''\n"
    code += "from wukong.store import storage, nothing\nfrom wukong.gone import anything\nstorage.no_such()\n"
    lost = [
        "wukong.store.nothing",
        "wukong.gone.anything",
        "wukong.store.storage.no_such",
        "ray_jobs.__main__._connect",
    ]
    assert lost_names(code) == lost
    right = "wukong.config.documents.load `storage.filesystem` `pretrain.epochs` `checkpoint.keep` `wukong.run_records`"
    assert wrong_names(right) == ["wukong.run_records"]
