"""What the cluster's own jobs run, against an object store that does not answer."""

import socket
import time

import pytest

from infra import cluster
from wukong.errors import StorageError


def test_a_store_that_does_not_answer_is_asked_again_and_then_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        caplog.set_level("INFO")
        started = time.monotonic()
        with pytest.raises(StorageError, match="cannot make the bucket none"):
            cluster.make_buckets(["none"], patience=4.0)
    assert time.monotonic() - started > 3
    assert "Retrying" in caplog.text
