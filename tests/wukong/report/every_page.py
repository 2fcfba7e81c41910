"""Every page of ``wukong.report``, of small data that fill as many of its parts as they can."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import measured
import numpy as np
import polars as pl
from evaluation_samples import evaluated, overlaps
from run_samples import stored_run

from wukong.config import documents
from wukong.config.experiment import Source
from wukong.evaluate import paper_tables, results, sets, stored
from wukong.evaluate.paper_tables import Evaluated
from wukong.evaluate.protocol import OWN, PROTOCOLS
from wukong.evaluate.results import MeasuredModel, Outcome
from wukong.publish import training_summary
from wukong.publish.hosts import Host
from wukong.registry import comparison, promotion
from wukong.registry.choices import Choice
from wukong.registry.comparison import Measured
from wukong.registry.promotion import Anew, Rules
from wukong.report import card, checks, evaluation, paper, run_report
from wukong.report import comparison as comparison_page
from wukong.report import promotion as promotion_page
from wukong.report.blurred import Dropped
from wukong.report.funnel import Step
from wukong.report.removed import Removed
from wukong.report.statistics import measure
from wukong.runs.run_records import Record
from wukong.runs.verdict import Verdict
from wukong.runtime.language import chinese_of
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage
from wukong.tracking.mlflow_rest import Run

IN_ENGLISH = (
    "Human-written names, not web captions.",
    "Drawn by hand, all of one size.",
    "none but for study",
    "a person knows better than this",
)
"""What these pages repeat of the data: it stays English whatever language is chosen."""

_HARD = np.random.default_rng(5).random(400)
_WEAK, _STRONG = _HARD < 0.4, _HARD < 0.6
_METRIC = "eval/retrieval/holdouts/mean_recall"


def pages(folder: Path) -> dict[str, str]:
    """Return each page by a name of its own.

    Args:
        folder: where the samples store what pages are made from.
    """
    report = _report(folder / "run")
    return {
        "report": run_report.render(report),
        "report, framed": run_report.render(report, framed=True),
        "evaluation": _evaluation(),
        "evaluation of one model": _evaluation_of_one(),
        "comparison": comparison_page.render(_comparison(folder / "compared")),
        **_promotions(folder / "promoted"),
        **{f"table {number}": paper.render(paper_tables.table(number, _models())) for number in ("5", "6", "7")},
        "card": _card(sourced=True),
        "card without sources": _card(sourced=False),
        "summary of training content": _summary(folder / "released"),
    }


def _report(folder: Path) -> dict[str, Any]:
    folder.mkdir()
    experiment, manifests, measured_here = stored_run(folder)
    weak, strong = (
        _run(name, folder / "decided", measured.searched("words", hits)).evaluation
        for name, hits in (("a", _WEAK), ("b", _STRONG))
    )
    known: dict[str, Any] = {"model": "m", "alias": "champion", "version": "2"}
    says = promotion.decide(Rules(_METRIC, 0.04, {}), weak, strong, **known, held_by="1").says
    verdict = Verdict(**known, promoted=False, says=says, holder="1", chinese=chinese_of(says))
    compared = _comparison(folder / "compared")
    links = {
        "MLflow run": "http://mlflow/run",
        "Compare with earlier runs": "http://mlflow/compare",
        "Model m version 2, does not hold @champion": "http://mlflow/model",
    }
    records = [
        Record(stage=stage, state="succeeded", seconds=seconds, reused=stage == "crawl")
        for stage, seconds in (("crawl", 0.5), ("filter", 90.0))
    ]
    return run_report.contents(
        experiment,
        manifests,
        measured_here,
        links,
        run_report.pictures_of(manifests["filter"]),
        "first-7",
        "s3://wukong/demo/docs/index.html",
        {
            "heading": verdict.heading,
            "says": verdict.said,
            "against": "first",
            "changes": comparison_page.headlines(compared),
        },
        records,
    )


def _evaluation() -> str:
    document, shown = evaluated()
    counted = {"task": "coco-cn", "pictures": 1000}
    trained_on = [
        counted | {"model": "pretrained", "trained_on": None, "why": "no manifest of a training lies beside it"},
        counted | {"model": "finetuned", "trained_on": 12, "why": ""},
    ]
    protocols = {each.name: each.for_pairs("distinct").describe() for each in (*PROTOCOLS.values(), OWN)}
    document |= {"protocols": protocols, "trained_on": trained_on, "notes": sets.notes(sets.REGISTRY)}
    document["overlaps"] = overlaps()
    return evaluation.render(document, shown)


def _evaluation_of_one() -> str:
    document, _ = evaluated()
    model = MeasuredModel("pretrained", "theirs", "3" * 64, token_wise=False)
    tasks = [{**task, "examples": []} for task in document["tasks"] if task["model"] == "pretrained"]
    return evaluation.render(results.document([model], {"own": OWN.describe()}, tasks, sets.missing(())), {})


def _run(name: str, folder: Path, *outcomes: Outcome, is_stored: bool = True, **params: str) -> Measured:
    made = measured.evaluation(storage.from_path(folder), outcomes, key=name, stored=is_stored)
    return Measured(Run(name * 32, "1", name, "FINISHED", {}, {}, params), stored.read(made.uri))


def _comparison(folder: Path) -> dict[str, Any]:
    words, cats = measured.searched("words", _WEAK), measured.searched("cats", _WEAK)
    better, worse = measured.searched("words", _STRONG), measured.searched("words", _HARD < 0.2)
    others = measured.searched("words", _STRONG, digest="other".ljust(64, "0"))
    runs = [
        _run("a", folder, words, cats, seed="1", rate="0.1"),
        _run("b", folder, better, cats, seed="2", rate="0.1"),
        _run("c", folder, worse, cats, seed="1", rate="0.2"),
        _run("d", folder, better, seed="2", rate="0.2", is_stored=False),
        _run("e", folder, others, measured.classified("kinds", _WEAK), seed="1", rate="0.3"),
    ]
    return comparison.compare(runs)


def _promotions(folder: Path) -> dict[str, str]:
    weak, strong = (
        _run(name, folder, measured.searched("words", hits), measured.classified("kinds", _WEAK)).evaluation
        for name, hits in (("a", _WEAK), ("b", _STRONG))
    )
    rules = Rules(_METRIC, 0.04, {"eval/classification/kinds/top1": 0.01, "eval/classification/gone/top1": 0.01})
    known = {"model": "m", "alias": "champion", "version": "2"}
    chosen = [Choice(by="the sweep x", of=3, metric="retrieval/words/mean_recall")]
    decided = promotion.decide(rules, strong, weak, **known, held_by="1", choices=chosen)  # type: ignore[arg-type]
    anew = Anew.of("its answers are not stored", weak)
    first = promotion.decide(rules, strong, None, **known)  # type: ignore[arg-type]
    refused = promotion.refused(rules, "m", "champion", "2", "1", "")
    forced = replace(
        refused,
        promoted=True,
        says=f"A person moved the alias without the gate: {IN_ENGLISH[3]}",
        forced=IN_ENGLISH[3],
    )
    decisions = {"promotion": replace(decided, anew=anew), "promotion of the first": first, "promotion, forced": forced}
    return {name: promotion_page.render(decision.as_json()) for name, decision in decisions.items()}


def _models() -> list[Evaluated]:
    document, _ = evaluated()
    described = document | {"protocols": {"paper": PROTOCOLS["paper"].describe()}}
    alone = described | {
        "models": [each for each in document["models"] if each["role"] == "pretrained"],
        "tasks": [each for each in document["tasks"] if each["model"] == "pretrained"],
    }
    return [Evaluated("mine", described, "Wukong ViT"), Evaluated("alone", alone, address="models:/m/2")]


def _card(*, sourced: bool) -> str:
    rows = {"caption": ["一只猫", "图书馆里的一只狗"], "width": [300, 900], "height": [300, 301], "length": [3, 8]}
    sources = (Source(name="Stamps", pattern="*/stamps/*", licence=IN_ENGLISH[2], note=IN_ENGLISH[1]),)
    steps = [Step("results", "search results", 9, 0), Step("urls", "distinct URLs", 7, 2)]
    pairs = [{"key": "0" * 20, "src": "data:image/gif;base64,R0lGODlhAQABAAAAACw=", "caption": "<一只猫>"}]
    facts = {"crawl": "a" * 64, "pairs with several captions": "2", "licence of the list of URLs and captions": "MIT"}
    shown = card.make(
        "demo",
        measure(pl.DataFrame(rows)),
        steps,
        pairs,
        facts,
        IN_ENGLISH[0],
        sources if sourced else (),
        docs="index.html",
    )
    filtered = _filtered()
    if sourced:
        gone = Removed({"sensitive": Counter(gambling=3)}, {"size": Counter({"": 4, "Stamps": 2})})
        dropped = Dropped("1" * 20, "size", "data:image/gif;base64,R0lGODlhAQABAAAAACw=")
        checked = {"found": checks.found(filtered), "unchecked": checks.unchecked(filtered)}
        more = {"rules": checks.applied(filtered, gone), "dropped": (dropped,), **checked}
        shown = shown.model_copy(update=more)
    return card.render(shown, docs_at="" if sourced else "s3://wukong/demo/docs/index.html")


def _filtered() -> Manifest:
    config = {"min_side": 200, "refused_usage": ["noai"], "decontaminate": {"action": "mark"}}
    counts = {"pairs": 1_000, "train": 800, "overlap/muge": 12, "overlap_captions/muge": 3, "unread/unsafe": 2}
    dropped = {"size": 150, "sensitive": 3}
    return Manifest(
        stage="filter", uri="file:///f", config=config, counts=counts | {"name_and_face": 5}, dropped=dropped
    )


def _summary(folder: Path) -> str:
    root = storage.from_path(folder)
    crawl = Manifest(
        stage="crawl",
        uri=root,
        config={"engine": "baidu", "politeness": {"robots_txt": True, "respect_noai": False, "user_agent": "bot"}},
        counts={"urls": 20},
        provenance={"created": "2026-11-02T01:00:00+00:00", "seconds": 9.0},
    )
    sources = [{"name": "Stamps", "pattern": "*/stamps/*"}]
    searched = {"queries": "file:///q", "endpoint": "http://x", "engine": "baidu"}
    experiment = documents.parse({"name": "demo", "storage": root, "crawl": searched, "sources": sources})
    stage = Stage(root, "release", {})
    counted = measure(pl.DataFrame({"caption": ["一只猫"], "width": [300], "height": [300], "length": [3]}))
    domains = training_summary.write_domains(stage, 12, iter([Host("a.cn", 3, 400)]))
    shown = card.make("demo", counted, [Step("crawl", "a", 2, 0)] * 2, [], {}, sources=experiment.sources)
    training_summary.write(stage, experiment.release, shown, crawl, _filtered(), counted, 1, domains)
    return storage.read_bytes(stage.path(training_summary.PAGE)).decode()
