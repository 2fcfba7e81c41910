"""What people read of what a run has cost."""

import pytest

from wukong.report import costs as page
from wukong.runs.run_costs import Held, StageCost
from wukong.stages import prices
from wukong.stages.prices import Prices

CRAWL = StageCost("crawl", "pods", False, Held(3.0, 12.0, 0.0, measured=3.0, used=1.77), 2_500_000)
TRAINED = StageCost("pretrain", "pods", False, Held(0.25, 1.0, 0.5, measured=0.0, ended=False), 1_000)
REUSED = StageCost("filter", None, True, Held(), 0)
UNKNOWN = StageCost("validate", None, False, None, None)


def test_a_run_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert page.said([CRAWL, REUSED], Prices()) == ["This run held 3.0 core-hours and 0 GPU-hours, 41 % idle."]
    assert page.said([TRAINED], Prices()) == [
        "This run held at least 0.25 core-hours and 0.5 GPU-hours.",
        "How much of it was idle is not known.",
    ]
    assert page.said([CRAWL, UNKNOWN], Prices())[0].startswith("This run held at least 3.0 core-hours")
    assert page.said([CRAWL, UNKNOWN], Prices())[1:] == ["Of validate it is not known."]
    assert page.said([UNKNOWN], Prices(cpu=1)) == ["What this run held is not known."]
    assert page.said([REUSED], Prices()) == ["This run held 0 core-hours and 0 GPU-hours."]
    monkeypatch.setenv(prices.CURRENCY, "EUR")
    assert (
        page.said([CRAWL], Prices(cpu=2, gib_month=1000))[1]
        == "The run costs 6.00 EUR, what it stores 2.33 EUR a month."
    )
    assert (
        page.said([UNKNOWN, TRAINED], Prices(gpu=8))[-1]
        == "The run costs at least 4.00 EUR; what it stores is not known."
    )


def test_a_row_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(prices.CURRENCY, raising=False)
    assert page.shown([], Prices()) == {}
    shown = page.shown([CRAWL, TRAINED, REUSED, UNKNOWN], Prices(cpu=1))
    titles = ("stage", "core_hours", "gib_hours", "gpu_hours", "idle", "written", "money")
    assert [tuple(row[title] for title in titles) for row in shown["rows"]] == [
        ("crawl", "3.0", "12.0", "0", "41 %", "2.5 MB", "3.00"),
        ("pretrain", "at least 0.25", "at least 1.0", "at least 0.5", "not known", "1.0 KB", "at least 0.25"),
        ("filter (reused)", "0", "0", "0", "-", "0 bytes", "0.00"),
        ("validate", "not known", "not known", "not known", "not known", "not known", "not known"),
    ]
    assert "submitter" in shown["how"][0] and len(shown["how"]) == 3
    assert [row["money"] for row in page.shown([CRAWL, UNKNOWN], Prices())["rows"]] == ["", ""], "no money is shown"
    partly = StageCost("crawl", "ray", False, Held(4.0, 0.0, 0.0, measured=1.0, used=0.75), 0)
    assert page.shown([partly], Prices())["rows"][0]["idle"] == "25 % of 1.0 core-hours"
