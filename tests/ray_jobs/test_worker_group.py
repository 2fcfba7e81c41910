"""The workers of a training: which failures end it, when it has failed too often, and what each worker has."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError
from functools import partial
from pathlib import Path

import pytest
import ray
from ray import cloudpickle
from ray.train import ControllerError, WorkerGroupError
from ray.train.torch import TorchTrainer
from test_training_validation import experiment

from ray_jobs import gpus, worker_group
from ray_jobs.training_worker import Job, Validation, work
from wukong.config.training import Training
from wukong.errors import ConfigError, DataError, StorageError
from wukong.store import fence, storage
from wukong.store.manifest import Manifest
from wukong.train.corpus import Corpus

SETTINGS = Training()


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(fence.VARIABLE, "")
    monkeypatch.setattr(gpus, "MAX_FAILURES", 2)
    return storage.from_path(tmp_path)


def lost() -> WorkerGroupError:
    return WorkerGroupError("a worker was lost", {0: RuntimeError("the node is gone")})


def failing(errors: Iterator[Exception | None], then: Callable[[int], None] = lambda _: None) -> Callable[[int], None]:
    """A training that fails with these errors, one after another, and does something before each."""

    def fit(failed: int) -> None:
        then(failed)
        if (error := next(errors)) is not None:
            raise error

    return fit


def test_failures_are_counted_from_the_last_checkpoint(uri: str) -> None:
    def checkpoint(failed: int) -> None:
        if failed in (2, 4):  # each time after two failures without progress
            storage.write_json(f"{uri}/one/checkpoint_{failed:09d}-0a/checkpoint.json", {})

    errors = iter([lost(), lost(), lost(), lost(), lost(), lost(), None])
    worker_group._until_trained(failing(errors, checkpoint), "pretrain", SETTINGS, uri)
    assert next(errors, "none is left") == "none is left"


def test_too_many_failures_without_a_checkpoint_end_it(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    errors = iter([lost(), lost(), lost(), None])
    with pytest.raises(WorkerGroupError, match="a worker was lost"):
        worker_group._until_trained(failing(errors), "pretrain", SETTINGS, uri)
    assert next(errors) is None
    assert "pretrain failed and goes on from its start; failure 2 of at most 2" in caplog.text


@pytest.mark.parametrize("error", [ConfigError("epochs: 0"), DataError("a shard is cut short")])
def test_errors_that_would_come_again_end_it_at_once(uri: str, error: Exception) -> None:
    # The other worker waits for the first one in a collective, and fails with it.
    failed = WorkerGroupError("worker 1 failed", {0: RuntimeError("connection reset by peer"), 1: error})
    with pytest.raises(type(error), match=str(error)):
        worker_group._until_trained(failing(iter([failed])), "pretrain", SETTINGS, uri)


def test_a_store_that_was_away_is_asked_again(uri: str) -> None:
    away = WorkerGroupError("worker 0 failed", {0: StorageError("the object store is away")})
    worker_group._until_trained(failing(iter([away, None])), "pretrain", SETTINGS, uri)


def test_a_store_that_stays_away_is_named(uri: str) -> None:
    away = [WorkerGroupError("all tracebacks", {0: StorageError("the object store is away")}) for _ in range(3)]
    with pytest.raises(StorageError, match=r"^the object store is away$"):
        worker_group._until_trained(failing(iter(away)), "pretrain", SETTINGS, uri)


def test_an_older_attempt_does_not_begin_again(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = storage.from_path(tmp_path / "root")
    fence.claim(root, "run", "pretrain")
    old = storage.join(root, "runs", "run", "attempts", "pretrain", f"{fence.attempt()}.json")
    fence.claim(root, "run", "pretrain")
    monkeypatch.setenv(fence.VARIABLE, old)
    with pytest.raises(fence.FencedError):
        worker_group._until_trained(failing(iter([lost()])), "pretrain", SETTINGS, uri)


def test_machines_that_never_come_are_named(
    uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0})
    never = [ControllerError(TimeoutError("timed out after 60 seconds")) for _ in range(3)]
    settings = Training(workers=4, gpus_per_worker=1)
    with pytest.raises(ConfigError) as caught:
        worker_group._until_trained(failing(iter(never)), "finetune", settings, uri)
    assert str(caught.value) == (
        "4 workers of finetune, with one core and 1 GPUs each, could not be started: the cluster has 16 cores and 0 "
        "GPUs (timed out after 60 seconds). Add machines, or set finetune.workers or finetune.min_workers lower"
    )
    assert sum(str(caught.value) in message for message in caplog.messages) == 2, "each failure's line names them, too"


def machines(*resources: dict[str, float]) -> Callable[[], list[dict[str, object]]]:
    """What Ray tells of the machines of a cluster, one of which has died."""
    dead = {"Alive": False, "Resources": {"CPU": 99.0, "GPU": 99.0}}
    return lambda: [dead, *({"Alive": True, "Resources": each} for each in resources)]


def test_an_elastic_training_does_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gpus, "MAX_FAILURES", 1)
    monkeypatch.setattr(worker_group, "_START_SECONDS", 0.01)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0, "GPU": 1.0})
    monkeypatch.setattr(ray, "nodes", machines({"CPU": 4.0, "GPU": 1.0}))
    settings = Training(workers=4, min_workers=2, gpus_per_worker=1, batch_size=12)
    with pytest.raises(
        ConfigError, match=r"^2 to 4 workers of pretrain.* 1 GPUs each, .* 4 cores and 1 GPUs \(none came"
    ):
        worker_group._wait_for_machines("pretrain", settings)
    assert len(caplog.messages) == 2 and all("2 to 4 workers of pretrain" in message for message in caplog.messages)
    monkeypatch.setattr(ray, "nodes", machines({"CPU": 4.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 2.0}))
    worker_group._wait_for_machines("pretrain", settings)


@pytest.mark.parametrize(
    ("changed", "there", "cores"),
    [
        ({}, [{"CPU": 2.0}], 1),  # stored features: no loader processes
        ({"lock": "none"}, [{"CPU": 6.0}], 3),
        ({"lock": "none"}, [{"CPU": 5.0}], 2),  # they share what there is, and both workers have room
        ({"lock": "none"}, [{"CPU": 2.0}], 1),
        ({"lock": "none"}, [{"CPU": 4.0}, {"CPU": 2.0}], 2),
        ({"lock": "none", "loader_workers": 8}, [{"CPU": 4.0}, {"CPU": 4.0}], 4),
        ({"lock": "none", "loader_workers": 0}, [{"CPU": 4.0}], 1),
        ({"lock": "none", "gpus_per_worker": 1}, [{"CPU": 64.0, "GPU": 1.0}, {"CPU": 2.0, "GPU": 1.0}], 2),
        ({"lock": "none", "gpus_per_worker": 1}, [{"CPU": 2.0, "GPU": 1.0}], 2),  # a machine is missing
        ({"lock": "none"}, [], 1),
    ],
)
def test_loader_processes_have_cores(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, object], there: list[dict[str, float]], cores: int
) -> None:
    monkeypatch.setattr(ray, "nodes", machines(*there))
    settings = Training.model_validate({"workers": 2, "loader_workers": 2} | changed)
    expected = {"CPU": cores} | ({"GPU": 1} if "gpus_per_worker" in changed else {})
    assert worker_group._scaling(settings).resources_per_worker == expected


def test_a_job_reaches_the_workers_as_it_is() -> None:
    asked = experiment("file:///root", every_steps=4)
    corpus = Corpus("file:///filter", ("00000",), (96,), "digest")
    validation = Validation(asked, Manifest(stage="filter", uri="file:///filter", config={}), None, {})
    job = Job("pretrain", asked.model, asked.pretrain, 1, corpus, "file:///features", None, "file:///c", validation)
    sent = cloudpickle.loads(cloudpickle.dumps(partial(work, job)))
    assert sent.func is work and sent.args == (job,)
    with pytest.raises(FrozenInstanceError):
        job.seed = 2  # type: ignore[misc]


@pytest.mark.parametrize("dashboard", [None, "127.0.0.1:8265"])
def test_the_private_api_of_ray_is_what_the_trainer_takes_it_for(
    dashboard: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = (
        f"Ray {ray.__version__} has no %s: look whether a training still starts a process for datasets that it does "
        "not have, and whether its end waits for a dashboard that is not there; mend or delete "
        "ray_jobs.worker_group._Trainer"
    )
    worker = ray._private.worker
    assert hasattr(worker, "get_dashboard_url"), changed % "ray._private.worker.get_dashboard_url"
    assert hasattr(TorchTrainer, "_create_default_callbacks"), changed % "TorchTrainer._create_default_callbacks"
    monkeypatch.setattr(worker, "get_dashboard_url", lambda: dashboard)

    def callbacks(trainer: type[TorchTrainer]) -> set[str]:
        return {type(callback).__name__ for callback in trainer(lambda: None)._create_default_callbacks()}

    for name in ("DatasetsCallback", "PlacementGroupCleanerCallback"):
        assert name in callbacks(TorchTrainer), changed % name
    left_out = callbacks(TorchTrainer) - callbacks(worker_group._Trainer)
    assert left_out == {"DatasetsCallback"} | (set() if dashboard else {"PlacementGroupCleanerCallback"})


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_ray_without_a_dashboard_has_no_address_of_one() -> None:
    assert not ray._private.worker.get_dashboard_url()


@pytest.mark.long
def test_two_workers_of_a_machine_share_it(tmp_path: Path) -> None:
    """On a real Ray which is told that it has seven cores: each worker has three of them, and computes with one."""
    code = (
        "import json, os, sys, time\n"
        "from pathlib import Path\n"
        "import ray, ray.train, torch\n"
        "from ray.train.torch import TorchTrainer\n"
        "from ray_jobs import training_worker, worker_group\n"
        "from wukong.config.training import Training\n"
        "settings = Training(lock='none', workers=2, loader_workers=2)\n"
        "def work(folder):\n"
        "    device = training_worker._own_device(settings)\n"
        "    torch.distributed.barrier()\n"
        "    found = {'threads': torch.get_num_threads(), 'device': str(device),\n"
        "             'neighbours': os.environ['LOCAL_WORLD_SIZE'],\n"
        "             'reserved': ray.get_runtime_context().get_assigned_resources()}\n"
        "    Path(folder['to'], str(ray.train.get_context().get_local_rank())).write_text(json.dumps(found))\n"
        "    time.sleep(3)\n"  # until the resources are known that are left
        "    Path(folder['to'], 'left').write_text(str(ray.available_resources().get('CPU', 0)))\n"
        "    torch.distributed.barrier()\n"
        "ray.init('local', num_cpus=7, include_dashboard=False, configure_logging=False, log_to_driver=False)\n"
        "scaling = worker_group._scaling(settings)\n"
        "TorchTrainer(work, train_loop_config={'to': sys.argv[1]}, scaling_config=scaling).fit()\n"
    )
    script, root = tmp_path / "share.py", Path(__file__).parents[2]
    script.write_text(code)
    (tmp_path / "found").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"PYTHONPATH": str(root), "HOME": str(tmp_path)}
    command = [sys.executable, str(script), str(tmp_path / "found")]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True)
    for rank in ("0", "1"):
        found = json.loads((tmp_path / "found" / rank).read_text())
        assert found["threads"] == 1 and found["neighbours"] == "2" and found["device"] == "cpu"
        assert found["reserved"]["CPU"] == 3
    assert float((tmp_path / "found" / "left").read_text()) == 1
