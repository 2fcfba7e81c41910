"""Decoding in a process of its own, which has limits on memory and time.

A stranger's picture decides what decoding it takes: a few kilobytes can hold minutes of work or gigabytes of pixels,
and a decoder written in C may crash. None of that may happen in a process that fetches other pictures. What is cheap
whatever it holds (``image.is_light``) is decoded where it is; all else here.
"""

import asyncio
import contextlib
import json
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from wukong.config import Crawl
from wukong.crawl import image
from wukong.crawl.clock import Clock
from wukong.crawl.status import FetchError, Status
from wukong.crawl.unexpected import UnexpectedInDecoderError

_FRAME = struct.Struct(">II")
"""Before each message: bytes of its JSON, bytes of the picture after it."""

_BYTES_PER_PIXEL = 40
"""Of the largest chain of copies: a 16-bit picture with transparency, turned into RGB."""

_FREE_BYTES = 192 * 2**20
"""Allowed beside the pixels: tables, profiles and the coded data, which are not as large as the picture."""

_WALL_FACTOR = 10
"""On a busy machine, a second of processor time takes longer; something that hangs takes none."""

_PICTURES = 20_000
"""After so many, a child is replaced, so that what its libraries leak does not add up."""


class Decoder:
    """Stores pictures (``image.store``) in a child process, one at a time; use it as a context.

    Args:
        config: the crawl's settings; ``max_decode_seconds`` and ``max_pixels`` bound the child.
    """

    def __init__(self, config: Crawl) -> None:
        self._config = config
        self._child: subprocess.Popen[bytes] | None = None
        self._stored = 0
        self._closed = False
        # A thread waits for the child, so that the loop does not.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decoder")

    async def read_header(self, data: bytes, clock: Clock) -> image.Header:
        """Read a header that takes a decoder to read; arguments and errors as of ``store``."""
        answer, _ = await self._in_turn({"header": None}, data, clock)
        return image.Header(**answer["header"])

    async def store(self, data: bytes, header: image.Header, clock: Clock) -> image.Stored:
        """Decode, resize and encode a picture, in its turn.

        Args:
            data: the whole file.
            header: what it says.
            clock: runs while the picture is decoded, but not while it waits for its turn.

        Raises:
            FetchError: as ``image.store``; (``too_costly``) it takes more memory or time than allowed; (``corrupt``)
                it makes the decoder crash.
            UnexpectedInDecoderError: the decoder failed in a way that nobody foresaw.
        """
        answer, picture = await self._in_turn({"header": asdict(header)}, data, clock)
        stored = picture if answer["anew"] else data
        return image.Stored(stored, answer["width"], answer["height"], image.Header(**answer["header"]))

    async def _in_turn(self, question: Mapping[str, Any], data: bytes, clock: Clock) -> tuple[dict[str, Any], bytes]:
        def timed() -> tuple[dict[str, Any], bytes]:
            with clock:
                return self._ask(question, data)

        answer, picture = await asyncio.get_running_loop().run_in_executor(self._thread, timed)
        if "trace" in answer:
            raise UnexpectedInDecoderError(answer["kind"], answer["trace"])
        if "status" in answer:
            raise FetchError(Status(answer["status"]), answer["message"])
        return answer, picture

    def close(self) -> None:
        """End the child, whatever it is doing."""
        self._closed = True
        if self._child is not None:
            self._child.kill()
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._end()

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _ask(self, question: Mapping[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        for attempt in (1, 2):
            child = self._running()
            killed = False
            try:
                assert child.stdin is not None  # noqa: S101 - both are pipes
                assert child.stdout is not None  # noqa: S101
                _send(child.stdin, question, data)
                ready = _readable(child.stdout, _WALL_FACTOR * self._config.max_decode_seconds + 30)
                if ready:
                    answer = _receive(child.stdout)
                    if answer is not None:
                        return answer
                else:
                    killed = True
            except BrokenPipeError:
                pass
            code = self._end()
            if killed or code == -signal.SIGXCPU:
                raise FetchError(
                    Status.TOO_COSTLY, f"decoding takes more than {self._config.max_decode_seconds:g} seconds"
                )
            if attempt == 1 and not self._closed and code in {-signal.SIGKILL, -signal.SIGTERM}:
                continue  # somebody else ended it, for instance the kernel, short of memory
            break
        name = signal.Signals(-code).name if code < 0 else f"code {code}"
        raise FetchError(Status.CORRUPT, f"the picture makes the decoder crash ({name})")

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._child is not None and (self._child.poll() is not None or self._stored >= _PICTURES):
            self._end()
        if self._child is None:
            environment = os.environ | {
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
                "MALLOC_ARENA_MAX": "1",
            }
            self._child = subprocess.Popen(
                [sys.executable, "-c", "from wukong.crawl.decoder import serve; serve()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
            self._stored = 0
            assert self._child.stdin is not None  # noqa: S101 - it is a pipe
            with contextlib.suppress(BrokenPipeError):  # it ended at once, as the question will find
                _send(self._child.stdin, self._config.model_dump(mode="json"), b"")
        self._stored += 1
        return self._child

    def _end(self) -> int:
        """End the child and give its exit code."""
        child, self._child = self._child, None
        if child is None:
            return 0
        # A child that has died has closed its pipe, and its code says why.
        died = child.stdout is not None and _readable(child.stdout, 0)
        try:
            child.wait(5.0 if died else 0)
        except subprocess.TimeoutExpired:
            child.kill()
        code = child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        return code


def _readable(stream: IO[bytes], seconds: float) -> bool:
    """Wait until there is something to read, or the end; tell whether there was."""
    poll = select.poll()  # select's own limit on descriptors is 1,024
    poll.register(stream, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _send(stream: IO[bytes], message: Mapping[str, Any], data: bytes) -> None:
    text = json.dumps(message).encode()
    stream.write(_FRAME.pack(len(text), len(data)) + text)
    stream.write(data)
    stream.flush()


def _receive(stream: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    head = stream.read(_FRAME.size)
    if len(head) < _FRAME.size:
        return None
    text, data = _FRAME.unpack(head)
    body = stream.read(text + data)
    if len(body) < text + data:
        return None
    message: dict[str, Any] = json.loads(body[:text])
    return message, body[text:]


def serve() -> None:
    """The child: answer until the parent closes the pipe."""
    from PIL import AvifImagePlugin, Image

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then closes the pipe
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not stand between two answers
    first = _receive(sys.stdin.buffer)
    if first is None:
        return
    config = Crawl.model_validate(first[0])
    Image.MAX_IMAGE_PIXELS = config.max_pixels
    while (question := _receive(sys.stdin.buffer)) is not None:
        message, picture = _answer(question[0]["header"], question[1], config)
        _send(answers, message, picture)


def _answer(claimed: Mapping[str, Any] | None, data: bytes, config: Crawl) -> tuple[dict[str, Any], bytes]:
    header = None if claimed is None else image.Header(**claimed)
    _limit(config.max_pixels if header is None else header.width * header.height, len(data), config)
    try:
        if header is None:
            return {"header": asdict(image.read_complete_header(data))}, b""
        stored = image.store(data, header, config)
    except FetchError as error:
        return {"status": error.status.value, "message": str(error)}, b""
    except Exception as error:  # noqa: BLE001 - of one picture; the parent makes a status of it, and logs it
        return {"kind": type(error).__name__, "trace": traceback.format_exc()}, b""
    facts = {"width": stored.width, "height": stored.height, "header": asdict(stored.header)}
    anew = stored.data is not data
    return facts | {"anew": anew}, stored.data if anew else b""


def _limit(pixels: int, size: int, config: Crawl) -> None:
    """Bound what the next picture may take, in memory and in seconds of processor time."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime + config.max_decode_seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    mapped = _mapped_bytes()
    if mapped is not None:
        memory = mapped + _FREE_BYTES + _BYTES_PER_PIXEL * pixels + 4 * size
        resource.setrlimit(resource.RLIMIT_AS, (memory, resource.RLIM_INFINITY))


def _mapped_bytes() -> int | None:
    """This process's address space in bytes; None where the system does not tell, so that it cannot be bounded."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError):
        return None
    return pages * resource.getpagesize()
