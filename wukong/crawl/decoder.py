"""Decode images in a child process with limits on memory and time.

An image from the web is not trusted: a file of a few kilobytes can take minutes to decode or contain gigabytes of
pixels, and a decoder written in C may crash. This must not happen in a process that downloads other images. Images that
are cheap to decode whatever their content (``image_header.is_cheap``) are decoded in that process, all others here.
"""

import asyncio
import contextlib
import ctypes
import json
import logging
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
from functools import lru_cache
from types import TracebackType
from typing import IO, Any

from wukong.config.crawl import Crawl
from wukong.crawl import image_header, stored_image
from wukong.crawl.clock import Clock
from wukong.crawl.status import FetchError, Status
from wukong.crawl.unexpected import UnexpectedInDecoderError

logger = logging.getLogger(__name__)

_FRAME = struct.Struct(">II")
"""The beginning of each message: the sizes in bytes of its JSON and of the image after it."""

_BYTES_PER_PIXEL = 40
"""Memory for a pixel in the worst case: the conversion of a 16-bit image with transparency to RGB, with its copies."""

_FREE_BYTES = 192 * 2**20
"""Memory allowed in addition to the pixels: for tables, profiles and the encoded data."""

_WALL_FACTOR = 10
"""Limit on the elapsed time, as a multiple of the processor time: on a busy machine a second of processor time takes
longer, and a process that hangs uses none."""

_INHERITED = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME", "LANG", "LC_ALL", "TZ")
"""Environment variables of the child process, if they are set: what Python and its libraries need to start."""

_NO_NEW_PRIVS = 38
"""The option of ``prctl``, from ``linux/prctl.h``."""

_LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 444, 446
_LANDLOCK_FILES = (1 << 13) - 1
"""Landlock's system calls, and all rights to files in its first version (``linux/landlock.h``)."""

_IMAGES_PER_CHILD = 20_000
"""A child process is replaced after so many images, so that memory leaks of its libraries do not accumulate."""


class Decoder:
    """Runs ``stored_image.store`` in a child process, one image at a time; use it as a context manager.

    Args:
        config: the crawl's settings; ``max_decode_seconds`` and ``max_pixels`` limit the child process.
    """

    def __init__(self, config: Crawl) -> None:
        self._config = config
        self._child: subprocess.Popen[bytes] | None = None
        self._requests = 0
        self._closed = False
        # A thread waits for the child process, so that the event loop does not.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decoder")

    async def read_header(self, data: bytes, clock: Clock) -> image_header.Header:
        """Read a header that only a decoder can read; for arguments and errors see ``store``."""
        answer, _ = await self._request_in_thread({"header": None}, data, clock)
        return image_header.Header(**answer["header"])

    async def store(self, data: bytes, header: image_header.Header, clock: Clock) -> stored_image.Stored:
        """Decode, resize and encode an image.

        Args:
            data: the whole file.
            header: the header of the file.
            clock: runs while the image is decoded, not while it waits for the child process.

        Raises:
            FetchError: see ``stored_image.store``; (``too_costly``) decoding takes more memory or time than allowed;
                (``corrupt``) the decoder crashes.
            UnexpectedInDecoderError: the decoder raised an unexpected exception.
        """
        answer, picture = await self._request_in_thread({"header": asdict(header)}, data, clock)
        stored = picture if answer["changed"] else data
        return stored_image.Stored(stored, answer["width"], answer["height"], image_header.Header(**answer["header"]))

    async def _request_in_thread(
        self, message: Mapping[str, Any], data: bytes, clock: Clock
    ) -> tuple[dict[str, Any], bytes]:
        def timed() -> tuple[dict[str, Any], bytes]:
            with clock:
                return self._request(message, data)

        answer, picture = await asyncio.get_running_loop().run_in_executor(self._thread, timed)
        if "refused" in answer:
            _tell_refused(answer["refused"])
        if "trace" in answer:
            raise UnexpectedInDecoderError(answer["kind"], answer["trace"])
        if "status" in answer:
            raise FetchError(Status(answer["status"]), answer["message"])
        return answer, picture

    def close(self) -> None:
        """Kill the child process."""
        self._closed = True
        if self._child is not None:
            self._child.kill()
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._end_child()

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _request(self, message: Mapping[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        """Send a message to the child process and wait for its answer; retry once if somebody else killed it."""
        for attempt in (1, 2):
            child = self._running_child()
            killed = False
            try:
                assert child.stdin is not None  # noqa: S101 - both are pipes
                assert child.stdout is not None  # noqa: S101
                _send(child.stdin, message, data)
                ready = _wait_readable(child.stdout, _WALL_FACTOR * self._config.max_decode_seconds + 30)
                if ready:
                    answer = _receive(child.stdout)
                    if answer is not None:
                        return answer
                else:
                    killed = True
            except BrokenPipeError:
                pass
            code = self._end_child()
            if killed or code == -signal.SIGXCPU:
                raise FetchError(
                    Status.TOO_COSTLY, f"decoding takes more than {self._config.max_decode_seconds:g} seconds"
                )
            if attempt == 1 and not self._closed and code in {-signal.SIGKILL, -signal.SIGTERM}:
                continue  # another process killed it, for instance the kernel, because memory was short
            break
        name = signal.Signals(-code).name if code < 0 else f"code {code}"
        raise FetchError(Status.CORRUPT, f"the picture makes the decoder crash ({name})")

    def _running_child(self) -> "subprocess.Popen[bytes]":
        """Return the child process; start one if there is none, or if it has ended or handled enough images."""
        if self._child is not None and (self._child.poll() is not None or self._requests >= _IMAGES_PER_CHILD):
            self._end_child()
        if self._child is None:
            # It decodes what strangers send, so it gets none of the secrets that this process may have.
            environment = {name: os.environ[name] for name in _INHERITED if name in os.environ} | {
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
            self._requests = 0
            assert self._child.stdin is not None  # noqa: S101 - it is a pipe
            with contextlib.suppress(BrokenPipeError):  # it has ended; sending the request will find that too
                _send(self._child.stdin, self._config.model_dump(mode="json"), b"")
        self._requests += 1
        return self._child

    def _end_child(self) -> int:
        """End the child process and return its exit code."""
        child, self._child = self._child, None
        if child is None:
            return 0
        # If the child has crashed, its pipe is closed, and its exit code gives the reason.
        died = child.stdout is not None and _wait_readable(child.stdout, 0)
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


@lru_cache
def _tell_refused(what: str) -> None:
    """Log, once, which protection of the child process the system refuses."""
    logger.warning("the decoder runs with less protection than it should have: this system refuses %s", what)


def _wait_readable(stream: IO[bytes], seconds: float) -> bool:
    """Wait until the stream has data or has ended; return False after ``seconds``."""
    poll = select.poll()  # select.select accepts only descriptors below 1,024
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
    """The main function of the child process: answer requests until the parent closes the pipe."""
    from PIL import AvifImagePlugin, Image

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C, and then closes the pipe
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output that a library prints must not get between two answers
    first = _receive(sys.stdin.buffer)
    if first is None:
        return
    config = Crawl.model_validate(first[0])
    Image.MAX_IMAGE_PIXELS = config.max_pixels
    Image.init()  # all formats, because no file can be opened afterwards
    try:
        statm = os.open("/proc/self/statm", os.O_RDONLY)
    except OSError:  # a system that does not report it
        statm = None
    refused = _give_up_rights()
    while (request := _receive(sys.stdin.buffer)) is not None:
        message, picture = _answer(request[0]["header"], request[1], config, statm)
        _send(answers, message | ({"refused": refused} if refused else {}), picture)


def _give_up_rights() -> str:
    """Give up what decoding does not need: new files and sockets, other users' rights, sight of other processes.

    A decoder may be taken over by an image that exploits an error in it. It then has the pipes to its parent and
    nothing else: no file, no network.

    Returns:
        What the system refuses, for the log; empty if it refuses nothing.
    """
    refused = []
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0):
        refused.append("PR_SET_NO_NEW_PRIVS")
    if not _landlock(libc):
        refused.append("Landlock")
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    except (OSError, ValueError):
        refused.append("RLIMIT_NOFILE")
    return ", ".join(refused)


def _landlock(libc: ctypes.CDLL) -> bool:
    """Forbid this process to open files and to look into other processes; return whether the kernel can do so."""
    rights = ctypes.c_uint64(_LANDLOCK_FILES)
    size = ctypes.c_size_t(ctypes.sizeof(rights))
    rules = libc.syscall(ctypes.c_long(_LANDLOCK_CREATE), ctypes.byref(rights), size, ctypes.c_uint32(0))
    if rules < 0:
        return False
    done = libc.syscall(ctypes.c_long(_LANDLOCK_RESTRICT), ctypes.c_int(rules), ctypes.c_uint32(0)) == 0
    os.close(rules)
    return bool(done)


def _answer(
    header_fields: Mapping[str, Any] | None, data: bytes, config: Crawl, statm: int | None
) -> tuple[dict[str, Any], bytes]:
    header = None if header_fields is None else image_header.Header(**header_fields)
    _set_limits(config.max_pixels if header is None else header.width * header.height, len(data), config, statm)
    try:
        if header is None:
            return {"header": asdict(image_header.read_complete_header(data))}, b""
        stored = stored_image.store(data, header, config)
    except FetchError as error:
        return {"status": error.status.value, "message": str(error)}, b""
    except Exception as error:  # noqa: BLE001 - it concerns one image; the parent turns it into a status and logs it
        return {"kind": type(error).__name__, "trace": traceback.format_exc()}, b""
    facts = {"width": stored.width, "height": stored.height, "header": asdict(stored.header)}
    changed = stored.data is not data
    return facts | {"changed": changed}, stored.data if changed else b""


def _set_limits(pixels: int, size: int, config: Crawl, statm: int | None) -> None:
    """Limit memory and processor time for the next image; ``statm`` is the open file that tells the memory in use."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime + config.max_decode_seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    if statm is not None:
        used_bytes = int(os.pread(statm, 200, 0).split()[0]) * resource.getpagesize()
        memory = used_bytes + _FREE_BYTES + _BYTES_PER_PIXEL * pixels + 4 * size
        resource.setrlimit(resource.RLIMIT_AS, (memory, resource.RLIM_INFINITY))
