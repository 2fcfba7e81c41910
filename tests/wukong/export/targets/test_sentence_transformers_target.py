"""Folders for sentence-transformers: opened without this project, and evaluated by mteb."""

import sys
from pathlib import Path

import consumers
import numpy as np
import pytest

from wukong.errors import ConfigError
from wukong.export import parts
from wukong.export.run import export
from wukong.model.saved_model import SavedModel

pytestmark = pytest.mark.long

OPEN = """
import sys
sys.modules["wukong"] = None
from PIL import Image
from sentence_transformers import SentenceTransformer
import numpy as np
output, *folders = sys.argv[1:]
captions = ["一只猫", "红色的苹果和绿色的苹果", "Café 雪 2024"]
pictures = [Image.open(f"{output}/{number}.png") for number in range(4)]
for folder in folders:
    model = SentenceTransformer(folder, device="cpu", trust_remote_code=folder.endswith("code"))
    image, text = model.encode(pictures), model.encode(captions)
    np.savez(folder + ".npz", image=image, text=text, similarity=model.similarity(image, text))
"""
CAPTIONS = ["一只猫", "红色的苹果和绿色的苹果", "Café 雪 2024"]
EVALUATE = """
import sys
sys.modules["wukong"] = None
import mteb
from mteb.mocks import MockAny2AnyRetrievalT2ITask
from mteb.models import SentenceTransformerEncoderWrapper
for folder in sys.argv[1:]:
    model = SentenceTransformerEncoderWrapper(folder, device="cpu", trust_remote_code=folder.endswith("code"))
    model.mteb_model_meta = model.mteb_model_meta.model_copy(update={"modalities": ["image", "text"]})
    (result,) = mteb.evaluate(model, [MockAny2AnyRetrievalT2ITask()], cache=None).task_results
    print(result.scores["test"][0]["ndcg_at_10"])
try:
    mteb.get_model(folder)
except NotImplementedError:
    print("get_model opens no folders")
"""


def test_it_is_opened_without_this_project(lite0: SavedModel, clip_vit: SavedModel, tmp_path: Path) -> None:
    pictures = parts.sample_pictures(4)
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    exported = {"code": lite0, "clip": clip_vit}
    for name, saved in exported.items():
        export(saved, "sentence-transformers", tmp_path / name)
    consumers.run(Path(sys.executable), OPEN, tmp_path, *(tmp_path / name for name in exported))
    for name, saved in exported.items():
        found = np.load(tmp_path / f"{name}.npz")
        image, text = saved.encode_image(pictures), saved.encode_text(CAPTIONS)
        np.testing.assert_allclose(found["text"], text.vectors, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(found["image"], axis=1), 1, atol=1e-5)
        assert (image.numpy() * found["image"]).sum(1).min() > (1 - 1e-5 if name == "code" else 0.999), name
        if name == "code":
            np.testing.assert_allclose(found["similarity"], saved.similarity(image, text), atol=1e-5)


def test_a_model_with_many_vectors_is_refused(token_wise: SavedModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--to late-interaction"):
        export(token_wise, "sentence-transformers", tmp_path / "exported")


@consumers.only_by_hand
def test_mteb_finds_pictures_by_texts(lite0: SavedModel, clip_vit: SavedModel, tmp_path: Path) -> None:
    python = consumers.environment("mteb", ["mteb>=2.26"])
    export(lite0, "sentence-transformers", tmp_path / "code")
    export(clip_vit, "sentence-transformers", tmp_path / "clip")
    printed = consumers.run(python, EVALUATE, tmp_path / "code", tmp_path / "clip")
    *found, said = printed.splitlines()[-3:]
    # Each of two texts has its picture first of two, or second.
    assert all(0.6 < float(value) <= 1 for value in found)
    assert said == "get_model opens no folders", "docs/export.md says that it does not"
