"""What an operator charges for what runs hold and store: one setting for the plan of a run and for its report.

It is the variable ``WUKONG_PRICES``, written as for ``wukong plan --price``, and ``WUKONG_CURRENCY``. On a cluster both
are keys of the ConfigMap ``wukong-settings``. Without prices nobody is shown money.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields

from wukong.errors import ConfigError

VARIABLE = "WUKONG_PRICES"
CURRENCY = "WUKONG_CURRENCY"

GIB = 2**30


@dataclass(frozen=True)
class Prices:
    """Prices, of which those that are not given are 0.

    Attributes:
        cpu: of a core for an hour.
        gib: of a GiB of memory for an hour.
        gpu: of a GPU for an hour.
        gib_month: of a GiB stored for a month.
    """

    cpu: float = 0.0
    gib: float = 0.0
    gpu: float = 0.0
    gib_month: float = 0.0

    def __bool__(self) -> bool:
        """Whether there is any price."""
        return self != Prices()

    def held(self, core_hours: float, gib_hours: float, gpu_hours: float) -> float:
        """Return what it costs to hold cores, memory and GPUs."""
        return core_hours * self.cpu + gib_hours * self.gib + gpu_hours * self.gpu

    def stored(self, size: float) -> float:
        """Return what bytes in the store cost a month."""
        return size / GIB * self.gib_month


def parse(text: str, where: str) -> Prices:
    """Read prices, such as ``cpu=0.04,gpu=2.5``; none of an empty text.

    Args:
        text: what is given.
        where: the option or variable that it is given by, for the message.

    Raises:
        ConfigError: it is not NAME=NUMBER,... with known names and positive numbers.
    """
    entries = [entry.strip() for entry in text.split(",") if entry.strip()]
    return Prices(**numbers(where, entries, [field.name for field in fields(Prices)]))


def of_environment() -> Prices:
    """Return the prices of this process's environment.

    Raises:
        ConfigError: see ``parse``.
    """
    return parse(os.environ.get(VARIABLE, ""), VARIABLE)


def in_currency(amount: float) -> str:
    """Return an amount of money for people, with the currency of this process's environment."""
    number = f"{amount:.1g}" if 0 < amount < 0.01 else f"{amount:,.2f}"
    return " ".join(filter(None, (number, os.environ.get(CURRENCY, ""))))


def numbers(where: str, entries: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """Read NAME=NUMBER entries.

    Raises:
        ConfigError: one is not of a known name and a positive number.
    """
    found: dict[str, float] = {}
    for entry in entries:
        name, _, number = entry.partition("=")
        try:
            value = float(number.replace(",", ""))
        except ValueError:
            value = 0.0
        if name not in names or not 0 < value < float("inf"):
            raise ConfigError(
                f"{where}: {entry!r} is not NAME=NUMBER with a number above 0 and one of the names {', '.join(names)}"
            )
        found[name] = value
    return found
