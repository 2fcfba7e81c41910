"""Make distinct JPEGs from the demo's pictures, and serve them: ``served.py FOLDER`` prints its port until it ends.

``make`` writes blocks of pictures, ``00000.bin`` beside the offsets ``00000.npy``, and leaves those that are there. The
server answers ``/NUMBER.jpg`` over keep-alive HTTP/1.1 and holds no picture in memory.
"""

import asyncio
import io
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

BLOCK = 5_000
CROPS = 8  # of a source in a row: it is decoded once for them
SMALLEST = 205  # pixels of a side; the crawl keeps those above 200


def make(folder: Path, count: int, sources: list[Path]) -> None:
    """Write the blocks of ``count`` pictures: crops of the sources, shifted and scaled by a seed of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    blocks = [number for number in range(-(-count // BLOCK)) if not (folder / f"{number:05d}.npy").exists()]
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(_write_block, folder, sources), blocks))


def _write_block(folder: Path, sources: list[Path], number: int) -> None:
    offsets = [0]
    with (folder / f"{number:05d}.bin").open("wb") as file:
        for picture in range(number * BLOCK, (number + 1) * BLOCK):
            source = sources[picture // CROPS % len(sources)]
            offsets.append(offsets[-1] + file.write(_picture(source, picture)))
    np.save(folder / f"{number:05d}.npy", np.array(offsets))  # last: it says that the block is whole


def _picture(source: Path, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    picture = _decoded(source)
    share = rng.uniform(0.8, 1.0)
    width, height = picture.width * share, picture.height * share
    left, top = rng.uniform(0, picture.width - width), rng.uniform(0, picture.height - height)
    scale = rng.uniform(SMALLEST, 1.9 * SMALLEST) / min(width, height)
    size = (min(round(width * scale), 1_000), min(round(height * scale), 1_000))
    data = io.BytesIO()
    box = (left, top, left + width, top + height)
    picture.resize(size, Image.Resampling.BILINEAR, box).save(data, "JPEG", quality=90)
    return data.getvalue()


@lru_cache(maxsize=1)
def _decoded(source: Path) -> Image.Image:
    with Image.open(source) as opened:
        return opened.convert("RGB")


class _Connection(asyncio.Protocol):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            target = self._buffer.split(b" ", 2)[1].decode()
            self._buffer = self._buffer[end + 4 :]
            name = target.removeprefix("/").removesuffix(".jpg")
            if not name.isdecimal():
                self._transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                continue
            body = _read(self._folder, int(name))
            head = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(body)
            self._transport.write(head + body)


def _read(folder: Path, picture: int) -> bytes:
    number, place = divmod(picture, BLOCK)
    if number not in _open:
        file = os.open(folder / f"{number:05d}.bin", os.O_RDONLY)
        _open[number] = file, np.load(folder / f"{number:05d}.npy", mmap_mode="r")
    file, offsets = _open[number]
    return os.pread(file, int(offsets[place + 1] - offsets[place]), int(offsets[place]))


_open: dict[int, tuple[int, np.ndarray]] = {}


async def _serve(folder: Path) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(folder), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
