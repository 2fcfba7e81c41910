"""Finding the services of the stack from a process without settings."""

import json
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import wukong
from infra.stack import state
from wukong.errors import ConfigError, StackError
from wukong.runtime import environment, forwarded
from wukong.store import storage

SESSIONS_HOME = environment.home()


@pytest.fixture(autouse=True)
def nothing_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without the variables, in its own folder."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "MLFLOW_", "WUKONG_", "KUBERNETES_")) or name.upper() == "NO_PROXY":
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")


def written(folder: Path, **variables: str) -> Path:
    folder.mkdir(parents=True)
    (folder / environment.FILE).write_text(json.dumps(variables))
    return folder


def test_no_test_sees_the_stack_of_the_checkout() -> None:
    assert not SESSIONS_HOME.is_relative_to(Path(__file__).parents[3])
    assert not SESSIONS_HOME.exists()


def test_the_home_is_named_or_here_or_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.home() == tmp_path / "here" / "below" / ".wukong"
    assert environment.find_home() is None
    above = written(tmp_path / ".wukong")
    assert environment.home() == environment.find_home() == above
    nearer = written(tmp_path / "here" / ".wukong")
    assert environment.home() == nearer
    monkeypatch.setenv("WUKONG_HOME", "../elsewhere")
    assert environment.home() == tmp_path / "here" / "below" / ".." / "elsewhere"


def test_the_last_stack_is_found_but_not_used_as_a_new_home(tmp_path: Path) -> None:
    last = written(tmp_path / "project" / ".wukong")
    state.remember(last)
    assert environment.find_home() == last
    assert environment.home() == tmp_path / "here" / "below" / ".wukong", "a new stack begins here"
    (last / environment.FILE).unlink()
    assert environment.find_home() is None, "it is gone"


def test_all_homes_are_known_the_last_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = (
        written(tmp_path / name / ".wukong", AWS_ENDPOINT_URL_S3=f"http://{name}.test")
        for name in ("1st", "2nd", "3rd")
    )
    for home in (first, second, third, first):
        state.remember(home)
    assert environment.homes() == [first, third, second]
    assert environment.elsewhere() == (f" (looked in {first}; WUKONG_HOME names another home: {third}, {second})"), (
        "the last one is found from here"
    )
    monkeypatch.setenv("WUKONG_HOME", str(second))
    assert environment.elsewhere().startswith(f" (looked in {second};")
    (third / environment.FILE).unlink()
    assert environment.homes() == [first, second]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://2nd.test")
    assert str(first) in environment.elsewhere(), "this stack's own variables"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://mine.test")
    assert environment.elsewhere() == "", "who has a store of their own looks nowhere else"


def test_a_state_folder_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    state.remember(tmp_path)
    assert environment.find_home() is None


def test_homes_that_are_started_at_once_are_all_known(tmp_path: Path) -> None:
    homes = [written(tmp_path / f"{number:02d}" / ".wukong") for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(state.remember, homes))
    assert sorted(environment.homes()) == homes


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("", "a.test=127.0.0.1:9"),
        ("b.test=10.0.0.1:80", "b.test=10.0.0.1:80,a.test=127.0.0.1:9"),
        ("A.test=127.0.0.1:1, b.test=10.0.0.1:80,", "b.test=10.0.0.1:80,a.test=127.0.0.1:9"),
        ("a.test=127.0.0.1:9", "a.test=127.0.0.1:9"),
    ],
)
def test_the_users_own_connect_to_is_kept(monkeypatch: pytest.MonkeyPatch, own: str, expected: str) -> None:
    monkeypatch.setenv("WUKONG_CONNECT_TO", own)
    merged = environment.merged({"WUKONG_CONNECT_TO": "a.test=127.0.0.1:9"})
    assert merged == {"WUKONG_CONNECT_TO": expected}
    monkeypatch.setenv("WUKONG_CONNECT_TO", merged["WUKONG_CONNECT_TO"])
    assert environment.merged({"WUKONG_CONNECT_TO": "a.test=127.0.0.1:9"}) == merged, "merging twice changes nothing"


def test_hosts_without_a_proxy_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "intern.example,127.0.0.1")
    joined = environment.merged({"no_proxy": "127.0.0.1,localhost", "NO_PROXY": "127.0.0.1,localhost"})
    assert set(joined.values()) == {"intern.example,127.0.0.1,localhost"}


def test_variables_in_the_environment_take_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / ".wukong", AWS_ENDPOINT_URL_S3="http://127.0.0.1:1", MLFLOW_TRACKING_URI="http://127.0.0.1:2")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_ROLE_ARN", "KUBERNETES_SERVICE_HOST"):
        with monkeypatch.context() as context:
            context.setenv(name, "x")
            environment.use_for("s3://wukong/x")
            assert "AWS_ENDPOINT_URL_S3" not in os.environ
    environment.use_for("file:///x")
    assert "AWS_ENDPOINT_URL_S3" not in os.environ


@pytest.mark.parametrize(
    ("place", "own", "comes"),
    [
        ("s3://wukong/x", "MLFLOW_TRACKING_URI", {"AWS_ENDPOINT_URL_S3", "RAY_ADDRESS"}),
        ("models:/demo/1", "AWS_PROFILE", {"MLFLOW_TRACKING_URI", "RAY_ADDRESS"}),
        ("runs:/x", "RAY_ADDRESS", {"AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_URI"}),
    ],
)
def test_a_service_of_ones_own_stays_when_the_stack_gives_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, own: str, comes: set[str]
) -> None:
    names = ("AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_URI", "RAY_ADDRESS")
    written(tmp_path / ".wukong", **dict.fromkeys(names, "the stack's"))
    for name in names:  # what the call sets is taken back afterwards
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv(own, "my own")
    environment.use_for(place)
    assert {name for name in names if os.environ.get(name) == "the stack's"} == comes
    assert os.environ[own] == "my own"


def test_a_damaged_file_gives_advice(tmp_path: Path) -> None:
    folder = written(tmp_path / ".wukong")
    for text in ("", "[]", '{"A": 1}', "\x00"):
        (folder / environment.FILE).write_text(text)
        with pytest.raises(ConfigError, match="wukong up"):
            environment.connect()
    with pytest.raises(ConfigError, match="wukong up"):
        environment.connect(tmp_path / "none")


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)


def test_all_functions_that_open_an_address_find_the_stack(tmp_path: Path) -> None:
    """The error message of a store that does not answer contains the address from the stack's file."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        written(
            tmp_path / ".wukong",
            AWS_ENDPOINT_URL_S3=f"http://127.0.0.1:{server.getsockname()[1]}",
            AWS_ACCESS_KEY_ID="a",
            AWS_SECRET_ACCESS_KEY="b",
            AWS_EC2_METADATA_DISABLED="true",
            MLFLOW_TRACKING_URI="http://127.0.0.1:2",
        )
        below = tmp_path / "here" / "below"
        connected = python("import os, wukong; wukong.connect(); print(os.environ['MLFLOW_TRACKING_URI'])", below)
        assert connected.stdout.strip() == "http://127.0.0.1:2", connected.stderr
    asked = python("from wukong.store import storage; storage.exists('s3://wukong/x')", below)
    assert "nothing answers at http://127.0.0.1:" in asked.stderr


def test_a_file_address_needs_no_stack(tmp_path: Path) -> None:
    storage.write_bytes(storage.from_path(tmp_path / "x"), b"1")
    assert storage.read_bytes(storage.from_path(tmp_path / "x")) == b"1"
    assert callable(wukong.connect)


@pytest.mark.parametrize("place", ["s3://wukong/x", "models:/demo/1"])
def test_a_stack_that_is_stopped_is_said_to_be(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        names = ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "MLFLOW_TRACKING_URI")
        home = written(tmp_path / "here" / ".wukong", **dict.fromkeys(names, address))
        for name in names:
            monkeypatch.setenv(name, "")  # put back afterwards
            monkeypatch.delenv(name)
        environment.use_for(place)
        assert os.environ["AWS_ENDPOINT_URL_S3"] == address
    for name in names:
        monkeypatch.delenv(name, raising=False)
    stopped = f"the stack of {home} is stopped, nothing answers at {address}: `wukong up` starts it"
    for connect in (lambda: environment.use_for(place), environment.connect):
        with pytest.raises(StackError, match=re.escape(stopped)):
            connect()
    assert not environment.is_named("s3://"), "nothing is set"


@pytest.mark.parametrize("command", ["runs", "promote demo", "compare a b", "show models:/demo@champion"])
def test_no_command_shows_a_traceback_where_the_stack_is_stopped(tmp_path: Path, command: str) -> None:
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_URI")
    written(tmp_path / "here" / ".wukong", **dict.fromkeys(names, "http://127.0.0.1:9"))
    program = Path(sys.executable).with_name("wukong")
    ended = subprocess.run([program, *command.split()], capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and "is stopped" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr


def _linked_by_another(home: Path) -> None:
    os.lchown(home.rename(home.with_name("real")), 0, 0)
    home.symlink_to(home.with_name("real"))
    os.lchown(home, 65534, 65534)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda home: home.chmod(0o770), "chmod go-w "),
        (lambda home: home.chmod(0o702), "chmod go-w "),
        (lambda home: (home / environment.FILE).chmod(0o620), "chmod go-w "),
        (lambda home: os.chown(home, 65534, 65534), "belongs to "),
        (lambda home: os.chown(home / environment.FILE, 65534, 65534), "belongs to "),
        (_linked_by_another, "belongs to "),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_a_home_that_others_can_write_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None], said: str, named: bool
) -> None:
    home = written(tmp_path / ".wukong", MLFLOW_TRACKING_URI="http://strange.test")
    home.chmod(0o700)
    (home / environment.FILE).chmod(0o600)
    if named:
        monkeypatch.setenv("WUKONG_HOME", str(home))
    try:
        spoil(home)
    except PermissionError:
        pytest.skip("only root gives files to others")
    for use in (environment.connect, lambda: environment.use_for("models:/x"), lambda: environment.connect(home)):
        with pytest.raises(StackError, match=f"{said}.*WUKONG_HOME|WUKONG_HOME.*{said}"):
            use()
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_another_users_home_is_refused_by_whoever_looks_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = written(tmp_path / "project" / ".wukong")
    home.chmod(0o700)
    state.remember(home)
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    for look in (environment.find_home, lambda: environment.make(home), lambda: environment.read_variables(home)):
        with pytest.raises(StackError, match=f"{home} belongs to "):
            look()
    assert environment.home() == Path.cwd() / ".wukong", "nothing is there yet"
    monkeypatch.chdir(tmp_path / "project")
    with pytest.raises(StackError, match="belongs to"):
        environment.home()


def test_a_home_is_made_for_its_user_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made = environment.make(tmp_path / "below" / ".wukong")
    finally:
        os.umask(before)
    assert stat.S_IMODE(made.stat().st_mode) == 0o700


@given(st.text(max_size=20) | st.sampled_from(["PYTHONPATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "PATH", "RAY_X"]))
def test_no_unknown_variable_is_taken_over(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.mktemp("home")
    (folder / environment.FILE).write_text(json.dumps({"DO_NOT_TRACK": "true", name: "x"}))
    if name in forwarded.BY_A_STACK:
        assert name in environment.read_variables(folder)
    else:
        with pytest.raises(ConfigError, match=r"no stack sets .*wukong up"):
            environment.read_variables(folder)


def test_a_program_runs_no_code_of_a_folder_that_all_may_write(tmp_path: Path) -> None:
    """What `nobody` leaves in a shared folder, for a user who works below it and whose program starts another."""
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / "sitecustomize.py").write_text("print('planted')")
    home = written(tmp_path / ".wukong", AWS_ACCESS_KEY_ID="a", PYTHONPATH=str(planted))
    code = (
        "import subprocess, sys\nfrom wukong.runtime import environment, forwarded\n"
        "try:\n    environment.use_for('s3://wukong/x')\nfinally:\n    subprocess.run([sys.executable, '-c', ''])"
    )
    for mode in (0o777, 0o700):
        home.chmod(mode)
        ended = python(code, tmp_path / "here" / "below")
        assert "planted" not in ended.stdout
        assert ("chmod go-w" if mode == 0o777 else "no stack sets ('PYTHONPATH')") in ended.stderr
