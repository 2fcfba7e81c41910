"""The docs site builds, and a link that leads nowhere ends the build."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def build(folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """What `make docs` does, from a folder with ``mkdocs.yml`` and ``docs``."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the pages, to break."""
    shutil.copytree(ROOT / "docs", tmp_path / "source" / "docs")
    for file in ("mkdocs.yml", "tools/page_language.py"):
        (tmp_path / "source" / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / "source" / file)
    return tmp_path / "source"


def test_it_builds_and_every_page_is_in_it(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path)
    assert done.returncode == 0, done.stderr
    pages = {file.relative_to(ROOT / "docs").with_suffix("") for file in (ROOT / "docs").rglob("*.md")}
    assert pages <= {file.relative_to(tmp_path).with_suffix("") for file in tmp_path.rglob("*.html")}
    index = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert {f"{page}.html" for page in pages} <= set(re.findall(r'href="([\w/-]+\.html)"', index))
    fetched = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', index)
    assert fetched == [], "a page loads nothing from elsewhere"
    languages = {
        page: re.findall(r'<html lang="([^"]+)"', (tmp_path / f"{page}.html").read_text(encoding="utf-8"))
        for page in pages
    }
    assert languages == {page: ["zh-Hans" if page.parts[0] == "zh" else "en"] for page in pages}


def test_what_leads_nowhere_ends_the_build(source: Path, tmp_path: Path) -> None:
    with (source / "docs" / "training.md").open("a", encoding="utf-8") as page:
        page.write("\n[page](no-page.md) [heading](models.md#no-heading) ![image](images/no-image.png)\n")
    (source / "docs" / "no-nav.md").write_text("# A page that the navigation lacks\n", encoding="utf-8")
    done = build(source, tmp_path / "site")
    assert done.returncode != 0
    for missing in ("no-page.md", "#no-heading", "images/no-image.png", "no-nav.md"):
        assert missing in done.stderr
