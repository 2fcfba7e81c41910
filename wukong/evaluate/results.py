"""What an evaluation hands on: results with intervals, as one JSON document in the shape of the paper's Tables 5 to 7.

``wukong evaluate --output`` and the evaluate stage write this document; the report and MLflow are made from it. Nothing
here needs torch or SciPy.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from wukong.config.evaluators import CUTOFFS, DIRECTIONS, EVALUATORS, HOLDOUTS, result_of
from wukong.evaluate import paper
from wukong.runtime.language import _, joined

if TYPE_CHECKING:
    from wukong.evaluate.answers import Answers
    from wukong.evaluate.interval import Interval

FORMAT = 1
DOCUMENT = "evaluation.json"
"""The file of the document in the evaluate stage's output."""
_SIGNIFICANT = 0.05
HOLDOUT = "holdout"
"""The split of an experiment's hold-outs; published sets have other splits."""

ROLES: Mapping[str, str] = {"pretrained": _("zero-shot"), "finetuned": _("fine-tuned")}
"""The models that are measured side by side, by role, and the paper's words for their settings."""


@dataclass(frozen=True)
class ClassResult:
    """The result of one class.

    Attributes:
        name: its Chinese name.
        images: number of its images.
        top1: share of them whose best class it is.
        mistaken_for: the class that most of its other images are taken for; None if there are none.
    """

    name: str
    images: int
    top1: float
    mistaken_for: str | None = None


@dataclass(frozen=True)
class Classified:
    """An image of a classification set, for the report.

    Attributes:
        image: its id.
        label: its class.
        found: its best class; of a tie with the right class, another one.
        right: whether it counts as right.
    """

    image: str
    label: str
    found: str
    right: bool


@dataclass(frozen=True)
class Candidate:
    """An image that a query found: its id, a caption of it, and whether it is right for the query."""

    image: str
    caption: str
    right: bool


@dataclass(frozen=True)
class Query:
    """A query of a retrieval set, for the report.

    Attributes:
        caption: the query.
        rank: place of the first right image; 0 is the first.
        images: the best ones, the best first.
    """

    caption: str
    rank: int
    images: Sequence[Candidate]


@dataclass(frozen=True)
class Outcome:
    """The results of one task.

    Attributes:
        task: name of the set or hold-out.
        title: its title.
        kind: name of the evaluator, which is part of the metrics' names.
        split: the split that was measured.
        digest: SHA-256 of what was measured: ids, and labels or captions.
        protocol: name of the protocol.
        sizes: numbers of images, and of classes or captions.
        headline: name of the result that is the protocol's number.
        results: each result with its interval, as shares of 1.
        chance: the result of a random order, for some of the results.
        classes: each class that has images, in label order; empty for retrieval.
        confusion: number of images by class (rows) and best class (columns), of all classes in label order; empty where
            there are many classes, and for retrieval.
        candidates: names of all classes, in label order; empty where ``confusion`` is.
        examples: some images or queries, right and wrong ones.
        answers: query by query; not in the document.
    """

    task: str
    title: str
    kind: str
    split: str
    digest: str
    protocol: str
    sizes: Mapping[str, int]
    headline: str
    results: Mapping[str, "Interval"]
    chance: Mapping[str, float]
    classes: Sequence[ClassResult] = ()
    confusion: Sequence[Sequence[int]] = ()
    candidates: Sequence[str] = ()
    examples: Sequence[Classified | Query] = ()
    answers: "Answers | None" = field(default=None, compare=False)

    def as_json(self, role: str) -> dict[str, Any]:
        """Return the task's entry in the document; ``model`` in it says which model was measured."""
        entry = asdict(replace(self, answers=None))
        del entry["answers"]
        return {"model": role, **entry}


@dataclass(frozen=True)
class MeasuredModel:
    """A model that was measured.

    Attributes:
        role: one of ``ROLES``.
        name: how reports call it.
        digest: what identifies it.
        token_wise: whether it has a vector for each token.
    """

    role: str
    name: str
    digest: str
    token_wise: bool


def document(
    models: Sequence[MeasuredModel],
    protocols: Mapping[str, Sequence[str]],
    tasks: Sequence[Mapping[str, Any]],
    missing: Mapping[str, str],
    alignments: Sequence[Mapping[str, Any]] = (),
    comparisons: Sequence[Mapping[str, Any]] = (),
    notes: Mapping[str, str] | None = None,
    trained_on: Sequence[Mapping[str, Any]] = (),
    overlaps: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Make the document of an evaluation.

    Args:
        models: the models that were measured.
        protocols: the sentences of each protocol that a task names.
        tasks: entries of ``Outcome.as_json``.
        missing: what each set that was not measured needs, by its name.
        alignments: entries of ``wukong.evaluate.examples.aligned``.
        comparisons: entries of ``wukong.evaluate.two_models.compared``.
        notes: what must be known of a set to read its numbers, by its name.
        trained_on: entries of ``wukong.evaluate.trained_on.counts``.
        overlaps: entries of ``wukong.evaluate.overlap.entries``.

    Returns:
        ``format``, ``models``, ``protocols``, ``tasks``, ``missing``, ``alignments``, ``comparisons``, ``notes``,
        ``trained_on``, ``overlaps``, and ``tables``: the paper's Tables 5, 6 and 7 with the numbers measured here
        beside them, all in %.
    """
    return {
        "format": FORMAT,
        "models": [asdict(model) for model in models],
        "protocols": {name: list(sentences) for name, sentences in protocols.items()},
        "tasks": [dict(task) for task in tasks],
        "missing": dict(missing),
        "alignments": [dict(each) for each in alignments],
        "comparisons": [dict(each) for each in comparisons],
        "notes": dict(notes or {}),
        "trained_on": [dict(each) for each in trained_on],
        "overlaps": [dict(each) for each in overlaps],
        "tables": tables(models, tasks),
    }


def tables(models: Sequence[MeasuredModel], tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the paper's Tables 5, 6 and 7 with what was measured in some tasks beside them, in %."""
    return {"5": _table_5(models, tasks), **{number: _recalls(number, tasks) for number in ("6", "7")}}


def _table_5(models: Sequence[MeasuredModel], tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for name, published in paper.TABLE_5.items():
        ours = {
            model.role: _percent(task["results"][task["headline"]]) | {"metric": task["headline"], **_how(task)}
            for model in models
            for task in _of(tasks, model.role, name)
        }
        rows.append({"set": name, "paper": dict(zip(paper.MODELS_OF_TABLE_5, published, strict=True)), "ours": ours})
    averages = {
        model.role: {"value": sum(row["ours"][model.role]["value"] for row in rows) / len(rows)}
        for model in models
        if all(model.role in row["ours"] for row in rows)
    }
    average = dict(zip(paper.MODELS_OF_TABLE_5, paper.AVERAGE_OF_TABLE_5, strict=True))
    return {"rows": rows, "average": {"paper": average, "ours": averages}}


def _recalls(number: str, tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Make Table 6 or 7. Table 6 is of the zero-shot model, Table 7 of the fine-tuned one."""
    published, role = (paper.TABLE_6, "pretrained") if number == "6" else (paper.TABLE_7, "finetuned")
    rows = []
    for name in paper.TABLE_7:  # it has all sets; Table 6 leaves one out
        methods = [{"method": method, **row._asdict()} for method, row in published.get(name, {}).items()]
        ours = []
        for task in _of(tasks, role, name):
            percents = {key: _percent(value) for key, value in task["results"].items()}
            recalls = {
                direction: [percents[f"{direction}_r{k}"] for k in CUTOFFS] if f"{direction}_r1" in percents else None
                for direction in DIRECTIONS
            }
            ours.append({**recalls, "mean_recall": percents["mean_recall"], **_how(task)})
        rows.append({"set": name, "paper": methods, "ours": ours[0] if ours else None})
    return {"rows": rows}


def _of(tasks: Iterable[Mapping[str, Any]], role: str, name: str) -> list[Mapping[str, Any]]:
    return [task for task in tasks if (task["model"], task["task"]) == (role, name) and task["split"] != HOLDOUT]


def _how(task: Mapping[str, Any]) -> dict[str, str]:
    return {"protocol": task["protocol"], "split": task["split"]}


def square_of(image: str) -> str:
    """The key of what the image encoder saw of an image, among the small images of a task."""
    return f"square of {image}"


def _percent(value: Mapping[str, float]) -> dict[str, float]:
    return {key: 100 * value[key] for key in ("value", "low", "high")}


def trained_on_of(document: Mapping[str, Any], task: str, role: str) -> str:
    """Say how many of a task's pictures a model of a document was trained on; empty for a task without pictures."""
    for each in document["trained_on"]:
        if (each["task"], each["model"]) == (task, role):
            known = each["trained_on"]
            return _("not known") if known is None else _("{trained_on:,} of {pictures:,}").format(**each)
    return ""


def overlap_of(document: Mapping[str, Any], task: str, role: str) -> Mapping[str, Any]:
    """Return a document's entry in ``overlaps`` of a task and a model; empty where there is none."""
    wanted = (each for each in document["overlaps"] if (each["task"], each["model"]) == (task, role))
    return next(wanted, {})


def overlap_said(document: Mapping[str, Any], task: Mapping[str, Any]) -> str:
    """Say how many of a task's pictures overlap with what its model was trained on, and what that changes.

    Args:
        document: the document.
        task: its entry of the task and the model.

    Returns:
        Some sentences; empty if none overlap and none were found and left out.
    """
    overlap = overlap_of(document, task["task"], task["model"])
    if not overlap:
        return ""
    headline, said = task["headline"], []
    if overlap["overlap"]:
        said.append(_("{overlap:,} of {pictures:,} pictures overlap with the training data.").format(**overlap))
    if overlap["left_out"]:
        said.append(_("{left_out:,} of {pictures:,} pictures were found and left out of training.").format(**overlap))
    if (changed := overlap["results"].get(headline)) and changed["difference"]:
        title, whole = result_of(headline).title, 100 * task["results"][headline]["value"]
        without = 100 * changed["clean"]["value"]
        said += [
            _("{title}: {whole:.2f} % with them, {without:.2f} % without.").format(
                title=title, whole=whole, without=without
            ),
            significance(changed),
        ]
    return joined(said, " ")


def significance(changed: Mapping[str, Any]) -> str:
    """Say whether overlap raises a result by more than noise, by an entry of ``overlap.with_and_without``.

    Fisher's test says it, at 5 %, and where there is none the interval of the difference, which then is above 0. An
    interval from -1 to 1 says nothing.
    """
    if changed["p"] is None and changed["difference"]["low"] <= -1 and changed["difference"]["high"] >= 1:
        return _("Whether the overlap raises the result cannot be said.")
    is_raised = changed["p"] < _SIGNIFICANT if changed["p"] is not None else changed["difference"]["low"] > 0
    if is_raised:
        return _("The overlap raises the result by more than noise.")
    return _("The overlap raises the result by no more than noise.")


def without_overlap_of(document: Mapping[str, Any], role: str) -> dict[str, float]:
    """Return a model's headlines without the overlapping pictures as metrics, where some overlap.

    Their names are those of ``metrics_of`` with ``_without_overlap`` at the end.
    """
    found = {
        f"eval/{task['kind']}/{task['task']}/{task['headline']}_without_overlap": overlap["results"]
        .get(task["headline"], {})
        .get("clean")
        for task in document["tasks"]
        if task["model"] == role and (overlap := overlap_of(document, task["task"], role))
    }
    return {name: float(clean["value"]) for name, clean in found.items() if clean}


def role_of(document: Mapping[str, Any]) -> str:
    """Return the role of the model that a document stands for: the fine-tuned one, where it was measured."""
    measured = {model["role"] for model in document.get("models", ())}
    return "pretrained" if measured == {"pretrained"} else "finetuned"


def tasks_of(document: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    """Return the entries of one kind of the model that a document, which may be empty, stands for."""
    return [task for task in document.get("tasks", ()) if (task["kind"], task["model"]) == (kind, role_of(document))]


def metrics_of(tasks: Iterable[Mapping[str, Any]], role: str) -> dict[str, float]:
    """Return a model's results as metrics with stable names: ``eval/KIND/TASK/RESULT``, shares of 1.

    ``eval/retrieval/holdouts/mean_recall`` and ``eval/classification/holdouts/top1`` are the means
    (``Evaluator.means``) over an experiment's hold-outs, where there are some. Intervals and chance are in the
    document alone.
    """
    mine = [task for task in tasks if task["model"] == role]
    metrics = {
        f"eval/{task['kind']}/{task['task']}/{name}": float(value["value"])
        for task in mine
        for name, value in task["results"].items()
    }
    for kind, evaluator in EVALUATORS.items():
        held = [task["results"] for task in mine if (task["kind"], task["split"]) == (kind, HOLDOUT)]
        for result in evaluator.means if held else ():
            metrics[f"eval/{kind}/{HOLDOUTS}/{result}"] = sum(each[result]["value"] for each in held) / len(held)
    return metrics


def headlines_of(document: Mapping[str, Any]) -> dict[str, float]:
    """Return the few of ``metrics_of`` that sum up a document: each task's headline, and the means over hold-outs."""
    role = role_of(document)
    mine = [task for task in document.get("tasks", ()) if task["model"] == role]
    wanted = {f"eval/{task['kind']}/{task['task']}/{task['headline']}" for task in mine}
    metrics = metrics_of(mine, role).items()
    return {name: value for name, value in metrics if name in wanted or name.split("/")[2] == HOLDOUTS}
