"""What a browser says of a page that is as narrow as a phone."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

needed = pytest.mark.skipif(not shutil.which("chromium"), reason="there is no chromium here")


def overflow(page: Path, width: int) -> str:
    """Return what of a page is wider than a window; empty if nothing is.

    A narrow window is a frame: chromium's own windows are at least 500 pixels wide.
    """
    frame = page.with_name("frame.html")
    frame.write_text(
        f'<iframe id="f" src="{page.name}" style="width:{width}px;height:900px;border:0"></iframe>'
        '<p id="said"></p><script>const f = document.getElementById("f"); f.onload = () => {'
        "const d = f.contentDocument, r = d.documentElement;"
        "const wide = [...d.querySelectorAll('h1,h2,h3,p,figure,svg,.note,.query')]"
        ".filter(e => e.getBoundingClientRect().right > r.clientWidth + 1).map(e => e.tagName + '.' + e.className);"
        'document.getElementById("said").textContent = `${r.scrollWidth} of ${r.clientWidth} [${wide}]`; }</script>'
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'user'}", "--dump-dom"]
    options += ["--allow-file-access-from-files", "--virtual-time-budget=5000", "--window-size=1400,1000"]
    shown = subprocess.run(
        ["chromium", *options, frame.as_uri()], capture_output=True, text=True, timeout=240, check=True
    ).stdout
    found = re.search(r'<p id="said">(\d+) of (\d+) \[(.*)\]</p>', shown)
    assert found, shown[-500:]
    assert int(found[2]) > width - 20, found[0]
    return "" if int(found[1]) <= int(found[2]) and not found[3] else found[0]
