"""From how many models a model was chosen: what sweeps and validations leave, and which of it the gate counts."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import measured
import numpy as np
import pytest

from wukong.evaluate import answers, stored
from wukong.evaluate.results import Outcome
from wukong.registry import choices, promotion
from wukong.registry.choices import Choice
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage

METRIC = "eval/retrieval/test/mean_recall"


def trained(root: str, stage: str, parents: list[Manifest], validations: int = 0, **settings: Any) -> Manifest:
    """A training stage; the first of its validations could tell nothing apart."""
    asked = {"keep": "best", "metric": "retrieval/holdouts/mean_recall", "tasks": ["tuning"]} | settings
    config = {"training": {"validation": asked} if validations else {}, "number": len(parents)}
    made = Stage(root, stage, config | {"epochs": validations}, parents)
    history = [{"step": n, "metrics": {asked["metric"]: 0.1 * n} if n else {}} for n in range(validations)]
    storage.write_json(made.path("history.json"), {"validations": {"history": history}})
    return made.commit([made.describe("history.json")])


def test_each_validation_that_could_be_kept_counts(tmp_path: Path) -> None:
    root = storage.from_path(tmp_path)
    pretrained = trained(root, "pretrain", [], 11)
    tuned = trained(root, "finetune", [pretrained], 4, metric="classification/birds/top1", tasks=[])
    assert choices.of_model(root, tuned) == [
        Choice(by="pretrain.validation", of=10, metric="retrieval/holdouts/mean_recall", tasks=("tuning",)),
        Choice(by="finetune.validation", of=3, metric="classification/birds/top1"),
    ]
    last = trained(root, "finetune", [trained(root, "pretrain", [], 5, keep="last", patience=3)])
    assert choices.of_model(root, last) == [], "the last model is not chosen"


def test_a_sweep_counts_its_models_and_sweeps_with_a_model_in_common_count_together(tmp_path: Path) -> None:
    root = storage.from_path(tmp_path)
    models = [trained(root, "finetune", [Stage(root, "pretrain", {"n": n}).commit([])]) for n in range(6)]
    for number, sweep, metric in (
        *((n, "first", METRIC) for n in (0, 1, 2, 2)),
        *((n, "second", METRIC) for n in (2, 3)),
        *((n, "other", METRIC) for n in (4, 5)),
        *((n, "first", "eval/classification/birds/top1") for n in (0, 1)),
    ):
        evaluated = Stage(root, "evaluate", {"of": number}, [models[number]]).commit([])
        choices.record_trial(root, sweep, metric, f"{sweep}-{number}", evaluated)
    assert choices.of_model(root, models[2]) == [
        Choice(by="the sweep first, second", of=4, metric="retrieval/test/mean_recall")
    ]
    assert [(each.of, each.metric) for each in choices.of_model(root, models[0])] == [
        (2, "classification/birds/top1"), (3, "retrieval/test/mean_recall"),
    ]  # fmt: skip
    assert choices.of_model(root, trained(root, "finetune", [])) == []


def retrieval_of(task: str, captions: list[str]) -> Outcome:
    right = np.zeros(len(captions), bool)
    outcome = measured.searched(task, right)
    _, known = answers.units_of(captions, (), (), ())
    assert outcome.answers is not None
    object.__setattr__(outcome.answers, "identities", known)
    return outcome


@pytest.mark.parametrize(
    ("metric", "tasks", "counts"),
    [
        ("retrieval/test/mean_recall", (), True),
        ("retrieval/test/text_to_image_r1", (), True),
        ("retrieval/holdouts/mean_recall", (), True),
        ("retrieval/holdouts/mean_recall", ("tuning",), False),
        ("retrieval/holdouts/mean_recall", ("tuning", "overlapping"), True),
        ("retrieval/tuning/mean_recall", (), False),
        ("retrieval/overlapping/mean_recall", (), True),
        ("classification/imagenet/top1", (), False),
        ("classification/birds/top1", (), True),  # its images are not known, so they may be those of the gate
    ],
)
def test_a_choice_on_other_queries_costs_nothing(
    tmp_path: Path, metric: str, tasks: tuple[str, ...], counts: bool
) -> None:
    words = [f"词{n}" for n in range(30)]
    outcomes = [
        retrieval_of("test", words[:10]), retrieval_of("tuning", words[10:20]),
        retrieval_of("overlapping", words[9:15]),
        measured.classified("birds", np.zeros(8, bool)),
    ]  # fmt: skip
    birds = outcomes[-1].answers
    assert birds is not None
    object.__setattr__(birds, "identities", None)
    candidate = stored.read(measured.evaluation(storage.from_path(tmp_path), outcomes).uri)
    choice = Choice(by="x", of=12, metric=metric, tasks=tasks)
    assert promotion.choices_that_count(candidate, METRIC, [choice]) == ((choice,) if counts else ())


def test_trials_that_two_processes_record_at_once_all_count(tmp_path: Path) -> None:
    root = storage.from_path(tmp_path)
    model = trained(root, "finetune", [])
    code = (
        "import sys\n"
        "from wukong.registry import choices\n"
        "from wukong.store.manifest import Manifest, Parent\n"
        "root, metric, name = sys.argv[1:]\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "for number in range(40):\n"
        "    parent = Parent(stage='finetune', uri='file:///x', digest=f'{name}{number}')\n"
        "    evaluated = Manifest(stage='evaluate', uri='file:///x', config={}, parents=(parent,))\n"
        "    choices.record_trial(root, 'a', metric, f'{name}-{number}', evaluated)\n"
    )
    command = [sys.executable, "-c", code, root, METRIC]
    pipe = subprocess.PIPE
    running = [subprocess.Popen([*command, name], stdin=pipe, stdout=pipe, text=True) for name in ("x", "y")]
    for process in running:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        print("go", file=process.stdin, flush=True)
    evaluated = Stage(root, "evaluate", {}, [model]).commit([])
    choices.record_trial(root, "a", METRIC, "own", evaluated)
    for process in running:
        process.communicate()
    assert [process.returncode for process in running] == [0, 0]
    assert choices.of_model(root, model) == [Choice(by="the sweep a", of=81, metric="retrieval/test/mean_recall")]
