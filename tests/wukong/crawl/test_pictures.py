"""Headers and stored forms of images; Pillow's own decoding is the oracle."""

import io
import struct
import time
import warnings
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from wukong.config.crawl import Crawl
from wukong.crawl import image_header, stored_image
from wukong.crawl.status import FetchError, Status

CONFIG = Crawl(queries="q", endpoint="e", min_side=1, keep_small_jpegs=False)


def encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def gradient(width: int = 320, height: int = 240) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], axis=2)
    return Image.fromarray(pixels.astype(np.uint8))


def store(data: bytes, **changes: Any) -> np.ndarray:
    config = CONFIG.model_copy(update={"jpeg_quality": 100, **changes})
    header = image_header.read_header(data, complete=True)
    assert header is not None
    stored = stored_image.store(data, header, config)
    pixels = np.asarray(Image.open(io.BytesIO(stored.data)).convert("RGB")).astype(int)
    assert (stored.width, stored.height) == (pixels.shape[1], pixels.shape[0])
    return pixels


def close(a: np.ndarray, b: np.ndarray, tolerance: float = 3.0) -> bool:
    return a.shape == b.shape and float(np.abs(a.astype(int) - b.astype(int)).mean()) <= tolerance


FILES = {
    "jpeg": encode(gradient(), "JPEG"),
    "progressive": encode(gradient(), "JPEG", progressive=True),
    "grey": encode(gradient().convert("L"), "JPEG"),
    "cmyk": encode(gradient().convert("CMYK"), "JPEG"),
    "png": encode(gradient(), "PNG"),
    "gif": encode(gradient(), "GIF"),
    "bmp": encode(gradient(), "BMP"),
    "webp": encode(gradient(), "WEBP"),
    "webp lossless": encode(gradient(), "WEBP", lossless=True),
    "webp alpha": encode(gradient().convert("RGBA"), "WEBP"),
    "avif": encode(gradient(), "AVIF"),
    "exif": encode(gradient(), "JPEG", exif=b"Exif\x00\x00" + b"x" * 40_000),
}


@pytest.mark.parametrize("name", FILES)
def test_the_header_equals_pillows(name: str) -> None:
    data = FILES[name]
    with Image.open(io.BytesIO(data)) as picture:
        expected = (picture.format.lower(), picture.width, picture.height)
    header = image_header.read_header(data, complete=True)
    assert header is not None
    assert (header.kind, header.width, header.height) == expected


@pytest.mark.parametrize("name", sorted(set(FILES) - {"avif"}))
def test_a_few_bytes_are_enough_for_the_header(name: str) -> None:
    data = FILES[name]
    known = [size for size in range(0, len(data), 7) if image_header.read_header(data[:size], complete=False)]
    assert known[0] < (41_000 if name == "exif" else 800)
    assert len({image_header.read_header(data[:size], complete=False) for size in known}) == 1


@given(st.binary(max_size=200), st.sampled_from([b"", *(data[:40] for data in FILES.values())]), st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_a_header_or_a_status(tail: bytes, head: bytes, complete: bool) -> None:
    try:
        header = image_header.read_header(head + tail, complete=complete)
        assert header is not None or not complete
    except FetchError as error:
        assert error.status in {Status.NOT_IMAGE, Status.CORRUPT}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_recorded(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(gradient(200, 120), "JPEG", quality=95, exif=exif)
    header = image_header.read_header(data, complete=True)
    assert header is not None
    assert (header.width, header.height, header.orientation) == (200, 120, orientation)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert close(store(data, resize="no"), np.asarray(upright))


def test_damaged_exif_is_ignored() -> None:
    data = encode(gradient(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff" + bytes(20))
    header = image_header.read_header(data, complete=True)
    assert header is not None
    assert header.orientation is None


def exif_of(order: str, entries: list[tuple[int, int, int, bytes]], tail: bytes) -> bytes:
    magic = b"II*\x00" if order == "<" else b"MM\x00*"
    packed = b"".join(struct.pack(f"{order}HHL", tag, kind, count) + value for tag, kind, count, value in entries)
    return b"Exif\x00\x00" + magic + struct.pack(f"{order}LH", 8, len(entries)) + packed + tail


@given(
    st.sampled_from("<>"),
    st.lists(
        st.tuples(
            st.sampled_from([0x0112, 0x0112, 0x010F]),
            st.sampled_from([1, 2, 3, 3, 3, 4, 5, 6, 8, 9, 13, 200]),
            st.sampled_from([1, 1, 1, 0, 2, 2**31]),
            st.one_of(
                st.integers(0, 9).map(lambda value: bytes([value, 0, 0, 0])),
                st.integers(0, 9).map(lambda value: bytes([0, value, 0, 0])),
                st.binary(min_size=4, max_size=4),
            ),
        ),
        max_size=4,
    ),
    st.binary(max_size=8),
)
@settings(max_examples=500, deadline=None)
@example("<", [(0x010F, 4, 2, bytes([0, 1, 0, 0])), (0x0112, 3, 1, bytes([1, 0, 0, 0]))], b"")
def test_the_orientation_equals_pillows(order: str, entries, tail: bytes) -> None:
    segment = exif_of(order, entries, tail)
    tags = Image.Exif()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            tags.load(segment)
            value = tags.get(0x0112)
        except (SyntaxError, ValueError, TypeError, KeyError, struct.error, OSError):
            value = None
    if any("Truncated" in str(warning.message) for warning in said):
        return  # Pillow 13 reads nothing after an entry whose data is missing; we and older ones read on
    if len({entry[1:] for entry in entries if entry[0] == 0x0112}) > 1:
        return  # a picture that contradicts itself
    assert image_header.exif_orientation(segment) == (value if isinstance(value, int) and 1 <= value <= 8 else None)


def seconds_to_read(pieces: int, content: bytes) -> float:
    """Processor time to look for a header that never comes, in data that arrives in pieces of 16 KB."""
    whole = b"\xff\xd8" + content * (pieces * 16_384 // len(content))
    data, reader, seconds = bytearray(), image_header.HeaderReader(), 0.0
    for piece in range(pieces):
        data += whole[piece * 16_384 : (piece + 1) * 16_384]  # new memory takes a busy machine longer than the reader
        started = time.process_time()
        reader.read(data, complete=False)
        seconds += time.process_time() - started
    return seconds


@pytest.mark.parametrize("content", [b"\xff", b"\xff\xfe\xff\xff" + bytes(65_533)], ids=["fill bytes", "segments"])
def test_reading_a_header_is_linear_in_its_bytes(content: bytes) -> None:
    few, many = (min(seconds_to_read(pieces, content) for _ in range(5)) for pieces in (256, 2048))
    assert many < 24 * few, "eight times as many bytes; from the beginning each time, it would be 64 times as long"
    assert many < 0.5, "32 MB, in the event loop"


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x02", b"\xff\xd0", b"\xff\xff\xd0"])
def test_a_header_of_very_many_markers_is_given_up(content: bytes) -> None:
    started = time.process_time()
    with pytest.raises(FetchError, match="markers") as raised:
        image_header.read_complete_header(b"\xff\xd8" + content * (31 * 2**20 // len(content)) + FILES["jpeg"][2:])
    assert raised.value.status is Status.CORRUPT
    assert time.process_time() - started < 0.5


def test_cmyk() -> None:
    expected = Image.open(io.BytesIO(FILES["cmyk"])).convert("RGB")
    assert close(store(FILES["cmyk"], resize="no"), np.asarray(expected))


def test_sixteen_bits_become_eight() -> None:
    values = np.linspace(0, 65535, 256 * 256).astype(np.uint16).reshape(256, 256)
    data = encode(Image.fromarray(values), "PNG")
    assert close(store(data, resize="no"), np.repeat((values >> 8)[:, :, None], 3, axis=2), 1.0)
    colour = np.stack([values, values.T, values[::-1]], axis=2)
    data = cv2.imencode(".png", colour[:, :, ::-1])[1].tobytes()
    assert close(store(data, resize="no"), colour >> 8, 2.0)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "RGBA"), ("PNG", "P"), ("PNG", "LA"), ("GIF", "RGBA"), ("WEBP", "RGBA"), ("AVIF", "RGBA")],
)
def test_transparency_is_laid_on_white(kind: str, mode: str) -> None:
    picture = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    picture.paste((200, 30, 30, 255), (0, 0, 32, 64))
    if mode == "LA":
        picture = picture.convert("LA")
    if mode == "P":
        picture = picture.quantize(8)
    data = encode(picture, kind)
    pixels = store(data, resize="no")
    assert pixels[10:50, 44:60].min() > 250, "what was transparent is white"
    assert pixels[10:50, 4:20].mean() < 160


def test_palette_with_a_transparent_index() -> None:
    picture = Image.new("P", (40, 40), 1)
    picture.putpalette([0, 0, 0, 255, 0, 0] + [0] * 750)
    picture.paste(0, (0, 0, 20, 40))
    pixels = store(encode(picture, "PNG", transparency=0), resize="no")
    assert pixels[5:35, 4:14].min() > 250
    assert close(pixels[5:35, 26:36], np.full((30, 10, 3), (255, 0, 0)))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (50, 40), colour) for colour in ("red", "blue", "green")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, loop=0)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.n_frames == 3
    assert close(store(data, resize="no"), np.full((40, 50, 3), (255, 0, 0)), 5.0)


@pytest.mark.parametrize("name", sorted(set(FILES) - {"exif"}))
def test_a_truncated_file_is_corrupt(name: str) -> None:
    data = FILES[name][: len(FILES[name]) * 3 // 4]
    with pytest.raises(FetchError) as raised:
        store(data)
    assert raised.value.status is Status.CORRUPT


def test_harmless_extra_bytes_are_not_corrupt() -> None:
    data = encode(gradient(), "JPEG")
    scan = data.index(b"\xff\xda")
    assert close(store(data[:scan] + b"odd" + data[scan:], resize="no"), np.asarray(gradient()))
    assert close(store(data + b"trailing", resize="no"), np.asarray(gradient()))


sizes = st.tuples(st.integers(20, 900), st.integers(20, 900))


@given(sizes, st.integers(16, 300), st.sampled_from(["keep_ratio", "center_crop", "border", "no"]))
@settings(max_examples=60, deadline=None)
def test_sizes(size: tuple[int, int], target: int, mode: str) -> None:
    data = encode(Image.new("RGB", size, (90, 120, 30)), "JPEG")
    height, width = store(data, resize=mode, image_size=target, max_aspect_ratio=100).shape[:2]
    if mode in {"center_crop", "border"}:
        assert (width, height) == (target, target)
    elif mode == "no" or min(size) <= target:
        assert (width, height) == size
    else:
        assert min(width, height) == target
        assert max(width, height) == round(max(size) * target / min(size)), "as without decoding at a reduced size"


def test_border_pads_with_white_and_crop_keeps_the_middle() -> None:
    picture = Image.new("RGB", (600, 200), "black")
    picture.paste((0, 0, 255), (200, 0, 400, 200))
    data = encode(picture, "PNG")
    bordered = store(data, resize="border", image_size=120)
    assert bordered[:35].min() > 250
    assert bordered[-35:].min() > 250
    assert close(bordered[55:65, 45:75], np.full((10, 30, 3), (0, 0, 255)), 4)
    assert close(store(data, resize="center_crop", image_size=100), np.full((100, 100, 3), (0, 0, 255)), 4)


@pytest.mark.parametrize("size", [(301, 257), (640, 481), (1023, 767), (1500, 1100)])
def test_scaled_decoding_is_close_to_full_decoding_with_area_resize(size: tuple[int, int]) -> None:
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    waves = 127 + 60 * np.sin(x / 19) + 60 * np.cos(y / 23 + x / 41)
    data = encode(
        Image.fromarray(np.stack([waves, waves[::-1], 255 - waves], axis=2).astype(np.uint8)), "JPEG", quality=92
    )
    got = store(data)
    full = np.asarray(Image.open(io.BytesIO(data)))
    expected = cv2.resize(full, (got.shape[1], got.shape[0]), interpolation=cv2.INTER_AREA)
    assert close(got, expected, 2.0), "a shift by half a pixel would cost more than that"


def test_small_jpegs_are_stored_unchanged() -> None:
    small, large = encode(gradient(250, 200), "JPEG"), encode(gradient(800, 600), "JPEG")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(gradient(250, 200), "JPEG", exif=exif)
    config = CONFIG.model_copy(update={"keep_small_jpegs": True})

    def bytes_of(data: bytes, used: Crawl = config) -> bytes:
        header = image_header.read_header(data, complete=True)
        assert header is not None
        return stored_image.store(data, header, used).data

    assert bytes_of(small) == small
    assert bytes_of(large) != large
    assert bytes_of(large, config.model_copy(update={"resize": "no"})) == large
    assert bytes_of(small, config.model_copy(update={"resize": "center_crop"})) != small
    assert bytes_of(turned) != turned, "a reader that ignores EXIF would see it lying"
    assert bytes_of(FILES["cmyk"], config.model_copy(update={"resize": "no"})) != FILES["cmyk"]
    with pytest.raises(FetchError):
        bytes_of(small[:-500])
