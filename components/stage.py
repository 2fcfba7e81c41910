"""What every stage's component does: open its MLflow run, run its job, write its manifest as an artifact."""

import json
import logging
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from components import cost
from ray_jobs.launch import evaluate_champion, launch
from wukong import stages
from wukong.config import stored
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError, DataError, StorageError, WukongError
from wukong.evaluate.results import DOCUMENT, headlines_of
from wukong.runs import run_records
from wukong.runs import verdict as verdicts
from wukong.runs.run import Run
from wukong.runs.run_records import Record
from wukong.runtime import cancel, events, logs
from wukong.runtime.language import _
from wukong.stages import run_paths
from wukong.store import damage, manifest, storage, takedowns
from wukong.store.manifest import Manifest
from wukong.store.patience import AwayError
from wukong.tracking import mlflow_runs, model_versions, run_links, stage_results
from wukong.tracking.availability import AT_END, enabled, unless_away
from wukong.tracking.mlflow_rest import MlflowError
from wukong.tracking.run_links import Pages

_T = TypeVar("_T")
_PAGES = {
    "report.html": _("Report"),
    "evaluation.html": _("Evaluation, beside the paper's numbers"),
    "docs/card.html": _("Dataset card"),
    "docs/index.html": _("Data docs"),
}
"""Pages of a run with their titles, which name each other."""

log = logging.getLogger(__name__)


def experiment_of(uri: str, stage: str, run: str) -> Experiment:
    """Read the experiment of a stage's component, and say in the log's first line what the component does.

    Args:
        uri: the component's ``experiment``, which ``configure`` or the command line has stored.
        stage: the component's stage.
        run: name of the pipeline run.
    """
    logs.start()
    entry = stages.of(stage)
    log.info("%s: makes %s for the run %s, as %s says", entry.title, entry.hands_on, run, uri)
    return stored.load(uri)


def run_stage(
    stage: str, experiment: str, run: str, parents: Sequence[str], output: str, earlier: Sequence[str] = ()
) -> Manifest:
    """Run a stage's job, log it to MLflow, and write its manifest where KFP expects the output artifact.

    Args:
        stage: name of the stage, whose job runs.
        experiment: URI of the experiment.
        run: name of the pipeline run.
        parents: local paths of the manifests handed in.
        output: local path of the manifest artifact to write.
        earlier: URIs of manifests of earlier runs that the stage continues from.

    Raises:
        JobError: the job failed; the message is the job's own.
    """
    parsed = experiment_of(experiment, stage, run)
    inputs = [load_artifact(path) for path in parents]
    tags = Run.of(parsed, run).tags
    with cancellable(), events.stage(stage) as took, mlflow_runs.stage_run(parsed, run, stage, tags) as run_id:
        uris = [*(f"{parent.uri}/manifest.json" for parent in inputs), *earlier]
        try:
            result = launch(stage, parsed, run, uris, {"MLFLOW_RUN_ID": run_id} if run_id else None)
        except Exception as error:
            if not isinstance(error, AwayError):  # the store was waited for long enough
                cost.note_stage(parsed, run, stage, run_id)
            raise
        cost.note_stage(parsed, run, stage, run_id)
        if record := run_records.read(parsed, run, stage):
            took.seconds = record.seconds
        stage_results.log_stage(run_id, result)
        stage_results.log_images(run_id, stage, Run.of(parsed, run).images.get(stage, []))
    save_artifact(result, output)
    return result


def register_model(experiment: str, run: str, model: str, evaluation: str) -> dict[str, float]:
    """Register the fine-tuned model in MLflow and end the pipeline's run with its final metrics.

    If the model that holds the alias was measured on another test set, it is evaluated on this one, as the evaluate
    stage does it.

    Args:
        experiment: URI of the experiment.
        run: name of the pipeline run.
        model: local path of the manifest whose ``model/`` folder is registered.
        evaluation: local path of the evaluation's manifest.

    Returns:
        The result of ``wukong.registry.aliases.register``; empty if no tracking server is configured.
    """
    parsed = experiment_of(experiment, "register", run)
    evaluated = load_artifact(evaluation)
    outcome: dict[str, float] = {}
    with cancellable(), recorded(parsed, run, "register"):
        with mlflow_runs.stage_run(parsed, run, "register", needed=True) as run_id:
            if run_id is not None:
                from wukong.registry import aliases  # its libraries are of no use to the other components

                outcome = aliases.register(parsed, run_id, load_artifact(model), evaluated, evaluate_champion)
        document = storage.read_json(*evaluated.file(DOCUMENT))
        mlflow_runs.complete_run(parsed, run, headlines_of(document))
    return outcome


def write_report(experiment: str, run: str, evaluation: str, registration: Mapping[str, float], output: str) -> None:
    """Make the run's report and store it in the run's folder, in MLflow, and as the component's artifact.

    The data docs and the dataset card lie beside the report, under ``docs/``, and the page of the evaluation as
    ``evaluation.html``; it links to them. If another run's model held the alias, ``comparison.html`` compares the two.

    Args:
        experiment: URI of the experiment.
        run: name of the pipeline run, whose records lead to the other stages' manifests.
        evaluation: local path of the evaluation's manifest.
        registration: the result of ``register_model``.
        output: local path of the HTML artifact to write.
    """
    from wukong.report import run_report

    parsed = experiment_of(experiment, "report", run)
    evaluated = load_artifact(evaluation)
    with cancellable(), recorded(parsed, run, "report"):
        takedowns.wait_for_end(parsed.root)
        done = Run.of(parsed, run)
        manifests = done.manifests
        links, decided = {}, None
        pages = run_links.pages(parsed, run)
        if pages:
            links[_("MLflow run")] = pages.run
            links[_("All runs")] = pages.experiment
        if pages and pages.compare:
            links[_("Compare with earlier runs")] = pages.compare
        if registration:
            promoted = registration["promoted"]
            name, alias = parsed.registry.model_name, parsed.registry.alias
            version = int(registration["version"])
            title = (
                _("Model {name} version {version}, holds @{alias}")
                if promoted
                else _("Model {name} version {version}, does not hold @{alias}")
            ).format(name=name, version=version, alias=alias)
            links[title] = model_versions.model_url(name, version)
            decided = _verdict(parsed, run, str(version))
        docs = _docs_beside_report(parsed, run, manifests["validate"]) if "validate" in manifests else ""
        shown = run_report.contents(
            parsed,
            manifests,
            storage.read_json(*evaluated.file(DOCUMENT)),
            links,
            run_report.pictures_of(manifests["filter"]),
            run,
            docs,
            decided,
            [done.records[stage] for stage in manifests],
            cost.note_run(parsed, run),
        )
        storage.write_bytes(run_paths.uri_of(parsed, run, "report.html"), run_report.render(shown).encode())
        measured = storage.read_bytes(*evaluated.file("evaluation.html")).decode()
        _place(parsed, run, "evaluation.html", measured, _pages(docs=bool(docs)))
        _check_untouched(parsed, run, manifests)
        framed = run_report.render(shown, framed=True)
        target = Path(output)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(framed, encoding="utf-8")
        mlflow_runs.log_page(parsed, run, framed, "report.html")
        mlflow_runs.log_page(parsed, run, measured, "evaluation.html")
        if docs:
            mlflow_runs.log_docs(parsed, run, storage.join(manifests["validate"].uri, "docs"))
        if pages:
            note = _note(pages, links, docs=bool(docs))
            model = next((parent.digest for parent in evaluated.parents if parent.stage == "finetune"), "")
            mlflow_runs.describe_run(parsed, run, note, registration, model)


def _check_untouched(experiment: Experiment, run: str, shown: Mapping[str, Manifest]) -> None:
    """Check that no takedown began while pages were made, which does not know of them; else delete them.

    Raises:
        DataError: one did.
    """
    pairs = [shown[stage.name] for stage in stages.TABLE if stage.takedown == "rewrite" and stage.name in shown]
    if not takedowns.is_begun(experiment.root) and all(manifest.load(each.uri).digest == each.digest for each in pairs):
        return
    for name in ("report.html", "evaluation.html", "comparison.html", "docs"):
        storage.delete(run_paths.uri_of(experiment, run, name))
    raise DataError("a takedown began while the report was made, which may show what it removes: run again")


def _verdict(experiment: Experiment, run: str, version: str) -> dict[str, Any] | None:
    """Store what was decided about a run's model, and the page that compares the run with the champion's.

    Returns:
        What the report shows of it; None if MLflow does not say.
    """
    from wukong.registry import aliases
    from wukong.report import comparison

    def known(request: Callable[[], _T | None], left_out: str) -> _T | None:
        def ask() -> _T | None:
            try:
                return request()
            except (ConfigError, DataError, MlflowError, StorageError) as error:
                if isinstance(error, AwayError):
                    raise
                log.warning("%s: %s", left_out, error)
                return None

        return unless_away(ask, left_out, AT_END) if enabled() else None

    decided = known(lambda: aliases.verdict_of(experiment, version), "what was decided about the model is left out")
    if decided is None:
        return None
    document = known(lambda: aliases.compare(experiment, run, decided), "no comparison with the champion's run is made")
    verdicts.store(experiment, run, decided, document)
    shown = {"heading": decided.heading, "says": decided.said, "against": "", "changes": []}
    if document is None:
        return shown
    page = comparison.render(document)
    _place(experiment, run, "comparison.html", page, {"report.html": _PAGES["report.html"]})
    mlflow_runs.log_page(experiment, run, page, "comparison.html")
    return shown | {"against": document["baseline"], "changes": comparison.headlines(document)}


def _note(pages: Pages, links: Mapping[str, str], *, docs: bool) -> str:
    """Markdown for the page of the run in MLflow: links to the model, the report and what lies beside it."""
    shown = {title: address for title, address in links.items() if title.startswith("Model ")}
    shown |= {title: pages.artifact(path) for path, title in _pages(docs=docs).items()}
    shown |= {"Compare with earlier runs": pages.compare} if pages.compare else {}
    return "\n".join(f"- [{title}]({address})" for title, address in shown.items())


def _docs_beside_report(experiment: Experiment, run: str, validated: Manifest) -> str:
    """Copy the validate stage's ``docs/`` into the run's folder; return the address of the first page there.

    The address is empty if there are no docs: they are none of the manifest's parts, so they may be missing.
    """
    source, target = storage.join(validated.uri, "docs"), run_paths.uri_of(experiment, run, "docs")
    pages = storage.list_files(source)
    copies = {storage.join(target, uri[len(source) :]): uri for uri in pages}
    for copy, uri in copies.items():
        if (name := f"docs{uri[len(source) :]}") in _PAGES:
            _place(experiment, run, name, storage.read_bytes(uri).decode(), _PAGES)
        else:
            storage.write_bytes(copy, storage.read_bytes(uri))
    for old in {*storage.list_files(target)} - {*copies}:
        storage.delete(old)
    first = storage.join(source, "index.html")
    return first if first in pages else ""


def _pages(*, docs: bool) -> dict[str, str]:
    return {page: title for page, title in _PAGES.items() if docs or not page.startswith("docs/")}


def _place(experiment: Experiment, run: str, name: str, page: str, beside: Mapping[str, str]) -> None:
    """Store a page in the run's folder, with links to the pages beside it."""
    from wukong.report import template

    up = "../" * name.count("/")
    links = {title: f"{up}{other}" for other, title in beside.items() if other != name}
    placed = template.beside_report(page, run, links)
    storage.write_bytes(run_paths.uri_of(experiment, run, name), placed.encode())


@contextmanager
def cancellable() -> Iterator[None]:
    """End the block in order when a signal comes or when the run that this component belongs to is gone."""
    cancel.end_with_parent()
    with cancel.end_on_signal():
        yield


@contextmanager
def recorded(experiment: Experiment, run: str, stage: str) -> Iterator[None]:
    """Write the record of a stage that has no job of its own, and its events."""
    started = time.monotonic()
    try:
        with events.stage(stage) as took:
            yield
            took.seconds = seconds = round(time.monotonic() - started, 3)
    except Exception as error:
        explained = isinstance(error, WukongError)
        record = Record(
            stage=stage,
            state="failed",
            error=str(error) if explained else f"{type(error).__name__}: {error}",
            traceback="" if explained else traceback.format_exc(),
        )
        run_records.write(experiment, run, record)
        raise
    run_records.write(
        experiment,
        run,
        Record(stage=stage, state="succeeded", seconds=seconds),
    )


def load_artifact(path: str) -> Manifest:
    """Read a manifest that an earlier component wrote as its artifact. One with very many parts is read at its URI."""
    value = json.loads(Path(path).read_text(encoding="utf-8"))
    damage.refuse_other_format(value, manifest.FORMAT, path)
    return Manifest.model_validate(value) if "parts" in value else manifest.load(value["uri"])


def save_artifact(result: Manifest, path: str) -> None:
    """Write a manifest as a component's output artifact."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    many = len(result.parts) > manifest.MOST_IN_JSON
    value = result.model_dump(mode="json", exclude={"parts"} if many else None)
    target.write_text(json.dumps(value, ensure_ascii=False, indent=2), encoding="utf-8")
