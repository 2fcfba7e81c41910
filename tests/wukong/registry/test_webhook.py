"""The webhook, sent to a real server on loopback that answers as it is told."""

import hashlib
import hmac
import http.server
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from wukong.registry import webhook


class Receiver:
    """Takes requests and answers with the next of its statuses; the last one is repeated."""

    def __init__(self) -> None:
        self.statuses = [204]
        self.requests: list[tuple[dict[str, str], bytes]] = []
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.requests.append((dict(self.headers), body))
                self.send_response(receiver.statuses[min(len(receiver.requests), len(receiver.statuses)) - 1])
                self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?token=hidden"


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setattr(webhook, "_PAUSE", 0.01)
    made = Receiver()
    monkeypatch.setenv("WUKONG_WEBHOOK_URL", made.url)
    monkeypatch.setenv("WUKONG_WEBHOOK_SECRET", "geheim")
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def test_an_event_is_signed(receiver: Receiver) -> None:
    assert webhook.send("alias.moved", {"model": "悟空"})
    ((headers, body),) = receiver.requests
    assert json.loads(body) == {"event": "alias.moved", "model": "悟空"}
    signed = headers["X-Wukong-Timestamp"].encode() + b"." + body
    assert headers["X-Wukong-Signature"] == "sha256=" + hmac.new(b"geheim", signed, hashlib.sha256).hexdigest()


@pytest.mark.parametrize(("statuses", "attempts", "taken"), [([500, 503, 200], 3, True), ([500], 3, False),
                                                              ([404], 1, False), ([302], 1, False)])  # fmt: skip
def test_it_is_repeated_where_that_may_help(
    receiver: Receiver, statuses: list[int], attempts: int, taken: bool, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.statuses = statuses
    with caplog.at_level(logging.WARNING):
        assert webhook.send("alias.moved", {}) is taken
    assert len(receiver.requests) == attempts
    assert len({headers["X-Wukong-Delivery"] for headers, _ in receiver.requests}) == 1
    assert ("did not take" in caplog.text) is not taken
    assert "geheim" not in caplog.text and "hidden" not in caplog.text


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1/hook?token=hidden", "hidden", "http://[hidden", "file:///hidden"]
)
def test_a_failure_is_logged_without_secrets(
    receiver: Receiver, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("WUKONG_WEBHOOK_URL", address)
    with caplog.at_level(logging.WARNING):
        assert not webhook.send("alias.moved", {})
    assert "alias.moved" in caplog.text
    assert receiver.requests == [] and "hidden" not in caplog.text and "geheim" not in caplog.text


def test_nobody_is_told_unless_the_operator_says_so(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WUKONG_WEBHOOK_SECRET")
    assert webhook.send("alias.moved", {}), "without a signature, where there is no secret"
    assert "X-Wukong-Signature" not in receiver.requests[0][0]
    monkeypatch.setenv("WUKONG_WEBHOOK_URL", "")
    assert not webhook.send("alias.moved", {})
    assert len(receiver.requests) == 1
