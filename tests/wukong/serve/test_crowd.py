"""``wukong serve`` as a process, against what is too much and what is wrong: each gets an answer in words."""

import asyncio
import json
import re
import resource
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from urllib.parse import quote

import colours
import pytest
from search_site import Server
from test_server_process import lines, started

from wukong.model import saved_model
from wukong.store import storage

pytestmark = pytest.mark.long
CLIENTS = 1_000
QUERY = quote("红蓝")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that begins with the usual limit of open files."""
    root = tmp_path_factory.mktemp("crowd")
    made = colours.model("global").saved
    saved_model.save(storage.from_path(root / "model"), made.model, made.tokenizer)
    colours.every_pair(root / "pictures")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] != resource.RLIM_INFINITY and before[1] < 4 * CLIENTS:
        pytest.skip(f"this machine lets no process have more than {before[1]} files open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1_024, before[1]))
    options = ["--model", str(root / "model"), "--data", str(root / "pictures"), "--index", str(root / "indexes")]
    with started(*options, "--port", "0") as process:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 4 * CLIENTS), before[1]))
        try:
            address = re.search(r"http://\S+", next(lines(process)))
            assert address is not None
            yield Server(address[0])
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
            resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def ask(server: Server, request: bytes, begin: asyncio.Event) -> tuple[int, bytes]:
    """Connect, wait for all others, and ask; the status and the body of the answer."""
    host, _, port = server.address.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    await begin.wait()
    writer.write(request)
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def all_at_once(server: Server, request: bytes, clients: int = CLIENTS) -> list[tuple[int, bytes]]:
    async def run() -> list[tuple[int, bytes]]:
        begin = asyncio.Event()
        asked = [asyncio.ensure_future(ask(server, request, begin)) for _ in range(clients)]
        await asyncio.sleep(2)
        begin.set()
        return await asyncio.wait_for(asyncio.gather(*asked), 300)

    return asyncio.run(run())


def test_a_thousand_clients_at_once_are_each_answered_or_refused_in_words(server: Server) -> None:
    request = f"GET /api/search?q={QUERY} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
    answers = all_at_once(server, request)
    statuses = Counter(status for status, _ in answers)
    assert set(statuses) <= {200, 503} and statuses[200] >= 256, statuses
    said = {json.loads(body)["error"] for status, body in answers if status == 503}
    assert said <= {"too many requests wait at this moment: try again in a second"}
    (found,) = {body for status, body in answers if status == 200}
    assert len(json.loads(found)["results"]) == 20
    assert server.ask("/api/search", q="红蓝").body == found


def test_a_thousand_pictures_at_once_are_each_answered_or_refused_in_words(server: Server) -> None:
    picture = colours.encoded(colours.picture("红", "蓝"))
    head = f"POST /api/captions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {len(picture)}"
    answers = all_at_once(server, f"{head}\r\n\r\n".encode() + picture)
    statuses = Counter(status for status, _ in answers)
    assert set(statuses) <= {200, 503} and statuses[200], statuses
    said = {json.loads(body)["error"] for status, body in answers if status == 503}
    assert said <= {
        "too many pictures are sent at this moment: try again in a second",
        "too many requests wait at this moment: try again in a second",
    }
    assert server.ask("/api/captions", picture).status == 200


@pytest.mark.parametrize("characters", [201, 1_000, 10_000, 100_000])
def test_a_long_query_is_refused_in_words(server: Server, characters: int) -> None:
    for path in ("/api/search", "/"):
        refused = server.ask(path, q="红" * characters)
        if characters < 10_000:
            assert (refused.status, "200" in refused.text) == (422, True), refused.text
        else:
            assert (refused.status, "shorten the text of the query" in refused.json["error"]) == (400, True)
    assert server.ask("/api/search", q="a" * 10_000).json["error"].startswith("q: String should have at most 200")
    assert server.ask("/api/search", q="红").status == 200


@pytest.mark.parametrize("sent", [b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(99), b"\xff\xd8\xff\xe0" + bytes(9_999)])
def test_what_is_no_picture_is_refused_in_words(server: Server, sent: bytes) -> None:
    for path in ("/api/captions", "/pictures"):
        refused = server.ask(path, sent)
        assert refused.status in (415, 422)
        assert "send" in refused.text and "Traceback" not in refused.text
    assert server.ask("/healthz").status == 200


def test_what_is_no_request_is_refused_in_words(server: Server) -> None:
    ((status, body),) = all_at_once(server, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 1)
    assert (status, "no HTTP request" in json.loads(body)["error"]) == (400, True)
