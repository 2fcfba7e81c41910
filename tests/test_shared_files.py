"""Nobody reads a file, changes what it holds and writes it back without a condition: what others write would be lost.

The syntax trees say who does: a function that reads, or looks for, the file at an address and then writes it, itself or
by functions of its module. ``wukong.store.storage.update`` does that right.
"""

import ast
import copy
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("wukong", "ray_jobs", "cli", "components", "pipelines", "infra")

READS = {
    "exists",
    "load",
    "open_input",
    "read_bytes",
    "read_json",
    "read_table",
    "read_text",
    "read_version",
    "version",
}
WRITES = {
    *("open_output", "publish", "publish_bytes", "save", "upload"),
    *("write_bytes", "write_json", "write_table", "write_text"),
}
OF_A_PATH = {"exists", "read_bytes", "read_text", "write_bytes", "write_text"}
MODULES = {"fence", "manifest", "manifests", "storage"}
SECOND = {"save", "upload"}
"""Of these the second argument is the address."""

ALLOWED = {
    "wukong/config/stored.py store": "the name is the digest of the content",
    "wukong/model/published_weights.py _store": "a person brings a file; another content that is there is refused",
    "wukong/publish/rewrite.py markers": "a takedown works alone on the outputs that it changes",
    "wukong/publish/rewrite.py _rewrite_index": "a takedown works alone on the outputs that it changes",
    "wukong/publish/rewrite.py _rewrite_results": "a takedown works alone on the outputs that it changes",
    "wukong/publish/rewrite.py _rewrite_table": "a takedown works alone on the outputs that it changes",
    "wukong/publish/takedown.py carry_out": "the mark of the experiment's takedown lets one work at a time",
    "wukong/publish/takedown.py remove_traces": "a takedown works alone on the outputs that it changes",
    "wukong/publish/takedown.py _describe_evaluation": "a takedown works alone on the outputs that it changes",
    "wukong/publish/takedown.py _rewrite_manifest": "a takedown works alone on the outputs that it changes",
    "wukong/publish/takedown.py _rewrite_release_lists": "a takedown works alone on the outputs that it changes",
    "wukong/publish/rewrite.py without_pairs": "a takedown works alone on the outputs that it changes",
    "wukong/store/fence.py output": "it writes under the condition, by publish_bytes",
    "wukong/store/fence.py publish": "it writes under the condition, by publish_bytes",
    "wukong/store/fence.py publish_bytes": "it writes under the condition; without claims there is one process",
    "wukong/store/storage.py update": "it writes under the condition, where the store has conditional writes",
    "wukong/validate/offline.py without_network": "a page in a temporary folder",
    "ray_jobs/features.py decide": "it writes under the condition, where the store has conditional writes",
    "ray_jobs/training.py _corpus": "who holds the stage's lease writes, and always the same",
    "ray_jobs/waiting_place.py waiting_place": "the folder's lock is held",
    "cli/hold.py killed": "the run's folder is locked",
    "infra/cluster.py restore": "a person restores a backup before anything runs",
    "infra/images/build.py make_project": "a developer's tool",
    "infra/images/hashes.py write": "a developer's tool",
    "infra/install_manifest.py main": "a developer's tool",
    "infra/pin_images.py main": "a developer's tool",
    "infra/pin_images.py pin": "a developer's tool",
    "infra/pin_images.py unpin": "a developer's tool",
    "infra/install.py install": "a person installs",
    "pipelines/compile.py compile_all": "a developer's tool",
}


class _Replaced(ast.NodeTransformer):
    """Puts expressions in the place of names."""

    def __init__(self, values: Mapping[str, ast.expr]) -> None:
        self._values = values

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return copy.deepcopy(self._values.get(node.id, node))


def _inlined(expression: ast.expr, values: Mapping[str, ast.expr]) -> ast.expr:
    for _ in range(3):
        expression = _Replaced(values).visit(copy.deepcopy(expression))
    return expression


def _assigned(function: ast.AST) -> dict[str, ast.expr]:
    """The names that a function gives one value."""
    named: dict[str, list[ast.expr]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            named.setdefault(node.targets[0].id, []).append(node.value)
        if isinstance(node, ast.NamedExpr):
            named.setdefault(node.target.id, []).append(node.value)
    once = {name: values[0] for name, values in named.items() if len(values) == 1}
    return {name: value for name, value in once.items() if not _names(value, name)}


def _names(expression: ast.expr, name: str) -> bool:
    return any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(expression))


def _accesses(function: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """What a function calls of ``READS`` and ``WRITES``, and the addresses."""
    values = _assigned(function)
    for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Attribute) and (name := call.func.attr) in READS | WRITES:
            module = ast.unparse(call.func.value)
            if name in OF_A_PATH and module not in MODULES:
                yield name, _inlined(call.func.value, values)
            elif len(call.args) > (name in SECOND):
                yield name, _inlined(call.args[name in SECOND], values)
        elif isinstance(call.func, ast.Name) and call.func.id in READS | WRITES and call.args:
            yield call.func.id, _inlined(call.args[0], values)


def changes(source: str) -> set[str]:
    """The functions of a module that read and write a file at the same address."""
    tree = ast.parse(source)
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    direct = {name: list(_accesses(function)) for name, function in functions.items()}
    found = set()
    for name, function in functions.items():
        by = {(how, ast.unparse(address), name) for how, address in direct[name]}
        values = _assigned(function)
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            called = functions.get(ast.unparse(call.func).removeprefix("self."))
            if called is None or called is function or not direct[called.name]:
                continue
            names = [each.arg for each in called.args.args if each.arg != "self"]
            given = {parameter: _inlined(value, values) for parameter, value in zip(names, call.args, strict=False)}
            by |= {(how, ast.unparse(_inlined(address, given)), called.name) for how, address in direct[called.name]}
        # What one of the called functions does all by itself is found there.
        if any(
            how in READS and other in WRITES and address == written and (who == name or who != writer)
            for how, address, who in by
            for other, written, writer in by
        ):
            found.add(name)
    return found


def test_nobody_changes_a_shared_file_without_a_condition() -> None:
    found = {
        f"{path.relative_to(ROOT)} {name}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        for name in changes(path.read_text(encoding="utf-8"))
    }
    assert found - ALLOWED.keys() == set(), "use storage.update, or say above why nothing can be lost"
    assert ALLOWED.keys() - found == set(), "nobody does that any more: leave it out above"


def test_what_loses_the_changes_of_others_is_found() -> None:
    itself = """
def add(root, name):
    uri = storage.join(root, "names.json")
    names = storage.read_json(uri) if storage.exists(uri) else []
    storage.write_json(uri, [*names, name])
"""
    by_another = """
def read(run):
    uri = storage.join(run, FILE)
    return storage.read_json(uri) if storage.exists(uri) else None

def add(folder, text):
    before = read(folder)
    storage.write_json(storage.join(folder, FILE), [before, text])
"""
    of_a_path = """
def add(path, line):
    path.write_text(path.read_text() + line)
"""
    right = """
def copy(source, target):
    storage.write_bytes(target, storage.read_bytes(source))

def add(uri, name):
    storage.update(uri, lambda names: [*(names or []), name])
"""
    assert [changes(each) for each in (itself, by_another, of_a_path, right)] == [{"add"}, {"add"}, {"add"}, set()]
