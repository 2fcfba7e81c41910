"""Two equal runs at once on a real Ray: one trains, the other takes what it has made, also when the first is killed."""

import logging
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import ray
from test_training_jobs import crawl as crawl  # noqa: PLC0414 - the fixture
from test_training_jobs import experiment

from ray_jobs import filter as filter_job
from ray_jobs.launch import JobError, launch
from wukong.config.experiment import Experiment
from wukong.runs import run_records
from wukong.store import fence, storage
from wukong.store.manifest import Manifest

pytestmark = pytest.mark.long


class Run(threading.Thread):
    """A component that runs its pretrain job; all are threads of this process, each with a job of its own."""

    def __init__(self, settings: Experiment, name: str, filtered: Manifest) -> None:
        super().__init__(name=name)
        self.made: Manifest | None = None
        self.error = ""
        self._launch = lambda: launch("pretrain", settings, name, [f"{filtered.uri}/manifest.json"])
        self.start()

    def run(self) -> None:
        try:
            self.made = self._launch()
        except JobError as error:
            self.error = str(error)


def job_of(run: str) -> psutil.Process:
    """The driver of a run's job."""
    while True:
        for child in psutil.Process().children():
            with suppress(psutil.Error):  # one that has just ended has no command line
                if "ray_jobs" in (line := child.cmdline()) and line[line.index("--run") + 1] == run:
                    return child
        time.sleep(0.05)


def wait_until(found: object) -> None:
    while not found():  # type: ignore[operator]
        time.sleep(0.02)


@pytest.fixture(scope="module")
def filtered(crawl: Manifest, tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Manifest:
    return filter_job.run(experiment(tmp_path_factory.mktemp("filtered")), {"crawl": crawl})


@pytest.fixture
def prepared(filtered: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Experiment, Manifest]:
    monkeypatch.setenv(fence.VARIABLE, "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return experiment(tmp_path), filtered


def test_one_trains_and_the_other_waits_or_goes_on_where_a_killed_one_was(
    prepared: tuple[Experiment, Manifest],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    settings, filtered = prepared
    with caplog.at_level(logging.INFO):
        runs = [Run(settings, name, filtered) for name in ("a", "b")]
        for run in runs:
            run.join()
    assert not [run.error for run in runs if run.error]
    first, second = (run.made for run in runs)
    assert first is not None and second is not None and first.digest == second.digest
    records = [run_records.read(settings, name, "pretrain") for name in ("a", "b")]
    assert sorted(record.reused for record in records if record is not None) == [False, True]
    claims = storage.list_files(storage.join(settings.root, "runs"), ".json")
    assert len([uri for uri in claims if "/attempts/pretrain/" in uri]) == 1, "the one who waits starts no job"
    assert any(message.startswith("waiting for run ") for message in caplog.messages)
    assert [name for name in storage.list_names(first.uri) if name.startswith("_")] == []

    settings = experiment(tmp_path / "again")
    killed = Run(settings, "a", filtered)
    driver = job_of("a")
    wait_until(lambda: storage.list_files(storage.join(settings.root, "features"), "/manifest.json"))
    other = Run(settings, "b", filtered)
    wait_until(lambda: [uri for uri in storage.list_files(settings.root, "checkpoint.json") if "/pretrain/" in uri])
    driver.kill()
    killed.join()
    other.join()
    assert "killed by SIGKILL" in killed.error
    assert other.made is not None and not other.error
    assert other.made.digest == first.digest and other.made.parts == first.parts
    assert "training goes on from the checkpoint" in capfd.readouterr().err


def test_a_stopped_one_keeps_no_cores_from_the_one_that_takes_over(prepared: tuple[Experiment, Manifest]) -> None:
    settings, filtered = prepared
    first = Run(settings, "a", filtered)
    driver = job_of("a")
    wait_until(lambda: [uri for uri in storage.list_files(settings.root, "checkpoint.json") if "/pretrain/" in uri])
    driver.suspend()
    second = Run(settings, "b", filtered)
    second.join()
    first.join()
    assert "killed by SIGKILL" in first.error
    assert second.made is not None and not second.error
