"""The tagger against first principles: every path of tags, a textbook's GRU step, odds by hand."""

import itertools
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from small_tagger import paths, small_tagger

from tools.name_tagger.torch_tagger import exported
from wukong.curate.names import tagger
from wukong.errors import DataError


def test_a_text_is_read_the_same_alone_and_in_a_batch():
    texts = ["刘亦菲古装造型", "李宁点燃火炬吧", "猫", "", "安静的午后时光", "C罗进球"]
    for text, spans in zip(texts, tagger.load().read(texts), strict=True):
        assert spans == pytest.approx(tagger.load().read([text])[0], abs=1e-5)


def test_probabilities_are_those_of_trying_every_path():
    fitted, model, _ = small_tagger()
    texts = ["刘亦菲在", "在在刘在", "X菲亦刘"]
    scores, steps = fitted.scores(texts).astype(float), exported(model)["steps"].astype(float)
    for row, found in enumerate(fitted.read(texts)):
        expected, total = defaultdict(float), 0.0
        for path, power in paths(scores[:, row], steps):
            total += power
            for start, tag in enumerate(path):
                if tag == tagger.SINGLE:
                    expected[start, start + 1] += power
                if tag == tagger.BEGINS:
                    expected[start, path.index(tagger.ENDS, start) + 1] += power
        likely = {span: power / total for span, power in expected.items() if power / total >= 0.01}
        assert found == pytest.approx(likely, abs=1e-4)


class _Recorded:
    """A tagger that gives what it is told, and keeps what it was asked."""

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    def read(self, texts):
        self.asked += texts
        return [self.answers.get(text, {}) for text in texts]


def test_a_committee_asks_the_others_where_the_first_suspects_a_name():
    first = _Recorded({"甲": {(0, 1): 0.6}, "乙": {(0, 1): 0.02}})
    second = _Recorded({"甲": {(0, 1): 0.9, (1, 2): 0.5}})
    read = tagger.Committee([first, second]).read(["甲", "乙", "丙"])
    assert (first.asked, second.asked) == (["甲", "乙", "丙"], ["甲"])
    # Odds of 1.5 and 9, and of 0.005 to 0.995 and 1.
    odds = {(0, 1): (1.5 * 9) ** 0.5, (1, 2): (0.005 / 0.995) ** 0.5}
    assert read[0] == pytest.approx({span: value / (1 + value) for span, value in odds.items()})
    assert read[1:] == [{}, {}]


def test_a_gru_step_is_the_textbooks():
    generator = np.random.default_rng(1)
    hidden = 8
    gates = generator.normal(size=(2, hidden, 2 * hidden)).astype(np.float32)
    candidate = generator.normal(size=(2, hidden, hidden)).astype(np.float32)
    inputs = generator.normal(size=(3, 2, 6 * hidden)).astype(np.float32)
    got = tagger._bidirectional(inputs, gates, candidate)
    for text, (order, way) in itertools.product(range(2), [((0, 1, 2), 0), ((2, 1, 0), 1)]):
        state = np.zeros(hidden)
        for place in order:
            x = inputs[place, text, way * 3 * hidden : (way + 1) * 3 * hidden].astype(float)
            update = 1 / (1 + np.exp(-(x[:hidden] + state @ gates[way][:, :hidden])))
            reset = 1 / (1 + np.exp(-(x[hidden : 2 * hidden] + state @ gates[way][:, hidden:])))
            new = np.tanh(x[2 * hidden :] + (reset * state) @ candidate[way])
            state = (1 - update) * state + update * new
            np.testing.assert_allclose(got[place, text, way * hidden : (way + 1) * hidden], state, atol=1e-5)


@pytest.mark.parametrize("damage", [lambda data: data[:-4], lambda data: data[:5], lambda data: b"\x01" + data[1:]])
def test_damaged_vectors_are_explained(tmp_path, damage):
    import jieba

    source = Path(jieba.__file__).parent / "lac_small" / "model_baseline" / "fc_4.b_0"
    (tmp_path / "fc_4.b_0").write_bytes(damage(source.read_bytes()))
    with pytest.raises(DataError, match=r"fc_4\.b_0"):
        tagger.read_tensor(tmp_path / "fc_4.b_0", (57,))
