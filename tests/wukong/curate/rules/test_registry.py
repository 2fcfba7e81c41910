"""The rules together: their order, that no caption makes one raise, and what adding a rule touches."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_samples import TEXT, judge

from wukong.config.filter import Filter
from wukong.curate import rules
from wukong.curate.caption_counts import CaptionCounts, counted, hashes
from wukong.curate.rule import HELD_BACK


@given(st.lists(TEXT, max_size=20))
@settings(deadline=None, max_examples=200)
def test_no_caption_makes_a_rule_raise_and_every_reason_is_known(captions):
    result = judge(captions)
    assert len(result) == len(captions)
    assert set(result) <= {None, *rules.applied(Filter())}


@pytest.mark.parametrize(
    "caption", ["", " \u3000\t", "\x00\x01", "猫" * 350_000, "が" * 100 + "한글", "\ufffd", "🐱" * 1000]
)
def test_extreme_captions_are_dropped_under_a_reason(caption):
    assert judge([caption])[0] in rules.applied(Filter())


def test_a_pair_keeps_the_first_reason_in_the_documented_order():
    # Too small, too long-drawn, meaningless and not Chinese at once: each threshold lifted shows the next reason.
    bad = "000.jpg"
    assert judge([bad], 10, 100) == ["size"]
    assert judge([bad], 10, 100, min_side=0) == ["aspect_ratio"]
    assert judge([bad], 10, 100, min_side=0, max_aspect_ratio=100) == ["meaningless"]
    repeated = "色情" + "猫" * 40
    counts = CaptionCounts.of_rows(counted(np.repeat(hashes(pl.Series([repeated])), 11)))
    assert judge([repeated], counts=counts) == ["length"]
    assert judge([repeated], counts=counts, max_length=50) == ["frequency"]
    assert judge([repeated], counts=counts, max_length=50, max_caption_count=11) == ["sensitive"]


def test_each_rule_is_known_by_its_file():
    files = {path.stem for path in Path(rules.__file__).parent.glob("[a-z]*.py")}
    assert {rule.name for rule in rules.REGISTRY} == files


def test_the_page_for_contributors_shows_a_whole_rule():
    size = Path(rules.__file__).with_name("size.py")
    page = Path(rules.__file__).parents[3] / "CONTRIBUTING.md"
    assert f"```python\n{size.read_text(encoding='utf-8')}```" in page.read_text(encoding="utf-8")


def test_a_pair_in_no_split_is_held_back_unless_it_was_dropped():
    columns = pl.DataFrame({"split": ["train", "held_back", "held_back"], "dropped_by": [None, None, "size"]})
    assert rules.decide(columns, Filter(), "split").to_list() == [None, HELD_BACK, "size"]


TOY = """
from pydantic import Field

from wukong.curate.rule import Check, Column, Rule
from wukong.config.section import Fraction, Strict


class Shouting(Rule):
    place = 45
    title = "caption does not shout"
    stored = (Column("marks", "int64"),)

    class Settings(Strict):
        max_marks: int = Field(3, ge=0, description="exclamation marks in a caption")

    class GateSettings(Strict):
        min_calm_share: Fraction = 0.9

    def compute(self, batch, settings):
        return {"marks": batch.captions.str.count_matches("[!！]").cast(int)}

    def drops(self, pairs, settings):
        return pairs["marks"] > settings.max_marks

    def check(self, settings, gate):
        return Check("calm", "marks_found", {"max_value": settings.max_marks, "mostly": gate.min_calm_share})

    def audit(self, pairs, loaded):
        return {"marks_found": pairs["caption"].str.count_matches("[!！]")}


RULE = Shouting()
"""
WHAT_THE_PROJECT_KNOWS = """
import json

import numpy as np
import polars as pl

from wukong import stages
from wukong.config import documents
from wukong.curate import rules
from wukong.curate.caption_counts import CaptionCounts
from wukong.curate.pairs import DROPPED, PAIRS
from wukong.errors import ConfigError
from wukong.store.manifest import Manifest
from wukong.report.funnel import funnel
from wukong.validate import audit, suites

minimal = {"name": "x", "crawl": {"engine": "urls", "endpoint": "file:///list.csv"}}
experiment = documents.parse(minimal | {"filter": {"max_marks": 1}, "validation": {"severity": {"calm": "warn"}}})
try:
    documents.parse(minimal | {"filter": {"max_marks": -1}})
except ConfigError as error:
    refused = str(error)
captions = ["一只猫！！", "a cat!!", "一只猫！", "猫" * 40 + "!!"]
pairs = pl.DataFrame({"caption": captions, "width": [300] * 4, "height": [300] * 4})
counts = CaptionCounts(np.empty(0, np.uint64), np.empty(0, np.int64))
computed = rules.compute(pairs, experiment.filter, counts, rules.load(experiment.filter))
suites.check_severities(experiment)
(known_columns,) = (each.column_set for each in suites.pair_expectations(experiment) if each.meta["name"] == "columns")
(check,) = (each for each in suites.pair_expectations(experiment) if each.meta["name"] == "calm")
known = {name: getattr(Manifest.model_fields[name], "default", None) for name in Manifest.model_fields}
crawl = Manifest.model_construct(**known | {"config": {}, "counts": {"urls": 9, "results": 9}})
filtered = Manifest.model_construct(**known | {"counts": {"pairs": 9, "train": 5}, "dropped": {"shouting": 4}})
print(json.dumps({
    "keys": [experiment.filter.max_marks, experiment.validation.min_calm_share],
    "refused": refused,
    "columns": [PAIRS.field("marks").type == "int64", "marks" in DROPPED.names, "marks_found" in known_columns],
    "dropped": rules.decide(computed, experiment.filter).to_list(),
    "audited": audit.audit(pairs, rules.load(experiment.filter))["marks_found"].to_list(),
    "gate": [check.column, check.max_value, check.mostly, check.meta["severity"]],
    "funnel": [[step.name, step.title, step.lost] for step in funnel(crawl, filtered) if step.name == "shouting"],
    "order": rules.applied(experiment.filter),
    "key": stages.of("filter").config(experiment),
}))
"""


@pytest.mark.long
def test_a_new_rule_is_one_file(tmp_path):
    library = shutil.copytree(Path(rules.__file__).parents[2], tmp_path / "wukong")
    (library / "curate/rules/shouting.py").write_text(TOY, encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "-c", WHAT_THE_PROJECT_KNOWS],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["keys"] == [1, 0.9]
    assert "filter.max_marks" in found["refused"]
    assert found["columns"] == [True, True, True]
    assert found["dropped"] == ["shouting", "language", None, "shouting"]
    assert found["audited"] == [2, 2, 1, 2]
    assert found["gate"] == ["marks_found", 1, 0.9, "warn"]
    assert found["funnel"] == [["shouting", "caption does not shout", 4]]
    assert found["order"][4] == "shouting"
    assert found["key"]["max_marks"] == 1
    assert found["key"]["rule_versions"] == dict.fromkeys([*rules.applied(Filter()), "shouting"], 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("RULE = ", "OTHER = "), "rules/shouting.py assigns no Rule with the name 'shouting' to RULE"),
        (("place = 45", "place = 50"), "share a place"),
        (("max_marks", "min_side"), "both have the setting min_side"),
        (('Column("marks"', 'Column("length"'), "both store the column length"),
    ],
)
def test_a_rule_that_does_not_fit_the_others_is_refused(tmp_path, change, message):
    library = tmp_path / "wukong"
    shutil.copytree(Path(rules.__file__).parents[2], library, ignore=shutil.ignore_patterns("locale", "__pycache__"))
    (library / "curate/rules/shouting.py").write_text(TOY.replace(*change), encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "-c", "import wukong.curate.rules"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode != 0
    assert message in ended.stderr
