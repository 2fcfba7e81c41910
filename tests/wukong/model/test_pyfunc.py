"""Through MLflow's own store: registered by the pipeline's code, loaded by MLflow's."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import wukong
from wukong import config, storage, tracking
from wukong.config import Model
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.manifest import Stage
from wukong.model import package
from wukong.model.dual import DualEncoder
from wukong.model.image import ImageEncoder

mlflow = pytest.importorskip("mlflow")
pytestmark = pytest.mark.slow


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 30, 3), np.uint8)
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG")
    return target.getvalue()


@pytest.mark.parametrize("similarity", ["global", "token"])
def test_a_registered_model_encodes_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, similarity: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    client = mlflow.MlflowClient()
    client.create_experiment("x", artifact_location=storage.from_path(tmp_path / "artifacts"))
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    experiment = config.parse({"name": "x", "storage": storage.from_path(tmp_path / "data"), "crawl": crawl})

    torch.manual_seed(0)
    text = {"layers": 1, "heads": 2, "width": 16}
    image = {"image_size": 64}
    settings = Model.model_validate({"image": image, "text": text, "embedding": 8, "similarity": similarity})
    tokenizer = Tokenizer(packaged_vocabulary())
    model = DualEncoder(settings, tokenizer, ImageEncoder(settings.image)).eval()
    trained = Stage(experiment.root, "finetune", {}, [])
    files = package.save(trained.path("model"), model, tokenizer)
    finetuned = trained.commit([trained.describe(f"model/{file}") for file in files])
    measured = Stage(experiment.root, "evaluate", {}, [finetuned])
    storage.write_json(measured.path("metrics.json"), {})
    evaluation = measured.commit([measured.describe("metrics.json")], metrics={"retrieval.mean_recall": 0.5})
    with tracking.stage_run(experiment, "first", "register") as run_id:
        tracking.register(experiment, str(run_id), finetuned, evaluation)

    loaded = mlflow.pyfunc.load_model("models:/wukong@champion", model_config={"device": "cpu"})
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
