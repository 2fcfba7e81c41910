"""A small SeaweedFS that is filled: by checkpoints that are deleted, which it survives, and by data that stay."""

import logging
import os
import re
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from free_ports import free_port
from object_store import ObjectStore
from torch import nn

from wukong.errors import StorageError
from wukong.store import patience, patient_store, storage
from wukong.train import checkpoint

pytestmark = pytest.mark.long

VOLUMES, VOLUME_MB = 12, 16
ROOM = VOLUMES * VOLUME_MB * 2**20
ALERTS = Path(__file__).parents[3] / "k8s" / "components" / "alerts" / "alerts.yaml"
PIECE = os.urandom(4 << 20)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A store of 192 MB with the settings of ``k8s/`` made smaller; the URI of its bucket."""
    server = ObjectStore(
        tmp_path / "weed",
        "-metricsIp=127.0.0.1",
        f"-metricsPort={(told := free_port())}",
        f"-master.volumeSizeLimitMB={VOLUME_MB}",
        f"-volume.max={VOLUMES}",
        "-master.vacuumIntervalSeconds=2",
        f"-master.maxParallelVacuumPerServer={VOLUMES}",
        "-master.garbageThreshold=0.2",
    )
    server.start()
    try:
        server.wait_ready("bucket")
        for name, value in server.variables().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("TOLD", f"http://127.0.0.1:{told}/metrics")
        monkeypatch.setenv("MASTER", server.master)
        monkeypatch.setattr(patient_store.STORE, "_began", None)
        yield "s3://bucket"
    finally:
        server.kill()


def told() -> dict[str, float]:
    """What the server tells Prometheus, the sum of each metric; of disk sizes, that of the files."""
    found: Counter[str] = Counter()
    with urllib.request.urlopen(os.environ["TOLD"], timeout=30) as answer:
        for line in answer.read().decode().splitlines():
            name, _, value = line.rpartition(" ")
            if line[0] != "#" and 'type="deleted_bytes"' not in name:
                found[name.partition("{")[0]] += float(value)
    return found


def test_checkpoints_that_are_written_and_deleted_do_not_fill_a_store(
    store: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(patience.VARIABLE, "60")
    monkeypatch.setenv("WUKONG_ATTEMPT", "")
    torch.manual_seed(0)
    model = nn.Linear(1024, 1024)
    optimiser = torch.optim.SGD(model.parameters(), momentum=0.9)
    model(torch.ones(1, 1024)).sum().backward()
    optimiser.step()
    writer, written, step = checkpoint.Writer(f"{store}/_checkpoints"), 0, 0
    size = 2 * sum(weight.numel() * 4 for weight in model.parameters())
    while written < 1.4 * ROOM:
        step += 1
        writer.save(model, optimiser, step, {})
        writer.wait()
        written += size
        time.sleep(150 * size / ROOM)  # a store in 150 s; a sweep begins every 2 to 122 s
    writer.close()
    assert "full" not in caplog.text
    newest = checkpoint.newest(f"{store}/_checkpoints")
    assert newest is not None and f"checkpoint_{step:09d}-" in newest


def test_a_full_store_is_called_full_and_is_used_again_after_a_deletion(
    store: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(patience, "_LASTING", 4.0)
    monkeypatch.setenv(patience.VARIABLE, "20")
    written, before = 0, told()
    with caplog.at_level(logging.WARNING), pytest.raises(StorageError) as refused:
        while written < 3 * ROOM:
            storage.write_bytes(f"{store}/kept/{written:010d}", PIECE)
            written += len(PIECE)
    assert 0.6 * ROOM < written <= 1.3 * ROOM
    text = str(refused.value)
    assert "the object store is full, it seems: it answers, and has taken no data for 2" in text
    assert "Delete outputs that are not needed" in text and "credentials" not in text
    assert "the object store is full, it seems" in caplog.text
    assert storage.read_bytes(f"{store}/kept/{0:010d}") == PIECE, "what is there can be read"
    # What the alerts of k8s/ look at: 20 refusals in five minutes are 2 while this waited.
    assert told()["SeaweedFS_master_pick_for_write_error"] >= before["SeaweedFS_master_pick_for_write_error"] + 2
    assert told()["SeaweedFS_volumeServer_total_disk_size"] >= 0.8 * ROOM
    assert {*re.findall(r"SeaweedFS_\w+", ALERTS.read_text(encoding="utf-8"))} <= {*told()}

    monkeypatch.setenv(patience.VARIABLE, "100")
    storage.delete(f"{store}/kept")
    time.sleep(10)  # the filer deletes the pieces of an object after its name
    with urllib.request.urlopen(f"{os.environ['MASTER']}/vol/vacuum?garbageThreshold=0.01", timeout=60):
        pass  # else the next sweep does so
    for number in range(8):
        storage.write_bytes(f"{store}/again/{number}", PIECE)
    assert storage.read_bytes(f"{store}/again/7") == PIECE
