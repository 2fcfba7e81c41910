"""A real browser, for the tests of pages."""

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 120_000
"""Milliseconds for what a busy machine may take long to do."""


@contextmanager
def running() -> Iterator[Any]:
    """A browser, until the block ends; the tests are skipped where there is none."""
    if BROWSER is None:
        warnings.warn("NO CHROMIUM: pages are not tested in a browser", stacklevel=3)
        pytest.skip("no Chromium on this machine: install chromium to test the pages")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"], timeout=PATIENCE)
        yield started
        started.close()
