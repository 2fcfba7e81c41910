"""Objects whose names lead out of a folder are copied nowhere, by whatever copies objects."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wukong.commands import runs
from wukong.errors import DataError
from wukong.evaluate import set_folders
from wukong.model import address
from wukong.runs.run import Run
from wukong.store import storage
from wukong.store.local_paths import local_path

PIECES = st.sampled_from(["..", ".", "", "a", "b.jpg", "link", "C:", "..\\..", "\\", "\0", "深"])


class Store(ThreadingHTTPServer):
    """A store that lists keys which no honest store takes; each object is ``content``."""

    def __init__(self, keys: list[str]) -> None:
        self.keys, self.content = keys, b"0123456789"
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: Store

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        if "prefix" in query or "list-type" in query:
            prefix = query.get("prefix", [""])[0]
            found = "".join(
                f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                f"<Size>{len(self.server.content)}</Size></Contents>"
                for key in self.server.keys
                if key.startswith(prefix)
            )
            listed = f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>"
            self._answer(f'<?xml version="1.0" encoding="UTF-8"?>{listed}'.encode(), "application/xml")
        else:
            self._answer(self.server.content, "application/octet-stream")

    def do_HEAD(self) -> None:
        names = {key.rpartition("/")[2] for key in self.server.keys}  # clients leave the dots out of what they ask for
        there = unquote(urlsplit(self.path).path).rpartition("/")[2] in names
        self._answer(self.server.content, "application/octet-stream", 200 if there else 404)

    def _answer(self, content: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    servers = []

    def start(*keys: str) -> None:
        servers.append(Store(list(keys)))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{servers[-1].server_port}")

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "of-tests-only")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("WUKONG_STORE_PATIENCE", "1")
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def _copy_set(folder: Path) -> None:
    with set_folders.local("s3://bucket/sets", "muge"):
        pass


@pytest.mark.parametrize(
    ("copy", "keys"),
    [
        (_copy_set, ["sets/muge/../../outside.txt"]),
        (_copy_set, ["sets/muge/../../outside.jpg"]),
        (
            lambda folder: runs.fetch_report(Run("s3://bucket/x/runs/one"), folder),
            ["x/runs/one/report.html", "x/runs/one/docs/../../../outside.html"],
        ),
        (lambda folder: address.fetch("s3://bucket/model", folder), ["model/../../outside"]),
    ],
)
def test_an_object_whose_name_leads_out_is_copied_nowhere(
    store: Callable[..., None],
    tmp_path: Path,
    copy: Callable[[Path], object],
    keys: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store(*keys)
    scratch = tmp_path / "a" / "b" / "c"
    scratch.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    with pytest.raises(DataError, match=r"s3://bucket/.*\.\./outside.* leads out of .*: give it another name"):
        copy(scratch / "copy")
    assert not [*tmp_path.rglob("outside*")]


@given(st.lists(PIECES, min_size=1, max_size=6))
def test_no_name_leads_out(tmp_path_factory: pytest.TempPathFactory, pieces: list[str]) -> None:
    base = tmp_path_factory.mktemp("local")
    folder = base / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(base)
    name = "/".join(pieces)
    try:
        path = local_path(folder, name, "an object")
    except DataError:
        # What is plain is not refused.
        assert pieces[0] in ("", "link") or {"..", "..\\..", "\0", "link"} & {*pieces}
        return
    resolved = path.resolve()
    assert resolved == folder.resolve() or folder.resolve() in resolved.parents
    assert ".." not in name.replace("\\", "/").split("/")


def test_a_copy_replaces_a_link_within_the_folder_and_none_out_of_it(tmp_path: Path) -> None:
    source = storage.from_path(tmp_path / "source")
    storage.write_bytes(source, b"new")
    for name in ("outside", "copies/inside"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"old")
    (tmp_path / "copies" / "one").symlink_to("inside")
    (tmp_path / "copies" / "two").symlink_to(tmp_path / "outside")
    assert storage.download(source, tmp_path / "copies", "one").read_bytes() == b"new"
    with pytest.raises(DataError, match="leads out of"):
        storage.download(source, tmp_path / "copies", "two")
    assert (tmp_path / "outside").read_bytes() == (tmp_path / "copies" / "inside").read_bytes() == b"old"
