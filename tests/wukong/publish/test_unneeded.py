"""What is deleted of a storage: random lineages against reachability, runs that begin meanwhile, kills, real stores."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wukong import stages
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.publish import unneeded
from wukong.publish.unneeded import DAY, Collection, Policy
from wukong.runs import run_records
from wukong.runs.run_records import Record
from wukong.stages import places, run_paths
from wukong.store import fence, lease, manifest, storage
from wukong.store.manifest import Manifest, Stage

STAGES = [entry.name for entry in stages.TABLE if entry.version]
NOW = time.time()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(fence.VARIABLE, "")
    return storage.from_path(tmp_path)


def path_of(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))


def age(uri: str, days: float) -> None:
    """Let everything at a URI have been written some days ago."""
    top = path_of(uri)
    for each in [top, *top.rglob("*")]:
        if each.is_file():
            os.utime(each, (NOW - days * DAY, NOW - days * DAY))


def make(place: str, stage: str, config: dict[str, Any], parents: list[Manifest], days: float = 90) -> Manifest:
    made = Stage(storage.join(place, "a"), stage, config, parents)
    storage.write_bytes(made.path("data/0.bin"), b"0" * 100)
    storage.write_bytes(made.path("data/1.bin"), b"1" * 100)
    finished = made.commit([made.describe("data/0.bin"), made.describe("data/1.bin")])
    age(made.uri, days)
    return finished


def experiment_in(place: str, name: str = "a", **crawl: Any) -> Experiment:
    value = {"queries": "file:///q", "endpoint": "http://site.test"} | crawl
    return documents.parse({"name": name, "storage": place, "crawl": value})


def record(experiment: Experiment, run: str, made: list[Manifest], days: float = 90, *, ended: bool = True) -> None:
    run_records.claim(experiment, run)
    for each in made:
        uri = storage.join(each.uri, "manifest.json")
        run_records.write(experiment, run, Record(stage=each.stage, state="succeeded", manifest=uri))
    folder = storage.join(experiment.root, "runs", run)
    age(folder, days)
    if ended:
        run_records.write(experiment, run, Record(stage="report", state="succeeded"))
        age(storage.join(folder, "report.json"), days - 0.01)


def collect(place: str, policy: Policy | None = None, holders: unneeded.Holders | None = None) -> list[str]:
    found = Collection(place, policy or Policy(), holders)
    return [each.uri for each in found.garbage if found.delete(each)]


def files(place: str) -> set[str]:
    """All files, but the leases that were given back."""
    return {uri for uri in storage.list_files(place) if not uri.endswith(lease.NAME)}


class Node(NamedTuple):
    """A stage's output, as it is drawn."""

    experiment: str
    stage: str
    parents: tuple[int, ...]
    days: float
    finished: bool


class Begun(NamedTuple):
    """A run, as it is drawn."""

    experiment: str
    recorded: tuple[int, ...]
    named: int | None
    days: float
    finished: bool


@st.composite
def lineages(draw: st.DrawFn) -> tuple[list[Node], list[Begun], list[int], int | None, float]:
    count = draw(st.integers(1, 9))
    nodes: list[Node] = []
    experiments, days = st.sampled_from(["a", "b"]), st.sampled_from([0.3, 2.0, 40.0])
    for number in range(count):
        earlier = [each for each in range(number) if nodes[each].finished]
        parents = draw(st.lists(st.sampled_from(earlier), unique=True, max_size=3)) if earlier else []
        stage = draw(st.sampled_from(STAGES))
        nodes.append(
            Node(draw(experiments), stage, tuple(parents), draw(days), draw(st.sampled_from([True] * 4 + [False])))
        )
    finished = [number for number, node in enumerate(nodes) if node.finished]
    some = st.lists(st.sampled_from(finished), unique=True, max_size=3) if finished else st.just([])
    named = st.none() | st.sampled_from(finished) if finished else st.none()
    begun = st.sampled_from([0.5, 3.0, 4.0, 5.0, 50.0])
    runs = draw(st.lists(st.builds(Begun, experiments, some.map(tuple), named, begun, st.booleans()), max_size=4))
    return nodes, runs, draw(some), draw(st.none() | st.integers(1, 2)), draw(st.sampled_from([0.0, 10.0]))


def expected(
    nodes: list[Node], runs: list[Begun], aliases: list[int], keep: int | None, older: float
) -> tuple[set[int], set[int]]:
    """The oracle: the numbers of the outputs that stay, and of those that are there without a manifest and stay."""
    needed = set(aliases) | {number for number, node in enumerate(nodes) if node.finished and node.stage == "release"}
    busy = set()
    for run in runs:
        goes_on = not run.finished and run.days < 1
        busy |= {run.experiment} if goes_on else set()
        newer = [o for o in runs if o.experiment == run.experiment and o.finished and o.days < run.days]
        if keep is None or goes_on or len(newer) < keep:
            needed |= {*run.recorded, *([run.named] if run.named is not None else [])}
    limit = max(1.0, older)
    needed |= {n for n, node in enumerate(nodes) if node.finished and (node.experiment in busy or node.days < limit)}
    pending = list(needed)
    while pending:
        for parent in nodes[pending.pop()].parents:
            if parent not in needed:
                needed.add(parent)
                pending.append(parent)
    halves = {n for n, node in enumerate(nodes) if not node.finished and (node.experiment in busy or node.days < limit)}
    return needed, halves


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lineages())
def test_what_stays_is_what_can_be_reached(
    root: str, drawn: tuple[list[Node], list[Begun], list[int], int | None, float]
) -> None:
    nodes, runs, aliases, keep, older = drawn
    shutil.rmtree(path_of(root))
    made: dict[int, Manifest] = {}
    uris = {}
    for number, node in enumerate(nodes):
        stage = Stage(storage.join(root, node.experiment), node.stage, {"n": number}, [made[p] for p in node.parents])
        uris[number] = stage.uri
        storage.write_bytes(stage.path("parts/0.bin"), f"{number}".encode())
        if node.finished:
            made[number] = stage.commit([stage.describe("parts/0.bin")])
        age(stage.uri, node.days)
    for number, run in enumerate(runs):
        crawl = {"previous": uris[run.named]} if run.named is not None else {}
        experiment = experiment_in(root, run.experiment, **crawl)
        # Runs that are drawn with one age began one after another.
        recorded = [made[each] for each in run.recorded]
        run_records.claim(experiment, f"r{number}")
        for place, each in enumerate(recorded):
            uri = storage.join(each.uri, "manifest.json")
            name = [name for name in stages.RECORDED if name != "report"][place]
            run_records.write(experiment, f"r{number}", Record(stage=name, state="succeeded", manifest=uri))
        folder = storage.join(experiment.root, "runs", f"r{number}")
        age(folder, run.days)
        if run.finished:
            run_records.write(experiment, f"r{number}", Record(stage="report", state="succeeded"))
            age(storage.join(folder, "report.json"), run.days - 0.01)
    tags = {f"models:/m/{number}": {"wukong.model": uris[number]} for number in aliases}
    needed, halves = expected(nodes, runs, aliases, keep, older)
    policy = Policy(keep_runs=keep, older_than=older * DAY)

    dry = Collection(root, policy, lambda: tags)
    assert {each.uri for each in dry.garbage} == {uris[n] for n in range(len(nodes)) if n not in needed | halves}
    collect(root, policy, lambda: tags)
    left = {n for n, uri in uris.items() if files(uri)}
    assert left == needed | halves
    for number in needed:
        assert manifest.load(uris[number]).digest == made[number].digest
        assert [manifest.describe(uris[number], part.path) for part in made[number].parts] == list(made[number].parts)
    assert len(storage.list_files(root, "/experiment.json")) == len(runs), "records stay"
    assert collect(root, policy, lambda: tags) == []


def chain(place: str) -> list[Manifest]:
    """A crawl, a filtered set and a trained model that nothing needs."""
    crawl = make(place, "crawl", {}, [])
    filtered = make(place, "filter", {}, [crawl])
    return [crawl, filtered, make(place, "pretrain", {}, [filtered])]


def test_children_go_before_their_parents_and_records_of_takedowns_stay(root: str) -> None:
    made = chain(root)
    taken = storage.join(root, "a", "takedowns", "0123456789abcdef.json")
    storage.write_json(taken, {})
    decided = storage.join(root, "a", "features", "_decisions", "0123456789abcdef.json")
    storage.write_json(decided, {"store": True})
    age(root, 90)
    assert collect(root) == [each.uri for each in reversed(made)]
    assert files(root) == {taken, decided}


def test_a_takedown_that_was_begun_keeps_its_experiment(root: str) -> None:
    chain(root)
    storage.write_json(storage.join(root, "a", "takedowns", "pending.json"), {})
    assert collect(root) == []


def test_a_failed_attempt_stays_as_long_as_the_crawl_that_went_on_from_it(root: str) -> None:
    first = Stage(storage.join(root, "a"), "crawl", {"x": 1})
    failed = Manifest(stage="crawl", uri=first.uri, config=first.config)
    storage.write_json(first.path("failed.json"), failed.model_dump(mode="json"))
    second = make(root, "crawl", {"x": 1, "again": failed.digest}, [])
    other = Stage(storage.join(root, "a"), "crawl", {"x": 2})
    storage.write_json(
        other.path("failed.json"), Manifest(stage="crawl", uri=other.uri, config={}).model_dump(mode="json")
    )
    age(root, 90)
    record(experiment_in(root), "r", [second])
    assert collect(root) == [other.uri], "the next run would crawl anew without the first"

    begun = experiment_in(root)
    run_records.claim(begun, "s")
    age(storage.join(begun.root, "runs", "s"), 90)
    storage.write_json(
        other.path("failed.json"), Manifest(stage="crawl", uri=other.uri, config={}).model_dump(mode="json")
    )
    age(other.uri, 90)
    assert collect(root) == [], "a run without a crawl goes on from it"


def test_work_files_of_finished_outputs_go(root: str) -> None:
    (made,) = [make(root, "pretrain", {}, [])]
    record(experiment_in(root), "r", [made])
    for name, days in (("_checkpoints/0/state", 2), ("_ray/log", 0), ("_parts/0.json", 9)):
        storage.write_bytes(storage.join(made.uri, name), b"x")
        age(storage.join(made.uri, name), days)
    assert collect(root) == [storage.join(made.uri, "_checkpoints")]
    assert manifest.load(made.uri) == made


def test_what_lies_behind_a_link_stays_with_what_it_was_made_from(
    root: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    crawl, filtered, model = chain(root)
    record(experiment_in(root), "r", [filtered])
    elsewhere = tmp_path_factory.mktemp("disk") / "moved"
    shutil.move(path_of(filtered.uri), elsewhere)
    path_of(filtered.uri).symlink_to(elsewhere)
    assert collect(root) == [model.uri]
    assert manifest.load(crawl.uri) and manifest.load(filtered.uri)


@pytest.mark.parametrize("machine", ["another machine", ""])
def test_a_lease_that_is_renewed_keeps_the_experiment(root: str, machine: str) -> None:
    """Of a home that has no records here, or of another machine: its run began days ago."""
    chain(root)
    working = Stage(storage.join(root, "a"), "finetune", {})
    storage.write_bytes(working.path("_checkpoints/0"), b"x")
    age(working.uri, 40)
    held = {"id": "0", "host": "far", "machine": machine, "process": 1, "born": "1", "since": "now", "seconds": 0.2}
    storage.write_json(working.path(lease.NAME), held)
    assert collect(root) == []
    age(working.path(lease.NAME), 2)
    assert len(collect(root)) == 4


@pytest.mark.parametrize("begins", ["before the list", "after the list"])
def test_a_clock_that_is_ahead_deletes_nothing_that_is_being_made(root: str, begins: str) -> None:
    """What the one who deletes takes for two days old is renewed meanwhile."""
    crawl, *_ = chain(root)
    working = Stage(storage.join(root, "a"), "finetune", {})
    storage.write_bytes(working.path("_checkpoints/0"), b"x")
    ahead = time.time() + 2 * DAY
    found = Collection(root, Policy(), None, now=ahead)
    listed = found.garbage
    assert len(listed) == 4
    with lease.held(working.uri, lambda: False, seconds=0.4):
        if begins.startswith("before"):
            found = Collection(root, Policy(), None, now=ahead)
            assert found.garbage == []
        assert found.delete(next(each for each in listed if each.uri == working.uri)) is False
        lease.check(working.uri)
    assert storage.list_files(working.path("_checkpoints")) and manifest.load(crawl.uri)
    assert len(collect(root)) == 3, "the one that was begun a moment ago stays"


def test_every_stage_leaves_its_trace_before_it_looks(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    crawl = make(root, "crawl", {}, [])
    experiment = experiment_in(root)
    seen = []

    def looks(stage: Stage) -> Manifest:
        seen.append(storage.exists(run_paths.uri_of(experiment, "r", "asked/filter")))
        return crawl

    monkeypatch.setattr(Stage, "finished", looks)
    with places.reserved("filter", experiment, {"crawl": crawl}, "r", "filter") as known:
        assert known is crawl
    assert seen == [True]


def test_a_run_that_begins_between_the_list_and_the_deletion_keeps_what_it_finds(root: str) -> None:
    made = chain(root)
    found = Collection(root, Policy(), None)
    listed = found.garbage
    assert len(listed) == 3
    experiment = experiment_in(root)
    assert found.delete(listed[0]), "the model goes"
    storage.write_bytes(run_paths.uri_of(experiment, "r", "asked/filter"), b"here")
    assert [found.delete(each) for each in listed[1:]] == [False, False]
    assert Stage(experiment.root, "filter", {}, [made[0]]).finished() == made[1]


def test_an_alias_that_is_given_meanwhile_keeps_its_model(root: str) -> None:
    *_, model = chain(root)
    tags: dict[str, dict[str, str]] = {}
    found = Collection(root, Policy(), lambda: tags)
    listed = found.garbage
    tags["models:/m/1"] = {"wukong.model": model.uri}
    assert [found.delete(each) for each in listed] == [False] * 3


@pytest.mark.parametrize("comes", ["before the deletion looks", "after the deletion looks"])
def test_who_looks_while_an_output_is_being_deleted_waits_for_the_end(
    root: str, monkeypatch: pytest.MonkeyPatch, comes: str
) -> None:
    """Whatever happens first, nobody gets the manifest of an output that goes."""
    made = make(root, "filter", {}, [])
    experiment = experiment_in(root)
    results: list[Manifest | None] = []

    def look() -> None:
        storage.write_bytes(run_paths.uri_of(experiment, "r", "asked/filter"), b"here")
        asked.set()
        results.append(Stage(experiment.root, "filter", {}).finished())

    asked = threading.Event()
    reader = threading.Thread(target=look)
    found = Collection(root, Policy(), None)
    (listed,) = found.garbage
    looked = found._looked

    def meanwhile() -> Any:
        state = looked() if comes.startswith("after") else None
        reader.start()
        asked.wait()
        time.sleep(0.3)
        assert not results, "it waits for the one who holds the lease to delete"
        return state or looked()

    monkeypatch.setattr(found, "_looked", meanwhile)
    deleted = found.delete(listed)
    reader.join(30)
    assert deleted is comes.startswith("after")
    assert results == ([None] if deleted else [made])
    if deleted:
        again = make(root, "filter", {}, [], days=0)
        assert again.digest == made.digest
        assert manifest.load(made.uri).digest == made.digest


def test_a_deletion_whose_lease_was_taken_over_stops(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(root, "filter", {}, [])
    found = Collection(root, Policy(), None)
    (listed,) = found.garbage
    looked = found._looked

    def taken_over() -> Any:
        state = looked()
        held = storage.read_json(storage.join(made.uri, lease.NAME))
        storage.write_json(storage.join(made.uri, lease.NAME), held | {"id": "1", "deletes": False})
        return state

    monkeypatch.setattr(found, "_looked", taken_over)
    assert found.delete(listed) is False
    assert manifest.load(made.uri) == made


class Killed(BaseException):
    """The process ends here."""


def test_a_deletion_that_ends_anywhere_ends_the_same_when_it_is_run_again(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete, deletions = storage.delete, 0
    left: set[str] | None = None
    for last in [10_000, *range(1, 60)]:
        if path_of(root).exists():
            shutil.rmtree(path_of(root))
        needed = make(root, "crawl", {"needed": 1}, [])
        record(experiment_in(root), "r", [needed])
        chain(root)
        deletions = 0

        def counted(uri: str, last: int = last) -> None:
            nonlocal deletions
            deletions += 1
            if deletions == last:
                raise Killed
            delete(uri)

        monkeypatch.setattr(storage, "delete", counted)
        try:
            collect(root)
        except Killed:
            monkeypatch.setattr(storage, "delete", delete)
            for uri in storage.list_files(root, "/manifest.json"):
                assert all(map(storage.exists, manifest.load(uri).part_uris())), (
                    "each manifest that is left has its parts"
                )
                for parent in manifest.load(uri).parents:
                    assert manifest.load(parent.uri), "each manifest that is left has its parents"
            collect(root)
        monkeypatch.setattr(storage, "delete", delete)
        left = left or files(root)
        assert files(root) == left and any(needed.uri in uri for uri in left)
        if last > deletions and last != 10_000:
            break
    else:
        raise AssertionError("a deletion has more steps than were tried")


_KILLED = """
import os, signal, sys
from wukong.publish.unneeded import Collection, Policy
from wukong.store import storage
delete, left = storage.delete, int(sys.argv[2])
def counted(uri):
    global left
    delete(uri)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
storage.delete = counted
found = Collection(sys.argv[1], Policy(), None)
for each in found.garbage:
    found.delete(each)
"""


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 3])
def test_a_killed_process_leaves_a_lease_that_holds_nobody_up(root: str, after: int) -> None:
    *_, model = chain(root)
    command = [sys.executable, "-c", _KILLED, root, str(after)]
    ended = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert storage.list_names(model.uri)[0] == lease.NAME
    assert len(collect(root)) == 3 and files(root) == set()


@pytest.mark.slow
def test_an_object_store_is_collected_as_a_folder_is(object_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fence.VARIABLE, "")

    def make_there(stage: str, parents: list[Manifest]) -> Manifest:
        made = Stage(storage.join(object_store, "a"), stage, {}, parents)
        storage.write_bytes(made.path("data/0.bin"), b"0" * 100)
        return made.commit([made.describe("data/0.bin")])

    crawl = make_there("crawl", [])
    filtered = make_there("filter", [crawl])
    make_there("pretrain", [filtered])
    experiment = experiment_in(object_store)
    uri = storage.join(filtered.uri, "manifest.json")
    run_records.claim(experiment, "r")
    run_records.write(experiment, "r", Record(stage="filter", state="succeeded", manifest=uri))
    before = set(storage.list_files(object_store))
    assert Collection(object_store, Policy(), None).garbage == [], "a run that has just begun goes on"
    found = Collection(object_store, Policy(), None, now=time.time() + 2 * DAY)
    (model,) = found.garbage
    assert model.stage == "pretrain" and model.bytes > 100
    assert found.delete(model)
    assert set(storage.list_files(object_store)) == {each for each in before if model.uri not in each}
    assert json.loads(storage.read_bytes(uri))["stage"] == "filter"


def test_the_policy_has_a_grace_in_which_leases_are_renewed() -> None:
    assert Policy().age == DAY and Policy(older_than=2 * DAY, grace=3_600).age == 2 * DAY
    assert Policy(grace=3_600).age > 10 * lease.SECONDS
