"""A suite's result: as Great Expectations' own on all columns, of which it is given those alone that it reads."""

import great_expectations as gx
import polars as pl
import pytest
from great_expectations import expectations as gxe
from great_expectations.execution_engine import pandas_execution_engine

from wukong.validate import gate

ROWS = pl.DataFrame(
    {
        "key": ["a", "b", "c"],
        "split": ["train", "train", "test"],
        "caption": ["红色的猫", None, "蓝色的狗"],
        "url": ["http://x/a", "http://x/b", "http://x/c"],
        "queries": [["猫"], [], ["狗", "蓝"]],
        "width": [10, 20, 3000],
    }
)


def suite() -> list[gxe.Expectation]:
    made = [
        gxe.ExpectTableColumnsToMatchSet(column_set=ROWS.columns, exact_match=True),
        gxe.ExpectColumnValuesToNotBeNull(column="caption"),
        gxe.ExpectColumnValuesToBeBetween(column="width", max_value=1000),
        gxe.ExpectColumnValuesToBeInSet(column="split", value_set=["train", "test"]),
    ]
    for number, expectation in enumerate(made):
        expectation.meta = {"name": f"e{number}", "severity": "fail"}
    return made


def test_it_finds_what_great_expectations_finds_in_all_columns() -> None:
    found = gate.run_suite("pairs", ROWS, suite())["results"]
    context = gx.get_context(mode="ephemeral")
    batch = context.data_sources.pandas_default.read_dataframe(ROWS.to_pandas())
    for ours, expectation in zip(found, suite(), strict=True):
        theirs = batch.validate(expectation).to_json_dict()
        assert ours["success"] == theirs["success"]
        counts = ("element_count", "unexpected_count", "observed_value", "unexpected_percent")
        assert {name: ours["result"].get(name) for name in counts} == {
            name: theirs["result"].get(name) for name in counts
        }


def test_rows_that_break_it_are_shown_with_columns_that_it_does_not_read() -> None:
    columns, captions, widths, splits = gate.outcomes(gate.run_suite("pairs", ROWS, suite()))
    assert columns.success and splits.success
    assert captions.samples == ({"caption": None, "key": "b", "split": "train", "url": "http://x/b"},)
    assert widths.samples == ({"width": 3000, "key": "c", "split": "test", "caption": "蓝色的狗", "url": "http://x/c"},)


def test_lists_are_not_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> bytes:
        raise AssertionError("all rows were pickled for a hash")

    monkeypatch.setattr(pandas_execution_engine.pickle, "dumps", refused)
    gate.run_suite("pairs", ROWS, suite())
