"""The decoder's child process: it gives the same bytes and keeps its limits, whatever the image contains."""

import asyncio
import io
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from crawl_samples import make_config, make_picture
from PIL import Image

from wukong.config.crawl import Crawl
from wukong.crawl import decoder as decoder_module
from wukong.crawl import image_header, metadata, stored_image
from wukong.crawl.clock import Clock
from wukong.crawl.decoder import Decoder
from wukong.crawl.status import FetchError, Status

CONFIG = make_config(max_decode_seconds=1.0)
EXIF = Image.Exif()
EXIF[0x0112] = 6


def store(decoder: Decoder, data: bytes, clock: Clock | None = None) -> stored_image.Stored:
    async def run() -> stored_image.Stored:
        timer = clock or Clock()
        if image_header.sniff(data) == "avif":
            header = await decoder.read_header(data, timer)
        else:
            header = image_header.read_complete_header(data)
        return await decoder.store(data, header, timer)

    return asyncio.run(run())


def status_of(decoder: Decoder, data: bytes) -> Status:
    with pytest.raises(FetchError) as raised:
        store(decoder, data)
    return raised.value.status


def child_of(decoder: Decoder) -> int:
    assert decoder._child is not None
    return decoder._child.pid


def peak_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"mode": "CMYK"}),
        ("PNG", {}),
        ("PNG", {"mode": "RGBA"}),
        ("GIF", {}),
        ("WEBP", {}),
        ("AVIF", {}),
        ("BMP", {}),
        ("WEBP", {"mode": "RGBA", "exif": EXIF}),
        ("PNG", {"mode": "LA", "exif": EXIF}),
        ("AVIF", {"exif": EXIF}),
    ],
)
def test_the_child_process_gives_the_same_bytes(kind: str, options: dict[str, Any]) -> None:
    data = make_picture(640, 480, kind=kind, **options)
    with Decoder(CONFIG) as decoder:
        assert store(decoder, data) == stored_image.store(data, image_header.read_complete_header(data), CONFIG)


def test_a_jpeg_stored_unchanged_is_not_sent_back() -> None:
    data = make_picture(250, 200)
    with Decoder(make_config()) as decoder:
        assert store(decoder, data).data == data


@lru_cache
def jpeg_with_scans(size: tuple[int, int], scans: int) -> bytes:
    jpeg = make_picture(*size, progressive=True)
    start = jpeg.rindex(b"\xff\xda")
    return jpeg[:-2] + jpeg[start:-2] * scans + b"\xff\xd9"


def test_a_slow_image_fails_and_the_next_one_is_decoded() -> None:
    data = jpeg_with_scans((2400, 2000), 2000)  # two seconds and more: the limit is a whole second at least
    with Decoder(make_config(max_decode_seconds=0.1)) as decoder:
        started = time.monotonic()
        assert status_of(decoder, data) is Status.TOO_COSTLY
        assert time.monotonic() - started < 60
        assert store(decoder, make_picture(kind="PNG")).width == 320


def test_an_image_that_takes_too_much_memory_fails() -> None:
    """The header claims a small image, so the process gets little memory."""
    stream = io.BytesIO()
    Image.new("RGB", (7900, 7900)).save(stream, "PNG", compress_level=1)
    big, claimed = stream.getvalue(), image_header.Header("png", 30, 30)
    with Decoder(make_config()) as decoder:
        with pytest.raises(FetchError) as raised:
            asyncio.run(decoder.store(big, claimed, Clock()))
        assert raised.value.status is Status.TOO_COSTLY
        assert peak_mib(child_of(decoder)) < 450
        assert store(decoder, make_picture(kind="PNG")).width == 320


@pytest.mark.parametrize("blow", [signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_is_a_status(blow: signal.Signals) -> None:
    slow = jpeg_with_scans((2400, 2000), 480)
    with Decoder(make_config(max_decode_seconds=60)) as decoder:
        store(decoder, make_picture(kind="PNG"))

        async def run() -> None:
            task = asyncio.create_task(decoder.store(slow, image_header.read_complete_header(slow), Clock()))
            await asyncio.sleep(0.3)
            os.kill(child_of(decoder), blow)
            await task

        with pytest.raises(FetchError, match=blow.name) as raised:
            asyncio.run(run())
        assert raised.value.status is Status.CORRUPT
        assert store(decoder, make_picture(kind="PNG")).width == 320


def test_a_child_killed_by_another_process_is_restarted() -> None:
    with Decoder(CONFIG) as decoder:
        expected = store(decoder, make_picture(kind="PNG"))
        os.kill(child_of(decoder), signal.SIGKILL)
        assert store(decoder, make_picture(kind="PNG")) == expected


def test_the_child_ends_with_its_parent() -> None:
    with Decoder(CONFIG) as decoder:
        store(decoder, make_picture(kind="PNG"))
        pid = child_of(decoder)
    assert not Path(f"/proc/{pid}").exists()


def test_closing_does_not_wait_for_an_image() -> None:
    slow = jpeg_with_scans((2400, 2000), 480)
    with Decoder(make_config(max_decode_seconds=100)) as decoder:

        async def run() -> None:
            task = asyncio.create_task(decoder.store(slow, image_header.read_complete_header(slow), Clock()))
            await asyncio.sleep(1.0)
            task.cancel()

        asyncio.run(run())
        started = time.monotonic()
    assert time.monotonic() - started < 5


def test_the_clock_counts_decoding() -> None:
    clock = Clock()
    with Decoder(CONFIG) as decoder:
        store(decoder, make_picture(kind="PNG"), clock)
    assert clock.spent > 0


def test_cheap_images_are_cheap_to_decode() -> None:
    """Images that the event loop decodes take a fraction of a second, even in the worst case."""
    config: Crawl = make_config(keep_small_jpegs=False)
    slowest = 0.0
    for scans in (0, 1, 2, 4, 8):
        data = jpeg_with_scans((1600, 1240), scans)
        header = image_header.read_complete_header(data)
        if not image_header.is_cheap(data, header):
            continue
        started = time.process_time()
        stored_image.store(data, header, config)
        slowest = max(slowest, time.process_time() - started)
    assert slowest < 1.0
    bomb = make_picture(1600, 1200, progressive=True)[:-2] + b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00" * 50
    assert not image_header.is_cheap(bomb, image_header.read_complete_header(bomb))
    assert not image_header.is_cheap(make_picture(kind="PNG"), image_header.Header("png", 320, 240))


def in_child(code: str, give_up: str = "decoder._give_up_rights()") -> str:
    """What this code returns in a process that has given up its rights like the decoder's child process."""
    whole = f"""
import ctypes, os, resource, socket, subprocess, sys
from wukong.crawl import decoder
refused = {give_up}
def tried():
{textwrap.indent(textwrap.dedent(code), "    ")}
try:
    outcome = tried()
except OSError as error:
    outcome = "refused"
sys.stdout.write(str(outcome))
"""
    done = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_child_process_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_PASSWORD", "SOMETHING_NEW"):
        monkeypatch.setenv(name, "a secret")
    monkeypatch.setenv("LANG", "C.UTF-8")
    with Decoder(CONFIG) as decoder:
        store(decoder, make_picture(kind="PNG"))
        process = Path(f"/proc/{child_of(decoder)}")
        environment = (process / "environ").read_bytes()
        status, limits = (process / "status").read_text(), (process / "limits").read_text()
        open_files = [str(link.readlink()) for link in (process / "fd").iterdir()]
    assert b"a secret" not in environment
    names = {pair.partition(b"=")[0].decode() for pair in environment.split(b"\0") if pair}
    threads = {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MALLOC_ARENA_MAX"}
    assert {"LANG", "PYTHONPATH"} <= names <= {*decoder_module._INHERITED, "PYTHONPATH", *threads}
    assert "NoNewPrivs:\t1" in status
    assert [line.split()[3:5] for line in limits.splitlines() if line.startswith("Max open files")] == [["0", "0"]]
    assert not [name for name in open_files if name.startswith("socket:")]


def test_the_child_process_reaches_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert in_child(f"return socket.create_connection(('127.0.0.1', {port}), 5)") == "refused"
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()
    assert in_child("return open('/etc/hostname').read()") == "refused"
    assert in_child("return os.open('/tmp', os.O_RDONLY)") == "refused"
    assert in_child("return subprocess.run(['true'])") == "refused"


def test_the_child_process_does_not_see_its_parents_memory() -> None:
    if "Landlock" in in_child("return refused"):
        pytest.skip("this kernel has no Landlock")
    alone = "ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) or decoder._landlock(ctypes.CDLL(None))"
    assert in_child(f"return open('/proc/{os.getpid()}/environ').read()", alone) == "refused"
    assert in_child(f"return ctypes.CDLL(None).ptrace(16, {os.getpid()}, 0, 0)", alone) == "-1"


def test_what_the_system_refuses_is_logged_once(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    decoder_module._tell_refused.cache_clear()
    original = decoder_module._receive

    def answered(stream: Any) -> Any:
        answer = original(stream)
        return None if answer is None else (answer[0] | {"refused": "Landlock"}, answer[1])

    monkeypatch.setattr(decoder_module, "_receive", answered)
    with Decoder(CONFIG) as decoder:
        store(decoder, make_picture(kind="PNG"))
        store(decoder, make_picture(kind="PNG"))
    assert [record.getMessage().rpartition(" ")[2] for record in caplog.records] == ["Landlock"]


def scans_of(jpeg: bytes) -> int:
    return sum(marker == 0xDA for marker, _, _ in metadata.segments(jpeg))


def test_scans_are_counted_like_a_decoder() -> None:
    stream = io.BytesIO()
    Image.open(io.BytesIO(make_picture(progressive=True))).save(
        stream, "JPEG", progressive=True, exif=b"Exif\x00\x00" + b"\xff\xda\x00\x08" * 1000
    )
    progressive = stream.getvalue()
    assert progressive.count(b"\xff\xda") > 1000
    scans = scans_of(progressive)
    assert 5 <= scans <= 12
    assert scans_of(progressive + progressive) == scans, "what follows the picture is none of it"
    assert scans_of(make_picture()) == 1
    assert scans_of(make_picture(restart_marker_blocks=1)) == 1
    assert scans_of(jpeg_with_scans((320, 240), 700)) == scans_of(jpeg_with_scans((320, 240), 0)) + 700
    assert image_header.has_too_many_scans(jpeg_with_scans((320, 240), 700))
    assert not image_header.has_too_many_scans(progressive), "those in its metadata are none"


@pytest.mark.parametrize("scan", ["ffda000c03010002110311003f00", "ffda0008010100003f00"])
def test_scans_after_a_complete_one_are_refused_by_the_decoder(scan: str) -> None:
    """So the scans of an ordinary JPEG need not be counted: for a decoder a second scan is an error."""
    bomb = make_picture(1600, 1200)[:-2] + bytes.fromhex(scan) * 100_000 + b"\xff\xd9"
    header = image_header.read_complete_header(bomb)
    assert image_header.is_cheap(bomb, header)
    started = time.process_time()
    assert stored_image.store_jpeg(bomb, header, make_config(keep_small_jpegs=False)) is None
    assert time.process_time() - started < 1.0
    with Decoder(CONFIG) as decoder:
        try:
            store(decoder, bomb)
        except FetchError as error:
            assert error.status in {Status.CORRUPT, Status.TOO_COSTLY}


@pytest.mark.parametrize(
    ("options", "one"), [({}, True), ({"mode": "L"}, True), ({"mode": "CMYK"}, True), ({"progressive": True}, False)]
)
def test_nearly_all_jpegs_have_one_scan(options: dict[str, Any], one: bool) -> None:
    assert image_header._has_one_scan(make_picture(**options)) is one


def hiding(hidden: bytes) -> bytes:
    """What a reader passes over that takes 0xFF00 for a marker; a decoder looks for the next one."""
    return b"\xff\x00" + (len(hidden) + 2).to_bytes(2, "big") + hidden


def test_no_frame_and_no_scan_hides_behind_what_is_no_marker() -> None:
    """Ten times 64 KiB with a progressive frame and its scans, before the frame that a reader of headers would find."""
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x00\x00"
    progressive, plain = make_picture(1600, 1200, progressive=True), make_picture(1600, 1200)
    pieces = [progressive[2 : progressive.index(b"\xff\xda")], *[scan * 6_000] * 10]
    bomb = plain[:2] + b"".join(map(hiding, pieces)) + plain[2:]
    started = time.process_time()
    with pytest.raises(FetchError, match="marker is missing"):
        stored_image.store(bomb, image_header.read_complete_header(bomb), CONFIG)
    assert time.process_time() - started < 1.0
    frame = plain.index(b"\xff\xda")
    assert not image_header._has_one_scan(plain[:frame] + hiding(scan * 6_000) + plain[frame:])
