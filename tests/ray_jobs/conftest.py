"""What the job tests share: a Ray of their own, and crawls made from rows."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import crawled
import pytest
import ray

from wukong.store.manifest import Manifest


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
    """Write a crawl's output below the test's folder."""
    return partial(crawled.write_crawl, tmp_path)
