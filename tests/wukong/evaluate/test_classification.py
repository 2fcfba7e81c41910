import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from wukong.config.model import Model
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.errors import DataError
from wukong.evaluate import classification
from wukong.evaluate.blocks import Files
from wukong.evaluate.classification import Measured
from wukong.evaluate.model import OwnModel
from wukong.evaluate.prompts import PROMPTS
from wukong.evaluate.protocol import OWN, Protocol
from wukong.model.dual import DualEncoder
from wukong.model.saved_model import SavedModel
from wukong.runtime.installed import installed_file

NAMES = ("猫", "红色的苹果", "月亮")


def model(similarity: str, **more: object) -> tuple[DualEncoder, Tokenizer]:
    torch.manual_seed(0)
    settings = Model.model_validate(
        {
            "text": {"layers": 1, "heads": 2, "width": 16, "pooling": "mean"},
            "embedding": 8,
            "similarity": similarity,
            **more,
        }
    )
    tokenizer = Tokenizer(packaged_vocabulary())
    return DualEncoder(settings, tokenizer, feature_width=12).eval(), tokenizer


def test_there_are_80_prompts() -> None:
    assert len(set(PROMPTS)) == 80
    assert all(prompt.count("{}") == 1 for prompt in PROMPTS)


def test_six_prompts_equal_the_papers() -> None:
    """The paper's prompts, from the evaluation code of Chinese-CLIP, with a full stop at the end of each."""
    carried = installed_file("cn_clip", "cn_clip/eval/cvinw_zeroshot_templates.py", "pip install cn-clip==1.6.0")
    prompts = set(re.findall(r'f"([^"{]*)\{c\}([^"]*。)"', carried.read_text(encoding="utf-8")))
    assert len(prompts) > 70
    assert sum(tuple(prompt.split("{}")) in prompts for prompt in PROMPTS) == 6


def scored(dual: DualEncoder, tokenizer: Tokenizer, images: torch.Tensor, cache: Path) -> torch.Tensor:
    with torch.no_grad():
        dual.text.tokens.weight.mul_(50)  # random weights alone give all texts nearly one vector
    own = OwnModel(SavedModel(dual, tokenizer), "random")
    return classification.scores(own, images, classification.embed(own, NAMES, PROMPTS, OWN, Files(cache)), OWN)


def test_a_class_vector_is_the_normalised_mean_of_its_prompts(tmp_path: Path) -> None:
    dual, tokenizer = model("global")
    images = F.normalize(torch.randn(4, 8), dim=1)
    scores = scored(dual, tokenizer, images, tmp_path)
    with torch.inference_mode():
        for column, name in enumerate(NAMES):
            vectors = torch.cat([dual.embed_text(tokenizer([prompt.format(name)])).vectors for prompt in PROMPTS])
            mean = vectors.sum(0) / 80
            torch.testing.assert_close(scores[:, column], images @ (mean / mean.norm()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("with_cls", [True, False])
def test_a_token_wise_class_score_is_the_mean_over_its_prompts(with_cls: bool, tmp_path: Path) -> None:
    dual, tokenizer = model("token", match_text_cls=with_cls)
    images = F.normalize(torch.randn(4, 5, 8), dim=2)
    scores = scored(dual, tokenizer, images, tmp_path)
    with torch.inference_mode():
        for column, name in enumerate(NAMES):
            each = []
            for prompt in PROMPTS:
                text = dual.embed_text(tokenizer([prompt.format(name)]))
                tokens = text.vectors[0, 0 if with_cls else 1 :]
                each.append((images @ tokens.T).max(2).values.mean(1))
            torch.testing.assert_close(scores[:, column], torch.stack(each).mean(0), rtol=1e-4, atol=1e-5)


def measured(
    scores: torch.Tensor, labels: torch.Tensor, rules: Protocol, name: str, *, every_class: bool = True
) -> Measured:
    judged = classification.judged(scores, labels, rules, name)
    return classification.measured(judged, scores.shape[1], rules, name, every_class=every_class)


def test_accuracy_of_images_and_of_classes() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.8, 0.1, 0.3], [0.2, 0.3, 0.25], [1.0, 1.0, 1.0]])
    labels = torch.tensor([1, 2, 2, 0])
    found = measured(scores, labels, OWN, "x")
    assert found.top1.value == pytest.approx(0.25)  # a tie is not won
    assert found.classes == (0.0, 1.0, 0.0) and found.mean_per_class.value == pytest.approx(1 / 3)
    few = measured(scores[:3], labels[:3], OWN, "x", every_class=False)
    assert math.isnan(few.classes[0]) and few.classes[1:] == (1.0, 0.0) and few.mean_per_class.value == 0.5


@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 1), (3, 2)])
def test_a_score_that_is_no_number_is_refused(row: int, column: int) -> None:
    scores = torch.rand(4, 3)
    scores[row, column] = torch.nan
    with pytest.raises(DataError, match=f"image {row} to class {column}"):
        measured(scores, torch.tensor([0, 1, 2, 0]), OWN, "x")
