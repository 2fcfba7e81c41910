"""What runs have held, against sums that are made second by second."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.runs import run_costs, run_records
from wukong.runs.run_costs import Held, Holding, Sheet
from wukong.runs.run_records import Record
from wukong.stages.prices import Prices
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest, Stage

GIB = 2**30


def holding(key: str = "a", **values: Any) -> Holding:
    return Holding(
        **({"key": key, "name": f"pod-{key}", "cores": 2, "memory": GIB, "gpus": 0, "began": 0, "until": 3600} | values)
    )


@st.composite
def holdings(draw: st.DrawFn) -> Holding:
    began = draw(st.integers(0, 50))
    return holding(
        draw(st.uuids()).hex,
        cores=draw(st.integers(0, 8)),
        memory=draw(st.integers(0, 4)) * GIB,
        gpus=draw(st.integers(0, 4)),
        began=began,
        until=began + draw(st.integers(-5, 50)),
        ended=draw(st.booleans()),
        used=draw(st.none() | st.integers(0, 600)),
    )


@given(st.lists(holdings(), max_size=6))
def test_sums_are_those_of_a_clock_that_ticks_every_second(held: list[Holding]) -> None:
    cores = memory = gpus = measured = used = 0.0
    for one in held:
        core_seconds = 0.0
        for second in range(120):
            if one.began <= second < one.until:
                core_seconds += one.cores
                memory += one.memory / GIB
                gpus += one.gpus
        cores += core_seconds
        if one.used is not None:
            measured += core_seconds
            used += one.used if one.used < core_seconds else core_seconds
    found = run_costs.add_up(held)
    sums = [value * 3600 for value in (found.core_hours, found.gib_hours, found.gpu_hours, found.measured, found.used)]
    assert sums == pytest.approx([cores, memory, gpus, measured, used])
    assert found.ended == (sum(not one.ended for one in held) == 0)
    assert found.idle == (None if not measured else pytest.approx((measured - used) / measured))


@given(st.lists(holdings(), max_size=5, unique_by=lambda one: one.key), st.data())
def test_a_pod_that_several_launchers_saw_counts_once(pods: list[Holding], data: st.DataObject) -> None:
    whole = [one.model_copy(update={"ended": True, "until": max(one.until, one.began), "used": None}) for one in pods]
    seen = [  # by earlier launchers, until some time before its end
        one.model_copy(update={"ended": False, "until": data.draw(st.floats(one.began, one.until))})
        for one in whole
        for _ in range(data.draw(st.integers(0, 2)))
    ]
    looks = data.draw(st.permutations([*seen, *whole]))
    sheets = [Sheet(source="pods", held=(one,)) for one in looks]
    assert sorted(run_costs.joined(sheets), key=lambda one: one.key) == sorted(whole, key=lambda one: one.key)


def test_pods_count_in_place_of_ray_which_says_what_processor_time_they_used() -> None:
    pods = Sheet(source="pods", held=(holding("1", name="head", cores=1), holding("2", name="worker", cores=4)))
    nodes = Sheet(source="ray", held=(holding("n", name="worker", cores=3, used=60.0, ended=True),))
    assert [(one.cores, one.used) for one in run_costs.joined([nodes, pods])] == [(1, None), (4, 60.0)]
    assert [one.cores for one in run_costs.joined([nodes])] == [3]


def test_use_beyond_what_was_held_hides_no_idle_pod() -> None:
    busy, idle = holding("busy", cores=1, used=7200.0), holding("idle", cores=1, used=0.0)
    assert run_costs.add_up([busy, idle]).idle == 0.5


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    return documents.parse({"name": "x", "storage": storage.from_path(tmp_path), "crawl": crawl})


def commit(experiment: Experiment, stage: str) -> Manifest:
    made = Stage(experiment.root, stage, {})
    storage.write_bytes(made.path("a"), b"12345")
    return made.commit([made.describe("a")])


def test_a_run_is_read_from_its_sheets_and_records(experiment: Experiment) -> None:
    before = dict(manifest.committed)
    crawl, filtered = commit(experiment, "crawl"), commit(experiment, "filter")
    assert manifest.committed["crawl"] - before.get("crawl", 0) == 5
    for attempt, used in (("lost", None), ("second", 1800.0)):  # two attempts, of which the first committed nothing
        held = holding(attempt, used=used, ended=used is not None)
        written = {"crawl": 5} if used else {}
        run_costs.write(experiment, "r", "crawl", f"ray-{attempt}", Sheet(source="ray", held=(held,), written=written))
    run_records.write(experiment, "r", Record(stage="crawl", state="succeeded", manifest=f"{crawl.uri}/manifest.json"))
    run_records.write_reused(experiment, "r", "filter", filtered, 0.1)
    run_records.write(experiment, "r", Record(stage="validate", state="failed", error="lost"))
    run_records.write(experiment, "r", Record(stage="champion", state="succeeded", reused=True))
    costs = run_costs.of_run(experiment, "r")
    assert [(each.stage, each.source, each.reused, each.written) for each in costs] == [
        ("crawl", "ray", False, 5),
        ("filter", None, True, 0),
        ("validate", None, False, None),
        ("champion", None, True, 0),
    ]
    assert costs[0].held == Held(4.0, 2.0, 0.0, measured=2.0, used=0.5, ended=False)
    assert (costs[1].held, costs[2].held) == (Held(), None), "reused is 0, and not known is not 0"
    assert run_costs.total([costs[0], costs[2]]).held == costs[0].held, "at least"

    document = json.loads(json.dumps(run_costs.document(costs, Prices(cpu=0.5, gib=0.25, gib_month=GIB))))
    crawled = document["stages"]["crawl"]
    assert (crawled["core_hours"], crawled["idle_share"], crawled["money"]) == (4.0, 0.75, 4 * 0.5 + 2 * 0.25)
    assert (crawled["bytes_written"], crawled["money_a_month"], crawled["at_least"]) == (5, 5.0, True)
    assert (
        document["stages"]["validate"] | {"core_hours": None, "bytes_written": None} == document["stages"]["validate"]
    )
    assert (document["run"]["bytes_written"], document["not_known"]) == (None, ["validate"])
    free = run_costs.document(costs, Prices())
    assert "money" not in free["run"] and free["prices"] is None


def test_what_a_run_has_held_is_in_no_manifest(experiment: Experiment) -> None:
    first = commit(experiment, "crawl")
    run_costs.write(experiment, "r", "crawl", "ray-1", Sheet(source="ray", held=(holding(),)))
    again = commit(experiment, "crawl")
    assert again.digest == first.digest
    assert {uri.removeprefix(f"{first.uri}/") for uri in storage.list_files(first.uri)} == {"a", "manifest.json"}
