"""Amounts for people."""

from wukong.runtime.language import _


def size(count: float) -> str:
    """Return a number of bytes, for instance ``338.7 KB``."""
    for unit, each in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= each:
            return f"{count / each:,.1f} {unit}"
    return f"{count / 1e3:,.1f} KB" if count >= 1e3 else _("{count:,} bytes").format(count=round(count))


def duration(seconds: float) -> str:
    """Return a time, for instance ``5.4 h``."""
    if seconds >= 172_800:
        return _("{seconds:,.1f} days").format(seconds=seconds / 86400)
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f} h"
    return f"{seconds / 60:,.1f} min" if seconds >= 60 else f"{seconds:.1f} s"
