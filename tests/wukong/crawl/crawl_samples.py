"""Images and settings that the crawl tests share."""

import io
from typing import Any

import numpy as np
from PIL import Image

from wukong.config.crawl import Crawl

HOST = "images.test"


def make_config(**changes: Any) -> Crawl:
    """A crawl with short times; settings can be changed, those of politeness as ``politeness={...}``."""
    values: dict[str, Any] = {
        "queries": "file:///queries.txt",
        "endpoint": f"http://{HOST}/search/acjson",
        "max_seconds": 5.0,
        "retries": 0,
        "min_side": 20,
    }
    return Crawl.model_validate(values | changes)


def make_picture(width: int = 320, height: int = 240, kind: str = "JPEG", mode: str = "RGB", **options: Any) -> bytes:
    """A smooth, colourful image in any format that Pillow writes."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], axis=2)
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(stream, kind, **options)
    return stream.getvalue()
