"""Components in one process, with stages' names and functions of our own in place of the real components."""

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kfp import dsl

from pipelines import reuse
from pipelines.local import PipelineError
from wukong.errors import DataError

NAMES = ("crawl", "filter", "validate")


def crawl(experiment: str, run: str, manifest: dsl.Output[dsl.Artifact]) -> None:
    logging.getLogger("wukong.test").info("crawling for %s", run)
    Path(manifest.path).write_text(f"{experiment} {run}", encoding="utf-8")


def filter_pairs(
    experiment: str, run: str, crawl_manifest: dsl.Input[dsl.Artifact], manifest: dsl.Output[dsl.Artifact]
) -> None:
    Path(manifest.path).write_text(Path(crawl_manifest.path).read_text(encoding="utf-8") + " filtered", "utf-8")
    manifest.metadata["digest"] = "d"


def check(
    experiment: str, run: str, filter_manifest: dsl.Input[dsl.Artifact], metrics: dsl.Output[dsl.Metrics]
) -> None:
    metrics.log_metric("length", len(Path(filter_manifest.path).read_text(encoding="utf-8")))
    metrics.log_metric("digest", filter_manifest.metadata["digest"])
    seen.update(metrics.metadata)


seen: dict[str, Any] = {}


@pytest.fixture
def components(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[..., None]]:
    functions: dict[str, Callable[..., None]] = {"crawl": crawl, "filter": filter_pairs, "validate": check}
    monkeypatch.setattr(reuse, "component_of", lambda name: SimpleNamespace(python_func=functions[name]))
    return functions


@pytest.mark.usefixtures("components")
def test_each_component_gets_what_the_ones_before_it_have_made(tmp_path: Path) -> None:
    before = list(logging.getLogger().handlers)
    reuse.run(NAMES, "s3://e", "悟空", tmp_path / "kfp", tmp_path / "log.txt")
    assert seen == {"length": len("s3://e 悟空 filtered"), "digest": "d"}
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert log.endswith("| INFO | crawling for 悟空\n")
    assert logging.getLogger().handlers == before


@pytest.mark.parametrize(
    ("error", "said"), [(DataError("mend it"), "^mend it$"), (KeyError("x"), "filter failed: Key")]
)
def test_a_component_that_fails_ends_the_run(
    tmp_path: Path, components: dict[str, Callable[..., None]], error: Exception, said: str
) -> None:
    def fail(experiment: str, run: str, crawl_manifest: object) -> None:
        raise error

    components["filter"] = fail
    components["validate"] = lambda **_: pytest.fail("it went on")
    with pytest.raises(PipelineError, match=said):
        reuse.run(NAMES, "s3://e", "first", tmp_path / "kfp", tmp_path / "log.txt")
