"""The process that decodes: the same bytes as in place, within limits, whatever is in a picture."""

import asyncio
import io
import os
import signal
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from crawl_samples import make_config, make_picture
from PIL import Image

from wukong.config import Crawl
from wukong.crawl import image
from wukong.crawl.clock import Clock
from wukong.crawl.decoder import Decoder
from wukong.crawl.status import FetchError, Status

CONFIG = make_config(max_decode_seconds=1.0)


def store(decoder: Decoder, data: bytes, clock: Clock | None = None) -> image.Stored:
    async def run() -> image.Stored:
        timer = clock or Clock()
        if image.sniff(data) == "avif":
            header = await decoder.read_header(data, timer)
        else:
            header = image.read_complete_header(data)
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
    ],
)
def test_the_bytes_are_those_of_decoding_in_place(kind: str, options: dict[str, Any]) -> None:
    data = make_picture(640, 480, kind=kind, **options)
    with Decoder(CONFIG) as decoder:
        assert store(decoder, data) == image.store(data, image.read_complete_header(data), CONFIG)


def test_what_is_stored_untouched_stays_so() -> None:
    data = make_picture(250, 200)
    with Decoder(make_config()) as decoder:
        assert store(decoder, data).data == data


@lru_cache
def jpeg_with_scans(size: tuple[int, int], scans: int) -> bytes:
    jpeg = make_picture(*size, progressive=True)
    start = jpeg.rindex(b"\xff\xda")
    return jpeg[:-2] + jpeg[start:-2] * scans + b"\xff\xd9"


def test_what_takes_too_long_is_given_up_and_the_next_picture_decoded() -> None:
    data = jpeg_with_scans((4800, 4000), 480)
    with Decoder(make_config(max_decode_seconds=0.1)) as decoder:
        started = time.monotonic()
        assert status_of(decoder, data) is Status.TOO_COSTLY
        assert time.monotonic() - started < 60
        assert store(decoder, make_picture(kind="PNG")).width == 320


def test_what_takes_too_much_memory_is_given_up() -> None:
    """Of a picture whose header is believed to be small: the process may take little more than that needs."""
    stream = io.BytesIO()
    Image.new("RGB", (7900, 7900)).save(stream, "PNG", compress_level=1)
    big, claimed = stream.getvalue(), image.Header("png", 30, 30)
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
            task = asyncio.create_task(decoder.store(slow, image.read_complete_header(slow), Clock()))
            await asyncio.sleep(0.3)
            os.kill(child_of(decoder), blow)
            await task

        with pytest.raises(FetchError, match=blow.name) as raised:
            asyncio.run(run())
        assert raised.value.status is Status.CORRUPT
        assert store(decoder, make_picture(kind="PNG")).width == 320


def test_killed_by_somebody_else_it_tries_again() -> None:
    with Decoder(CONFIG) as decoder:
        expected = store(decoder, make_picture(kind="PNG"))
        os.kill(child_of(decoder), signal.SIGKILL)
        assert store(decoder, make_picture(kind="PNG")) == expected


def test_it_ends_with_its_parent() -> None:
    with Decoder(CONFIG) as decoder:
        store(decoder, make_picture(kind="PNG"))
        pid = child_of(decoder)
    assert not Path(f"/proc/{pid}").exists()


def test_closing_does_not_wait_for_a_picture() -> None:
    slow = jpeg_with_scans((2400, 2000), 480)
    with Decoder(make_config(max_decode_seconds=100)) as decoder:

        async def run() -> None:
            task = asyncio.create_task(decoder.store(slow, image.read_complete_header(slow), Clock()))
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


def test_light_pictures_are_light() -> None:
    """What an event loop decodes itself takes it a fraction of a second, even if a stranger makes the worst of it."""
    config: Crawl = make_config(keep_small_jpegs=False)
    slowest = 0.0
    for scans in (0, 1, 2, 4, 8):
        data = jpeg_with_scans((1600, 1240), scans)
        header = image.read_complete_header(data)
        if not image.is_light(data, header):
            continue
        started = time.process_time()
        image.store(data, header, config)
        slowest = max(slowest, time.process_time() - started)
    assert slowest < 1.0
    bomb = make_picture(1600, 1200, progressive=True)[:-2] + b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00" * 50
    assert not image.is_light(bomb, image.read_complete_header(bomb))
    assert not image.is_light(make_picture(kind="PNG"), image.Header("png", 320, 240))


def test_scans_are_counted_as_a_decoder_meets_them() -> None:
    stream = io.BytesIO()
    Image.open(io.BytesIO(make_picture(progressive=True))).save(
        stream, "JPEG", progressive=True, exif=b"Exif\x00\x00" + b"\xff\xda\x00\x08" * 1000
    )
    progressive = stream.getvalue()
    assert progressive.count(b"\xff\xda") > 1000
    scans = image.count_scans(progressive)
    assert 5 <= scans <= 12
    assert image.count_scans(progressive + progressive) == scans, "what follows the picture is none of it"
    assert image.count_scans(make_picture()) == 1
    assert image.count_scans(make_picture(restart_marker_blocks=1)) == 1
    assert (
        image.count_scans(jpeg_with_scans((320, 240), 700)) == image.count_scans(jpeg_with_scans((320, 240), 0)) + 700
    )


@pytest.mark.parametrize("scan", ["ffda000c03010002110311003f00", "ffda0008010100003f00"])
def test_scans_after_one_that_holds_the_whole_picture_cost_nothing(scan: str) -> None:
    """So the scans of an ordinary JPEG need not be counted: a decoder takes another one for an error."""
    bomb = make_picture(1600, 1200)[:-2] + bytes.fromhex(scan) * 100_000 + b"\xff\xd9"
    header = image.read_complete_header(bomb)
    assert image.is_light(bomb, header)
    started = time.process_time()
    assert image.store_jpeg(bomb, header, make_config(keep_small_jpegs=False)) is None
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
    assert image._has_one_scan(make_picture(**options)) is one
