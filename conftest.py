"""What all tests share: no property test fails because the machine is busy; processes; variables; servers.

Not in ``tests/``: that folder would come before the packages whose names its folders have.
"""

import gc
import multiprocessing
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from hypothesis import settings

from wukong.store import patience

if TYPE_CHECKING:
    from mlflow_server import MlflowServer
    from object_store import ObjectStore

settings.register_profile("wukong", deadline=None)
settings.load_profile("wukong")

# Tests read English, whatever the locale of the machine.
os.environ["LANGUAGE"] = "en"
# A home that a group may write is refused, and many accounts make such folders.
os.umask(0o022)
# Threads of OpenMP that wait for work sleep: where more processes compute than there are cores, those that wait in a
# loop take the cores from those that work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# And there are more processes than cores already: each computes with one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A Ray of the tests, as that of the embedded stack, spends no core on what nobody reads.
os.environ.setdefault("RAY_LOG_MONITOR_MANY_FILES_THRESHOLD", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
# Nor do its workers, in which most of a long test goes on, wait for all that other tests do.
os.environ.setdefault("RAY_worker_niceness", "0")
# And none is started by a call that forgot to name one: it would stay, and take the jobs of later tests.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")

# What a shell begins in the background ignores Ctrl-C, and so do its children, among them those that tests send it to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Imports are most of what a process of a test does: they are done once, in the process from which all are forked. It is
# one for all tests, with one list, and finds no module of the folders of tests.
_FORKED = "wukong.train.loop wukong.model.dual torch._dynamo timm.optim pytest hypothesis boto3 polars"
_FORKED += " wukong.publish.takedown wukong.publish.release wukong.publish.unneeded wukong.crawl.attempt"
multiprocessing.set_forkserver_preload(_FORKED.split())

_KILLS = ("crawl", "filter", "exchange_job", "training_kills")
_GROUPS = {
    "runs": ("tests/end_to_end/", "tests/examples/"),
    **{name: (f"tests/ray_jobs/test_{name}.py",) for name in _KILLS},
    "ray": ("tests/ray_jobs/",),
    "commands": ("tests/cli/", "tests/docs/", "tests/infra/"),
}
"""Folders and files whose tests start Ray, by the process that has them; the first that fits. Slow ones start it most
often in a stack of their own. Those that kill it again and again wait much, and each takes minutes: they fill gaps."""
_ORDER = ("runs", "ray", "fast", "commands", *_KILLS, "slow")
"""What begins when. The two groups that take longest do at once, so that no process is left with one alone at the end;
the others' first tests are the fast ones, so that what most changes break is seen early."""


SESSION = "SESSION_OF_TESTS"
"""In the environment of whatever a session of tests starts; inherited, so also of what these processes start. Tests
that leave out variables leave out those of products, such as ``WUKONG_``."""


def pytest_configure(config: pytest.Config) -> None:
    """Name the session to all that it starts, hide the user's own stacks, and print each failure when it happens."""
    if not hasattr(config, "workerinput"):
        os.environ[SESSION] = str(os.getpid())
        state = tempfile.TemporaryDirectory(prefix="wukong-tests-")
        config.add_cleanup(state.cleanup)
        os.environ["XDG_STATE_HOME"] = state.name
        # Else commands find the stack that the user has begun in the checkout, or see that it is stopped.
        os.environ["WUKONG_HOME"] = f"{state.name}/home"
        config.pluginmanager.register(_Failures(config))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Import without looking for garbage: what is imported stays, and the look takes a sixth of the collection."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


class _Failures:
    """Prints failures beside the dots; pytest itself prints them when all tests have ended."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal:
            terminal.write_line(f"\n{report.when} of {report.nodeid} failed\n{report.longreprtext}\n")


def pytest_unconfigure(config: pytest.Config) -> None:
    """End what the tests have left: after Ctrl-C, xdist ends its processes before their fixtures do."""
    gc.unfreeze()
    if hasattr(config, "workerinput"):
        return
    for process in psutil.process_iter():
        try:
            if process.environ().get(SESSION) == str(os.getpid()):
                process.kill()
        except psutil.Error:
            continue


def _scope(nodeid: str) -> str:
    starts_ray = (name for name, starts in _GROUPS.items() if nodeid.startswith(starts))
    return next(starts_ray, nodeid.partition("::")[0])


@pytest.hookimpl(trylast=True)  # when those that -m leaves out are gone
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by group; what is in none is fast or, if it has a slow test, slow."""
    slow = {_scope(item.nodeid) for item in items for mark in ("slow", "long") if item.get_closest_marker(mark)}

    def place(item: pytest.Item) -> int:
        scope = _scope(item.nodeid)
        return _ORDER.index(scope if scope in _GROUPS else "slow" if scope in slow else "fast")

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give a file's tests to one process. Of those that start Ray, few go on at once: each takes all cores.

    xdist's groups do nothing with pytest 9.2: xdist 3.8 writes them where this pytest does not read.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _scope(nodeid)

    return ByFile(config, log)


@pytest.fixture(autouse=True)
def own_variables() -> Iterator[None]:
    """Environment variables that a test sets, or what it calls, are gone after it, and so are places of modules.

    So is the patience with the store, which commands choose for their process. MLflow leaves the code of each model
    that it loads in ``sys.path``, where processes of later tests find it first.
    """
    variables, places = dict(os.environ), list(sys.path)
    yield
    # Only what has changed: threads of libraries, such as those that resolve names for libcurl, read variables at any
    # time, and the C library has no lock for them.
    # Ray sets its mode when it starts, and the Ray that tests share asks all that connect later for it.
    for name in os.environ.keys() - variables.keys() - {"RAY_AUTH_MODE"}:
        del os.environ[name]
    for name, value in variables.items() - os.environ.items():
        os.environ[name] = value
    sys.path[:] = places
    patience.set_default(patience.STAGES)


@pytest.fixture(scope="session")
def mlflow_of_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator["MlflowServer"]:
    """A real MLflow server without users, which takes ten seconds to start."""
    from mlflow_server import running

    with running(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture
def mlflow_server(mlflow_of_all: "MlflowServer") -> Iterator["MlflowServer"]:
    """That server, which a test may kill and start again. Each test needs names of its own."""
    yield mlflow_of_all
    mlflow_of_all.ensure_ready()


@pytest.fixture
def mlflow_address(mlflow_server: "MlflowServer") -> str:
    """Its address."""
    return mlflow_server.address


@pytest.fixture(scope="session")
def object_store_of_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator["ObjectStore"]:
    """A real object store, which takes four seconds to start; a test that kills one has its own."""
    from object_store import ObjectStore

    server = ObjectStore(tmp_path_factory.mktemp("store") / "weed")
    server.start()
    server.wait_ready("wukong")
    yield server
    server.kill()


@pytest.fixture
def object_store(object_store_of_all: "ObjectStore", monkeypatch: pytest.MonkeyPatch) -> str:
    """A place of the test's own in that store, which the environment names."""
    for name, value in object_store_of_all.variables().items():
        monkeypatch.setenv(name, value)
    return f"s3://wukong/{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real browser. Its driver has an event loop, which tests of other modules must not find running."""
    from chromium import running

    with running() as started:
        yield started
