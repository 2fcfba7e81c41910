import math
import re

import pytest
import torch
import torch.nn.functional as F

from wukong.config import Model
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.evaluate import classification
from wukong.evaluate.prompts import OF_THE_PAPER, PROMPTS
from wukong.installed import installed_file
from wukong.model.dual import DualEncoder

NAMES = ("猫", "红色的苹果", "月亮")


def model(similarity: str, **more: object) -> tuple[DualEncoder, Tokenizer]:
    torch.manual_seed(0)
    settings = Model.model_validate(
        {"text": {"layers": 1, "heads": 2, "width": 16}, "embedding": 8, "similarity": similarity, **more}
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
    both = tuple(prompt for prompt in PROMPTS if tuple(prompt.split("{}")) in prompts)
    assert both == OF_THE_PAPER and len(both) == 6


def test_a_class_vector_is_the_normalised_mean_of_its_prompts() -> None:
    dual, tokenizer = model("global")
    images = F.normalize(torch.randn(4, 8), dim=1)
    scores = classification.class_scores(dual, tokenizer, images, NAMES, batch_size=7)
    with torch.inference_mode():
        for column, name in enumerate(NAMES):
            vectors = torch.cat([dual.embed_text(tokenizer([prompt.format(name)])).vectors for prompt in PROMPTS])
            mean = vectors.sum(0) / 80
            torch.testing.assert_close(scores[:, column], images @ (mean / mean.norm()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("with_cls", [True, False])
def test_a_token_wise_class_score_is_the_mean_over_its_prompts(with_cls: bool) -> None:
    dual, tokenizer = model("token", match_text_cls=with_cls)
    images = F.normalize(torch.randn(4, 5, 8), dim=2)
    scores = classification.class_scores(dual, tokenizer, images, NAMES, batch_size=7)
    with torch.inference_mode():
        for column, name in enumerate(NAMES):
            each = []
            for prompt in PROMPTS:
                text = dual.embed_text(tokenizer([prompt.format(name)]))
                tokens = text.vectors[0, 0 if with_cls else 1 :]
                each.append((images @ tokens.T).max(2).values.mean(1))
            torch.testing.assert_close(scores[:, column], torch.stack(each).mean(0), rtol=1e-4, atol=1e-5)


def test_top_1_and_top_5_accuracy() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.8, 0.1, 0.3], [0.2, 0.3, 0.25], [1.0, 1.0, 1.0]])
    labels = torch.tensor([1, 2, 2, 0])
    assert classification.accuracy(scores, labels) == pytest.approx(0.25)  # a tie is not won
    assert classification.accuracy(scores, labels, 2) == pytest.approx(0.75)
    by_class = classification.per_class(scores[:3], labels[:3])
    assert math.isnan(by_class[0])
    assert by_class[1:] == [1.0, 0.0]
