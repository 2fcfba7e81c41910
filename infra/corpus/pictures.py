"""Draw the corpus's images as on a web site: on white, 240 to 432 px, as PNG or JPEG.

Size and format depend only on the image's path, so the bytes are the same every time.
"""

import io
from pathlib import Path

import resvg_py
from PIL import Image

from infra.corpus.sources import Draft, spread
from wukong.data.decoding import FORMATS
from wukong.store.whole_file import whole_file

_JPEG_QUALITY = 90
_MARGIN = 0.92
"""The share of the canvas that the longer side of a stamp fills."""


def file_name(draft: Draft) -> str:
    """Return the path of an image on the site, with its extension."""
    return draft.path if draft.how == "copy" else f"{draft.path}.{('png', 'jpg')[spread(draft.path, 'format', 2)]}"


def side(draft: Draft) -> int:
    """Return the side of the square canvas in pixels: 240 to 432, in steps of 8."""
    return 240 + 8 * spread(draft.path, "side", 25)


def draw(draft: Draft, target: Path) -> tuple[int, int]:
    """Draw an image into a file, which appears only when it is complete.

    Returns:
        Its width and height in pixels.
    """
    pixels = side(draft)
    if draft.how == "svg":
        png = bytes(
            resvg_py.svg_to_bytes(
                svg_string=draft.svg, width=pixels, height=pixels, background="#ffffff", skip_system_fonts=True
            )
        )
        data = png if target.suffix == ".png" else _encode(Image.open(io.BytesIO(png), formats=["PNG"]), target.suffix)
    else:
        if draft.origin is None:
            raise ValueError(f"{draft.path} should be drawn from a file, but has no origin")
        data = _encode(on_canvas(_open_stamp(draft.origin, pixels), pixels), target.suffix)
    with whole_file(target, synced=False) as stream:
        stream.write(data)
    return pixels, pixels


def on_canvas(image: Image.Image, pixels: int) -> Image.Image:
    """Draw an image in the middle of a white square of ``pixels`` x ``pixels``, scaled with Lanczos, with a margin."""
    scale = pixels * _MARGIN / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    # Scale with premultiplied colours; otherwise the hidden colour of transparent pixels appears at the edges.
    scaled = image.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS).convert("RGBA")
    canvas = Image.new("RGB", (pixels, pixels), "white")
    canvas.paste(scaled, ((pixels - width) // 2, (pixels - height) // 2), scaled)
    return canvas


def on_white(image: Image.Image) -> Image.Image:
    """Convert an image to RGB; transparent pixels become white."""
    picture = image.convert("RGBA")
    canvas = Image.new("RGB", picture.size, "white")
    canvas.paste(picture, (0, 0), picture)
    return canvas


def _open_stamp(origin: Path, pixels: int) -> Image.Image:
    if origin.suffix == ".svg":
        png = bytes(resvg_py.svg_to_bytes(svg_path=str(origin), width=pixels, dpi=96.0, skip_system_fonts=True))
        return Image.open(io.BytesIO(png), formats=["PNG"]).convert("RGBA")
    with Image.open(origin, formats=FORMATS) as image:
        return image.convert("RGBA")


def _encode(image: Image.Image, suffix: str) -> bytes:
    stream = io.BytesIO()
    if suffix == ".jpg":
        image.convert("RGB").save(stream, "JPEG", quality=_JPEG_QUALITY)
    else:
        image.save(stream, "PNG")
    return stream.getvalue()
