"""Folders for late interaction: sentence-transformers' MultiVectorEncoder, and PyLate."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import consumers
import numpy as np
import pytest
import torch

from wukong.errors import ConfigError
from wukong.export import parts
from wukong.export.run import export
from wukong.model.saved_model import SavedModel

pytestmark = pytest.mark.long

CAPTIONS = ["一只猫", "红色的苹果和绿色的苹果", "Café 雪 2024"]
OPEN = """
import sys
sys.modules["wukong"] = None
import numpy as np
from PIL import Image
from sentence_transformers import MultiVectorEncoder
folder, output = sys.argv[1:]
captions = ["一只猫", "红色的苹果和绿色的苹果", "Café 雪 2024"]
pictures = [Image.open(f"{output}/{number}.png") for number in range(4)]
model = MultiVectorEncoder(folder + "/multi_vector", device="cpu", trust_remote_code=True)
image = model.encode(pictures)
to_texts = model.similarity(image, model.encode_document(captions))
to_images = model.similarity(model.encode_query(captions), image)
np.savez(output + "/found.npz", to_texts=to_texts, to_images=to_images)
"""
PYLATE = """
import sys
sys.modules["wukong"] = None
import numpy as np, torch
from pylate import models, rank, scores
folder, vectors, output = sys.argv[1:]
captions = ["一只猫", "红色的苹果和绿色的苹果", "Café 雪 2024"]
model = models.ColBERT(folder, device="cpu")
queries = model.encode(captions, is_query=True, convert_to_tensor=True)
documents = model.encode(captions, is_query=False, convert_to_tensor=True)
image = torch.from_numpy(np.load(vectors))
to_images = torch.cat([scores.colbert_scores(query[None, 1:], image) / (len(query) - 1) for query in queries])
to_texts = torch.cat([scores.colbert_scores(image, document[None]) / image.shape[1] for document in documents], 1)
ranked = rank.rerank([list(range(len(image)))], [queries[0][1:]], [list(image)])
np.savez(output, to_images=to_images, to_texts=to_texts, ranked=[each["id"] for each in ranked[0]])
"""


@pytest.fixture(params=[True, False], ids=["with [CLS]", "without [CLS]"])
def saved(request: pytest.FixtureRequest, built: Callable[[dict[str, object]], SavedModel]) -> SavedModel:
    """A token-wise model whose patches may match a text's [CLS], or may not."""
    return built(
        {
            "image": {"name": "vit_xsmall_patch16_clip_224", "image_size": 64, "weights": "random"},
            "text": {"layers": 2, "heads": 4, "width": 64},
            "embedding": 32,
            "similarity": "token",
            "match_text_cls": request.param,
        }
    )


@pytest.mark.parametrize("saved", [False], ids=["without [CLS]"], indirect=True)
def test_it_is_opened_without_this_project(saved: SavedModel, tmp_path: Path) -> None:
    pictures = parts.sample_pictures(4)
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    export(saved, "late-interaction", tmp_path / "exported")
    consumers.run(Path(sys.executable), OPEN, tmp_path / "exported", tmp_path)
    found = np.load(tmp_path / "found.npz")
    image, text = saved.encode_image(pictures), saved.encode_text(CAPTIONS)
    np.testing.assert_allclose(found["to_texts"], saved.similarity(image, text), atol=1e-5)
    np.testing.assert_allclose(found["to_images"].T, saved.similarity(image, text, "text"), atol=1e-5)


@pytest.mark.parametrize("saved", [True], ids=["with [CLS]"], indirect=True)
def test_patches_may_match_cls_where_the_model_says_so(saved: SavedModel, tmp_path: Path) -> None:
    checks = export(saved, "late-interaction", tmp_path / "exported")
    assert [check.of for check in checks if "documents" in check.of] == [
        "tokens of 32 captions as documents",
        "tokens as documents, PyLate's layout",
    ]
    mask = json.loads((tmp_path / "exported" / "multi_vector" / "1_MultiVectorMask" / "config.json").read_text())
    assert mask["skiplist_tasks"] == ["query"]


def test_a_model_with_one_vector_is_refused(clip_vit: SavedModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--to sentence-transformers"):
        export(clip_vit, "late-interaction", tmp_path / "exported")


PACKAGES = (
    *("pylate==1.6.0", "sentence-transformers==5.3.0", "transformers==5.3.0", "tokenizers==0.22.2"),
    *("huggingface-hub==1.33.0", "httpx==0.28.1", "httpcore==1.0.9", "ujson==5.12.0"),
    *("datasets==5.2.0", "dill==0.4.1", "multiprocess==0.70.19", "xxhash==4.1.0", "accelerate==1.15.0"),
)
"""PyLate, and of what it needs the versions that are others here, but not its torch of 4 GB."""


@consumers.only_by_hand
def test_pylate_scores_pictures_by_texts_and_texts_by_pictures(saved: SavedModel, tmp_path: Path) -> None:
    python = consumers.environment("pylate", ["--no-deps", *PACKAGES])
    export(saved, "late-interaction", tmp_path / "exported")
    image, text = saved.encode_image(parts.sample_pictures(4)), saved.encode_text(CAPTIONS)
    np.save(tmp_path / "image.npy", image.numpy())
    consumers.run(python, PYLATE, tmp_path / "exported", tmp_path / "image.npy", tmp_path / "found.npz")
    found = np.load(tmp_path / "found.npz")
    to_images = saved.similarity(image, text, "text").T
    np.testing.assert_allclose(found["to_texts"], saved.similarity(image, text), atol=1e-5)
    np.testing.assert_allclose(found["to_images"], to_images, atol=1e-5)
    assert found["ranked"].tolist() == torch.argsort(to_images[0], descending=True).tolist()
