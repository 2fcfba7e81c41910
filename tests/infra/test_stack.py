import io
import json
import os
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from PIL import Image

from infra import corpus, stack
from infra.corpus import catalogue
from infra.stack import ports, processes, services, state
from infra.stack.state import Stack, folder_id
from wukong.errors import StackError
from wukong.runtime import environment, forwarded


@pytest.fixture(scope="module", autouse=True)
def noted_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Do not record the last home folder in the state folder of the user who runs the tests."""
    with pytest.MonkeyPatch.context() as context:
        context.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


def marked(home: Path, service: str | None = None) -> dict[int, str]:
    found = processes.find(folder_id(home), services.scratch(home), service and {service})
    return {marked.process.pid: marked.service for marked in found}


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a separate process, like a user of the stack."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def starter(home: Path) -> subprocess.Popen[bytes]:
    """A process that starts the stack and then keeps running."""
    code = f"import pathlib, time; from infra import stack; stack.up(pathlib.Path({str(home)!r})); time.sleep(600)"
    return subprocess.Popen([sys.executable, "-c", code])


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.05)


def all_run(home: Path) -> bool:
    return all(running for name, running, _ in stack.status(home) if "search" not in name)


# --- Tests without servers --------------------------------------------------------------------------------------------


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """Start marked processes that are not services."""
    started = []

    def start(code: str, service: str = "mlflow") -> "subprocess.Popen[bytes]":
        marks = {processes.MARK: folder_id(tmp_path), processes.SERVICE_MARK: service}
        process = subprocess.Popen(
            [sys.executable, "-c", f"{code}\nprint(1, flush=True)\nimport time; time.sleep(600)"],
            env={**os.environ, **marks},
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdout is not None
        process.stdout.readline()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_down_stops_processes_without_parent_and_those_that_ignore_sigterm(
    tmp_path: Path, fake: Callable[..., "subprocess.Popen[bytes]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_GRACE", 1.0)
    monkeypatch.setattr(processes, "_RAY_GRACE", 0.5)
    fake("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    parent = fake("import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])")
    parent.kill()
    parent.wait()
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        assert len(marked(tmp_path)) == 2
        assert stack.down(tmp_path) == 2
        assert marked(tmp_path) == {}
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_process_that_executes_another_program_meanwhile_is_stopped_too(
    tmp_path: Path, fake: Callable[..., "subprocess.Popen[bytes]"]
) -> None:
    process, searches = fake(""), list[int]()

    def search() -> list[processes.Marked]:
        searches.append(0)
        everything = processes.find(folder_id(tmp_path), services.scratch(tmp_path))
        return [] if len(searches) == 1 else everything

    assert processes.stop(search) == 1, "the first search cannot read its environment"
    assert process.poll() is not None


def test_only_what_is_asked_for_is_started_and_the_rest_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    stopped: list[str] = []
    monkeypatch.setattr(services.Service, "runs", lambda self, _stack: self.name == "seaweedfs" and bool(started))
    monkeypatch.setattr(services, "start", lambda _stack, missing: started.append([each.name for each in missing]))
    monkeypatch.setattr(stack, "_stop", lambda _stack, names: stopped.extend(names or ["all"]))
    ports = stack.up(tmp_path).ports
    stopped.clear()
    assert stack.up(tmp_path, only=stack.STORES).ports == ports
    assert stopped == ["mlflow"], "what may run beside the stores is left alone"
    stack.up(tmp_path)
    assert started == [["seaweedfs", "mlflow", "ray"], ["mlflow"], ["mlflow", "ray"]]


@pytest.mark.parametrize(
    ("made", "stays"),
    [
        ("", False),
        ("CREATE TABLE runs (id)", False),
        ("CREATE TABLE runs (id); INSERT INTO runs VALUES (1)", True),
        ("CREATE TABLE runs (id); CREATE TABLE registered_models (id); INSERT INTO registered_models VALUES (1)", True),
    ],
)
def test_a_database_with_nothing_in_it_is_made_again(tmp_path: Path, made: str, stays: bool) -> None:
    """An interrupted creation leaves some of MLflow's tables, which MLflow does not go on from."""
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        connection.executescript(made)
    services.Tracking().prepare(Stack(tmp_path, "a", "b", "c", {}))
    assert (tmp_path / "mlflow.db").exists() == stays


def test_ray_workers_are_found_by_the_session_they_write_to(tmp_path: Path) -> None:
    # Ray's workers overwrite their environment with their title, so the mark cannot be read from them.
    session = services.scratch(tmp_path) / "ray"
    session.mkdir(parents=True)
    code = (
        "import ray._raylet, time, sys; ray._raylet.setproctitle('ray::train' + ' ' * 100)\n"
        f"log = open({str(session / 'worker.out')!r}, 'w'); print(1, flush=True); time.sleep(600)"
    )
    worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert worker.stdout is not None
        worker.stdout.readline()
        assert marked(tmp_path) == {worker.pid: "ray"}
        assert marked(tmp_path / "other") == {}
        assert stack.down(tmp_path) == 1
        assert worker.wait(120) == -signal.SIGTERM
        assert not services.scratch(tmp_path).exists()
    finally:
        worker.kill()
        worker.wait()


def test_without_a_stack(tmp_path: Path) -> None:
    assert stack.down(tmp_path / "none") == 0
    assert not (tmp_path / "none").exists()
    assert [running for _, running, _ in stack.status(tmp_path)] == [False] * 4
    with pytest.raises(StackError, match="wukong up"):
        stack.load(tmp_path)


def test_home_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WUKONG_HOME", raising=False)
    assert environment.home() == tmp_path / ".wukong"
    monkeypatch.setenv("WUKONG_HOME", "elsewhere")
    assert environment.home() == tmp_path / "elsewhere"


def test_a_damaged_record_gives_advice(tmp_path: Path) -> None:
    for text in ("", "{}", "[1]", '{"ports": {"s3": "x"}}', "\x00"):
        (tmp_path / "stack.json").write_text(text)
        with pytest.raises(StackError, match=r"delete that file"):
            stack.up(tmp_path)
        assert stack.down(tmp_path) == 0


def test_a_full_disk_gives_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2**30})())
    with pytest.raises(StackError, match=r"1\.0 GiB free .* needs 2.* WUKONG_HOME"):
        stack.up(tmp_path)


def test_the_object_store_leaves_the_room_without_which_it_reclaims_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "seaweedfs").mkdir()
    for number, size in enumerate((100, 200 << 20, 128 << 20)):  # one to be filled, and one that is larger
        with (tmp_path / "seaweedfs" / f"wukong_{number}.dat").open("wb") as volume:
            volume.truncate(size)
    for free_gib in (0.5, 2, 20, 500):
        free = int(free_gib * 2**30)
        monkeypatch.setattr(services.shutil, "disk_usage", lambda _, free=free: type("Usage", (), {"free": free})())
        command = services.ObjectStore().command(saved_stack(tmp_path / f"{free_gib}"))
        given = dict(argument.split("=", 1) for argument in command if "=" in argument)
        assert int(given["-volume.max"]) >= 3, "both buckets, and what is in none"
        volume = int(given["-master.volumeSizeLimitMB"]) << 20
        room, at_once = services.volumes(tmp_path), int(given["-master.maxParallelVacuumPerServer"])
        grown = (room - 3) * volume + volume - 100
        assert free_gib < 2 or free - grown >= (1 + at_once) * volume
        assert free_gib < 2 or grown >= 0.9 * (free - (2 + at_once) * volume), "the rest is of use"


def test_an_unusable_home_gives_advice(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for home in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StackError, match="WUKONG_HOME"):
            stack.up(home)


@pytest.mark.parametrize("program", ["weed", "mlflow", "ray"])
def test_a_missing_program_gives_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in {"weed", "mlflow", "ray", "python"} - {program}:
        (programs / name).write_text("#!/bin/sh\nexec sleep 600\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setattr(services.sys, "executable", str(programs / "python"))
    home = tmp_path / "home"
    with pytest.raises(StackError, match=rf"{program}' is not installed: pip install"):
        stack.up(home)
    assert marked(home) == {}


def test_a_service_that_crashes_shows_its_log_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, script in {
        "weed": "exec sleep 600",
        "ray": "exec sleep 600",
        "mlflow": "",
        "python": "echo the reason; exit 3",
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setattr(services.sys, "executable", str(programs / "python"))
    home = tmp_path / "home"
    with pytest.raises(StackError, match=r"(?s)MLflow ended with status 3.*mlflow\.log:.*the reason"):
        stack.up(home)
    assert marked(home) == {}
    assert not services.scratch(home).exists()


def test_a_service_that_never_answers_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("weed", "ray", "mlflow", "python"):
        (programs / name).write_text("#!/bin/sh\nexec sleep 600\n")
        (programs / name).chmod(0o755)
    monkeypatch.setattr(services.sys, "executable", str(programs / "python"))
    monkeypatch.setattr(services, "_READY_SECONDS", 0.5)
    home = tmp_path / "home"
    with pytest.raises(StackError, match=r"object store .* did not answer within"):
        stack.up(home)
    assert marked(home) == {}


def test_up_waits_for_another_up_longer_than_a_start_may_take() -> None:
    # The other one stops what ran before, starts all services at a time, and stops them again if one does not answer.
    assert state._LOCK_SECONDS > 2 * services._READY_SECONDS


def test_up_waits_for_another_up_and_then_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "_NOTICE_SECONDS", 0.1)
    monkeypatch.setattr(state, "_LOCK_SECONDS", 0.5)
    code = (
        f"import pathlib, time; from infra.stack.state import locked\n"
        f"with locked(pathlib.Path({str(tmp_path)!r})): print(1, flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        for command in (stack.up, stack.down):
            with pytest.raises(StackError, match="another `wukong up`"):
                command(tmp_path)
    finally:
        holder.kill()
        holder.wait()
    assert stack.down(tmp_path) == 0, "the lock goes with its holder"


def new_stack(home: Path, **taken: int) -> Stack:
    return Stack(home, "key", "secret", "token", taken)


def test_ports_are_kept_while_they_are_free(tmp_path: Path) -> None:
    first = ports.choose_ports(new_stack(tmp_path), (), {})
    assert len(set(first.values())) == len(first)
    assert all(20_000 <= port < 30_000 for port in first.values())
    again = new_stack(tmp_path, **first)
    assert ports.choose_ports(again, (), {}) == first
    with socket.create_server(("127.0.0.1", first["mlflow"])):
        moved = ports.choose_ports(again, (), {})
        assert moved["mlflow"] != first["mlflow"]
        assert {**moved, "mlflow": 0} == {**first, "mlflow": 0}
        assert ports.choose_ports(again, {"mlflow"}, {}) == first, "a service that runs holds its own port"


def test_a_port_that_listens_on_every_address_is_not_free() -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        assert not ports.is_free(server.getsockname()[1])


def test_a_requested_port_is_used_or_refused(tmp_path: Path) -> None:
    first = ports.choose_ports(new_stack(tmp_path), (), {})
    again = new_stack(tmp_path, **first)
    wanted = first["mlflow"]
    chosen = ports.choose_ports(again, (), {"s3": wanted})
    assert chosen["s3"] == wanted
    assert len(set(chosen.values())) == len(chosen)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(StackError, match=rf"port {port}, asked for mlflow, is in use by .* \(pid {os.getpid()}\)"):
            ports.choose_ports(again, (), {"mlflow": port})
    with pytest.raises(StackError, match="wukong down"):
        ports.choose_ports(again, {"mlflow"}, {"mlflow": first["s3"]})
    with pytest.raises(StackError, match="no port named web"):
        ports.choose_ports(again, (), {"web": 1})
    for port in (0, 70_000):
        with pytest.raises(StackError, match="is not a port"):
            ports.choose_ports(again, (), {"s3": port})


def saved_stack(home: Path) -> Stack:
    home.mkdir(parents=True)
    made = new_stack(home, **ports.choose_ports(new_stack(home), (), {}))
    made.save()
    return made


def test_a_users_hosts_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = saved_stack(tmp_path / "home")
    site = f"{corpus.HOST}=127.0.0.1:{made.ports['site']}"
    monkeypatch.setenv("WUKONG_CONNECT_TO", "mine.test=127.0.0.1:80")
    monkeypatch.setenv("no_proxy", "intern.example")
    assert made.environment()["WUKONG_CONNECT_TO"] == f"mine.test=127.0.0.1:80,{site}"
    assert made.environment()["NO_PROXY"].split(",") == ["intern.example", "127.0.0.1", "localhost", corpus.HOST]
    written = json.loads((made.home / "environment.json").read_text())
    assert written == made.variables() == environment.read_variables(made.home)
    assert written.keys() == set(forwarded.BY_A_STACK)
    assert written["WUKONG_CONNECT_TO"] == site, "what is written down is the stack's alone"
    assert stat.S_IMODE((made.home / "environment.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("named", [True, False])
def test_env_and_status_work_from_any_folder(tmp_path: Path, named: bool) -> None:
    made = saved_stack(tmp_path / "project" / ".wukong")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "WUKONG_", "MLFLOW_"))}
    clean["XDG_STATE_HOME"] = str(tmp_path / "state")
    if named:
        clean["WUKONG_HOME"] = str(made.home)
    else:
        (tmp_path / "state" / "wukong").mkdir(parents=True)
        (tmp_path / "state" / "wukong" / "home").write_text(f"{made.home}\n")

    def wukong(*arguments: str) -> str:
        command = [str(Path(sys.executable).with_name("wukong")), *arguments]
        ended = subprocess.run(command, cwd=elsewhere, env=clean, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    assert f"Home  {made.home}\n" in wukong("status")
    printed = dict(line.split("=", 1) for line in wukong("env").splitlines())
    assert printed["AWS_SECRET_ACCESS_KEY"] == "secret"
    assert printed["MLFLOW_TRACKING_URI"] == made.url("mlflow")
    exported = subprocess.run(
        ["sh", "-c", f'{wukong("env", "--shell")}\nprintf %s "$WUKONG_CONNECT_TO"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert exported.stdout == made.environment()["WUKONG_CONNECT_TO"]
    assert list(elsewhere.iterdir()) == []


# --- Tests with the real servers --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    Image.new("RGB", (300, 300), "red").save(folder / "a.png")
    entry = corpus.Entry("noto", "/noto/a.png", "a.png", "红色", ("颜色",), "MIT", 300, 300, "image/png")
    return catalogue._write([entry], folder)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, small_catalogue: Path) -> Iterator[Stack]:
    home = tmp_path_factory.mktemp("home") / ".wukong"
    yield stack.up(home, small_catalogue)
    stack.down(home)
    assert marked(home) == {}


@pytest.fixture
def own_home(tmp_path: Path) -> Iterator[Path]:
    home = tmp_path / ".wukong"
    yield home
    stack.down(home)


def s3(running: Stack, secret: str | None = None, key: str | None = None) -> object:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=running.url("s3"),
        aws_access_key_id=key or running.access_key,
        aws_secret_access_key=secret or running.secret_key,
        region_name="us-east-1",
        config=Config(retries={"max_attempts": 8, "mode": "standard"}),
    )


@pytest.mark.slow
class TestRunning:
    def test_every_service_runs(self, running: Stack) -> None:
        assert [run for _, run, _ in stack.status(running.home)] == [True] * 4
        assert stack.load(running.home) == running

    def test_objects_can_be_read_back_and_need_credentials(self, running: Stack) -> None:
        from botocore.exceptions import ClientError

        client = s3(running)
        assert {bucket["Name"] for bucket in client.list_buckets()["Buckets"]} >= {"wukong", "mlflow"}
        data = os.urandom(3_000_000)
        client.put_object(Bucket="wukong", Key="测试/猫.bin", Body=data)
        assert client.get_object(Bucket="wukong", Key="测试/猫.bin")["Body"].read() == data
        for stranger in (s3(running, secret="wrong"), s3(running, key="wrong")):
            with pytest.raises(ClientError, match=r"403|Forbidden|SignatureDoesNotMatch|InvalidAccessKeyId"):
                stranger.get_object(Bucket="wukong", Key="测试/猫.bin")
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{running.url('s3')}/wukong/?list-type=2", timeout=120)

    def test_storage_needs_only_the_environment(self, running: Stack) -> None:
        code = (
            "from wukong.store import storage\n"
            "storage.write_json('s3://wukong/a/b.json', {'词': 1})\n"
            "print(storage.read_json('s3://wukong/a/b.json'), storage.list_files('s3://wukong/a'))"
        )
        done = python(code, **running.environment())
        assert done.stdout.strip() == "{'词': 1} ['s3://wukong/a/b.json']", done.stderr

    def test_buckets_that_are_missing_are_made_once(self, running: Stack) -> None:
        code = (
            "import logging; from infra import cluster\n"
            "logging.basicConfig(level='INFO'); cluster.make_buckets(['new'])"
        )
        said = [python(code, **running.environment()).stderr for _ in range(2)]
        assert ["bucket new made" in said[0], "bucket new is there" in said[1]] == [True, True], said
        assert "new" in {bucket["Name"] for bucket in s3(running).list_buckets()["Buckets"]}

    def test_a_program_without_settings_finds_it_from_any_folder(self, running: Stack, tmp_path: Path) -> None:
        code = (
            "from wukong.store import storage; import os, wukong\n"
            "storage.write_bytes('s3://wukong/found.txt', b'x'); print(storage.read_bytes('s3://wukong/found.txt'))\n"
            "wukong.connect(); print(os.environ['MLFLOW_TRACKING_URI'])"
        )
        told = ("AWS_", "MLFLOW_", "RAY_", "WUKONG_")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(told)}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=clean, capture_output=True, text=True, check=False
        )
        assert done.stdout.split() == ["b'x'", running.url("mlflow")], done.stderr

    def test_mlflow_keeps_artifacts_in_the_object_store(self, running: Stack, tmp_path: Path) -> None:
        code = (
            "import mlflow\n"
            "with mlflow.start_run() as run:\n"
            "    mlflow.log_metric('recall', 0.5); mlflow.log_text('内容', 'note.txt')\n"
            "print(mlflow.artifacts.load_text(run.info.artifact_uri + '/note.txt'), run.info.artifact_uri)"
        )
        clean = {name: value for name, value in running.environment().items() if not name.startswith("AWS_")}
        done = python(code, **clean)
        text, uri = done.stdout.split()[-2:]
        assert text == "内容", done.stderr
        assert uri.startswith("mlflow-artifacts:"), "clients need no credentials of the store"
        listed = s3(running).list_objects_v2(Bucket="mlflow")["Contents"]
        assert any(item["Key"].endswith("note.txt") for item in listed)
        request = urllib.request.Request(
            f"{running.url('mlflow')}/api/2.0/mlflow/experiments/search?max_results=1", headers={"Host": "evil.example"}
        )
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(request, timeout=120)

    @pytest.mark.long
    def test_ray_runs_tasks_only_with_the_token(self, running: Stack) -> None:
        code = (
            "import os, ray\n"
            "from ray_jobs import connection\n"
            "ray.init(log_to_driver=False)\n"
            "@ray.remote\n"
            "def seen(): return os.environ['AWS_ENDPOINT_URL_S3'], 'AWS_SECRET_ACCESS_KEY' in os.environ, os.nice(0)\n"
            "print(ray.get(seen.remote()), ray.cluster_resources()['CPU'], connection.is_this_machine())"
        )
        done = python(code, **running.environment())
        priority = os.environ[services.NICENESS]  # conftest.py's, not Ray's own
        told = f"('{running.url('s3')}', True, {priority}) {os.cpu_count()}.0 True"
        assert done.stdout.strip().endswith(told), done.stderr
        refused = python(code, **running.environment() | {"RAY_AUTH_TOKEN": "0" * 64})
        assert refused.returncode != 0
        assert refused.stdout.strip() == ""

    def test_the_search_site_answers(self, running: Stack) -> None:
        with urllib.request.urlopen(f"{running.url('site')}/search/acjson?word=%E7%BA%A2", timeout=120) as response:
            assert "红色" in json.loads(response.read())["data"][0]["fromPageTitleEnc"]
        host, _, target = running.environment()["WUKONG_CONNECT_TO"].partition("=")
        assert (host, f"http://{target}") == (corpus.HOST, running.url("site"))

    def test_nothing_listens_beyond_loopback(self, running: Stack) -> None:
        found = marked(running.home)
        listening = [c for c in psutil.net_connections("inet") if c.status == psutil.CONN_LISTEN and c.pid in found]
        assert {found[c.pid] for c in listening} == {"seaweedfs", "mlflow", "ray", "site"}
        assert {c.laddr.ip for c in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
        # Ray's agent is part of its extra "default"; if that is not installed, nothing listens on its port.
        used = {port for name, port in running.ports.items() if name != "ray_agent"}
        assert used <= {c.laddr.port for c in listening}

    def test_secrets_are_readable_only_by_their_owner(self, running: Stack) -> None:
        held = (running.access_key, running.secret_key, running.ray_token, running.mlflow_token)
        for pid in marked(running.home):
            command = " ".join(psutil.Process(pid).cmdline())
            assert not any(secret in command for secret in held)
        for file in (*(running.home / "logs").iterdir(), *services.scratch(running.home).rglob("*.[loe][our][gtr]")):
            assert not any(secret in file.read_text(errors="replace") for secret in held), file
        for path in (running.home, services.scratch(running.home)):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
        for name in ("stack.json", "s3.json", "environment.json", "weed/key.pem", "weed/security.toml"):
            assert stat.S_IMODE((running.home / name).stat().st_mode) == 0o600

    def test_up_again_changes_nothing(self, running: Stack) -> None:
        before = set(marked(running.home))
        assert stack.up(running.home) == running
        assert set(marked(running.home)) >= before
        with pytest.raises(StackError, match="wukong down"):
            stack.up(running.home, ports={"mlflow": 9})

    def test_a_killed_service_is_restarted_on_its_port(self, running: Stack) -> None:
        s3(running).put_object(Bucket="wukong", Key="kept", Body=b"as it was")
        before = marked(running.home)
        (weed,) = (pid for pid, service in before.items() if service == "seaweedfs")
        os.kill(weed, signal.SIGKILL)
        wait_for(lambda: not stack.status(running.home)[0][1])
        assert [run for _, run, _ in stack.status(running.home)] == [False, True, True, True]
        assert stack.up(running.home) == running
        assert s3(running).get_object(Bucket="wukong", Key="kept")["Body"].read() == b"as it was"
        after = marked(running.home)
        assert weed not in after
        assert {pid for pid, service in before.items() if service in {"mlflow", "site"}} <= set(after)

    def test_another_catalogue_restarts_only_the_site(self, running: Stack, tmp_path: Path) -> None:
        Image.new("RGB", (300, 300), "blue").save(tmp_path / "b.png")
        entry = corpus.Entry("noto", "/noto/b.png", "b.png", "蓝色", (), "MIT", 300, 300, "image/png")
        before = marked(running.home)
        stack.up(running.home, catalogue._write([entry], tmp_path))
        with urllib.request.urlopen(f"{running.url('site')}/noto/b.png", timeout=120) as response:
            assert Image.open(io.BytesIO(response.read())).size == (300, 300)
        assert {p for p, s in before.items() if s in {"seaweedfs", "mlflow"}} <= set(marked(running.home))


@pytest.mark.long
def test_kills_leave_no_process_and_keep_the_data(own_home: Path) -> None:
    process = starter(own_home)
    try:
        wait_for(lambda: process.poll() is not None or all_run(own_home))
        held = stack.load(own_home)
        s3(held).put_object(Bucket="wukong", Key="kept", Body=b"as it was")
        code = (
            "import ray, time, os\n"
            "ray.init(log_to_driver=False)\n"
            "@ray.remote\n"
            "def forever(): time.sleep(600)\n"
            "tasks = [forever.remote() for _ in range(2)]; time.sleep(3); os._exit(0)"
        )
        assert python(code, **held.environment()).returncode == 0
    finally:
        process.kill()
        process.wait()
    victims = [pid for pid, service in marked(own_home).items() if service in {"seaweedfs", "ray"}]
    for pid in victims[::2]:
        os.kill(pid, signal.SIGKILL)
    before = [psutil.Process(pid) for pid in marked(own_home)]
    assert stack.down(own_home) > 0
    assert marked(own_home) == {}
    assert not [p for p in before if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not services.scratch(own_home).exists()
    assert stack.down(own_home) == 0
    again = stack.up(own_home)
    assert again == held, "the same addresses and credentials"
    assert s3(again).get_object(Bucket="wukong", Key="kept")["Body"].read() == b"as it was"


@pytest.mark.long
@pytest.mark.parametrize("seconds", [0.5, 3.0])
def test_down_finds_the_processes_of_a_killed_start(own_home: Path, seconds: float) -> None:
    process = starter(own_home)
    wait_for(lambda: bool(marked(own_home)))
    time.sleep(seconds)
    process.kill()
    process.wait()
    assert marked(own_home)
    stack.down(own_home)
    assert marked(own_home) == {}


@pytest.mark.long
def test_two_starts_at_a_time_give_one_stack(own_home: Path) -> None:
    code = f"import pathlib; from infra import stack; print(stack.up(pathlib.Path({str(own_home)!r})).environment())"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {process.communicate()[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(answers) == 1
    assert list(marked(own_home).values()).count("seaweedfs") == 1


@pytest.mark.slow
def test_ctrl_c_while_starting_leaves_nothing(own_home: Path) -> None:
    process = starter(own_home)
    wait_for(lambda: len(set(marked(own_home).values())) == 3)
    process.send_signal(signal.SIGINT)
    assert process.wait(240) != 0
    assert marked(own_home) == {}


def test_ray_gives_out_metrics_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = services.Compute()
    there = new_stack(tmp_path, **dict.fromkeys(ray.ports, 20_000))
    monkeypatch.delenv(services.METRICS_PORT, raising=False)
    assert ray.environment(there)["RAY_enable_metrics_collection"] == "0"
    assert not [option for option in ray.command(there) if option.startswith("--metrics")]
    monkeypatch.setenv(services.METRICS_PORT, "9190")
    assert not {"RAY_enable_metrics_collection", "REPORTER_UPDATE_INTERVAL_MS"} & ray.environment(there).keys()
    assert "--metrics-export-port=9190" in ray.command(there)
    assert "--node-ip-address=127.0.0.1" in ray.command(there), "so that the port is on loopback"
