"""Fixtures of the crawl tests: a web server on loopback, settings and images."""

from collections.abc import Callable, Iterator

import pytest
from crawl_samples import make_config, make_picture
from loopback_web import Web

from wukong.config.crawl import Crawl


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    yield server
    server.stop()


@pytest.fixture
def crawl_config() -> Callable[..., Crawl]:
    return make_config


@pytest.fixture
def picture() -> Callable[..., bytes]:
    return make_picture
