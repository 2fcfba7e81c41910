"""LAC's lexical analyser in numpy: how sure the model that jieba ships is of names and words.

The model is Baidu's LAC (Jiao et al., 2018, "Chinese Lexical Analysis with Deep Bi-GRU-CRF Network"): character
embeddings, two bidirectional GRU layers of 128, and a linear-chain CRF. jieba runs it with PaddlePaddle and takes the
best tags; here it needs numpy alone and gives probabilities. Texts of equal length go through it as one batch, and the
first layer's input projection, which depends on nothing but the character, is a table made once.
"""

import struct
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from wukong.errors import DataError

Floats = npt.NDArray[np.float32]
Tags = npt.NDArray[np.int64]

_HIDDEN = 128
_BATCH = 256

LONGEST = 12
"""The longest name looked for, in characters."""

GROUPS = {
    "person": ("PER", "nr"),
    "place": ("LOC", "ns"),
    "organisation": ("ORG", "nt"),
    "title": ("nz", "nw"),
    "noun": ("n",),
    "verb": ("v", "vd", "vn"),
    "other": ("a", "ad", "an", "c", "d", "f", "m", "p", "q", "r", "s", "t", "u", "w", "xc", "TIME"),
}
"""LAC's kinds of word, by what they tell about names."""


class Reading(NamedTuple):
    """What LAC makes of a text.

    Attributes:
        begins: probability that a word of each of ``GROUPS`` begins at a place, [length, groups].
        names: probability that a person's name begins at a place and is 1, 2, ... characters long, [length, LONGEST].
    """

    begins: Floats
    names: Floats


class Lac:
    """The model. ``tags`` names its labels: ``PER-B`` begins a person name, ``PER-I`` continues it.

    Args:
        folder: of the model's files, as jieba ships them in ``jieba/lac_small``.

    Raises:
        DataError: a file is missing or not a tensor of the expected shape.
    """

    def __init__(self, folder: Path) -> None:
        self._ids = {word: number for number, word in _table(folder / "word.dic")}
        self._unknown = self._ids["OOV"]
        self.tags = tuple(tag for _, tag in _table(folder / "tag.dic"))
        model = folder / "model_baseline"

        def tensor(name: str, *shape: int) -> Floats:
            return read_tensor(model / name, shape)

        words, tags = max(self._ids.values()) + 1, len(self.tags)
        embedding = tensor("word_emb", words, _HIDDEN)
        # fc_0 and gru_0 read layer 1 forward, fc_1 and gru_1 backward; 2 and 3 are layer 2.
        weights = [tensor(f"fc_{n}.w_0", _HIDDEN if n < 2 else 2 * _HIDDEN, 3 * _HIDDEN) for n in range(4)]
        biases = [tensor(f"fc_{n}.b_0", 3 * _HIDDEN) + tensor(f"gru_{n}.b_0", 1, 3 * _HIDDEN)[0] for n in range(4)]
        self._first = np.concatenate([embedding @ weights[n] + biases[n] for n in (0, 1)], axis=1)
        self._second = np.concatenate(weights[2:], axis=1), np.concatenate(biases[2:])
        self._recurrent = [_recurrent(tensor(f"gru_{n}.w_0", _HIDDEN, 3 * _HIDDEN)) for n in range(4)]
        self._emission = tensor("fc_4.w_0", 2 * _HIDDEN, tags), tensor("fc_4.b_0", tags)
        crf = tensor("crfw", tags + 2, tags)
        self._first_tag, self._last_tag, self._steps = np.exp(crf[0]), np.exp(crf[1]), np.exp(crf[2:])
        begun = {tag: number for number, tag in enumerate(self.tags)}
        self._names = [(begun[f"{kind}-B"], begun[f"{kind}-I"]) for kind in GROUPS["person"]]
        self._groups = np.zeros((len(GROUPS), tags), np.float32)
        for row, kinds in enumerate(GROUPS.values()):
            self._groups[row, [begun[f"{kind}-B"] for kind in kinds]] = 1

    def read(self, texts: Sequence[str]) -> list[Reading]:
        """Read each text; an empty one has a reading without characters."""
        nothing = Reading(np.zeros((0, len(GROUPS)), np.float32), np.zeros((0, LONGEST), np.float32))
        result = [nothing] * len(texts)
        by_length: dict[int, list[int]] = defaultdict(list)
        for place, text in enumerate(texts):
            if text:
                by_length[len(text)].append(place)
        for places in by_length.values():
            for start in range(0, len(places), _BATCH):
                batch = places[start : start + _BATCH]
                begins, spans = self._posteriors(self._emissions(self._encode([texts[place] for place in batch])))
                for row, place in enumerate(batch):
                    result[place] = Reading(begins[row], spans[row])
        return result

    def _encode(self, texts: Sequence[str]) -> Tags:
        ids, unknown = self._ids, self._unknown
        return np.array([[ids.get(character, unknown) for character in text] for text in texts]).T

    def _emissions(self, ids: Tags) -> Floats:
        """Scores of every tag at every place, [length, texts, tags]."""
        hidden = _bidirectional(self._first[ids], self._recurrent[0], self._recurrent[1])
        weight, bias = self._second
        hidden = _bidirectional(hidden @ weight + bias, self._recurrent[2], self._recurrent[3])
        weight, bias = self._emission
        return hidden @ weight + bias

    def _posteriors(self, emissions: Floats) -> tuple[Floats, Floats]:
        """The arrays of ``Reading``, for all the texts, by the forward-backward algorithm."""
        length, texts, tags = emissions.shape
        potentials = np.exp(emissions - emissions.max(2, keepdims=True))
        forward, backward = np.empty_like(potentials), np.empty_like(potentials)
        scale = np.empty((length, texts, 1), np.float32)
        state = potentials[0] * self._first_tag
        for place in range(length):
            if place:
                state = (state @ self._steps) * potentials[place]
            scale[place] = state.sum(1, keepdims=True)
            state /= scale[place]
            forward[place] = state
        # What is possible after the last character, then before it; scaled so that forward * backward sums to 1.
        state = np.broadcast_to(self._last_tag, (texts, tags))
        state = state / (forward[-1] * state).sum(1, keepdims=True)
        backward[-1] = state
        for place in range(length - 1, 0, -1):
            state = ((state * potentials[place]) @ self._steps.T) / scale[place]
            backward[place - 1] = state
        begins = (forward * backward) @ self._groups.T
        spans = np.zeros((length, LONGEST, texts), np.float32)
        for first, inner in self._names:
            # What is left of `backward` after a name's going on is its end.
            continued = potentials[:, :, inner] / scale[:, :, 0]
            path, last = forward[:, :, first].copy(), first
            for size in range(min(LONGEST, length)):
                ends = backward[size:, :, last].copy()
                ends[:-1] -= self._steps[last, inner] * continued[size + 1 :] * backward[size + 1 :, :, inner]
                spans[: length - size, size] += path * ends
                path, last = path[:-1] * self._steps[last, inner] * continued[size + 1 :], inner
        return begins.transpose(1, 0, 2), spans.transpose(2, 0, 1).clip(0, 1)


@lru_cache(maxsize=1)
def load() -> Lac:
    """The model of the installed jieba package."""
    import jieba

    return Lac(Path(jieba.__file__).parent / "lac_small")


def read_tensor(path: Path, shape: tuple[int, ...]) -> Floats:
    """Read a float32 tensor in PaddlePaddle's format: version, level of detail, a protobuf with type and shape, data.

    Raises:
        DataError: the file is missing or holds another type or shape.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}; install jieba again") from error
    size = 4 * int(np.prod(shape))
    try:
        version, levels, inner, described = struct.unpack_from("<IQIi", data)
    except struct.error as error:
        raise DataError(f"{path} is truncated; install jieba again") from error
    if (version, levels, inner) != (0, 0, 0) or len(data) != 20 + described + size or data[20:22] != b"\x08\x05":
        raise DataError(f"{path} does not hold a float32 tensor of shape {shape}; install jieba again")
    return np.frombuffer(data, "<f4", offset=20 + described).reshape(shape)


def _table(path: Path) -> list[tuple[int, str]]:
    lines = path.read_text(encoding="utf-8").split("\n")
    pairs = (line.split("\t") for line in lines)
    return [(int(pair[0]), pair[1]) for pair in pairs if len(pair) == 2]


def _recurrent(weight: Floats) -> tuple[Floats, Floats]:
    """Split a GRU's weight as it lies in memory: update and reset gates [128, 256], then candidate [128, 128]."""
    flat = weight.reshape(-1)
    gates = flat[: 2 * _HIDDEN * _HIDDEN].reshape(_HIDDEN, 2 * _HIDDEN)
    return np.ascontiguousarray(gates), flat[2 * _HIDDEN * _HIDDEN :].reshape(_HIDDEN, _HIDDEN).copy()


def _bidirectional(projected: Floats, forward: tuple[Floats, Floats], backward: tuple[Floats, Floats]) -> Floats:
    """Run both directions over [length, texts, 768] and join their states to [length, texts, 256]."""
    length, texts, _ = projected.shape
    joined = np.empty((length, texts, 2 * _HIDDEN), np.float32)
    for number, (gate_weight, candidate_weight) in enumerate((forward, backward)):
        inputs = projected[:, :, number * 3 * _HIDDEN : (number + 1) * 3 * _HIDDEN]
        state = np.zeros((texts, _HIDDEN), np.float32)
        for place in range(length) if number == 0 else range(length - 1, -1, -1):
            gates = _sigmoid(inputs[place, :, : 2 * _HIDDEN] + state @ gate_weight)
            update, reset = gates[:, :_HIDDEN], gates[:, _HIDDEN:]
            # The reset gate acts on the state before the product, as in Cho et al. (2014), not as in cuDNN.
            candidate = np.tanh(inputs[place, :, 2 * _HIDDEN :] + (reset * state) @ candidate_weight)
            state += update * (candidate - state)
            joined[place, :, number * _HIDDEN : (number + 1) * _HIDDEN] = state
    return joined


def _sigmoid(values: Floats) -> Floats:
    half = np.float32(0.5)
    gated: Floats = half * np.tanh(half * values) + half
    return gated
