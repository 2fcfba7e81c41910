"""The index of a search by Ray tasks, against the one that one process makes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
from PIL import Image

import ray_jobs.index as job
from wukong.config.model import Model as Settings
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.errors import DataError
from wukong.evaluate.model import OwnModel
from wukong.model import saved_model
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.serve import collection, encode, index
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage

BESIDE_A_PAGE_WITH_THE_GPU = """
import sys
import ray
from ray_jobs import index

ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)

@ray.remote(num_cpus=0, num_gpus=1)
class Page:
    def ready(self):
        pass

page = Page.remote()
ray.get(page.ready.remote())
while ray.available_resources().get("GPU"):
    pass
print(index.build(*sys.argv[1:]).counts["pictures"])
"""

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
PICTURES = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    settings = Settings.model_validate(
        {
            "image": {"name": "resnet18", "weights": "random", "image_size": 32},
            "text": {"layers": 1, "heads": 2, "width": 16},
            "embedding": 8,
            "similarity": "global",
        }
    )
    tokenizer = Tokenizer(packaged_vocabulary())
    uri = storage.from_path(tmp_path_factory.mktemp("model"))
    saved_model.save(uri, DualEncoder(settings, tokenizer, ImageEncoder(settings.image)), tokenizer)
    return uri


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(PICTURES):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"第{number}张", encoding="utf-8")
    return folder


def opened(made: Manifest, model: str) -> index.Index:
    return index.open_index(made, OwnModel(saved_model.load(model), model))


def test_tasks_make_the_index_that_one_process_makes(
    model: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collection, "_FOLDER_PIECE", 5)
    alone = encode.build(
        collection.of(str(pictures)), OwnModel(saved_model.load(model), model), storage.from_path(tmp_path / "alone")
    )
    made = job.build(model, str(pictures), storage.from_path(tmp_path / "ray"))
    assert (made.uri.rsplit("/", 1)[1], made.counts) == (alone.uri.rsplit("/", 1)[1], alone.counts)
    one, other = opened(alone, model), opened(made, model)
    assert list(one.keys) == list(other.keys) and list(one.captions) == list(other.captions)
    assert np.allclose(one.picture_vectors.read(), other.picture_vectors.read(), atol=1e-3)
    assert np.allclose(one.caption_vectors.read(), other.caption_vectors.read(), atol=1e-3)


@pytest.mark.long
def test_the_command_makes_it(model: str, pictures: Path, tmp_path: Path) -> None:
    """In a process of its own, whose tasks are of no module that workers find by the name ``__main__``."""
    command = [sys.executable, "-m", "ray_jobs.index", "--model", model, "--data", str(pictures)]
    done = subprocess.run(
        [*command, "--index", storage.from_path(tmp_path)],
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, f"{PICTURES} pictures are indexed at " in done.stderr) == (0, True), done.stderr


@pytest.mark.long
def test_beside_a_page_that_holds_all_cores_one_task_runs_at_a_time(
    model: str, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    @ray.remote(num_cpus=2)
    class Page:
        def ready(self) -> bool:
            return True

    page = Page.remote()
    try:
        assert ray.get(page.ready.remote())
        ends = time.monotonic() + 60
        while ray.available_resources().get("CPU", 0) >= 1:
            assert time.monotonic() < ends
            time.sleep(0.1)
        made = job.build(model, str(pictures), storage.from_path(tmp_path / "ray"))
    finally:
        ray.kill(page)
    assert made.counts["pictures"] == PICTURES
    assert "all 2 cores of Ray are reserved: one task at a time runs beside what holds them" in caplog.text


@pytest.mark.long
def test_beside_a_page_that_holds_the_gpu_the_model_runs_on_cores(model: str, pictures: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BESIDE_A_PAGE_WITH_THE_GPU, model, str(pictures), storage.from_path(tmp_path)],
        capture_output=True, text=True, check=False, timeout=300, cwd=Path(job.__file__).parents[1],
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"{PICTURES}\n"), done.stderr
    assert "all GPUs of Ray are reserved: the model runs on cores" in done.stderr


def test_an_error_in_a_task_is_said_in_its_own_words(model: str, tmp_path: Path) -> None:
    stage = Stage(storage.from_path(tmp_path), "filter", {})
    row = {"key": ["a" * 20], "caption": ["红"], "sha256": ["one"]}
    storage.write_table(stage.path("train/00000.parquet"), pa.table(row))
    storage.write_bytes(stage.path("train/00000.tar"), bytes(10_240))  # one without a file
    stage.commit([stage.describe(f"train/00000.{suffix}", 1) for suffix in ("tar", "parquet")])
    with pytest.raises(DataError, match=r"^file://.*00000\.tar lacks the pictures of 1 of its pairs"):
        job.build(model, stage.uri, storage.from_path(tmp_path / "indexes"))
