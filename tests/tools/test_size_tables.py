"""The page of sizes and costs says what `wukong plan` says."""

import shutil

import pytest

from tools import size_tables

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not (shutil.which("kustomize") or shutil.which("kubectl")), reason="nothing builds overlays"),
]


def test_the_page_is_fresh() -> None:
    assert size_tables.PAGE.read_text(encoding="utf-8") == size_tables.page(), "run `make generate`"
