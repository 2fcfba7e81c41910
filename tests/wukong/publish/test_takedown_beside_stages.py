"""A takedown beside stages and ``wukong gc``: each waits for the other, whoever is killed, and no trace stays."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from itertools import count
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import small_experiment as small

from wukong.errors import DataError
from wukong.publish import takedown, takedown_plan
from wukong.publish.unneeded import Collection, Policy
from wukong.stages import places
from wukong.store import fence, lease, manifest, storage, takedowns
from wukong.store.manifest import Manifest, Part, Stage

_FORKS = get_context("forkserver")


class Place:
    """A copy of the experiment, and the processes at it."""

    def __init__(self, folder: Path, parents: dict[str, str]) -> None:
        self.folder, self.parents = folder, parents
        self.store = storage.from_path(folder / "store")
        self.root = storage.join(self.store, "a")
        self.listed = storage.from_path(folder / "list.txt")

    def restore(self) -> None:
        shutil.rmtree(self.folder / "store", ignore_errors=True)
        shutil.copytree(self.folder / "pristine", self.folder / "store")

    def start(self, function: Any, *arguments: Any) -> BaseProcess:
        process = _FORKS.Process(target=function, args=arguments)
        process.start()
        return process

    def take_down(self, write: int | None = None) -> BaseProcess:
        return self.start(small.take_down, self.root, self.listed, write)

    def make(self, number: int) -> list[str]:
        """Make a further output of each stage; return the names of those that were refused."""
        refused = []
        for name in small.MADE:
            try:
                small.make(self.root, name, self.parents, number, small.GONE)
            except DataError as error:
                assert "has not ended: run `wukong takedown` again" in str(error)
                refused.append(name)
        return refused

    def collect(self) -> list[str]:
        found = Collection(self.store, Policy(), None)
        return [each.uri for each in found.garbage if found.delete(each)]

    def check(self) -> None:
        assert not takedowns.is_begun(self.root) and takedown.pending(self.root) is None
        assert small.traces(self.root) == {}
        assert small.untrue(self.root) == []


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv(fence.VARIABLE, "")
    place = Place(tmp_path, {})
    (tmp_path / "list.txt").write_text("\n".join(small.GONE))
    place.parents = small.make_all(place.root)
    assert small.traces(place.root) and small.untrue(place.root) == []
    old = time.time() - 90 * 86_400
    for file in (tmp_path / "store").rglob("*"):
        os.utime(file, (old, old))
    shutil.copytree(tmp_path / "store", tmp_path / "pristine")
    yield place


def ended(process: BaseProcess) -> int:
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


def test_a_takedown_takes_the_pairs_out_of_every_stage(place: Place) -> None:
    assert ended(place.take_down()) == 0
    place.check()


@pytest.mark.parametrize(
    "name", [name if name in ("crawl", "filter") else pytest.param(name, marks=pytest.mark.long) for name in small.MADE]
)
def test_a_stage_at_work_is_waited_for_and_loses_the_pairs_too(place: Place, name: str) -> None:
    at_work, may_end = _FORKS.Event(), _FORKS.Event()
    stage = place.start(small.work, place.root, name, place.parents, 1, at_work, may_end)
    assert at_work.wait(60)
    begun = place.take_down()
    begun.join(1.5)
    assert begun.is_alive(), "it waits"
    may_end.set()
    assert (ended(stage), ended(begun)) == (0, 0)
    place.check()
    made = storage.list_names(storage.join(place.root, name))
    assert len(made) == {"look": 0, "features": 0, "crawl": 4}.get(name, 2), "what is computed of pictures is deleted"


def test_a_stage_that_begins_meanwhile_waits_and_reads_what_is_left(place: Place) -> None:
    at_work, may_end = _FORKS.Event(), _FORKS.Event()
    stage = place.start(small.work, place.root, "evaluate", place.parents, 1, at_work, may_end)
    assert at_work.wait(60)
    begun = place.take_down()
    while not takedowns.is_begun(place.root):
        time.sleep(0.05)
    free = _FORKS.Event()
    free.set()
    others = [place.start(small.work, place.root, n, place.parents, 2, free, free) for n in ("filter", "release")]
    others[0].join(1.5)
    assert all(other.is_alive() for other in others)
    may_end.set()
    assert [ended(process) for process in (stage, begun, *others)] == [0] * 4
    place.check()


def test_an_output_that_is_only_reserved_is_not_waited_for(place: Place) -> None:
    """Its job has not begun, and waits for the takedown: they would wait for each other."""
    stage = Stage(place.root, "filter", {"number": 7}, [manifest.load(place.parents["crawl"])])
    attempt = storage.join(fence.folder_of(place.root, "r", "filter"), places.RESERVED)
    with lease.held(stage.uri, lambda: False, attempt):
        assert ended(place.take_down()) == 0
    place.check()


def test_a_stage_that_is_made_inside_another_does_not_wait_for_the_takedown_that_waits_for_both(place: Place) -> None:
    outer, inner = Stage(place.root, "filter", {"number": 8}), Stage(place.root, "look", {"number": 8})

    def make() -> Manifest:
        storage.write_json(storage.join(place.root, takedowns.BEGUN), {"when": "now"})
        inner.made(lambda: inner.commit([]))
        return outer.commit([])

    outer.made(make)
    assert inner.finished()
    with pytest.raises(DataError, match="was begun and has not ended"):
        Stage(place.root, "look", {"number": 9}).made(lambda: inner.commit([]))


def test_a_stage_whose_parents_changed_before_it_began_is_refused(place: Place) -> None:
    read = manifest.load(place.parents["crawl"])
    stage = Stage(place.root, "filter", {"number": 9}, [read])
    assert ended(place.take_down()) == 0
    with pytest.raises(DataError, match="has changed since the stage filter was to read it"):
        stage.made(lambda: stage.commit([]))


def scenario(place: Place, write: int) -> int:
    """Everything begins before, between and after a takedown that is killed at one of its writes."""
    place.restore()
    at_work, may_end = _FORKS.Event(), _FORKS.Event()
    stages = place.start(small.work_on_all, place.root, place.parents, 1, at_work, may_end)
    assert at_work.wait(60)
    early = Collection(place.store, Policy(), None)
    garbage = early.garbage
    begun = place.take_down(write)
    begun.join(0.3)
    may_end.set()
    assert ended(stages) == 0
    status = ended(begun)
    assert status in (0, -signal.SIGKILL)
    marked = takedowns.is_begun(place.root)
    gone = [each.uri for each in garbage if early.delete(each)]
    assert not (marked and gone)
    refused = place.make(2)
    assert refused == (small.MADE if marked else [])
    assert not (marked and place.collect())
    small.take_down(place.root, place.listed)
    place.check()
    place.collect()
    place.check()
    return status


@pytest.mark.long
def test_a_takedown_killed_at_each_write_beside_everything_ends_without_a_trace(place: Place) -> None:
    write = 0
    while scenario(place, write):
        write += 1
    assert write > 40


@pytest.mark.long
@pytest.mark.parametrize("write", [0, 1, 2, 5, 12, 30])
def test_what_a_killed_gc_leaves_is_taken_down(place: Place, write: int) -> None:
    place.restore()
    assert ended(place.start(small.collect, place.store, write)) == -signal.SIGKILL
    assert ended(place.take_down()) == 0
    place.check()


def test_gc_between_plan_and_takedown_is_no_end_of_all_takedowns(place: Place) -> None:
    planned = takedown_plan.plan(place.root, place.listed, "case 1", small.NOW)
    for name in ("validate", "release"):  # as gc does
        storage.delete(place.parents[name])
    takedown.carry_out(place.root, planned)
    place.check()


def test_work_files_that_a_stage_deletes_while_the_plan_reads_name_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_name, gone = takedown_plan.may_name, storage.join(place.parents["finetune"], "_work/row.json")

    def listed(root: str) -> list[str]:
        storage.write_json(gone, {"url": small.GONE[0]})
        found = may_name(root)
        storage.delete(gone)
        assert gone in found
        return found

    monkeypatch.setattr(takedown_plan, "may_name", listed)
    planned = takedown_plan.plan(place.root, place.listed, "case 1", small.NOW)
    assert gone not in planned.traced
    takedown.carry_out(place.root, planned)
    place.check()


def test_a_crawl_and_an_evaluation_that_end_between_plan_and_takedown_are_planned_for(place: Place) -> None:
    crawl = Stage(place.root, "crawl", {"number": "killed"})
    evaluation = Stage(place.root, "evaluate", {"number": 4})
    storage.write_json(evaluation.path("metrics.json"), {})
    planned = takedown_plan.plan(place.root, place.listed, "case 1", small.NOW)
    assert evaluation.uri in planned.unfinished
    described = storage.read_json(crawl.path("_parts/search-00000.json"))["described"]
    crawl.commit([Part.model_validate(part) for part in described], counts={"urls": 6, "success": 6, "results": 6})
    evaluation.commit([evaluation.describe("metrics.json")])
    takedown.carry_out(place.root, planned)
    place.check()
    assert manifest.load(crawl.uri).counts == {"urls": 4, "success": 4, "results": 4}
    assert evaluation.finished()


@pytest.mark.long
def test_a_crawl_that_ended_between_two_halves_of_a_takedown_is_what_its_manifest_says(place: Place) -> None:
    """It cannot any more, but in a store without conditional writes, or by another version."""
    crawl, tried = Stage(place.root, "crawl", {"number": "killed"}), 0
    record = storage.read_json(crawl.path("_parts/search-00000.json"))
    for write in count(4, 3):
        place.restore()
        if ended(place.take_down(write)) == 0:
            break
        begun, marker = takedown.pending(place.root), crawl.path("_parts/search-00000.json")
        if begun is None or not storage.exists(marker) or storage.read_json(marker) != record:
            continue  # the crawl would know by its markers
        described = [Part.model_validate(part) for part in record["described"]]
        crawl.commit(described, counts={"urls": 6, "success": 6, "results": 6})
        takedown.carry_out(place.root, begun)
        place.check()
        assert manifest.load(crawl.uri).counts == {"urls": 4, "success": 4, "results": 4}
        tried += 1
    assert tried > 3


def test_a_plan_that_nobody_carries_out_blocks_nobody(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = takedown_plan.plan(place.root, place.listed, "case 1", small.NOW)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(takedown, "_wait_for_work", interrupted)
    with pytest.raises(KeyboardInterrupt):
        takedown.carry_out(place.root, planned)
    assert not takedowns.is_begun(place.root)
    assert not storage.exists(storage.join(place.root, takedowns.FOLDER, lease.NAME))
    assert place.make(5) == []
