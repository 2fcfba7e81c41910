"""The operator's prices: how they are read, and what is charged."""

import pytest

from wukong.errors import ConfigError
from wukong.stages import prices
from wukong.stages.prices import Prices


def test_what_is_charged() -> None:
    price = prices.parse("cpu=0.04, gib=0.005,gpu=2.5,gib_month=0.02", "--price")
    assert price == Prices(0.04, 0.005, 2.5, 0.02)
    assert price.held(10, 100, 2) == pytest.approx(10 * 0.04 + 100 * 0.005 + 2 * 2.5)
    assert price.stored(3 * 2**30) == pytest.approx(0.06)
    assert not prices.parse("", "--price") and prices.parse("gpu=1", "--price")


def test_prices_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(prices.VARIABLE, raising=False)
    monkeypatch.delenv(prices.CURRENCY, raising=False)
    assert not prices.of_environment()
    assert [prices.in_currency(amount) for amount in (1234.5, 0.0, 0.0042)] == ["1,234.50", "0.00", "0.004"]
    monkeypatch.setenv(prices.VARIABLE, "cpu=1")
    monkeypatch.setenv(prices.CURRENCY, "EUR")
    assert prices.of_environment() == Prices(cpu=1)
    assert prices.in_currency(1234.5) == "1,234.50 EUR"
    monkeypatch.setenv(prices.VARIABLE, "cpu=free")
    with pytest.raises(ConfigError, match=r"WUKONG_PRICES: 'cpu=free' is not NAME=NUMBER .* cpu, gib, gpu, gib_month"):
        prices.of_environment()
