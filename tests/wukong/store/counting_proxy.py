"""An HTTP proxy before a real S3 server that notes what is asked for, and what lies among the temporary files."""

import http.client
import os
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from lossy_proxy import History, LossyProxy
from object_store import ObjectStore

from wukong.store import storage


class CountingProxy(LossyProxy):
    """A proxy that loses nothing.

    Attributes:
        read: the ranges of bytes that each object's content was asked for by, by its path below the bucket.
        at_once: most requests that were under way at a time.
    """

    def __init__(self, endpoint: str) -> None:
        self.read: dict[str, list[range]] = defaultdict(list)
        self.at_once = self._under_way = 0
        self._counting = threading.Lock()
        super().__init__(endpoint, History())

    def _ask(self, method: str, path: str, headers: dict[str, str], body: bytes) -> http.client.HTTPResponse:
        with self._counting:
            self._under_way += 1
            self.at_once = max(self.at_once, self._under_way)
        answer = super()._ask(method, path, headers, body)
        with self._counting:
            self._under_way -= 1
            place = urlsplit(path)
            if method == "GET" and not place.query.startswith(("list-type", "prefix", "delimiter")):
                asked = {name.lower(): value for name, value in headers.items()}.get("range", "bytes=0-")
                start = int(asked.removeprefix("bytes=").partition("-")[0])
                key = unquote(place.path).lstrip("/").partition("/")[2]
                self.read[key].append(range(start, start + len(answer.body)))  # type: ignore[attr-defined]
        return answer

    def twice(self) -> list[str]:
        """The objects of which a byte was asked for twice."""
        ordered = {key: sorted(ranges, key=lambda each: each.start) for key, ranges in self.read.items()}
        return [key for key, r in ordered.items() if any(b.start < a.stop for a, b in pairwise(r))]


@contextmanager
def counted_store(folder: Path) -> Iterator[CountingProxy]:
    """Start a store with a bucket behind such a proxy, which the environment names while the block lasts."""
    server = ObjectStore(folder)
    server.start()
    try:
        server.wait_ready("bucket")
        proxy = CountingProxy(server.endpoint)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (server.variables() | {"AWS_ENDPOINT_URL_S3": proxy.endpoint}).items():
                patch.setenv(name, value)
            yield proxy
        proxy.close()
    finally:
        server.kill()


def send(folder: Path, uri: str) -> None:
    """Copy a folder to a bucket."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    with ThreadPoolExecutor(8) as senders:
        targets = [storage.join(uri, path.relative_to(folder).as_posix()) for path in files]
        list(senders.map(storage.upload, files, targets))


class Peak:
    """Most bytes that lay in the folder for temporary files."""

    bytes = 0


@contextmanager
def peak_of_temporary_files() -> Iterator[Peak]:
    """Look at the folder for temporary files again and again, also for the deleted ones that this process has open."""
    peak, ended = Peak(), threading.Event()

    def look() -> None:
        while not ended.wait(0.002):
            peak.bytes = max(peak.bytes, sum(_sizes(Path(tempfile.gettempdir()))))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def _sizes(folder: Path) -> Iterator[int]:
    for inner, _, names in os.walk(folder):  # which goes on where a folder is deleted meanwhile
        for name in names:
            with suppress(OSError):
                yield Path(inner, name).stat().st_size
    for opened in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if (target := str(opened.readlink())).startswith(str(folder)) and target.endswith("(deleted)"):
                yield opened.stat().st_size
