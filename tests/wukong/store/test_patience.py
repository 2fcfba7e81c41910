"""Waiting for a service that is away, without a service."""

import logging
import re
from collections.abc import Callable

import pytest

from wukong.errors import ConfigError
from wukong.store import patience


class GoneError(Exception):
    pass


def is_away(error: BaseException) -> bool:
    return isinstance(error, GoneError)


def failing(failures: list[Exception]) -> Callable[[], str]:
    def request() -> str:
        if failures:
            raise failures.pop(0)
        return "answer"

    return request


@pytest.fixture
def service() -> patience.Service:
    return patience.Service("the service", is_away, ". Start it.", may_be_full=lambda _, lasts: lasts)


def nothing() -> None:
    """A request that reads and is answered."""


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses so far; the clock goes on by them and by nothing else."""
    slept: list[float] = []
    monkeypatch.setattr(patience.time, "sleep", slept.append)
    monkeypatch.setattr(patience.time, "monotonic", lambda: 100.0 + sum(slept))
    monkeypatch.setenv(patience.VARIABLE, "60")
    return slept


def test_a_request_is_repeated_until_it_is_answered_and_the_log_says_so_twice(
    service: patience.Service, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert service.until_answered(failing([GoneError("gone")] * 6)) == "answer"
    assert len(pauses) == 6
    limits = [0.25, 0.5, 1, 2, 4, 5]
    assert all(limit / 2 <= pause <= limit for pause, limit in zip(pauses, limits, strict=True))
    begun, over = (record.getMessage() for record in caplog.records)
    assert begun == "the service is away (gone); what needs it is repeated for up to 60 s"
    assert over.startswith("the service is back after")


def test_after_the_patience_the_error_says_what_failed_how_long_and_what_to_do(
    service: patience.Service, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    expected = r"the service is away: gone; so it was for 60 s \(WUKONG_STORE_PATIENCE=60\)\. Start it\."
    with caplog.at_level(logging.WARNING), pytest.raises(patience.AwayError, match=expected):
        service.until_answered(failing([GoneError("gone")] * 1000))
    assert sum(pauses) == pytest.approx(60)
    assert [record.getMessage()[:26] for record in caplog.records][1:] == ["the service has been away "], "each 30 s"


def test_an_outage_that_a_request_gave_up_on_does_not_last_until_the_next_one(
    service: patience.Service, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """The service was back in between, and the requests that it answered had not failed before."""
    with pytest.raises(patience.FullError):
        service.until_answered(failing([GoneError()] * 1000), reads=nothing)
    assert service.until_answered(failing([])) == "answer"
    pauses.append(20 * 3600)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert service.until_answered(failing([GoneError("gone")])) == "answer"
    begun, over = (record.getMessage() for record in caplog.records)
    assert begun == "the service is away (gone); what needs it is repeated for up to 60 s"
    assert re.fullmatch(r"the service is back after 0\.\d s", over)


def test_another_error_is_an_answer(
    service: patience.Service, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ZeroDivisionError):
        service.until_answered(failing([ZeroDivisionError()]))
    assert (pauses, caplog.records) == ([], [])
    with pytest.raises(ZeroDivisionError):
        service.until_answered(failing([GoneError(), ZeroDivisionError()]))
    assert caplog.records[-1].getMessage().startswith("the service is back")


def test_the_patience_is_the_processes_unless_the_variable_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(patience.VARIABLE, raising=False)
    monkeypatch.setattr(patience, "_default", patience.STAGES)
    assert patience.seconds() == 600
    patience.set_default(patience.PEOPLE)
    assert patience.seconds() == 5
    monkeypatch.setenv(patience.VARIABLE, "7.5")
    assert patience.seconds() == 7.5
    for wrong in ("-1", "inf", "ten", "nan"):
        monkeypatch.setenv(patience.VARIABLE, wrong)
        with pytest.raises(ConfigError, match=f"WUKONG_STORE_PATIENCE is '{wrong}'; it must be a number of seconds"):
            patience.seconds()


def test_a_full_service_is_told_from_one_that_is_away(
    pauses: list[float], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(patience.VARIABLE, "600")
    asked = list[bool]()

    def may_be_full(_: BaseException, lasts: bool) -> bool:
        asked.append(lasts)
        return lasts

    service = patience.Service("the store", is_away, ". Start it.", ". Delete something.", may_be_full)
    with caplog.at_level(logging.WARNING):
        assert service.until_answered(failing([GoneError("no")] * 25), reads=nothing) == "answer"
    begun, full, later, *_, over = (record.getMessage() for record in caplog.records)
    assert begun.startswith("the store is away (no)"), "it may be a passing failure"
    seems = r"the store is full, it seems: it answers, and has taken no data for (\d+) s \(no\); what is written is "
    assert (found := re.match(seems + r"repeated for up to 600 s\. Delete something\.", full)) and 10 <= int(
        found[1]
    ) <= 15
    assert (then := re.match(seems, later))
    assert 29 <= int(then[1]) - int(found[1]) <= 36, "each 30 s, and a pause is up to 5 s"
    assert over.startswith("the store takes data again after")
    assert asked == sorted(asked) and not asked[0]


def test_after_the_patience_a_full_service_is_an_error_that_says_so(pauses: list[float]) -> None:
    service = patience.Service("the store", is_away, ". Start it.", ". Delete something.", lambda _, lasts: lasts)
    expected = r"the store is full, it seems: .* no data for 60 s \(WUKONG_STORE_PATIENCE=60\): no\. Delete something\."
    with pytest.raises(patience.FullError, match=expected):
        service.until_answered(failing([GoneError("no")] * 1000), reads=nothing)
