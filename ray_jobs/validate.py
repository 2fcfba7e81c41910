"""The validate job: the gate checks expectations on every batch of pairs in parallel, then on the set as a whole."""

import logging
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from ray_jobs.exchange import hash_ranges, in_order, run_all
from wukong.config.experiment import Experiment
from wukong.curate import captions, exchange, rules
from wukong.curate.exchange import File, Source
from wukong.curate.pairs import PAIRS
from wukong.curate.split import TRAIN
from wukong.errors import ConfigError, DataError, GateError
from wukong.report import card, removed, statistics
from wukong.report.removed import Removed
from wukong.report.statistics import Statistics
from wukong.stages import places
from wukong.store import damage, manifest, storage
from wukong.store.manifest import Manifest, Stage
from wukong.validate import audit, suites
from wukong.validate import gate as runner
from wukong.validate.drift import drift
from wukong.validate.gate import Outcome

log = logging.getLogger(__name__)

_MIN_ROWS, _MAX_ROWS = 10_000, 100_000
"""Pairs of a batch. A batch costs a sixth of a second besides its pairs, and what a task holds grows with them."""
_GROUPS = 64
"""Batches that there are at least, where each still has ``_MIN_ROWS`` pairs: so all cores take part."""
_DOCS_BATCHES = 20
_ADDED = 32
_Table = tuple[str, str]
"""A table of the filter: its URI and its digest."""
_DATASET_COLUMNS = {
    "unique_keys": "duplicate_keys",
    "caption_repeats": "most_frequent_caption",
    "unseen_captions_disjoint": "unseen_captions_in_train",
    "seen_captions_trained": "seen_captions_not_in_train",
    "pictures_disjoint": "holdout_pictures_in_train",
}


@dataclass(frozen=True)
class _Checked:
    """What the driver keeps of a batch: its outcomes, whether all are good, and where its facts are."""

    outcomes: tuple[Outcome, ...]
    success: bool
    facts: File


def run(experiment: Experiment, parents: Mapping[str, Manifest]) -> Manifest:
    """Validate what the filter kept.

    Writes ``results.json`` (one entry for each expectation) and the data docs under ``docs/``, even if the gate fails.
    If it does not fail, writes the dataset card, ``docs/card.html``, ``statistics.json`` with each split, and
    ``removed.json`` with what each rule dropped.

    Args:
        experiment: its ``validation`` section has the expectations, its ``filter`` section the thresholds.
        parents: the filter's manifest under ``filter``.

    Returns:
        The manifest. ``counts`` has ``pairs``, ``expectations`` and ``warnings``, and under ``repeated_pairs`` how many
        pairs have the picture and the first caption of another one.

    Raises:
        GateError: an expectation of severity ``fail`` does not hold; there is no manifest then.
        ConfigError: ``validation.severity`` names an expectation that does not exist, or ``validation.reference`` is
            the manifest of another stage.
        DataError: a shard's table cannot be read.
    """
    filtered = parents["filter"]
    stage = places.validation(experiment, filtered)
    return stage.made(lambda: _validate(stage, experiment, filtered))


def _validate(stage: Stage, experiment: Experiment, filtered: Manifest) -> Manifest:
    reference = experiment.validation.reference
    suites.check_severities(experiment)

    batches = _batches(filtered, experiment)
    checked = run_all(_check, [(stage, experiment, number, batch) for number, batch in enumerate(batches)])
    sources = hash_ranges([batch.facts for batch in checked], stage.path("_work/facts"))
    dataset = audit.join(run_all(_summarize, [(source,) for source in sources]))
    by_split = _statistics(stage, _splits(experiment), len(batches))
    pairs = {f"pairs_{name}": counted.pairs for name, counted in by_split.items()}
    row: dict[str, float] = {**dataset.row, **pairs, **_drift(by_split[TRAIN], reference)}
    whole = runner.run_suite("dataset", pl.DataFrame([row]), suites.dataset_expectations(experiment))
    found = runner.merge([batch.outcomes for batch in checked])
    found += [_with_samples(outcome, dataset, batches) for outcome in runner.outcomes(whole)]

    report = {"expectations": [outcome.as_json() for outcome in found], "dataset": row}
    storage.write_json(stage.path("results.json"), report)
    _write_docs(stage, experiment, whole, [batch.success for batch in checked])
    for outcome in found:
        if not outcome.success:
            log.warning("validation: %s", _describe(outcome))
    failed = [outcome for outcome in found if not outcome.success and outcome.severity == "fail"]
    if failed:
        title = f"the data did not pass {len(failed)} of {len(found)} expectations:"
        docs = f"data docs: {stage.path('docs/index.html')}"
        raise GateError("\n".join([title, *map(_describe, failed), docs]))
    counts = {
        "pairs": sum(pairs.values()),
        "expectations": len(found),
        "warnings": sum(not outcome.success for outcome in found),
        audit.REPEATED: dataset.row[audit.REPEATED],
    }
    counted = statistics.merge(list(by_split.values()))
    tables = filtered.parts.below("dropped/", ".parquet")
    dropped = [(filtered.file(path), experiment) for path in tables.paths]
    gone = removed.merge(in_order(_count_dropped, dropped))
    card.write(stage.uri, card.of(experiment, filtered, counted, docs="index.html", removed=gone))
    metrics = {
        "unique_tokens": float(counted.unique_tokens),
        "tokens_mean": counted.token_mean,
        "tokens_sd": counted.token_sd,
        "tokens_median": counted.token_median,
    }
    storage.write_json(stage.path(statistics.PATH), {name: each.as_json() for name, each in by_split.items()})
    storage.write_json(stage.path(removed.PATH), gone.as_json())
    # The data docs contain the time at which they were made, so they are none of the manifest's parts.
    parts = [
        stage.describe("results.json", len(found)),
        *(stage.describe(path) for path in (card.PATH, statistics.PATH, removed.PATH)),
    ]
    return stage.commit(parts, counts=counts, metrics=metrics)


def _drift(counted: Statistics, reference: str | None) -> dict[str, float]:
    if reference is None:
        return {}
    other = manifest.load(reference)
    if other.stage != "validate":
        raise ConfigError(
            f"validation.reference: {reference} is the manifest of a {other.stage} stage, not of validate"
        )
    known = statistics.read(other)[TRAIN]
    return {f"drift_{name}": round(value, 6) for name, value in drift(counted, known).items()}


def _splits(experiment: Experiment) -> tuple[str, ...]:
    return (TRAIN, *(holdout.name for holdout in experiment.filter.split.holdouts))


def _batches(filtered: Manifest, experiment: Experiment) -> list[tuple[_Table, ...]]:
    """Return batches: tables of consecutive shards with at most ``_MAX_ROWS`` rows together, or one shard."""
    splits = _splits(experiment)
    tables = filtered.parts.below(suffix=".parquet")
    shards = (part for part in tables if part.path.split("/", 1)[0] in splits)
    most = min(max(tables.rows // _GROUPS, _MIN_ROWS), _MAX_ROWS)
    batches: list[list[_Table]] = []
    rows = 0
    for shard in shards:
        if not batches or rows + shard.rows > most:
            batches.append([])
            rows = 0
        batches[-1].append(filtered.file(shard.path))
        rows += shard.rows
    if not batches:
        raise DataError(f"the filter at {filtered.uri} kept no pair: there is nothing to validate")
    return [tuple(batch) for batch in batches]


def _read(batch: Sequence[_Table]) -> pl.DataFrame:
    tables = [pl.DataFrame(storage.read_table(uri, sha256=sha256)) for uri, sha256 in batch]
    return pl.concat(tables, how="vertical_relaxed")


def _checked_uri(stage: Stage, batch: int) -> str:
    return stage.path(f"_work/checked/{batch:05d}.json")


def _check(stage: Stage, experiment: Experiment, number: int, batch: Sequence[_Table]) -> _Checked:
    pairs = _read(batch)
    missing = [name for name in PAIRS.names if name not in pairs.columns]
    if missing:
        first, _ = batch[0]
        raise DataError(f"{first} lacks the columns {', '.join(missing)}: {damage.remedy(first)}")
    audited = audit.audit(captions.alone(pairs), rules.load(experiment.filter))
    result = runner.run_suite("pairs", audited, suites.pair_expectations(experiment))
    facts = audit.facts_of(pairs, experiment.filter.split).with_columns(batch=pl.lit(number, pl.UInt32))
    written = exchange.write(stage.path(f"_work/facts/{number:05d}.parquet"), facts)
    # The words as pairs: their order decides which of equally frequent words are kept.
    counted = {
        name: each.as_json() | {"words": list(each.words.items())} for name, each in statistics.by_split(pairs).items()
    }
    storage.write_json(_checked_uri(stage, number), {"result": result, "statistics": counted})
    return _Checked(tuple(runner.outcomes(result)), bool(result["success"]), written)


def _summarize(source: Source) -> audit.Dataset:
    return audit.summarize(source.read())


def _statistics(stage: Stage, splits: Sequence[str], batches: int) -> dict[str, Statistics]:
    """Add up the statistics of all batches by split: those of some neighbours by a task, the sums here one by one."""
    runs = [range(first, min(first + _ADDED, batches)) for first in range(0, batches, _ADDED)]
    whole = _added(splits, in_order(_add_up, [(stage, splits, run) for run in runs]))
    return {name: statistics.merge([counted]) for name, counted in whole.items()}


def _add_up(stage: Stage, splits: Sequence[str], batches: Sequence[int]) -> dict[str, Statistics]:
    stored = (storage.read_json(_checked_uri(stage, number))["statistics"] for number in batches)
    return _added(splits, ({name: Statistics.from_json(each[name]) for name in each} for each in stored))


def _added(splits: Sequence[str], batches: Iterable[Mapping[str, Statistics]]) -> dict[str, Statistics]:
    whole = {name: Statistics() for name in splits}
    for batch in batches:
        for name in splits:
            if name in batch:
                whole[name].add(batch[name])
    return whole


def _count_dropped(table: _Table, experiment: Experiment) -> Removed:
    return removed.count(_read([table]), experiment.filter, experiment.sources)


def _with_samples(outcome: Outcome, dataset: audit.Dataset, batches: Sequence[Sequence[_Table]]) -> Outcome:
    """Add example rows to an expectation on the whole set, if it failed."""
    column = _DATASET_COLUMNS.get(outcome.name)
    if outcome.success or column is None:
        return outcome
    rows = [_read(batches[batch])[row] for batch, row in dataset.samples[column]]
    samples = [row.select("key", "split", "caption", "url").row(0, named=True) for row in rows]
    return replace(outcome, samples=tuple(samples))


def _write_docs(stage: Stage, experiment: Experiment, whole: Mapping[str, Any], successes: Sequence[bool]) -> None:
    # Batches that failed come first; nobody reads pages of thousands of batches.
    order = sorted(range(len(successes)), key=lambda number: (successes[number], number))[:_DOCS_BATCHES]
    results = {f"pairs-{number:05d}": storage.read_json(_checked_uri(stage, number))["result"] for number in order}
    shown = {"dataset": whole} | results
    definitions = {
        "pairs": suites.pair_expectations(experiment),
        "dataset": suites.dataset_expectations(experiment),
    }
    before = storage.list_files(stage.path("docs"))
    with tempfile.TemporaryDirectory() as folder:
        runner.build_docs(shown, definitions, Path(folder))
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        written = {stage.path(f"docs/{file.relative_to(folder).as_posix()}"): file for file in files}
        for uri, file in written.items():
            storage.upload(file, uri)
    for uri in {*before} - {*written}:
        storage.delete(uri)


def _describe(outcome: Outcome) -> str:
    lines = [f"  {outcome.name}: expected {outcome.expected}; observed {outcome.observed}"]
    for sample in outcome.samples:
        lines.append("    " + ", ".join(f"{name}={value}" for name, value in sample.items()))
    return "\n".join(lines)
