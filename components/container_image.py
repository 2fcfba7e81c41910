"""The image components run in: named when the pipeline is compiled, not in the code."""

import os

DATA_IMAGE = os.environ.get("WUKONG_DATA_IMAGE", "localhost/wukong/data:0.1.0")
"""Set ``WUKONG_DATA_IMAGE`` when compiling for a registry of your own."""
