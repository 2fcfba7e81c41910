"""Targets of ``wukong model export --to``, one file each: every module here assigns a ``Target`` to ``TARGET``.

To add a target, add a file, and its name to ``TARGETS`` in ``wukong/commands/model.py``.
``wukong/export/target.py`` has the type.
"""

from wukong.export.target import Target
from wukong.runtime.registered import registered

__all__ = ["REGISTRY"]

REGISTRY = registered(__name__, "TARGET", Target)
"""All targets by the name that ``--to`` gives them."""
