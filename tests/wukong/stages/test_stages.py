"""The table of stages: it is in order, jobs and components fit it, and no other list of stages stands in the source."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel

from pipelines.training import component_of
from wukong import stages
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError
from wukong.model.cost import Shape, Size
from wukong.stages import measured_rates, places
from wukong.stages.estimate import Capacity, Work

ROOT = Path(__file__).parents[3]
PACKAGES = ("wukong", "cli", "components", "pipelines", "ray_jobs", "infra")
NO_STAGE = {"configure", "data_card", "results", "record_end", "find_manifest"}
"""Components that do no stage: the first and the last task of a run, pages for the UI, and finding an earlier stage."""


def trees(*packages: str) -> Iterator[tuple[str, ast.Module]]:
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def functions(package: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """The functions of a package's own modules, with the module's name."""
    for path, tree in trees(package):
        if path.count("/") == 1:
            yield from ((Path(path).stem, node) for node in tree.body if isinstance(node, ast.FunctionDef))


def test_a_stage_stands_after_all_that_it_reads() -> None:
    seen: set[str] = set()
    for entry in stages.TABLE:
        assert entry.name not in seen
        read = {*entry.parents, *(stage for stage, _ in entry.inputs.values())}
        assert read <= seen, f"{entry.name} reads what stands below it"
        assert set(entry.key_parents) <= set(stages.needed_for(entry.name)) - {entry.name}
        seen.add(entry.name)


def test_what_a_whole_run_reads_is_in_it() -> None:
    for name in stages.WHOLE_RUN:
        assert set(stages.needed_for(name)) <= set(stages.WHOLE_RUN)


def test_every_entry_says_what_its_kind_needs() -> None:
    for entry in stages.TABLE:
        assert entry.title[0].isupper() and entry.hands_on
        if entry.runs_as != "component":
            assert entry.version, f"{entry.name} writes a manifest, whose key needs a version"
        if entry.runs_as == "job" and entry.name not in places.UPCOMING:
            assert entry.from_experiment, f"nobody knows the key of {entry.name}, so it would never be found finished"
        if entry.takedown == "delete":
            assert entry.version and entry.parents, "a takedown finds it by the manifests of its parents"
        assert (entry.estimate is not None) == (entry.name in stages.WHOLE_RUN)


def test_what_knows_a_job_before_it_starts_is_of_a_job() -> None:
    assert set(places.UPCOMING) <= set(stages.JOBS)


def test_every_job_is_in_the_table_and_the_table_names_no_other() -> None:
    jobs = {module for module, node in functions("ray_jobs") if _is_job(node)}
    inside = {entry.name for entry in stages.TABLE if entry.runs_as == "inside"}
    assert jobs - inside == set(stages.JOBS)


def _is_job(node: ast.FunctionDef) -> bool:
    return node.name == "run" and [argument.arg for argument in node.args.args][:2] == ["experiment", "parents"]


def test_every_component_is_in_the_table_and_the_table_names_no_other() -> None:
    components = {
        node.name.removesuffix("_pairs")  # `filter` is Python's own
        for _, node in functions("components")
        if any("component" in ast.unparse(decorator) for decorator in node.decorator_list)
    }
    assert components >= NO_STAGE
    assert components - NO_STAGE == set(stages.RECORDED)


@pytest.mark.parametrize("name", stages.RECORDED)
def test_a_component_takes_what_the_table_says(name: str) -> None:
    entry = stages.of(name)
    specification = component_of(name).component_spec
    inputs = {key: each for key, each in specification.inputs.items() if not each.optional}
    artifacts = [f"{parent}_manifest" for parent in entry.parents]
    assert set(inputs) == {"experiment", "run", *artifacts, *entry.inputs}
    assert [key for key in inputs if key.endswith("_manifest")] == artifacts, "in the table's order"
    assert entry.output in specification.outputs
    for stage, output in entry.inputs.values():
        assert output in component_of(stage).component_spec.outputs


@pytest.mark.parametrize("name", stages.JOBS)
def test_a_component_hands_its_job_the_manifests_in_order(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[Any, ...]] = []

    def run_stage(stage: str, experiment: str, run: str, parents: list[str], output: str, *_: Any) -> Any:
        called.append((stage, experiment, run, parents, output))
        return SimpleNamespace(digest="d")

    monkeypatch.setattr("components.stage.run_stage", run_stage)
    parents = stages.of(name).parents
    given = {f"{parent}_manifest": SimpleNamespace(path=f"/{parent}") for parent in parents}
    output = SimpleNamespace(path="/out", metadata={})
    component_of(name).python_func(experiment="e", run="r", manifest=output, **given)
    assert called == [(name, "e", "r", [f"/{parent}" for parent in parents], "/out")]
    assert output.metadata == {"digest": "d"}


def test_no_other_list_of_stages_stands_in_the_source() -> None:
    names = {entry.name for entry in stages.TABLE}
    found = []
    for path, tree in trees(*PACKAGES):
        for node in ast.walk(tree) if path != "wukong/stages/__init__.py" else ():
            if isinstance(node, ast.List | ast.Tuple | ast.Set):
                entries = node.elts
            elif isinstance(node, ast.Dict):
                entries = [key for key in node.keys if key is not None]
            else:
                continue
            literals = {entry.value for entry in entries if isinstance(entry, ast.Constant)}
            if len(literals & names) >= 3:
                found.append(f"{path}:{node.lineno}: {sorted(literals & names)}")
    assert not found, "these read wukong/stages/__init__.py instead: " + "; ".join(found)


def experiment(**changes: Any) -> Experiment:
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    return documents.parse({"name": "x", "crawl": crawl, **changes})


def test_the_config_of_a_stage_changes_with_what_decides_it_alone() -> None:
    before, after = experiment(), experiment(pretrain={"epochs": 3})
    changed = {entry.name for entry in stages.TABLE if entry.config(before) != entry.config(after)}
    assert changed == {"pretrain"}
    after = experiment(filter={"max_length": 20})
    changed = {entry.name for entry in stages.TABLE if entry.config(before) != entry.config(after)}
    assert changed == {"filter", "validate"}
    for entry in stages.TABLE:
        json.dumps(entry.config(before))  # it is stored


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # no choice among words has this other one
@pytest.mark.parametrize("name", stages.TRAININGS)
def test_each_setting_of_a_training_is_in_its_key_but_those_that_decide_nothing(name: str) -> None:
    given, entry = experiment(), stages.of(name)
    left_out = set()
    for key, value in getattr(given, name):
        if isinstance(value, BaseModel):
            continue
        other = not value if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else "other"
        changed = getattr(given, name).model_copy(update={key: other})
        if entry.config(given.model_copy(update={name: changed})) == entry.config(given):
            left_out.add(key)
    assert left_out == {"from_model", "log_every", "min_workers", "shard_optimizer", "threads"}


def test_a_validation_is_in_the_key_only_if_it_decides() -> None:
    entry, plain = stages.of("pretrain"), experiment(pretrain={})
    assert entry.config(experiment(pretrain={"validation": {"every_steps": 9}})) == entry.config(plain)
    deciding = {"every_steps": 9, "metric": "retrieval/a/mean_recall", "keep": "best"}
    split = {"held_out_captions": 0.1, "holdouts": [{"name": "a", "source": "*", "captions": "unseen"}]}

    def keyed(captions: str, **changed: object) -> str:
        made = experiment(
            pretrain={"validation": deciding | changed}, filter={"split": split}, evaluate={"captions": captions}
        )
        return json.dumps(entry.config(made))

    assert len({keyed("distinct"), keyed("all"), keyed("distinct", every_steps=8), keyed("distinct", patience=2)}) == 4


def test_estimates_grow_with_the_pairs() -> None:
    size, rates = Size(10_000_000, 5_000_000, 1e9, Shape(1, 1280)), measured_rates.load()
    few, many = (Work(experiment(), pairs, pairs, size, Capacity(2), rates) for pairs in (1_000, 1_000_000))
    for name in stages.WHOLE_RUN:
        estimate = stages.of(name).estimate
        assert estimate is not None
        assert estimate(few).bytes > 0 < estimate(few).seconds
        assert (estimate(many).bytes, estimate(many).seconds) >= (estimate(few).bytes, estimate(few).seconds)


def test_what_leads_to_a_stage() -> None:
    assert stages.needed_for("release") == ("crawl", "filter", "validate", "release")
    assert stages.needed_for("report") == stages.WHOLE_RUN


def test_an_unknown_stage_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="no stage 'crwal'; the stages are crawl, look, pack, fingerprints, filter"):
        stages.of("crwal")
    with pytest.raises(ConfigError, match="crawl does not train; those that do are pretrain, finetune"):
        stages.training_of(experiment(), "crawl")
    assert stages.training_of(experiment(finetune={"workers": 2}), "finetune").workers == 2
