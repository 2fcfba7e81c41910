"""No metadata is stored and none fails an image; Pillow and OpenCV are the oracles for what is left."""

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from crawl_samples import make_config, make_picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from wukong.config.crawl import Crawl
from wukong.crawl import image_header, metadata, stored_image
from wukong.data import decoding
from wukong.errors import DataError

SECRET = b"PLACE-OF-THE-PHOTOGRAPH"
KEEP: Crawl = make_config(min_side=1, max_aspect_ratio=1000)
ANEW: Crawl = make_config(min_side=1, max_aspect_ratio=1000, keep_small_jpegs=False, resize="no", jpeg_quality=100)


def exif_with(orientation: int = 1) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = SECRET.decode()
    exif.get_ifd(0x8825)[29] = SECRET.decode()  # the date of a GPS position
    return exif


def stored(data: bytes, config: Crawl = KEEP) -> stored_image.Stored:
    return stored_image.store(data, image_header.read_complete_header(data), config)


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def is_bare(data: bytes) -> bool:
    """Whether a JPEG holds nothing but its picture, as Pillow sees it."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        known = {"jfif", "jfif_version", "jfif_unit", "jfif_density", "dpi", "progressive", "progression", "adobe"}
        return image.format == "JPEG" and set(image.info) <= known | {"adobe_transform"}


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "progressive": {"progressive": True},
    "grey": {"mode": "L"},
    "grey progressive": {"mode": "L", "progressive": True},
    "restart markers": {"restart_marker_blocks": 3},
    "best": {"quality": 100, "subsampling": 0, "optimize": True},
    "poor": {"quality": 5, "subsampling": 2},
    "RGB": {"keep_rgb": True},
}


def loaded(name: str, **options: Any) -> bytes:
    """A JPEG with all metadata that Pillow can write."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return make_picture(
        **OPTIONS[name] | {"exif": exif_with(), "comment": SECRET, "icc_profile": profile, "xmp": SECRET} | options
    )


@pytest.mark.parametrize("name", OPTIONS)
def test_the_pixels_of_a_jpeg_stay_as_they_are(name: str) -> None:
    sent = loaded(name, width=250, height=200) + SECRET + bytes(1000)
    kept = stored(sent).data
    assert SECRET in sent
    assert SECRET not in kept
    assert is_bare(kept)
    assert np.array_equal(pixels(kept), pixels(sent))
    as_opencv = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) for data in (sent, kept)]
    assert np.array_equal(*as_opencv)
    assert stored(kept).data == kept, "there is nothing left to remove"


def test_a_jpeg_without_metadata_is_the_same_bytes() -> None:
    sent = make_picture(250, 200)
    assert metadata.jpeg_alone(sent) is sent


def segment(marker: int, content: bytes) -> bytes:
    return b"\xff%c" % marker + struct.pack(">H", len(content) + 2) + content


segments_of_metadata = st.builds(
    segment, st.sampled_from([*range(0xE0, 0xF0), 0xFE]), st.binary(max_size=60).map(lambda noise: SECRET + noise)
)
small_change = st.tuples(st.integers(0, 63), st.integers(0, 255))


@given(
    st.sampled_from(sorted(OPTIONS)),
    st.lists(st.one_of(segments_of_metadata, st.integers(1, 9).map(lambda n: b"\xff" * n)), max_size=6),
    st.binary(max_size=50),
    st.integers(1, 40),
    st.integers(1, 40),
)
@settings(max_examples=150)
def test_any_metadata_before_any_scan_is_removed(
    name: str, pieces: list[bytes], after: bytes, width: int, height: int
) -> None:
    clean = make_picture(width, height, **OPTIONS[name])
    sent = clean
    for place in [m for m, marker in _markers(clean) if marker in {0xDB, 0xC4, 0xDA}][::-1]:
        sent = sent[:place] + b"".join(pieces) + sent[place:]
    kept = metadata.jpeg_alone(sent + after)
    assert kept is not None
    assert SECRET not in kept
    assert np.array_equal(pixels(kept), pixels(clean))


def _markers(jpeg: bytes) -> list[tuple[int, int]]:
    return [(start - 2, marker) for marker, start, _ in metadata.segments(jpeg)]


HIDDEN = 30 * 2**20


def hidden(where: str) -> bytes:
    """A JPEG of a few kilobytes that carries 30 MB of something else."""
    jpeg = make_picture(250, 200)
    other = (SECRET + bytes(1000)) * (HIDDEN // 1000)
    match where:
        case "behind":
            return jpeg + other
        case "comments":
            pieces = [segment(0xFE, other[n : n + 65_000]) for n in range(0, HIDDEN, 65_000)]
            return jpeg[:2] + b"".join(pieces) + jpeg[2:]
        case "after the data":
            return jpeg[:-2] + other + jpeg[-2:]
        case "tables":
            return jpeg[:2] + segment(0xDB, (b"\x03" + SECRET + bytes(41)) * 1000) * (HIDDEN // 65_004) + jpeg[2:]
        case "fill bytes":
            return jpeg[:2] + b"\xff" * HIDDEN + jpeg[2:]
    raise ValueError(where)


@pytest.mark.parametrize("where", ["behind", "comments", "after the data", "tables", "fill bytes"])
def test_a_small_jpeg_carries_nothing_else(where: str) -> None:
    sent = hidden(where)
    kept = stored(sent)
    assert len(kept.data) < 20_000
    assert is_bare(kept.data)
    assert float(np.abs(pixels(kept.data).astype(int) - pixels(make_picture(250, 200)).astype(int)).mean()) < 2
    assert SECRET not in kept.data


@given(st.sampled_from(sorted(OPTIONS)), st.lists(small_change, min_size=1, max_size=4), st.integers(1, 8))
@settings(max_examples=300)
def test_damaged_exif_never_fails_a_jpeg(name: str, changes: list[tuple[int, int]], orientation: int) -> None:
    """The EXIF data of a JPEG with one to four wrong bytes: what the crawl stores, every reader opens.

    With a resolution in its JFIF segment, Pillow does not look at the EXIF data before it is asked for it.
    """
    sent = bytearray(make_picture(60, 48, **OPTIONS[name], exif=exif_with(orientation), dpi=(72, 72)))
    start = sent.index(b"Exif\0\0") + 6
    for place, value in changes:
        sent[start + place] = value
    data = bytes(sent)
    kept = stored(data)
    assert decoding.decode(kept.data).size == (kept.width, kept.height)
    assert pixels(kept.data).shape[:2] == (kept.height, kept.width)
    turned = image_header.read_complete_header(data).orientation
    assert decoding.decode(data).size == ((48, 60) if (turned or 1) > 4 else (60, 48)), "also the readers by themselves"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "AVIF", "JPEG"])
def test_the_orientation_of_every_format_is_honoured(kind: str, orientation: int) -> None:
    sent = make_picture(200, 120, kind=kind, exif=exif_with(orientation))
    kept = stored(sent, ANEW)
    assert kept.header.orientation == orientation or (kind == "AVIF" and orientation == 1)
    assert (kept.header.width, kept.header.height) == (200, 120)
    upright = pixels(sent)
    assert upright.shape[:2] == ((200, 120) if orientation > 4 else (120, 200))
    assert pixels(kept.data).shape == upright.shape
    assert float(np.abs(pixels(kept.data).astype(int) - upright.astype(int)).mean()) < 3
    assert np.array_equal(np.asarray(decoding.decode(sent)), upright)
    assert SECRET not in kept.data


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


PNG = make_picture(64, 48, kind="PNG")
GIF = make_picture(64, 48, kind="GIF")
AVIF = make_picture(64, 48, kind="AVIF", exif=exif_with())
DAMAGED = {
    "PNG, a text with a wrong checksum": PNG[:33] + png_chunk(b"tEXt", b"a\0b")[:-1] + b"x" + PNG[33:],
    "PNG, EXIF that is none": PNG[:33] + png_chunk(b"eXIf", b"II*\0\xff\xff\xff\xff") + PNG[33:],
    "PNG, empty chunks of all kinds": PNG[:33]
    + b"".join(
        png_chunk(kind, b"") for kind in (b"tEXt", b"zTXt", b"iTXt", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"iCCP")
    )
    + PNG[33:],
    "PNG, animation control": PNG[:33] + png_chunk(b"acTL", bytes(8)) + png_chunk(b"fcTL", b"") + PNG[33:],
    "PNG, something behind": PNG + png_chunk(b"tEXt", b"a\0b") * 3 + SECRET,
    "GIF, very many comments": GIF[: 13 + 3 * 256] + b"\x21\xfe\x01a\0" * 100_000 + GIF[13 + 3 * 256 :],
    "GIF, one long comment": GIF[: 13 + 3 * 256] + b"\x21\xfe" + (b"\xff" + bytes(255)) * 40_000 + b"\0" + GIF[781:],
    "AVIF, EXIF that is none": AVIF.replace(b"II*\0", b"II*x").replace(b"MM\0*", b"MM\0x"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_metadata_fails_no_image(name: str) -> None:
    intact = {"P": PNG, "G": GIF, "A": AVIF}[name[0]]
    assert np.array_equal(pixels(stored(DAMAGED[name], ANEW).data), pixels(stored(intact, ANEW).data))


@given(st.binary(max_size=80), st.sampled_from([PNG, GIF, AVIF, make_picture(20, 20)]), st.integers(0, 2000))
@settings(max_examples=300)
def test_any_bytes_can_be_searched_for_metadata(noise: bytes, file: bytes, place: int) -> None:
    data = file[:place] + noise + file[place:]
    metadata.jpeg_alone(data)
    metadata.png_alone(data)
    metadata.gif_alone(data)
    assert len(metadata.avif_alone(data)) == len(data)


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_transparency_survives(kind: str) -> None:
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    image.paste((200, 30, 30, 255), (0, 0, 16, 32))
    stream = io.BytesIO()
    image.save(stream, kind, comment=SECRET)
    data = stream.getvalue()
    assert np.array_equal(
        pixels(data), pixels(metadata.gif_alone(data) if kind == "GIF" else metadata.png_alone(data)[0])
    )
    with Image.open(io.BytesIO(metadata.gif_alone(data) if kind == "GIF" else metadata.png_alone(data)[0])) as opened:
        assert opened.convert("RGBA").getpixel((20, 20))[3] == 0


def test_a_jpeg_that_the_readers_refuse_is_encoded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """One decoder decides for all, whatever else can read the file."""
    sent = make_picture(250, 200)
    assert stored(sent).data == sent

    def refuses(data: bytes, name: str = "") -> Image.Image:
        raise DataError(f"{name} {len(data)}")

    monkeypatch.setattr(decoding, "decode", refuses)
    assert stored(sent).data != sent
