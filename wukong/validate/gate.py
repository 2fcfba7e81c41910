"""Run suites with Great Expectations and build their data docs. It writes only into the folder that it is given."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import great_expectations as gx
import polars as pl
from great_expectations.core.expectation_validation_result import (
    ExpectationSuiteValidationResult,
    ExpectationSuiteValidationResultSchema,
)
from great_expectations.core.run_identifier import RunIdentifier
from great_expectations.data_context.types.resource_identifiers import (
    ExpectationSuiteIdentifier,
    ValidationResultIdentifier,
)

from wukong.validate import offline

_SAMPLES = 5
_SHOWN = ("key", "split", "caption", "url")


@dataclass(frozen=True)
class Outcome:
    """The result of one expectation.

    Attributes:
        name: the expectation's name.
        severity: ``fail`` or ``warn``.
        success: whether it holds.
        expected: what was expected, in words.
        elements: rows that were checked.
        unexpected: rows that break it (0 where the expectation is not about rows).
        observed: what was found, in words.
        tolerated: the share of rows that may break it.
        samples: some rows that break it.
    """

    name: str
    severity: str
    success: bool
    expected: str
    elements: int
    unexpected: int
    observed: str
    tolerated: float = 0.0
    samples: tuple[dict[str, Any], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The outcome as a JSON value."""
        return asdict(self)


def run_suite(name: str, rows: pl.DataFrame, expectations: Sequence[Any]) -> dict[str, Any]:
    """Validate rows against expectations.

    Returns:
        Great Expectations' own result as JSON, for ``outcomes`` and ``build_docs``.
    """
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_pandas(name).add_dataframe_asset(name)
    batch = asset.add_batch_definition_whole_dataframe(name)
    suite = context.suites.add(gx.ExpectationSuite(name, expectations=list(expectations)))
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=batch, suite=suite))
    validated = definition.run(
        batch_parameters={"dataframe": _without_unchecked(rows, expectations).to_pandas()},
        result_format={"result_format": "SUMMARY", "partial_unexpected_count": _SAMPLES},
    )
    result = dict(validated.to_json_dict())
    # Great Expectations would look up the columns of every row that breaks an expectation, not only of these.
    for entry in result["results"]:
        if numbers := entry["result"].get("partial_unexpected_index_list"):
            shown = [column for column in _SHOWN if column in rows.columns]
            columns = dict.fromkeys([entry["expectation_config"]["kwargs"]["column"], *shown])
            entry["result"]["partial_unexpected_index_list"] = rows.select(*columns)[numbers].to_dicts()
            entry["result"]["unexpected_index_column_names"] = shown
    return result


def _without_unchecked(rows: pl.DataFrame, expectations: Sequence[Any]) -> pl.DataFrame:
    """Empty the columns that no expectation reads. Great Expectations hashes all rows, by pickle if there are lists."""
    checked = {getattr(expectation, "column", None) for expectation in expectations}
    return rows.with_columns(pl.lit(None).alias(name) for name in rows.columns if name not in checked)


def outcomes(result: Mapping[str, Any]) -> list[Outcome]:
    """Read the outcome of each expectation from a result of ``run_suite``."""
    return [_outcome(entry) for entry in result["results"]]


def merge(batches: Sequence[Sequence[Outcome]]) -> list[Outcome]:
    """Join the outcomes of one suite over all batches. Rows add up; the tolerated share is a share of all rows."""
    merged = []
    for same in zip(*batches, strict=True):
        first = same[0]
        elements, unexpected = sum(each.elements for each in same), sum(each.unexpected for each in same)
        if elements and all(each.success or each.unexpected for each in same):
            success = unexpected <= first.tolerated * elements
            observed = _rows(unexpected, elements, 100 * unexpected / elements)
        else:
            failed = [each for each in same if not each.success]
            success, observed = not failed, (failed or same)[0].observed
        samples = tuple(sample for each in same for sample in each.samples)[:_SAMPLES]
        merged.append(
            replace(
                first, success=success, elements=elements, unexpected=unexpected, observed=observed, samples=samples
            )
        )
    return merged


def build_docs(results: Mapping[str, Mapping[str, Any]], suites: Mapping[str, Sequence[Any]], folder: Path) -> None:
    """Build the data docs: one static site, which needs no network, from results of ``run_suite``.

    Args:
        results: batch name to result.
        suites: suite name to its expectations.
        folder: gets ``index.html`` and all other files.
    """
    context = gx.get_context(mode="ephemeral")
    for name in list(context.get_site_names()):
        context.delete_data_docs_site(name)
    context.add_data_docs_site(
        site_name="docs",
        site_config={
            "class_name": "SiteBuilder",
            "show_how_to_buttons": False,
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder)},
        },
    )
    for name, expectations in suites.items():
        context.suites.add(gx.ExpectationSuite(name, expectations=list(expectations)))
    for batch, result in results.items():
        escaped = [{**entry, "result": _escaped(entry["result"])} for entry in result["results"]]
        fields = ExpectationSuiteValidationResultSchema().load({**result, "results": escaped})
        suite = ExpectationSuiteIdentifier(result["suite_name"])
        identifier = ValidationResultIdentifier(suite, RunIdentifier(run_name=batch), batch)
        value = ExpectationSuiteValidationResult(
            **{name: fields[name] for name in ("success", "results", "suite_name", "statistics")},
            meta=fields["meta"] | {"run_id": identifier.run_id},
        )
        context.validation_results_store.store_validation_results(value, identifier, suite)
    context.build_data_docs(site_names=["docs"])
    offline.without_network(folder, results)


def _escaped(found: Any) -> Any:
    """Return what was found in the data for Great Expectations' pages, which take it for HTML."""
    if isinstance(found, str):
        return html.escape(found)
    if isinstance(found, Mapping):
        return {name: _escaped(value) for name, value in found.items()}
    return [_escaped(value) for value in found] if isinstance(found, list | tuple) else found


def _outcome(entry: Mapping[str, Any]) -> Outcome:
    config, result = entry["expectation_config"], entry["result"]
    meta = config["meta"]
    raised = entry.get("exception_info", {})
    error = raised.get("exception_message") if raised.get("raised_exception") else None
    elements, unexpected = int(result.get("element_count", 0)), int(result.get("unexpected_count", 0))
    if error:
        observed = f"could not be checked: {error}"
    elif "unexpected_count" in result:
        observed = _rows(unexpected, elements, result.get("unexpected_percent") or 0)
    else:
        value = result.get("observed_value", "")
        observed = f"{len(value):,} columns" if isinstance(value, list) else str(value)
    samples = result.get("partial_unexpected_index_list") or []
    return Outcome(
        name=meta["name"],
        severity=meta["severity"],
        success=bool(entry["success"]),
        expected=_in_words(config),
        elements=elements,
        unexpected=unexpected,
        observed=observed,
        tolerated=1 - float(config["kwargs"].get("mostly", 1)),
        samples=tuple(dict(sample) for sample in samples[:_SAMPLES] if isinstance(sample, Mapping)),
    )


def _rows(unexpected: int, elements: int, percent: float) -> str:
    return f"{unexpected:,} of {elements:,} rows ({percent:.2f} %)"


def _in_words(config: Mapping[str, Any]) -> str:
    arguments = {key: value for key, value in config["kwargs"].items() if key not in ("batch_id", "column")}
    words = config["type"].removeprefix("expect_").replace("_", " ")
    listed = ", ".join(f"{key} {value}" for key, value in arguments.items())
    column = config["kwargs"].get("column", "")
    return f"{words}: {column} {listed}".strip().rstrip(":") if column or listed else words
