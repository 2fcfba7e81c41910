"""One format of log lines."""

import logging
import re
import subprocess
import sys
from pathlib import Path

from wukong.runtime import logs

ROOT = Path(__file__).parents[3]


def test_a_line_has_time_level_and_message() -> None:
    record = logging.LogRecord("any", logging.WARNING, "file.py", 1, "%d of %s", (3, "悟空"), None)
    assert re.fullmatch(r"\d\d:\d\d:\d\d \| WARNING \| 3 of 悟空", logs.FORMATTER.format(record))


def test_a_process_logs_from_info_on_to_the_stream_it_names() -> None:
    code = "import logging, sys; from wukong.runtime import logs; logs.start({}); logging.info('a'); logging.debug('b')"
    for stream, given in (("stderr", ""), ("stdout", "sys.stdout")):
        ended = subprocess.run([sys.executable, "-c", code.format(given)], capture_output=True, text=True, check=True)
        written = {"stdout": ended.stdout, "stderr": ended.stderr}
        assert re.fullmatch(r"\d\d:\d\d:\d\d \| INFO \| a\n", written.pop(stream))
        assert not any(written.values())


def test_the_format_stands_once_in_the_source() -> None:
    packages = ("wukong", "ray_jobs", "components", "pipelines", "cli", "infra")
    files = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    having = [path for path in files if "%(levelname)" in path.read_text(encoding="utf-8")]
    assert [str(path.relative_to(ROOT)) for path in having] == ["wukong/runtime/logs.py"]
