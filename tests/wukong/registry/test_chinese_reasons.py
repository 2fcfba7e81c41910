"""Each reason of the gate has in Chinese the numbers and names that it has in English, and no other English."""

import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import measured
import numpy as np
import pytest
from babel.messages.pofile import read_po

from tools import messages
from wukong.evaluate import stored
from wukong.evaluate.results import Outcome
from wukong.evaluate.stored import Evaluation
from wukong.registry import aliases, promotion
from wukong.registry.aliases import ModelRegistry
from wukong.registry.choices import Choice
from wukong.registry.promotion import Anew, Decision, Rules
from wukong.runtime.language import _, chinese
from wukong.store import storage
from wukong.tracking.mlflow_rest import Server
from wukong.tracking.tags import EVALUATION_TAG

METRIC, GUARD = "eval/classification/holdouts/top1", "eval/retrieval/b/mean_recall"
HARD = np.random.default_rng(6).random(2000)
WEAK, STRONG = HARD < 0.40, HARD < 0.43
CODE = r"`[^`]+`"
NAME = r"\w+(?:[./@:_-]+\w+)+"  # of a metric, a key, an option, a date; and numbers with a point
NUMBER = r"[-+]?\d+(?:\.\d+)?(?:e-\d+)?"
TOLD = "too slow"  # by a person, who may write what they like
ERROR = "this program compares only evaluations that are there"  # which stays English

Folder = Callable[..., Evaluation]


@pytest.fixture
def made(tmp_path: Path) -> Folder:
    def evaluated(name: str, *outcomes: Outcome, answered: bool = True) -> Evaluation:
        return stored.read(measured.evaluation(storage.from_path(tmp_path), outcomes, key=name, stored=answered).uri)

    return evaluated


def decide(candidate: Evaluation, holder: Evaluation | None, rules: Rules, **more: Any) -> Decision:
    held_by = "6" if holder else ""
    return promotion.decide(rules, candidate, holder, model="m", alias="champion", version="7", held_by=held_by, **more)


def statistical(made: Folder) -> Iterator[Decision]:
    """Decisions by numbers."""
    rules, guarded = Rules(METRIC, 0.04, {}), Rules(METRIC, 0.04, {GUARD: 0.025})
    weak, strong = (made(n, measured.classified("a", hits)) for n, hits in (("weak", WEAK), ("strong", STRONG)))
    yield decide(strong, weak, rules)
    yield decide(weak, strong, rules, attempt=40)  # at a level of 1.5e-05
    chosen = [Choice(by="the sweep sweep-x", of=12, metric="classification/a/top1"),
              Choice(by="pretrain.validation", of=10, metric="classification/holdouts/top1")]  # fmt: skip
    yield decide(strong, weak, rules, attempt=3, choices=chosen)
    yield decide(strong, None, rules)
    yield decide(made("random", measured.classified("a", HARD < 0.25)), None, rules)
    yield decide(made("four", measured.classified("a", STRONG[:4])), None, rules)
    yield decide(made("few", measured.classified("a", np.arange(24) % 3 == 0)), None, rules)
    yield decide(strong, None, Rules(METRIC, 0.04, {}, first="any"))
    both = made("both", measured.classified("a", STRONG), measured.searched("b", STRONG))
    yield decide(both, made("before", measured.classified("a", WEAK), measured.searched("b", STRONG)), guarded)
    lost = made("lost", measured.classified("a", STRONG), measured.searched("b", WEAK))
    yield decide(lost, made("held", measured.classified("a", STRONG), measured.searched("b", STRONG)), guarded)


def incomparable(made: Folder) -> Iterator[Decision]:
    """Decisions about models of which something is not known."""
    rules, guarded = Rules(METRIC, 0.04, {}), Rules(METRIC, 0.04, {GUARD: 0.025})
    of_a, of_b = measured.classified("a", STRONG), measured.searched("b", STRONG)
    whole, only_a, only_b = made("whole", of_a, of_b), made("only-a", of_a), made("only-b", of_b)
    yield decide(only_a, only_b, rules)
    yield decide(only_a, made("other", measured.classified("a", STRONG[:50])), rules)
    yield decide(only_a, made("lost", of_a, answered=False), rules)
    yield decide(only_a, whole, guarded)
    yield decide(whole, only_a, guarded)
    yield decide(whole, made("other-b", of_a, measured.searched("b", STRONG[:50])), guarded)
    tables = {"a": whole.tables["a"]}
    yield decide(Evaluation(whole.document, tables, whole.uri), whole, guarded)
    yield decide(made("unanswered", of_a, answered=False), None, rules)
    (task,) = only_a.document["tasks"]
    yield decide(Evaluation({"tasks": [{**task, "chance": {}}]}, only_a.tables), None, rules)


class Registered:
    """A server with two versions of a model: 6, which holds the alias, and 7."""

    address = "http://mlflow.test"

    def __init__(self, held: Mapping[str, str], candidate: Mapping[str, str], holder: str = "6") -> None:
        self.tags, self.holder = {"6": held, "7": candidate}, holder

    def ask(self, _method: str, endpoint: str, values: Mapping[str, str], **_: str) -> dict[str, Any]:
        if endpoint == "registered-models/get":
            return {"registered_model": {"aliases": [{"alias": "champion", "version": self.holder}]}}
        version = values["version"]
        tags = [{"key": key, "value": value} for key, value in self.tags[version].items()]
        return {"model_version": {"version": version, "tags": tags}}


def refused(made: Folder) -> Iterator[Decision]:
    """Decisions about versions whose tags decide, and about those whose holder would have to be evaluated anew."""

    def of(held: Mapping[str, str], candidate: Mapping[str, str], holder: str = "6") -> Decision:
        server = cast("Server", Registered(held, candidate, holder))
        return ModelRegistry(server, "demo", "champion").decide("7")

    gate = {aliases.GATE: f'{{"metric": "{METRIC}", "level": 0.04}}', aliases.CHOSEN: "[]"}
    uri = made("candidate", measured.classified("a", STRONG)).uri
    evaluated = {**gate, EVALUATION_TAG: uri}
    yield of({}, gate, "7")
    yield of({}, {**gate, aliases.ROLLED_BACK: f"2026-11-26T07:27:50+00:00: {TOLD}"})
    yield of({aliases.ORIGIN: "elsewhere"}, evaluated)
    yield of({}, evaluated)
    yield of({EVALUATION_TAG: f"{uri}-gone"}, evaluated)
    yield of({EVALUATION_TAG: made("small", measured.classified("a", STRONG[:50])).uri}, evaluated)


def clauses(made: Folder) -> Iterator[str]:
    """Why a holder's own evaluation is not enough, as the page of a decision says it."""
    of_a = measured.classified("a", STRONG)
    whole, rules = made("all", of_a), Rules(METRIC, 0.04, {})
    others = [made("b", measured.searched("b", STRONG)), made("few", measured.classified("a", STRONG[:50])),
              made("unanswered", of_a, answered=False)]  # fmt: skip
    for each in others:
        yield Anew.of(promotion.unpaired(rules, whole, each), each).why


def facts(text: str) -> Counter[str]:
    """Names, code and numbers."""
    return Counter(re.findall(f"{CODE}|{NAME}|{NUMBER}", text, re.ASCII))


def words(text: str) -> set[str]:
    """Words that are neither names nor code."""
    return set(re.findall(r"[A-Za-z]{2,}", re.sub(f"{CODE}|{NAME}|{TOLD}|{ERROR}", "", text, flags=re.ASCII)))


def test_each_reason_says_the_same_in_chinese(made: Folder) -> None:
    decisions = [*statistical(made), *incomparable(made), *refused(made)]
    texts = [text for each in decisions for text in (each.says, *(check.says for check in each.checks))]
    texts += [*clauses(made), _("A person moved the alias without the gate: {forced}").format(forced=TOLD)]
    for text in texts:
        translated = chinese(text)
        assert facts(translated) == facts(text), (text, translated)
        assert not words(translated), (text, translated)
    with messages.CATALOGUE.open("rb") as file:
        known = {each.id: {Path(place).name for place, _line in each.locations} for each in read_po(file)}
    reasons = [reason for reason, places in known.items() if reason and places & {"promotion.py", "aliases.py"}]
    assert reasons, "the reasons of the gate are in the catalogue"
    for reason in reasons:
        longest = max((literal for literal, *_ in string.Formatter().parse(reason)), key=len)
        assert any(longest in text for text in texts), f"no case has the reason {reason!r}"
