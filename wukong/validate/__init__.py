"""The gate: what is said here must be said before Great Expectations is imported."""

import logging
import os

os.environ["GX_ANALYTICS_ENABLED"] = "false"  # else it sends usage reports
# It tells of each of some 200 functions that it does not list in its API.
logging.getLogger("great_expectations._docs_decorators").setLevel(logging.WARNING)
