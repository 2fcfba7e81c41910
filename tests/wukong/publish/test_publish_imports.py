"""Publishing runs in the data image, which does not hold the crawler's libcurl."""

import subprocess
import sys
from pathlib import Path

import wukong.publish

WITHOUT_LIBCURL = """
import importlib, pkgutil, sys
sys.modules["pycurl"] = None  # importing it raises ImportError
import wukong.publish
names = [module.name for module in pkgutil.iter_modules(wukong.publish.__path__)]
for name in names:
    importlib.import_module(f"wukong.publish.{name}")
print(*names)
"""


def test_publishing_is_imported_where_libcurl_cannot_be() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_LIBCURL], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    folder = Path(next(iter(wukong.publish.__path__)))
    assert set(done.stdout.split()) == {path.stem for path in folder.glob("[a-z]*.py")} > {"release", "takedown"}
