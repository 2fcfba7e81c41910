"""Great Expectations tells a run's log nothing of its own functions, and sends no usage reports."""

import subprocess
import sys

import pytest

_IMPORTS = """
import logging, os, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s %(levelname)s %(message)s")
import wukong.validate.{module}
from great_expectations import get_context
logging.getLogger("wukong").info("said")
logging.getLogger("great_expectations").info("said too")
get_context(mode="ephemeral").data_sources.add_pandas("x")
print(os.environ["GX_ANALYTICS_ENABLED"])
"""


@pytest.mark.parametrize("module", ["gate", pytest.param("suites", marks=pytest.mark.long)])
def test_the_log_has_no_line_for_each_function(module: str) -> None:
    command = [sys.executable, "-c", _IMPORTS.format(module=module)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line for line in said if "Skipping registering" in line] == []
    assert {"wukong INFO said", "great_expectations INFO said too"} <= set(said), "other lines stay"
    assert said[-1] == "false"
