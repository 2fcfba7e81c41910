"""The container image of the components, which is chosen when a pipeline is compiled."""

import os

DATA_IMAGE = os.environ.get("WUKONG_DATA_IMAGE", "localhost/wukong/data:0.2.0")
"""Set ``WUKONG_DATA_IMAGE`` when compiling for a registry of your own."""
