"""Adapt an experiment to a demo corpus that lacks a collection.

If a collection cannot be downloaded, its hold-outs, its classes and its share of fine-tuning are removed from the
experiment. The run continues with the rest, and its report says which figures are not comparable.
"""

import fnmatch
from collections.abc import Callable, Iterable

from infra.corpus.catalogue import Corpus
from wukong.config.evaluate import Classification
from wukong.config.experiment import Experiment
from wukong.config.split import Holdout
from wukong.stages import TRAININGS


def without_missing(experiment: Experiment, corpus: Corpus, host: str) -> tuple[Experiment, list[str]]:
    """Remove from an experiment what needs the missing collections of a corpus.

    Hold-outs, classes of zero-shot sets and ``sources`` of training are removed if their pattern matches no image of
    the corpus. A hold-out without ``captions: unseen`` is also removed if it would leave nothing to train on. If no
    hold-out remains, a hold-out of unseen captions of all images replaces them, so that there is something to measure.

    Args:
        experiment: the experiment as configured.
        corpus: the corpus as far as it could be downloaded. Nothing changes if no collection is missing.
        host: the host name in the URLs of its images.

    Returns:
        The experiment to run, and sentences that say what was left out; ``about`` of the experiment contains them too.
    """
    if not corpus.missing:
        return experiment, []
    urls = [f"http://{host}{entry.path}" for entry in corpus.entries]

    def occurs(pattern: str) -> bool:
        return bool(fnmatch.filter(urls, pattern))

    wanted = experiment.filter.split.holdouts
    holdouts = [holdout for holdout in wanted if occurs(holdout.source)]
    whole = [holdout.source for holdout in holdouts if holdout.captions != "unseen"]
    if all(any(fnmatch.fnmatchcase(url, pattern) for pattern in whole) for url in urls):
        holdouts = [holdout for holdout in holdouts if holdout.captions == "unseen"]
    left_out = [f"the hold-out {holdout.name}" for holdout in wanted if holdout not in holdouts]
    split = experiment.filter.split
    if wanted and not holdouts:
        holdouts = [Holdout(name="unseen-captions", title="Unseen captions", source="*", captions="unseen")]
        split = split.model_copy(update={"held_out_captions": split.held_out_captions or 0.2})
        left_out.append("all its hold-outs; unseen captions of all pictures take their place")

    names = {holdout.name for holdout in holdouts}
    tasks = [_task(task, names, occurs) for task in experiment.evaluate.classification]
    for task, kept in zip(experiment.evaluate.classification, tasks, strict=True):
        if kept is None:
            left_out.append(f"the zero-shot set {task.name}")
        elif len(kept.classes) < len(task.classes):
            gone = ", ".join(name for name in task.classes if name not in kept.classes)
            left_out.append(f"the classes {gone} of {task.name}")

    update: dict[str, object] = {
        "filter": experiment.filter.model_copy(
            update={"split": split.model_copy(update={"holdouts": tuple(holdouts)})}
        ),
        "evaluate": experiment.evaluate.model_copy(
            update={"classification": tuple(task for task in tasks if task is not None)}
        ),
    }
    for stage in TRAININGS:
        training = getattr(experiment, stage)
        kept_sources = tuple(filter(occurs, training.sources))
        gone = ", ".join(pattern for pattern in training.sources if pattern not in kept_sources)
        if gone:
            left_out.append(f"{gone} in {stage}.sources{'' if kept_sources else '; it trains on all pairs instead'}")
            update[stage] = training.model_copy(update={"sources": kept_sources or ("*",)})
    notes = [f"The demo corpus lacks {' and '.join(corpus.missing)}."]
    if left_out:
        notes.append(f"Left out with it: {'; '.join(left_out)}.")
    notes.append("No figure of this run can be compared with figures of the whole demo corpus, such as the README's.")
    update["about"] = " ".join(filter(None, [experiment.about, *notes]))
    return experiment.model_copy(update=update), notes


def _task(task: Classification, holdouts: Iterable[str], occurs: Callable[[str], bool]) -> Classification | None:
    """Return a zero-shot set with the remaining hold-outs and classes; None if fewer than two classes remain."""
    kept = tuple(name for name in task.holdouts if name in holdouts)
    classes = {name: pattern for name, pattern in task.classes.items() if occurs(pattern)}
    if not kept or len(classes) < 2:
        return None
    return task.model_copy(update={"holdouts": kept, "classes": classes})
