"""A file and its base: what is merged, what is stored and handed to a pipeline, and which bases are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cli import submit
from cli.main import app
from wukong.config import documents, stored
from wukong.errors import ConfigError
from wukong.runs import run_records
from wukong.store import storage

COMPILED = Path(__file__).parents[3] / "pipelines" / "compiled"
BASE = {
    "name": "x",
    "crawl": {"queries": "s3://wukong/q.txt", "endpoint": "http://site.test/", "max_queries": 7},
    "model": {"architecture": "lite0", "text": {"layers": 3}},
    "pretrain": {"epochs": 5, "augmentations": ["crop", "flip"], "validation": {"every_steps": 9}},
}


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(value), encoding="utf-8")
    return path


def test_mappings_are_merged_and_lists_and_values_replaced(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", BASE)
    changed = {
        "base": "../base.yaml",
        "model": {"text": {"heads": 2}, "similarity": "token"},
        "pretrain": {"augmentations": ["flip"], "validation": {"keep": "best"}},
    }
    merged = documents.load(write(tmp_path / "inner" / "own.yaml", changed), ["pretrain.validation.every_steps=4"])
    by_hand = {
        **BASE,
        "model": {"architecture": "lite0", "text": {"layers": 3, "heads": 2}, "similarity": "token"},
        "pretrain": {"epochs": 5, "augmentations": ["flip"], "validation": {"every_steps": 4, "keep": "best"}},
    }
    assert merged == documents.loads(json.dumps(by_hand))
    assert merged.pretrain.augmentations == ("flip",) and merged.crawl.max_queries == 7


def test_a_base_may_have_a_base_and_a_mapping_can_be_taken_back(tmp_path: Path) -> None:
    write(tmp_path / "first.yaml", BASE)
    write(tmp_path / "second.yaml", {"base": "first.yaml", "seed": 4, "crawl": {"max_queries": 8}})
    third = documents.load(
        write(tmp_path / "third.yaml", {"base": "second.yaml", "seed": 5, "model": {"embedding": None}})
    )
    assert (third.seed, third.crawl.max_queries, third.pretrain.epochs, third.model.embedding) == (5, 8, 5, None)


def test_of_several_bases_the_later_one_counts_more(tmp_path: Path) -> None:
    write(tmp_path / "first.yaml", {**BASE, "seed": 1})
    write(tmp_path / "second.yaml", {"seed": 2, "crawl": {"max_queries": 9}, "pretrain": {"epochs": 6}})
    merged = documents.load(
        write(tmp_path / "own.yaml", {"base": ["first.yaml", "second.yaml"], "pretrain": {"epochs": 7}})
    )
    assert (merged.seed, merged.crawl.max_queries, merged.pretrain.epochs) == (2, 9, 7)
    assert merged.crawl.queries == "s3://wukong/q.txt" and merged.pretrain.validation.every_steps == 9


def test_the_merged_experiment_is_stored_and_submitted(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", {**BASE, "storage": storage.from_path(tmp_path / "store")})
    merged = documents.load(write(tmp_path / "own.yaml", {"base": "base.yaml", "seed": 3}))
    assert stored.load(stored.store(merged)) == merged
    whole = {**BASE, "storage": storage.from_path(tmp_path / "store"), "seed": 3}
    assert stored.store(documents.loads(json.dumps(whole))) == stored.store(merged), "the place depends on values alone"
    parameter = submit.parameters(COMPILED / "training.yaml", merged, "run", [])["experiment"]
    assert "base" not in parameter and parameter["crawl"]["max_queries"] == 7
    assert documents.loads(json.dumps(parameter)) == merged


def test_the_command_prints_the_merged_experiment(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", BASE)
    path = write(tmp_path / "own.yaml", {"base": "base.yaml", "seed": 3})
    printed = CliRunner().invoke(app, ["config", "--config", str(path), "--set", "pretrain.epochs=8"]).stdout
    assert documents.loads(printed) == documents.load(path, ["pretrain.epochs=8"])
    assert json.loads(printed)["pretrain"]["epochs"] == 8 and json.loads(printed)["seed"] == 3


def test_the_command_checks_the_encoders(tmp_path: Path) -> None:
    path = write(tmp_path / "own.yaml", BASE)
    refused = CliRunner().invoke(app, ["config", "--config", str(path), "--set", "model.image.name=resnet5"])
    assert isinstance(refused.exception, ConfigError) and refused.stdout == ""
    assert "model.image.name: timm has no model 'resnet5'; it has " in str(refused.exception)


def test_the_file_of_a_run_is_an_experiment(tmp_path: Path) -> None:
    experiment = documents.loads(json.dumps({**BASE, "storage": storage.from_path(tmp_path), "seed": 5}))
    run_records.claim(experiment, "run")
    (file,) = tmp_path.rglob("runs/run/experiment.json")
    assert documents.load(file) == experiment
    assert documents.load(file, ["seed=6"]).seed == 6


def test_a_missing_base_and_one_that_is_no_file_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "own.yaml", {"base": "none.yaml", "name": "x"})
    with pytest.raises(ConfigError, match=r"base: there is no .*none\.yaml, which .*own\.yaml names; .* relative to"):
        documents.load(path)
    for wrong in ([], "", None, {}, ["a.yaml", 1], 3):
        with pytest.raises(ConfigError, match=r"base: .*own\.yaml gives .*; write a path relative to"):
            documents.load(write(path, {"base": wrong, "name": "x"}))
    with pytest.raises(ConfigError, match=r"cannot read .*; an experiment is a YAML file"):
        documents.load(write(path, {"base": ".", "name": "x"}))


def test_a_circle_of_bases_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", {"base": "b.yaml"})
    write(tmp_path / "b.yaml", {"base": "../" + tmp_path.name + "/a.yaml"})
    for name in ("a.yaml", "b.yaml"):
        with pytest.raises(ConfigError, match=r"base: .* is its own base, by .*: take the key base out of one"):
            documents.load(tmp_path / name)


def test_a_text_and_an_override_have_no_base(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"base: 'base\.yaml' cannot be found from the pipeline: only a file names"):
        documents.loads(json.dumps({"base": "base.yaml", **BASE}), where="the pipeline")
    with pytest.raises(ConfigError, match=r"base: 'b\.yaml' cannot be found"):
        documents.load(write(tmp_path / "own.yaml", BASE), ["base=b.yaml"])


def test_a_wrong_key_is_reported_with_all_files(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", {**BASE, "sed": 1})
    with pytest.raises(
        ConfigError, match=r"(?s)own\.yaml on the base .*base\.yaml is not a valid experiment.*sed: unknown"
    ):
        documents.load(write(tmp_path / "own.yaml", {"base": "base.yaml"}))


BY_SIMILARITY = {
    "model": {"temperature": 0.5},
    "by_similarity": {
        "global": {"model": {"temperature": 0.2}},
        "token": {"model": {"temperature": 0.1, "image": {"tokens": 4}}, "pretrain": {"epochs": 3}},
    },
}


@pytest.mark.parametrize(
    ("changes", "overrides", "found"),
    [
        ({}, [], (0.2, None, 5)),
        ({}, ["model.similarity=token"], (0.1, 4, 3)),
        ({"model": {"similarity": "token"}}, [], (0.1, 4, 3)),
        ({"model": {"similarity": "token"}}, ["model.similarity=global"], (0.2, None, 5)),
        ({}, ["model.similarity=token", "model.temperature=0.3", "model.image.tokens=9"], (0.3, 9, 3)),
        ({"model": {"similarity": "token", "temperature": 0.7}, "pretrain": {"epochs": 5}}, [], (0.7, 4, 5)),
        ({"by_similarity": {"token": {"pretrain": {"epochs": 6}}}}, ["model.similarity=token"], (0.1, 4, 6)),
    ],
)
def test_values_by_similarity_count_more_than_their_file_and_less_than_those_on_it(
    tmp_path: Path, changes: dict[str, Any], overrides: list[str], found: tuple[float, int | None, int]
) -> None:
    write(tmp_path / "base.yaml", {**BASE, **BY_SIMILARITY})
    merged = documents.load(write(tmp_path / "own.yaml", {"base": "base.yaml", **changes}), overrides)
    assert (merged.model.temperature, merged.model.image.tokens, merged.pretrain.epochs) == found
    assert documents.loads(json.dumps(merged.model_dump(mode="json"))) == merged, "what is stored names no choice"


def test_a_text_has_values_by_similarity_too() -> None:
    text = json.dumps({**BASE, **BY_SIMILARITY})
    assert documents.loads(text).model.temperature == 0.2
    assert documents.loads(text, ["model.similarity=token"]).model.temperature == 0.1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokens": {}}, r"by_similarity\.tokens: unknown key in here; allowed here: global, token"),
        ([], r"by_similarity: here gives \[\]; write mappings of an experiment's keys below global and token"),
        ({"global": 3}, r"by_similarity: here gives .*; write mappings"),
        (
            {"global": {"model": {"similarity": "token"}}},
            r"by_similarity\.global\.model\.similarity: it is what decides",
        ),
        ({"global": {"model": {"temprature": 1}}}, r"model\.temprature: unknown key"),
        ({"global": {"model": 3}}, r"model: .*got 3"),
    ],
)
def test_wrong_values_by_similarity_are_named(values: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        documents.loads(json.dumps({**BASE, "by_similarity": values}), where="here")


@pytest.mark.parametrize("name", ["demo.yaml", "own-data.yaml"])
def test_the_examples_have_values_for_the_token_wise_similarity(name: str) -> None:
    file = Path(__file__).parents[3] / "configs" / name
    pooled, whole = (documents.load(file, [f"model.similarity={each}"]) for each in ("token", "global"))
    assert pooled.model.image.tokens and whole.model.image.tokens is None
    assert pooled.model.temperature == pooled.model.min_temperature < whole.model.temperature
    assert pooled.pretrain.learning_rate > whole.pretrain.learning_rate
