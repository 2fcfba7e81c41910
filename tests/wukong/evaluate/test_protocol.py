from typing import get_args

import pytest

from wukong.config import documents
from wukong.config.evaluate import Evaluate
from wukong.config.experiment import Experiment
from wukong.config.model import ImageEncoder
from wukong.errors import ConfigError
from wukong.evaluate.protocol import sentences


def experiment(*overrides: str) -> Experiment:
    return documents.loads('{"name": "x", "crawl": {"queries": "file:///q", "endpoint": "http://x"}}', list(overrides))


def test_each_setting_has_a_sentence_of_its_own() -> None:
    told = set()
    for captions in get_args(Evaluate.model_fields["captions"].annotation):
        for view in get_args(ImageEncoder.model_fields["view"].annotation):
            for cls in ("true", "false"):
                settings = (f"evaluate.captions={captions}", f"model.image.view={view}", f"model.match_text_cls={cls}")
                assert not any("[CLS]" in sentence for sentence in sentences(experiment(*settings)))
                told.add(" ".join(sentences(experiment(*settings, "model.similarity=token"))))
    assert len(told) == 3 * 2 * 2


def test_pooled_tokens_are_told() -> None:
    token = ("model.similarity=token", "model.image.tokens=9")
    areas, maps = (sentences(experiment(*token, *more))[-1] for more in ((), ("model.image.pooling=attention",)))
    assert "9 tokens, the means of square areas" in areas and "9 tokens, by attention maps" in maps


@pytest.mark.parametrize("key", ["evaluate.captions", "model.image.view"])
def test_a_wrong_value_is_refused_with_its_key(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        experiment(f"{key}=five")
