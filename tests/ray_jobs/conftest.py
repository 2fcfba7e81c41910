"""What the job tests share: a Ray of their own, and crawls made from rows."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import ray
from crawled import Row, complete, picture_of

from wukong.crawl.part_writer import Spool, write_part
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage


@pytest.fixture(scope="module")
def local_ray() -> None:
    """A Ray on this machine with two CPUs, without dashboard or usage reports, for the tests of this folder."""
    if not ray.is_initialized():
        ray.init("local", num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False)


@pytest.hookimpl(trylast=True)  # after the fixtures, of which some use it
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """End that Ray after the last test of this folder: idle, it takes a twentieth of a core."""
    if nextitem is None or not nextitem.path.is_relative_to(Path(__file__).parent):
        ray.shutdown()


@pytest.fixture
def make_crawl(tmp_path: Path) -> Callable[..., Manifest]:
    """Write a crawl's output: rows may leave out every column but ``url`` and ``caption``.

    Where a row has ``captions``, all have the column.
    """

    def make(
        rows: Sequence[Row],
        part_size: int = 50,
        root: str | None = None,
        name: str = "crawl",
        picture: Callable[[Row], bytes] = picture_of,
    ) -> Manifest:
        stage = Stage(root or storage.from_path(tmp_path), name, {"rows": len(rows)})
        parts = []
        several = {"captions": None} if any("captions" in row for row in rows) else {}
        counts = {"more_captions": sum(bool(row.get("captions")) for row in rows)} if several else {}
        for number, start in enumerate(range(0, len(rows), part_size)):
            full = [{**several, **complete(row)} for row in rows[start : start + part_size]]
            with Spool() as pictures:
                for row in full:
                    if row["status"] == "success":
                        pictures.add(row["key"], picture(row))
                write_part(stage.path(f"parts/{number:05d}"), full, pictures)
            parts += [stage.describe(f"parts/{number:05d}{suffix}", len(full)) for suffix in (".tar", ".parquet")]
        return stage.commit(parts, counts=counts)

    return make
