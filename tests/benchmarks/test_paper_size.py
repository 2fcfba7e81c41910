"""The rehearsal of the paper at its own size: its sizes, its slow store, and a hundredth of it."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType

import psutil
import pytest

from wukong.evaluate import sets
from wukong.evaluate.protocol import PROTOCOLS

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "benchmarks" / "paper_size"


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"paper_size_{name}", BENCH / f"{name}.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture
def shrunk(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The sizes of a thousandth, and the registry of sets with these."""
    monkeypatch.setattr(sets, "REGISTRY", sets.REGISTRY)  # is put back
    sizes = module("sizes")
    monkeypatch.setenv(sizes.VARIABLE, "0.001")
    return sizes


def test_the_whole_of_it_has_the_published_numbers() -> None:
    sizes = module("sizes")
    assert sizes.counts("imagenet", 1.0) == ("val", 50_000)
    assert sizes.counts("sun397", 1.0) == ("test", 19_850)
    assert sizes.counts("flickr30k-cn", 1.0) == ("test", (1_000, 5_000))
    assert sizes.counts("food101", 1.0) == ("test", 2_525)
    assert sizes.counts("imagenet", 0.001) == ("val", 1_000), "a picture of each class"


@pytest.mark.parametrize("name", ["dtd", "sun397", "flickr30k-cn", "flickr8k-cn", "coco-cn", "muge"])
def test_a_set_that_is_written_is_read_with_as_many_pictures_and_no_two_are_the_same(
    name: str, shrunk: ModuleType, tmp_path: Path
) -> None:
    split, size = shrunk.counts(name, 0.001)
    shrunk.write(tmp_path / name, name, 0.001)
    shrunk.shrink()
    data = sets.of(name).read(tmp_path / name, PROTOCOLS["paper"].split(name))
    assert data.split == split and len(data) == (size if isinstance(size, int) else size.images)
    seen = {data.image(number).tobytes() for number in range(len(data))}
    assert len(seen) == len(data)


@pytest.fixture
def store() -> Iterator[str]:
    """A server that answers with the length of what it is sent."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = str(len(sent)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_PUT  # noqa: N815 - a name of the standard library

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_each_request_of_a_connection_takes_20_ms_more_and_is_counted_once(store: str) -> None:
    slow = module("slow_store").SlowStore(store)
    began = time.monotonic()
    for data in (b"x" * 300_000, b"GET / of a body"):
        request = urllib.request.Request(f"{slow.endpoint}/bucket/%E7%8C%AB", data, method="PUT")
        assert urllib.request.urlopen(request).read() == str(len(data)).encode()
    for path in ("bucket/%E7%8C%AB", "bucket/%E7%8C%AB", "bucket?list-type=2&prefix=x"):
        urllib.request.urlopen(f"{slow.endpoint}/{path}").read()
    assert time.monotonic() - began >= 5 * 0.02
    assert slow.requests == {"PUT": 2, "GET": 3} and slow.read == {("/bucket/猫", ""): 2}


WRITES = """
import tempfile, time
kept = tempfile.NamedTemporaryFile()
deleted = tempfile.TemporaryFile()
for file, size in ((kept, 3_000_000), (deleted, 5_000_000)):
    file.write(bytes(size))
    file.flush()
time.sleep(1.5)
"""


@pytest.mark.parametrize("mount", [True, False])
def test_the_peak_of_temporary_files_counts_those_that_are_deleted_and_open(mount: bool, tmp_path: Path) -> None:
    watch, scratch, log = module("watch"), tmp_path / "scratch", tmp_path / "log"
    scratch.mkdir()
    log.write_text("12:00:00 | INFO | training on 2 workers, step 5 to 8")
    watch.LARGE = 2**20
    with watch.quota(scratch, 2**25) if mount else nullcontext(False) as mounted:
        if mount and not mounted:
            pytest.skip("nothing can be mounted here")
        process = psutil.Popen([sys.executable, "-c", WRITES], env=os.environ | {"TMPDIR": str(scratch)})
        looking = watch.Watch(process, scratch, log, mounted)
        looking.start()
        assert process.wait() == 0
        seen = looking.end()
    assert 7.6 <= seen["disk_mib"] < 7.8
    assert seen["memory_mib"]["driver"] > 1 and seen["first_step"] < 2


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_hundredth_of_it_finishes_and_finished_parts_are_not_done_again(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCH / "bench.py"), "--share", "0.01", "--folder", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-5000:]
    parts = {each.pop("part"): each for each in map(json.loads, filter(_is_json, done.stdout.splitlines()))}
    assert parts["sets-imagenet"]["files"] > 1_000
    for column in ("rn50", "vit-l", "swin-l"):
        (equal,) = re.findall(rf"{column}: (\d+) metrics of the job are those of the evaluator", done.stdout)
        assert int(equal) > 30
        assert parts[f"evaluate-{column}"]["most_times"] <= 1, parts[f"evaluate-{column}"]["most_asked"]
        assert 0 < parts[f"evaluate-{column}"]["disk_mib"] <= 32
    asked = [parts[name].get("pictures_asked_for", 0) for name in parts]
    files = sum(each["files"] for name, each in parts.items() if name.startswith("sets-"))
    assert sum(asked) <= files, "nor is one by two trainings, or by a training and an evaluation"
    assert f"first step {parts['train-vit-l']['first_step']} s after the restart" in done.stdout
    began = time.monotonic()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert again.returncode == 0, again.stderr[-5000:]
    assert time.monotonic() - began < 60
    assert [*filter(_is_json, again.stdout.splitlines())] == [*filter(_is_json, done.stdout.splitlines())]


def _is_json(line: str) -> bool:
    return line.startswith("{")
