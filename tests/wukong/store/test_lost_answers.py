"""Leases and fences where the store's answers are lost and processes are killed or stopped, at any write of theirs.

Real processes, each behind a proxy of its own before a real S3 server. What they may do is judged by the writes that
the store has done, in its order. ``WUKONG_SEEDS=200`` plays more scenes than each kill once and as many drawn ones.
"""

import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import lease_actors
import pytest
import rados_gateway
from lossy_proxy import History, LossyProxy
from object_store import ObjectStore

from wukong.store import fence, lease, storage

_PATIENCE = 120.0
_AT_ONCE = 8
_KILLS = [{"kill_at": write, "is_done": is_done} for write in range(1, 13) for is_done in (True, False)]
"""The fates of one process of each of the first seeds."""
_STARTED_OR_ENDED = threading.Lock()
"""A process that is started asks for the ends of the others, which only one thread may."""


class Server(NamedTuple):
    """A store, and the environment of its clients."""

    endpoint: str
    variables: dict[str, str]


@pytest.fixture(scope="module", params=["embedded", "ceph"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if request.param == "ceph":
        rados_gateway.require()
    found = (ObjectStore if request.param == "embedded" else rados_gateway.RadosGateway)(tmp_path_factory.mktemp("s"))
    found.start()
    variables = found.variables() if isinstance(found, ObjectStore) else found.variables(tls=False)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (variables | {fence.VARIABLE: ""}).items():
            patch.setenv(name, value)
        if isinstance(found, ObjectStore):
            found.wait_ready("wukong")
        else:
            storage.make_bucket("wukong")
        yield Server(variables["AWS_ENDPOINT_URL_S3"], variables)
    (found.kill if isinstance(found, ObjectStore) else found.stop)()


@pytest.fixture(scope="module")
def forks() -> Any:
    """Forks processes from one that has imported all they need."""
    return multiprocessing.get_context("forkserver")


class Actor:
    """A process that makes or deletes an output.

    Args:
        scene: where it acts.
        name: of its run and of its machine.
        act: from ``lease_actors``.
        fate: for its proxy.
    """

    def __init__(self, scene: "Scene", name: str, act: Callable[..., None] = lease_actors.make, **fate: Any) -> None:
        self.name = name
        self._proxy = LossyProxy(scene.server.endpoint, scene.history, **fate)
        self._said, said = multiprocessing.Pipe(duplex=False)
        variables = scene.server.variables | {"AWS_ENDPOINT_URL_S3": self._proxy.endpoint}
        self._process = scene.forks.Process(target=act, args=(variables, scene.root, name, said))
        with _STARTED_OR_ENDED:
            self._process.start()
        said.close()
        self._proxy.client = self._process.pid
        scene.actors.append(self)

    @property
    def was_killed(self) -> bool:
        return bool(self._process.exitcode == -signal.SIGKILL)

    def says(self) -> str:
        """What it says next; nothing if it was killed."""
        assert self._said.poll(_PATIENCE), f"{self.name} hangs"
        try:
            return self._said.recv_bytes().decode()
        except EOFError:
            return ""

    def send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, number)

    def end(self) -> list[str]:
        """Wait for its end; return what it said that was not heard before."""
        heard = []
        while word := self.says():
            heard.append(word)
        with _STARTED_OR_ENDED:
            self._process.join(_PATIENCE)
        assert self._process.exitcode in (0, -signal.SIGKILL), f"{self.name}: {self._process.exitcode}"
        self._proxy.close()
        return heard


class Scene:
    """One output, the processes that want it, and what the store did of what they wrote."""

    def __init__(self, server: Server, forks: Any, name: str) -> None:
        self.server, self.forks, self.root = server, forks, f"s3://wukong/{name}"
        self.history = History()
        self.actors: list[Actor] = []
        self.uri = lease_actors.stage_of(self.root).uri

    def check(self) -> None:
        """Check what was written, when all have ended."""
        for name, writer in (("/part.json", _of_part), ("/manifest.json", _of_manifest)):
            writers = [each for each, _ in groupby(map(writer, self.history.of(name)))]
            assert len(writers) == len({*writers}), f"who was taken over wrote {name} again: {writers}"
        leases = [json.loads(body) for body in self.history.of(f"/{lease.NAME}")]
        lost = {
            before["attempt"]
            for before, after in pairwise(leases)
            if before["id"] != after["id"] and not before["released"]
        }
        ended = {uri.replace(fence._ENDED, "") for uri in storage.list_files(self.root, f"{fence._ENDED}.json")}
        assert ended <= lost, "nobody is ended whose lease was not taken"
        killed = {actor.name for actor in self.actors if actor.was_killed}
        left = storage.read_version(storage.join(self.uri, lease.NAME))
        if left is not None:
            last = json.loads(left[0])
            assert last["released"] or last["machine"] in killed, f"a lease is left: {last}"


def _of_part(body: bytes) -> str:
    return str(json.loads(body)["by"])


def _of_manifest(body: bytes) -> str:
    return str(json.loads(body)["provenance"]["by"])


@pytest.mark.long
@pytest.mark.parametrize("fate", [{"is_lost": lambda number: number in (3, 4)}, {"kill_at": 3}, {"kill_at": 4}])
def test_who_is_taken_over_is_ended(server: Server, forks: Any, tmp_path: Path, fate: dict[str, Any]) -> None:
    """The answer to the write that takes the lease is lost, or it is the last write of the one who takes it."""
    scene = Scene(server, forks, tmp_path.name)
    stopped = Actor(scene, "a")
    assert stopped.says() == "works"
    stopped.send(signal.SIGSTOP)
    second = Actor(scene, "b", **fate)
    if "kill_at" in fate:
        assert second.says() == ""
        second = Actor(scene, "c")
    assert second.says() == "works"
    stopped.send(signal.SIGCONT)
    assert (second.end(), stopped.end()) == (["has"], ["fenced"])
    scene.check()


@pytest.mark.long
def test_a_deletion_whose_answers_are_lost_leaves_no_lease(server: Server, forks: Any, tmp_path: Path) -> None:
    scene = Scene(server, forks, tmp_path.name)
    assert Actor(scene, "first").end() == ["works", "has"]
    assert Actor(scene, "second", lease_actors.delete, is_lost=lambda number: number < 3).end() == ["deletes", "ended"]
    assert storage.list_files(scene.uri) == []
    scene.check()


def _losses(share: float, drawn: random.Random) -> Callable[[int], bool]:
    """Lose a share of answers, of which at most two follow each other: each costs a longer pause."""
    row = 0

    def is_lost(_: int) -> bool:
        nonlocal row
        row = row + 1 if row < 2 and drawn.random() < share else 0
        return row > 0

    return is_lost


def _play(server: Server, forks: Any, name: str, seed: int) -> None:
    """Let processes whose number, kind and fate the seed says want one output at once."""
    drawn = random.Random(seed)
    scene = Scene(server, forks, f"{name}-{seed}")
    deletes = drawn.random() < 0.3
    if deletes and drawn.random() < 0.5:
        Actor(scene, "first").end()
    timers: list[threading.Timer] = []

    def later(seconds: float, actor: Actor, number: signal.Signals) -> None:
        timers.append(threading.Timer(seconds, actor.send, (number,)))
        timers[-1].start()

    kinds = [lease_actors.make] * drawn.randint(2, 3) + [lease_actors.delete] * deletes
    drawn.shuffle(kinds)
    victim = drawn.randrange(len(kinds)) if seed < len(_KILLS) else None
    for number, act in enumerate(kinds):
        fate: dict[str, Any] = {"is_lost": _losses(drawn.choice([0.0, 0.2, 0.5]), random.Random(f"{seed} {number}"))}
        end = drawn.choice(["killed", "stopped", "stopped", "none"])
        if number == victim or end == "killed":
            fate |= _KILLS[seed] if number == victim else drawn.choice(_KILLS)
        actor = Actor(scene, f"{act.__name__}{number}", act, **fate)
        if end == "stopped":
            stop = drawn.uniform(0.2, 1.0)
            later(stop, actor, signal.SIGSTOP)
            later(stop + drawn.uniform(0.5, 2.0), actor, signal.SIGCONT)
        time.sleep(drawn.choice([0.0, 0.3, 0.8]))
    for timer in timers:
        timer.join()
    for actor in scene.actors:
        actor.end()
    scene.check()


@pytest.mark.long
def test_whatever_is_lost_or_killed_nobody_writes_after_his_successor(
    server: Server, forks: Any, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        seeds = range(int(os.environ.get("WUKONG_SEEDS", 2 * len(_KILLS))))
        played = {seed: threads.submit(_play, server, forks, tmp_path.name, seed) for seed in seeds}
    errors = {seed: error for seed, each in played.items() if (error := each.exception()) is not None}
    assert not errors
