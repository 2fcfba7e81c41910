"""Process mutated image files like the crawler does; each must get a status.

    python benchmarks/crawl/fuzz.py [--count 100000] [--seed 0] [--formats gif avif webp png jpeg bmp tiff]

Each file arrives in pieces, its header is read, and it is decoded in the crawl's child process with limits. Every
second file is small enough to be kept, the others are encoded anew. What is stored must have no metadata, be opened by
the decoder of all later readers, and fit into its row. An unexpected exception, or a stored image that breaks this, is
printed with the number that reproduces it, and the exit code is then 1. Equal seeds give equal mutations.
"""

import argparse
import asyncio
import hashlib
import io
import json
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator

import numpy as np
import psutil
import pyarrow as pa
from PIL import Image

from wukong.config.crawl import Crawl
from wukong.crawl import image_header, stored_image
from wukong.crawl.clock import Clock
from wukong.crawl.decoder import Decoder
from wukong.crawl.status import FetchError
from wukong.curate import phash
from wukong.data import decoding
from wukong.data.schema import CRAWLED

FORMATS = ("gif", "avif", "webp", "png", "jpeg", "bmp", "tiff")
CONFIG = Crawl(
    queries="", endpoint="", min_side=1, max_aspect_ratio=100, max_pixels=4_000_000, max_decode_seconds=5, image_size=32
)
KEPT = CONFIG.model_copy(update={"image_size": 64})
METADATA = {"exif", "icc_profile", "comment", "xmp", "mp", "photoshop"}
PIECE = 16 * 1024
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def seeds(kind: str) -> list[bytes]:
    """Return small images of one format, in all variants that Pillow can write."""
    y, x = np.mgrid[0:40, 0:48]
    smooth = np.stack([x * 5, y * 6, (x * y) % 256], axis=2).astype(np.uint8)
    colour = Image.fromarray(smooth)
    clear = colour.convert("RGBA")
    clear.putalpha(Image.fromarray(smooth[:, :, 0]))
    frames = {"save_all": True, "append_images": [colour.rotate(90), colour.rotate(180)], "duration": 50}
    grey16 = Image.fromarray((smooth[:, :, 0].astype(np.uint16) << 8) + smooth[:, :, 1])
    exif, upright = Image.Exif(), Image.Exif()
    exif[0x0112] = 6
    upright[0x0112] = 1
    upright.get_ifd(0x8825)[29] = "2026:11:28"
    described = {
        "exif": upright,
        "comment": b"a comment",
        "icc_profile": bytes(200),
        "xmp": b"<x:xmpmeta/>",
        "dpi": (72, 72),
    }
    ways: dict[str, list[tuple[Image.Image, dict[str, object]]]] = {
        "gif": [(colour, {}), (clear, {}), (colour, frames), (colour.convert("L"), {"interlace": 1})],
        "avif": [(colour, {}), (clear, {}), (colour, frames), (colour.convert("L"), {"exif": exif})],
        "webp": [(colour, {}), (colour, {"lossless": True}), (clear, {}), (colour, frames), (colour, {"exif": exif})],
        "png": [
            *((picture, {}) for picture in (colour, clear, colour.convert("P"), colour.convert("1"), grey16)),
            (colour, frames),
            (clear.convert("LA"), {"exif": exif, "dpi": (72, 72)}),
        ],
        "jpeg": [
            (colour, {}),
            (colour, {"progressive": True, "exif": exif}),
            (colour.convert("CMYK"), {}),
            (colour.convert("L"), {"optimize": True, "restart_marker_blocks": 2}),
            (colour, {"subsampling": 0, "quality": 100}),
            (colour, described),
            (colour.convert("L"), described | {"progressive": True}),
        ],
        "bmp": [(picture, {}) for picture in (colour, clear, colour.convert("P"), colour.convert("1"))],
        "tiff": [(colour, {"compression": way}) for way in ("raw", "tiff_lzw", "tiff_deflate", "jpeg", "packbits")],
    }
    files = []
    for picture, options in ways[kind]:
        stream = io.BytesIO()
        picture.save(stream, kind.upper(), **options)
        files.append(stream.getvalue())
    return files


def mutate(rng: np.random.Generator, files: list[bytes], kind: str) -> bytes:
    """Change an image file in one to eight places; half of the changes are in its first bytes."""
    data = bytearray(files[rng.integers(len(files))])
    for _ in range(int(rng.integers(1, 9))):
        end = max(1, len(data))
        place = int(rng.integers(min(end, 96))) if rng.random() < 0.5 else int(rng.integers(end))
        size = int(rng.choice((1, 2, 4)))
        match int(rng.integers(8)):
            case 0:
                data[place : place + 1] = bytes([data[place] ^ (1 << int(rng.integers(8)))]) if data else b""
            case 1:
                data[place : place + size] = rng.bytes(size)
            case 2 | 3:
                number = int(rng.choice(NUMBERS)) & ((1 << 8 * size) - 1)
                data[place : place + size] = number.to_bytes(size, "little" if rng.random() < 0.5 else "big")
            case 4:
                del data[place : place + int(rng.integers(1, 33))]
            case 5:
                start = int(rng.integers(end))
                data[place:place] = data[start : start + int(rng.integers(1, 65))]
            case 6:
                other = files[rng.integers(len(files))]
                start = int(rng.integers(len(other)))
                data[place : place + 16] = other[start : start + 16]
            case _:
                if rng.random() < 0.2:
                    del data[place:]
    if kind == "png" and rng.random() < 0.7:
        return with_checksums(bytes(data))
    return bytes(data)


def with_checksums(data: bytes) -> bytes:
    """Correct the checksums of a PNG's chunks, so that a decoder reads the damaged chunks."""
    mended, place = bytearray(data), 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            break
        struct.pack_into(">I", mended, end, zlib.crc32(data[place + 4 : end]))
        place = end + 4
    return bytes(mended)


async def outcome(data: bytes, decoder: Decoder) -> str:
    """Process an image like the crawl, from its first piece to its stored form; return the status."""
    reader, clock = image_header.HeaderReader(), Clock()
    header = None
    try:
        for end in range(PIECE, len(data), PIECE):
            header = header or reader.read(data[:end], complete=False)
        if header is None and image_header.sniff(data) == "avif":
            header = await decoder.read_header(data, clock)
        if header is None:
            header = reader.read(data, complete=True)
        assert header is not None
        assert max(header.width, header.height) < 2**31, f"no row can hold {header}"
        image_header.check_size(header, CONFIG)
        stored = await decoder.store(data, header, clock)
    except FetchError as error:
        return error.status.value + (" (crash)" if "crash" in str(error) else "")
    check(stored)
    return "success"


def check(stored: stored_image.Stored) -> None:
    """Check that a stored image has no metadata, is opened by every later reader, and has a row.

    Raises:
        DataError: a reader cannot open it.
        AssertionError: it has metadata, another size than its row, or numbers that no row can hold.
    """
    size = decoding.decode(stored.data).size
    assert size == (stored.width, stored.height), f"{size} is stored as {(stored.width, stored.height)}"
    with Image.open(io.BytesIO(stored.data)) as opened:
        assert not METADATA & set(opened.info), f"it holds {METADATA & set(opened.info)}"
    phash.perceptual_hash(stored.data)
    numbers = {"width": stored.header.width, "height": stored.header.height}
    numbers |= {"exif_orientation": stored.header.orientation, "stored_width": stored.width}
    pa.Table.from_pylist([numbers], schema=CRAWLED)


def fuzz(kind: str, count: int, seed: int) -> Iterator[tuple[str, int, BaseException | None]]:
    """Iterate over the mutations: the status, the number, and an unexpected exception or None."""
    files = seeds(kind)
    with Decoder(CONFIG) as first, Decoder(KEPT) as second, asyncio.Runner() as loop:
        for number in range(count):
            name = hashlib.sha256(f"{kind} {seed} {number}".encode()).digest()
            data = mutate(np.random.default_rng(int.from_bytes(name[:8], "big")), files, kind)
            try:
                yield loop.run(outcome(data, second if number % 2 else first)), number, None
            except Exception as error:  # noqa: BLE001 - the fuzzer looks for these
                yield "no status", number, error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", nargs="*", default=FORMATS, choices=FORMATS)
    options = parser.parse_args()
    failed, results = 0, {}
    for kind in options.formats:
        started, statuses, peak = time.monotonic(), Counter[str](), 0
        for status, number, error in fuzz(kind, options.count, options.seed):
            statuses[status] += 1
            if number % 100 == 50:
                children = psutil.Process().children()
                peak = max([peak, *(child.memory_info().rss for child in children)])
            if error is not None:
                failed += 1
                print(f"{kind} {number}: {type(error).__name__}: {getattr(error, 'trace', error)}", flush=True)
        results[kind] = {
            "mutations": options.count,
            "statuses": dict(sorted(statuses.items())),
            "seconds": round(time.monotonic() - started, 1),
            "decoder_mib": round(peak / 2**20),
        }
        print(kind, json.dumps(results[kind]), flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
