"""What a takedown leaves as it is and names: pages, and records with small pictures in them."""

from pathlib import Path

from wukong import storage
from wukong.publish import takedown


def test_pages_that_may_show_pictures_are_named(tmp_path: Path) -> None:
    shown = ["evaluate/1/_parts/new.json", "evaluate/1/evaluation.html", "runs/a/evaluation.html", "runs/a/report.html"]
    for name in [*shown, "evaluate/1/evaluation.json", "runs/a/crawl.json", "pretrain/1/_parts/x.json"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    place = storage.from_path(tmp_path)
    assert sorted(takedown.reports(place)) == [storage.join(place, name) for name in shown]
