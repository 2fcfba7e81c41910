"""docs/verified.md has every claim of the cluster's tests, as it was seen last, and says what was not tried."""

import sys
from pathlib import Path

import pytest

CLUSTER = Path(__file__).parents[1] / "cluster"
sys.path.append(str(CLUSTER))

import verified  # noqa: E402 - of a folder that no other test imports from
from table import Row, merge  # noqa: E402

ROWS = [
    Row("a::one", 3, "it applies", "apply", "yes", "40 objects", 2.0, "2026-11-26 12:00", {"Kubernetes": "1.34"}),
    Row(
        "a::two",
        9,
        "a | b",
        "x",
        "no",
        "it\nfailed",
        1.0,
        "2026-11-26 13:00",
        {"Kubernetes": "1.34", "KFP": "2.17", "images": "0123456789ab"},
    ),
]


def test_every_claim_has_its_row_in_the_page() -> None:
    page = verified.PAGE.read_text(encoding="utf-8")
    shown = page.partition(verified.BEGIN)[2].partition(verified.END)[0]
    said = verified.claims()
    assert len(said) > 15
    rows = [line for line in shown.splitlines() if line.startswith("| ") and not line.startswith("| claim")]
    assert [line.split(" | ")[0].removeprefix("| ") for line in rows] == [row.claim for row in said]
    assert all("**yes**" in line or "**no**" in line or "**not tried**" in line for line in rows)


def test_a_page_is_made_of_rows() -> None:
    text = verified.render([*ROWS, Row("b::three", 1, "later", "y", "not tried", date="")])
    assert text.splitlines()[0] == (
        "Last run: Kubernetes 1.34, KFP 2.17; 2026-11-26. 3 claims: 1 yes, 1 no, 1 not tried."
    )
    assert "| it applies | apply | **yes**: 40 objects | 2026-11-26 |" in text
    assert "| a \\| b | x | **no**: it; failed | 0123456789ab 2026-11-26 |" in text
    assert "| later | y | **not tried** |  |" in text
    assert verified.replaced(f"a\n{verified.BEGIN}old{verified.END}\nb", "new") == (
        f"a\n{verified.BEGIN}\n\nnew\n\n{verified.END}\nb"
    )
    with pytest.raises(ValueError, match="lacks"):
        verified.replaced("nothing", "new")


def test_a_claim_that_has_changed_was_not_tried() -> None:
    said = [Row("a::one", 3, "it applies twice", "apply", "not tried", date=""), ROWS[1]]
    assert [row.result for row in verified.whole(said, ROWS)] == ["not tried", "no"]


def test_rows_of_the_page_stay_until_their_claims_are_tried_again() -> None:
    later = Row("b::three", 1, "later", "y", "not tried", date="")
    text = verified.render([*ROWS, later])
    page = f"a\n{verified.BEGIN}\n\n{text}\n\n{verified.END}\nb"
    kept = verified.earlier(page)
    assert verified.render(kept) == text, "a page is read as it was written"
    again = Row("a::two", 9, "a | b", "x", "yes", date="2026-11-30 09:00", versions={"KFP": "2.18", "images": "f" * 40})
    skipped = Row("a::one", 3, "it applies", "apply", "not tried", date="2026-11-30 09:05")
    rows = verified.whole([*ROWS, later], [*kept, again, skipped])
    assert [(row.result, row.date[:10]) for row in rows] == [
        ("yes", "2026-11-26"), ("yes", "2026-11-30"), ("not tried", "")
    ]  # fmt: skip
    assert verified.render(rows).startswith("Last run: KFP 2.18; 2026-11-30. 3 claims: 2 yes, 0 no, 1 not tried.")


def test_the_pages_own_rows_are_read_as_they_stand() -> None:
    page = verified.PAGE.read_text(encoding="utf-8")
    assert verified.replaced(page, verified.render(verified.whole(verified.claims(), verified.earlier(page)))) == page


def test_rows_of_a_phase_that_ran_again_replace_the_old_ones() -> None:
    again = Row("a::one", 3, "it applies", "apply", "no")
    assert [row.result for row in merge(ROWS, [again])] == ["no", "no"]
    assert [row.test for row in merge([ROWS[1]], [ROWS[0]])] == ["a::one", "a::two"]


def test_times_of_phases_are_added_up_and_stay_until_they_are_tried_again() -> None:
    page = f"{verified.TIMES_BEGIN}\n\n{verified.times('', [])}\n\n{verified.TIMES_END}"
    tried = [
        Row("test_cluster_1_install::one", 1, "a", "b", "yes", seconds=90.0),
        Row("test_cluster_1_install::two", 2, "c", "d", "no", seconds=30.0),
        Row("test_cluster_a_queues::one", 1, "e", "f", "yes", seconds=600.0),
        Row("test_cluster_8_faults::one", 1, "g", "h", "not tried", seconds=5.0),
    ]
    page = verified.replaced(page, verified.times(page, tried), verified.TIMES_BEGIN, verified.TIMES_END)
    assert [line for line in page.splitlines() if line.startswith("| ")][1:] == [
        "| install | 2 | 2 |", "| queues | 1 | 10 |"
    ]  # fmt: skip
    assert "| queues | 1 | 20 |" in verified.times(page, [Row(tried[2].test, 1, "e", "f", "yes", seconds=1200.0)])
    assert "| install | 2 | 2 |" in verified.times(page, [])
