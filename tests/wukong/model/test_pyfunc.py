"""The MLflow model, in a real MLflow store: registered by this project's code and loaded by MLflow's."""

import io
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import measured
import numpy as np
import pandas as pd
import pytest
import torch
from packaging.requirements import Requirement
from PIL import Image

import wukong
from wukong.config import documents
from wukong.config.model import Model
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.errors import StorageError
from wukong.model import pyfunc, saved_model
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.registry import aliases
from wukong.runtime.installed import normal
from wukong.store import storage
from wukong.store.manifest import Stage
from wukong.tracking import mlflow_runs

mlflow = pytest.importorskip("mlflow")
pytestmark = pytest.mark.slow


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 30, 3), np.uint8)
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG")
    return target.getvalue()


@pytest.mark.parametrize("similarity", ["global", pytest.param("token", marks=pytest.mark.long)])
def test_a_registered_model_encodes_a_table(
    tmp_path: Path, mlflow_address: str, monkeypatch: pytest.MonkeyPatch, similarity: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_address)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    name = f"pyfunc-{similarity}"
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    experiment = documents.parse({"name": name, "storage": storage.from_path(tmp_path / "data"), "crawl": crawl})

    torch.manual_seed(0)
    text = {"layers": 1, "heads": 2, "width": 16}
    image = {"image_size": 64}
    settings = Model.model_validate({"image": image, "text": text, "embedding": 8, "similarity": similarity})
    tokenizer = Tokenizer(packaged_vocabulary())
    model = DualEncoder(settings, tokenizer, ImageEncoder(settings.image)).eval()
    trained = Stage(experiment.root, "finetune", {}, [])
    files = saved_model.save(trained.path("model"), model, tokenizer)
    finetuned = trained.commit([trained.describe(f"model/{file}") for file in files])
    found_half = measured.searched("x", np.arange(400) % 2 == 0)
    evaluation = measured.evaluation(experiment.root, [found_half], [finetuned])
    with mlflow_runs.stage_run(experiment, "first", "register") as run_id:
        aliases.register(experiment, str(run_id), finetuned, evaluation)

    loaded = mlflow.pyfunc.load_model(f"models:/{name}@champion", model_config={"device": "cpu"})
    assert [(column.name, column.required) for column in loaded.metadata.get_input_schema()] == [
        ("caption", False),
        ("image", False),
    ]
    captions, pictures = ["猫", "红色的苹果", None, "雪"], [picture(0), None, picture(2), picture(3)]
    found = loaded.predict(pd.DataFrame({"caption": captions, "image": pictures}))
    assert list(found.columns) == ["caption_vector", "image_vector", "similarity"]
    ours = wukong.load(storage.join(finetuned.uri, "model"))
    texts, images = ours.encode_text(["猫", "雪"]), ours.encode_image([picture(0), picture(3)])
    expected = ours.similarity(images, texts).diagonal()
    np.testing.assert_allclose(found["similarity"][[0, 3]].astype(float), expected, rtol=1e-4)
    assert found["similarity"][[1, 2]].isna().all()
    assert found["caption_vector"][2] is None and found["image_vector"][1] is None
    np.testing.assert_allclose(found["image_vector"][3], images[1], rtol=1e-3, atol=1e-5)
    one = texts.vectors[0] if similarity == "global" else texts.vectors[0][texts.counted[0]]
    np.testing.assert_allclose(found["caption_vector"][0], one, rtol=1e-3, atol=1e-5)
    alone = loaded.predict(pd.DataFrame({"caption": ["猫"]}))
    np.testing.assert_allclose(alone["caption_vector"][0], one, rtol=1e-3, atol=1e-5)
    with pytest.raises(Exception, match="caption 0, '', is empty"):
        loaded.predict(pd.DataFrame({"caption": [""]}))
    torch.testing.assert_close(wukong.load(f"models:/{name}@champion").encode_text("雪").vectors, texts.vectors[1:])
    with pytest.raises(StorageError, match="no version holds models:/none@champion"):
        wukong.load("models:/none@champion")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an MLflow model."""
    place = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    settings = Model.model_validate(
        {"image": {"image_size": 64}, "text": {"layers": 1, "heads": 2, "width": 16}, "embedding": 8}
    )
    tokenizer = Tokenizer(packaged_vocabulary())
    model = DualEncoder(settings, tokenizer, ImageEncoder(settings.image)).eval()
    saved_model.save(storage.from_path(place / "model"), model, tokenizer)
    pyfunc.save(place / "mlflow", place / "model", "global")
    return place / "mlflow"


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("gpu", "'gpu' is the name of no device"),
        (7, "device: "),
        ("cuda:99", "'cuda:99' is not here"),
        ("meta", "not here"),
    ],
)
def test_a_missing_device_is_refused(saved: Path, device: object, said: str) -> None:
    with pytest.raises(Exception, match=said) as caught:
        mlflow.pyfunc.load_model(str(saved), model_config={"device": device})
    assert "allowed here: cpu" in str(caught.value)


def test_an_existing_device_is_used(saved: Path) -> None:
    loaded = mlflow.pyfunc.load_model(str(saved), model_config={"device": "cpu"})
    assert loaded.unwrap_python_model().saved.device == torch.device("cpu")
    assert loaded.model_config["device"] == "cpu"


@pytest.mark.long
def test_it_can_be_loaded_where_the_project_is_not_installed(saved: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.path = [p for p in sys.path if p]\n"
        "import mlflow, pandas as pd\n"
        f"loaded = mlflow.pyfunc.load_model({str(saved)!r})\n"
        "import wukong\n"
        "print(wukong.__file__, len(loaded.predict(pd.DataFrame({'caption': ['猫']}))['caption_vector'][0]))"
    )
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=clean, capture_output=True, text=True, check=False
    )
    assert ended.stdout.split() == [str(saved / "code" / "wukong" / "__init__.py"), "8"], ended.stderr


@pytest.mark.long
def test_its_requirements_can_be_installed(saved: Path) -> None:
    """Each requirement can be on an index, is not the other package named wukong, and is the version installed here."""
    lines = (saved / "requirements.txt").read_text().split()
    asked = [Requirement(line) for line in lines]
    assert not any("wukong" in requirement.name for requirement in asked)
    assert all("+" not in str(requirement.specifier) and requirement.url is None for requirement in asked)
    for requirement in asked:
        assert requirement.specifier.contains(metadata.version(requirement.name).partition("+")[0], prereleases=True)
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "-r", str(saved / "requirements.txt")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    command = [sys.executable, "-c", _LOADED, str(saved / "code")]
    files = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(files) > 20 and all(Path(file).is_relative_to(saved / "code") for file in files)
    imported = {
        name.partition(".")[0]
        for file in files
        for name in re.findall(r"^(?:from|import) ([\w.]+)", Path(file).read_text(), re.MULTILINE)
    }
    provides = metadata.packages_distributions()
    needed = {distribution.lower() for name in imported for distribution in provides.get(name, ())}
    assert {normal(name) for name in needed} - {normal(requirement.name) for requirement in asked} <= _NOT_OURS


_LOADED = """
import sys
sys.path.insert(0, sys.argv[1])
import wukong.model.saved_model
print(*(module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "wukong"), sep="\\n")
"""
_NOT_OURS = {"wukong", "wukong-vlm"}
