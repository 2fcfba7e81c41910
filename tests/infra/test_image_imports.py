"""What runs in an image imports nothing that the image does not hold, inside functions too."""

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from infra.images.build import IMAGES
from wukong.runtime.installed import DISTRIBUTION

REPOSITORY = Path(__file__).parents[2]
PACKAGES = {"wukong", "components", "ray_jobs", "pipelines", "cli", "infra"}
JOBS = (REPOSITORY / "ray_jobs").glob("[a-z]*.py")
STARTS = {
    "data": [
        *sorted(f"components.{path.stem}" for path in (REPOSITORY / "components").glob("[a-z]*.py")),
        "wukong.commands.gc",  # a CronJob of k8s/components/gc
    ],
    "ray": ["ray_jobs.__main__", *sorted(f"ray_jobs.{path.stem}" for path in JOBS)],
}
RULES = sorted(f"wukong.curate.rules.{path.stem}" for path in (REPOSITORY / "wukong/curate/rules").glob("[a-z]*.py"))
# The filter job runs every rule; `wukong.curate.rules` finds their files by itself.
STARTS["ray"] += RULES
# What is imported only by a use that the image does not have.
ALLOWED = {
    # Loading a model: `wukong.load` does, and an MLflow model when it is loaded, not when it is saved.
    *(
        (loader, f"wukong.model.{name}")
        for loader in ("wukong", "wukong.model.pyfunc")
        for name in ("saved_model", "dual")
    ),
    # Building a model to see whether it can be built, and what it costs: the command line does.
    *(("wukong.model.cost", f"wukong.model.{name}") for name in ("dual", "image_encoder")),
    *(("wukong.model.cost", name) for name in ("torch", "torch.utils.flop_counter", "wukong.data.tokenizer")),
    # Comparing weights with the model: jobs do.
    *(
        ("wukong.stages.preflight_model", f"wukong.model.{name}")
        for name in ("bert", "image_encoder", "text_encoder", "weights")
    ),
    *(
        ("wukong.stages.preflight_model", name)
        for name in ("huggingface_hub", "timm", "torch", "wukong.data.tokenizer")
    ),
    # Hashing pictures: the filter job does.
    ("wukong.curate.rule", "wukong.curate.pdq"),
    # Counting captions in tokens: the filter job does.
    ("wukong.curate.text.word_pieces", "tokenizers"),
    ("wukong.curate.text.word_pieces", "wukong.data.tokenizer"),
    # Judging captions by a model: the filter job does.
    *(("wukong.curate.rules.similarity", name) for name in ("torch", "wukong.model.saved_model")),
    # Where CUDA's builds of torch have brought triton.
    ("wukong.model.similarity", "wukong.model.token_triton"),
}


def held(image: str) -> set[str]:
    """The distributions that an image's extras and all that they need name."""
    found: set[tuple[str, str]] = set()
    pending = [(DISTRIBUTION, extra) for extra in ("", *IMAGES[image].extras)]
    while pending:
        name, extra = pending.pop()
        if (name, extra) in found:
            continue
        found.add((name, extra))
        for each in required(name, extra):
            pending += [(canonicalize_name(each.name), wanted) for wanted in ("", *each.extras)]
    return {canonicalize_name(name) for name, _ in found} | {name.split("==")[0] for name in IMAGES[image].alone}


def required(name: str, extra: str) -> list[Requirement]:
    """What a distribution requires for an extra, or without one for the extra ``""``."""
    if name == DISTRIBUTION:  # from the file: what is installed may be older
        project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return [
            Requirement(line)
            for line in (project["optional-dependencies"][extra] if extra else project["dependencies"])
        ]
    try:
        lines = metadata.requires(name) or ()
    except metadata.PackageNotFoundError:  # only in images, such as PostgreSQL's client
        return []
    found = [Requirement(line) for line in lines]
    return [each for each in found if each.marker is None or each.marker.evaluate({"extra": extra})]


def file_of(module: str) -> Path | None:
    path = REPOSITORY.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()), None)


def imports(file: Path) -> Iterator[str]:
    """All modules that a file imports anywhere, but for the type checker."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if node.module.split(".")[0] in PACKAGES and file_of(full) else node.module


def foreign(starts: list[str]) -> Mapping[str, str]:
    """The foreign top-level modules that can be reached, each with the path of imports to it."""
    found: dict[str, str] = {}
    seen: set[str] = set()
    pending = [(start, start) for start in starts]
    while pending:
        module, path = pending.pop()
        top = module.split(".")[0]
        if top not in PACKAGES:
            found.setdefault(top, path)
            continue
        parents = [".".join(module.split(".")[:depth]) for depth in range(1, module.count(".") + 2)]
        for each in parents:
            if each in seen or (file := file_of(each)) is None:
                continue
            seen.add(each)
            pending += [(name, f"{path} > {name}") for name in imports(file) if (each, name) not in ALLOWED]
    return {name: path for name, path in found.items() if name not in sys.stdlib_module_names}


@pytest.mark.parametrize("image", STARTS)
def test_an_image_holds_what_its_code_imports(image: str) -> None:
    there, of_module = held(image), metadata.packages_distributions()
    missing = {
        name: path
        for name, path in foreign(STARTS[image]).items()
        if not there & {canonicalize_name(distribution) for distribution in of_module.get(name, ())}
    }
    assert missing == {}


AS_IN_AN_IMAGE = """
import json, sys
missing = set(json.loads(sys.argv.pop(1)))
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from cli.main import main
main()
"""


def test_runs_are_submitted_from_the_image_data(tmp_path: Path) -> None:
    """CI does (docs/ci.md). The command line has more commands, which need what the image lacks."""
    there = held("data")
    missing = [
        module
        for module, distributions in metadata.packages_distributions().items()
        if module not in PACKAGES and not there & {canonicalize_name(each) for each in distributions}
    ]
    assert {"torch", "ray", "psutil"} <= {*missing}
    file = tmp_path / "experiment.yaml"
    file.write_text(
        "name: demo\ncrawl: {queries: 'file:///q.txt', endpoint: 'http://site.invalid'}\n"
        "filter: {split: {held_out_captions: 0.1, holdouts: [{name: h, source: '*', captions: unseen}]}}\n"
    )
    words = ["submit", "--config", str(file), "--host", "http://127.0.0.1:9", "--json"]
    command = [sys.executable, "-c", AS_IN_AN_IMAGE, json.dumps(missing), *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "nothing answers at http://127.0.0.1:9" in json.loads(done.stdout)["error"]


def test_the_search_finds_what_functions_import() -> None:
    assert "kubernetes" in foreign(["ray_jobs.launch"])
    assert "torch" in foreign(["wukong.model.saved_model"])
