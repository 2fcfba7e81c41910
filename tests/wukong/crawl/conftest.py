"""What the crawl tests share: a web server on loopback, and a crawler that may reach it under a name."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from loopback_web import Web
from PIL import Image

from wukong.config import Crawl

HOST = "images.test"


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    yield server
    server.stop()


@pytest.fixture
def crawl_config() -> Callable[..., Crawl]:
    """A crawl with short times; settings can be changed, those of politeness as ``politeness={...}``."""

    def make(**changes: Any) -> Crawl:
        values: dict[str, Any] = {
            "queries": "file:///queries.txt",
            "endpoint": f"http://{HOST}/search/acjson",
            "max_seconds": 5.0,
            "retries": 0,
            "min_side": 20,
        }
        return Crawl.model_validate(values | changes)

    return make


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """A smooth, colourful picture in any format Pillow writes."""

    def make(width: int = 320, height: int = 240, kind: str = "JPEG", mode: str = "RGB", **options: Any) -> bytes:
        y, x = np.mgrid[0:height, 0:width]
        pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], axis=2)
        stream = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(stream, kind, **options)
        return stream.getvalue()

    return make
