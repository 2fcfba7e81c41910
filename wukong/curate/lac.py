"""LAC's lexical analyser in numpy: character tags (parts of speech and entities) from the model that jieba ships.

The model is Baidu's LAC (Jiao et al., 2018, "Chinese Lexical Analysis with Deep Bi-GRU-CRF Network"): character
embeddings, two bidirectional GRU layers of 128, and a linear-chain CRF. jieba runs it with PaddlePaddle; here it needs
numpy alone. Texts of equal length go through it as one batch, and the first layer's input projection, which depends on
nothing but the character, is a table made once.
"""

import struct
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wukong.errors import DataError

Floats = npt.NDArray[np.float32]
Tags = npt.NDArray[np.int64]

_HIDDEN = 128
_BATCH = 256
_DECODED = 32


class Lac:
    """The tagger. ``tags`` names its labels: ``PER-B`` begins a person name, ``PER-I`` continues it.

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
        # Transposed: the best way into a tag is then sought along memory.
        self._start, self._stop, self._into = crf[0], crf[1], np.ascontiguousarray(crf[2:].T)

    def tag(self, texts: Sequence[str]) -> list[Tags]:
        """Tag every character of each text; a tag is a place in ``tags``."""
        result: list[Tags] = [np.empty(0, np.int64)] * len(texts)
        by_length: dict[int, list[int]] = defaultdict(list)
        for place, text in enumerate(texts):
            if text:
                by_length[len(text)].append(place)
        for places in by_length.values():
            for start in range(0, len(places), _BATCH):
                batch = places[start : start + _BATCH]
                tagged = self._decode(self._emissions(self._encode([texts[place] for place in batch])))
                for place, tags in zip(batch, tagged, strict=True):
                    result[place] = tags
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

    def _decode(self, emissions: Floats) -> Tags:
        """The best tag sequence of each text (Viterbi), [texts, length]."""
        length, texts, _ = emissions.shape
        best = np.empty((texts, length), np.int64)
        # Few texts at a time: what every step touches then stays in the cache.
        for first in range(0, texts, _DECODED):
            some = emissions[:, first : first + _DECODED]
            score = some[0] + self._start
            back = np.empty((length, *score.shape), np.int64)
            for place in range(1, length):
                paths = score[:, None] + self._into
                back[place] = paths.argmax(2)
                score = np.take_along_axis(paths, back[place][:, :, None], 2)[:, :, 0] + some[place]
            rows = np.arange(len(score))
            found = best[first : first + _DECODED]
            found[:, -1] = (score + self._stop).argmax(1)
            for place in range(length - 1, 0, -1):
                found[:, place - 1] = back[place, rows, found[:, place]]
        return best


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
