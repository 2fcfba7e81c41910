"""The variables that processes of a run hand on stand in one list, with the names that their readers use."""

import ast
from pathlib import Path

import yaml

from wukong.model import signature
from wukong.runtime import environment, events, forwarded
from wukong.store import address, fence, patience
from wukong.tracking import mlflow_rest

ROOT = Path(__file__).parents[3]
SECRET = {*forwarded.S3_KEY, *forwarded.MLFLOW_USER}
SECRET |= {name for each in forwarded.OPTIONAL_SECRETS.values() for names in each.values() for name in names}


def test_names_are_those_that_are_read() -> None:
    assert {environment.CONNECT_TO, events.VARIABLE} < set(forwarded.TO_JOBS)
    assert {fence.VARIABLE, patience.VARIABLE} < set(forwarded.TO_WORKERS)
    assert forwarded.OPTIONAL_SECRETS["register"]["wukong-signing"] == (signature.KEY_FILE, signature.PASSWORD)
    assert forwarded.OPTIONAL_TO_COMPONENTS == (address.CERTIFICATES, mlflow_rest.WORKSPACE)
    assert address.ADDRESSING in {*forwarded.TO_WORKERS} & {*forwarded.TO_COMPONENTS}
    settings = yaml.safe_load((ROOT / "k8s" / "base" / "settings.yaml").read_text(encoding="utf-8"))["data"]
    assert set(forwarded.TO_COMPONENTS) <= set(settings), "the ConfigMap has every key"


def test_workers_get_all_that_their_job_gets_and_nobody_gets_credentials_in_the_open() -> None:
    assert set(forwarded.TO_JOBS) <= set(forwarded.TO_WORKERS)
    named = {*forwarded.TO_WORKERS, *forwarded.TO_COMPONENTS, *forwarded.OPTIONAL_TO_COMPONENTS}
    assert not named & SECRET
    assert not [name for name in named if any(word in name for word in ("KEY", "SECRET", "TOKEN", "PASSWORD"))]


def test_no_other_list_of_them_stands_in_the_source() -> None:
    known = {*forwarded.TO_WORKERS, *forwarded.TO_COMPONENTS, *forwarded.OPTIONAL_TO_COMPONENTS}
    lists = []
    for package in ("wukong", "ray_jobs", "components", "pipelines", "cli"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.List | ast.Tuple | ast.Set):
                    names = {entry.value for entry in node.elts if isinstance(entry, ast.Constant)}
                    lists += [str(path.relative_to(ROOT))] if len(names & known) >= 3 else []
    assert set(lists) == {"wukong/runtime/forwarded.py"}
