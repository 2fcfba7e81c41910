"""The table of evaluators: another kind of evaluation is one entry and the file that it names."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wukong.config import documents, evaluators
from wukong.config.evaluators import EVALUATORS, Evaluator, Result
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError
from wukong.evaluate import results, run
from wukong.evaluate.protocol import PROTOCOLS
from wukong.evaluate.results import HOLDOUT, MeasuredModel
from wukong.evaluate.run import Task
from wukong.evaluate.stored import Evaluation
from wukong.registry import comparison, promotion
from wukong.registry.comparison import Measured
from wukong.registry.promotion import Rules
from wukong.report import evaluation as page
from wukong.tracking.mlflow_rest import Run

COUNTING = '''
"""How many things a picture shows: a model's number is right, or nearly."""

from dataclasses import dataclass

import numpy as np

from wukong.evaluate.answers import Answers
from wukong.evaluate.results import Outcome


@dataclass(frozen=True)
class Counted:
    name: str
    split: str
    counts: np.ndarray
    title = "Dice"
    digest = "d" * 64

    def __len__(self):
        return len(self.counts)

    @property
    def ids(self):
        return [f"{self.name} {number}" for number in range(len(self))]

    @property
    def images(self):
        return Unread()


class Unread:
    def digest(self, number):
        return None


DATA = Counted


def measure(work, role):
    model, data, protocol = work.models[role], work.data, work.protocol
    off = np.abs(model(data.counts) - data.counts)
    rows = np.arange(len(data))
    right = {"exact": (off == 0).astype(float), "near": (off <= 1).astype(float)}
    answers = Answers(tuple(data.ids), rows, np.full(len(data), -1), right, rows + 1000 * len(data.name))
    return Outcome(
        data.name, data.title, "counting", data.split, data.digest, protocol.name, {"images": len(data)}, "mean_count",
        answers.intervals(), {"exact": 1 / 6, "near": 1 / 2}, answers=answers,
    )
'''


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "counting_evaluator.py").write_text(COUNTING)
    monkeypatch.syspath_prepend(tmp_path)
    evaluator = Evaluator(
        kind="counting",
        results={
            "mean_count": Result("mean of both counts", mean_of=("exact", "near")),
            "exact": Result("exact count"),
            "near": Result("count within one"),
        },
        main="mean_count",
        means=("mean_count",),
        module="counting_evaluator",
    )
    monkeypatch.setitem(evaluators.EVALUATORS, "counting", evaluator)
    import counting_evaluator

    return counting_evaluator


def experiment(metric: str) -> Experiment:
    return documents.parse(
        {
            "name": "x",
            "crawl": {"queries": "file:///none", "endpoint": "http://127.0.0.1:1"},
            "filter": {"split": {"held_out_captions": 0.1, "holdouts": [{"name": "held", "source": "*/held/*"}]}},
            "evaluate": {"tasks": ["dice"], "sets": "file:///sets"},
            "registry": {"metric": metric},
        }
    )


def test_another_kind_is_measured_written_named_allowed_and_compared(counting: Any) -> None:
    counts = np.arange(60) % 6
    models = {
        "bad": lambda numbers: numbers + 1 + np.arange(len(numbers)) % 2,
        "good": lambda numbers: numbers + (np.arange(len(numbers)) % 5 == 0),
    }
    sets = [counting.Counted("dice", "test", counts), *(counting.Counted(n, HOLDOUT, counts) for n in ("one", "other"))]

    def evaluated(baseline: str, other: str) -> tuple[dict[str, Any], Evaluation]:
        tasks = [Task(data, PROTOCOLS["paper"]) for data in sets]
        roles = {"pretrained": baseline, "finetuned": other}
        for task in tasks:
            task.measure({role: models[name] for role, name in roles.items()})  # type: ignore[misc]
        about = [MeasuredModel(role, name, name * 8, token_wise=False) for role, name in roles.items()]
        records = [task.record() for task in tasks]
        document = run.document(about, [PROTOCOLS["paper"]], records, dict.fromkeys(roles, "not known"))
        tables = {task.data.name: task.table(*roles) for task in tasks}
        return document, Evaluation(document, {name: table for name, table in tables.items() if table is not None})

    document, better = evaluated("bad", "good")
    dice = [entry for entry in document["tasks"] if entry["task"] == "dice"]
    assert [(entry["model"], entry["kind"]) for entry in dice] == [
        ("pretrained", "counting"),
        ("finetuned", "counting"),
    ]
    values = {name: value["value"] for name, value in dice[1]["results"].items()}
    assert values == pytest.approx({"exact": 0.8, "near": 1.0, "mean_count": 0.9})

    metrics = results.metrics_of(document["tasks"], "finetuned")
    assert metrics["eval/counting/dice/exact"] == metrics["eval/counting/one/exact"] == pytest.approx(0.8)
    assert metrics["eval/counting/holdouts/mean_count"] == pytest.approx(0.9)
    assert not [name for name in metrics if name.startswith("eval/counting/holdouts/") and "mean_count" not in name]

    assert experiment("eval/counting/dice/near").registry.metric == "eval/counting/dice/near"
    with pytest.raises(ConfigError, match=r"counting: mean_count, exact, near.*eval/counting/holdouts/mean_count"):
        experiment("eval/counting/dice/top1")

    compared = {each["result"]: each for each in document["comparisons"] if each["task"] == "dice"}
    assert set(compared) == {"exact", "near", "mean_count"}
    assert compared["exact"]["difference"]["low"] > 0 and compared["exact"]["mcnemar"]["only_first"] == 0
    assert compared["mean_count"]["mcnemar"] is None, "a mean of results is no answer"
    html = page.render(document, {})
    assert "mean of both counts" in html and "count within one" in html

    _, worse = evaluated("good", "bad")
    runs = [Measured(Run(name * 32, "1", name, "FINISHED", {}, {}, {}), each) for name, each in
            (("a", worse), ("b", better))]  # fmt: skip
    found = {each["task"]: each for each in comparison.compare(runs)["sets"]}
    assert found["holdouts"]["title"] == "All 2 hold-outs of counting"
    for task, result in (("holdouts", "mean_count"), ("dice", "exact"), ("dice", "mean_count")):
        entry = found[task]["results"][result][1]
        assert entry["verdict"] == "better" and entry["difference"]["paired"]

    rules = Rules("eval/counting/dice/mean_count", 0.04, {})
    assert promotion.decide(rules, better, worse, model="x", alias="champion", version="2").promoted
    first = promotion.decide(rules, better, None, model="x", alias="champion", version="1").checks[0]
    assert first.other == pytest.approx((1 / 6 + 1 / 2) / 2), "chance of a mean is the mean of chances"


def test_what_an_evaluator_measures_is_in_the_table_and_so_are_its_main_result_and_means() -> None:
    for kind, evaluator in EVALUATORS.items():
        assert kind == evaluator.kind
        assert {evaluator.main, *evaluator.means} <= set(evaluator.results)
        for result in evaluator.results.values():
            assert set(result.mean_of) <= set(evaluator.results)
