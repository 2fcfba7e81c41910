"""Components and Ray in real containers, if there is a Docker engine and `make images` was run."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kfp import dsl

from components.container_image import DATA_IMAGE
from infra import containers
from pipelines import local
from ray_jobs.launch import job_api
from wukong.errors import StackError
from wukong.runtime import events


def _missing() -> str:
    try:
        containers.check_images(DATA_IMAGE, containers.RAY_IMAGE)
    except StackError as error:
        return str(error)
    return ""


pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(_missing()), reason=_missing() or "nothing is missing")]


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
def look(note: dsl.Output[dsl.Artifact]) -> str:
    import os
    from pathlib import Path

    import wukong

    Path(note.path).parent.mkdir(parents=True, exist_ok=True)
    Path(note.path).write_text("written", encoding="utf-8")
    try:
        Path("/opt/wukong/x").touch()
    except OSError as error:
        print(f"cannot write: {error.strerror}")
    print(f"user {os.getuid()}, {os.environ['SHOWN']}, code in {wukong.__path__[0]}")
    return "done"


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
def check(note: dsl.Input[dsl.Artifact]) -> None:
    from pathlib import Path

    print(f"the note is {Path(note.path).read_text(encoding='utf-8')}")


@dsl.pipeline
def looking() -> None:
    check(note=look().outputs["note"])


def test_components_run_as_pods_do(tmp_path: Path) -> None:
    log = io.StringIO()
    local.run_in_containers(looking, {}, tmp_path / "kfp", log, {"SHOWN": "悟空"})
    said = log.getvalue()
    assert f"user {os.getuid() or 1000}, 悟空, code in /opt/wukong/" in said
    assert "cannot write: Read-only file system" in said
    assert "the note is written" in said


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
def tell() -> None:
    from wukong.runtime import events

    with events.stage("crawl"):
        events.write(events.Advanced(what="download", done=1, total=2, unit="pictures", rate=1.0))


@dsl.pipeline
def telling() -> None:
    tell()


def test_components_in_containers_tell_their_events(tmp_path: Path) -> None:
    with events.received(tmp_path / "kfp" / "events.jsonl") as reader:
        variables = {events.VARIABLE: str(reader.path)}
        local.run_in_containers(telling, {}, tmp_path / "kfp", io.StringIO(), variables)
        assert [event.kind for event in reader.new()] == ["begun", "advanced", "ended"]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef", "NO_PROXY": "127.0.0.1"}
    with (
        pytest.MonkeyPatch.context() as patch,
        containers.ray_head(environment, tmp_path_factory.mktemp("run")) as address,
    ):
        for name, value in environment.items():
            patch.setenv(name, value)
        yield address


def test_a_real_head_runs_a_job_and_returns_its_log(head: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert job_api.run_job(["--help"], {"MLFLOW_RUN_ID": "abc"}, head) == 0
    assert "usage: python -m ray_jobs" in capsys.readouterr().out


def test_a_real_head_reports_a_failed_command(head: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert job_api.run_job(["no-such-stage"], {}, head) == 1
    assert "invalid choice: 'no-such-stage'" in capsys.readouterr().out


def test_a_real_head_requires_its_token(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "fedcba9876543210")
    with pytest.raises(job_api.JobApiError, match=r"answers 40[13]"):
        job_api.run_job(["--help"], {}, head)


def test_containers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    import docker

    client = docker.from_env()
    for home in ("mine", "mine-too"):
        labels = {containers.LABEL: str(tmp_path / home / "runs" / "r" / "ray")}
        client.containers.run(DATA_IMAGE, ["sleep", "60"], detach=True, init=True, labels=labels)
    assert containers.down(tmp_path / "mine") == 1
    assert containers.down(tmp_path / "mine") == 0
    assert containers.down(tmp_path / "mine-too") == 1


INTERRUPTED = """
import sys
from pathlib import Path
import test_containers
from pipelines import local
local.run_in_containers(test_containers.napping, {}, Path(sys.argv[1]), sys.stdout, {})
"""


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
def nap() -> None:
    import time

    print("asleep", flush=True)
    time.sleep(100)


@dsl.pipeline
def napping() -> None:
    nap()


@pytest.mark.parametrize(("number", "left"), [(signal.SIGINT, 0), (signal.SIGKILL, 1)])
def test_an_interrupted_run_removes_its_containers(tmp_path: Path, number: signal.Signals, left: int) -> None:
    command = [sys.executable, "-u", "-c", INTERRUPTED, str(tmp_path / "runs" / "kfp")]
    environment = os.environ | {"PYTHONPATH": f"{Path(__file__).parents[2]}:{Path(__file__).parent}"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        while b"asleep" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(number)
        process.stdout.read()
    assert containers.down(tmp_path) == left
