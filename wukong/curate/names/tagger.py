"""A tagger of person names in numpy: how sure it is that each string of a text is one.

Two bidirectional GRU layers read each character's vector and what word lists know of it, and a linear-chain CRF over
the tags outside, begins, inside, ends and single joins their scores. The characters' vectors are those of Baidu's LAC
(Jiao et al., 2018, "Chinese Lexical Analysis with Deep Bi-GRU-CRF Network"), which jieba ships; all other weights are
fitted by ``benchmarks/curate/names/fit.py``. Texts of equal length go through as one batch, and what the first layer
makes of a character's vector is a table made once.
"""

import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from math import exp, log
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from wukong.curate.names import word_lists
from wukong.curate.names.word_lists import MARKS, NameWords
from wukong.errors import DataError
from wukong.installed import installed_file

Floats = npt.NDArray[np.float32]
Span = tuple[int, int]

TAGS = ("outside", "begins", "inside", "ends", "single")
OUTSIDE, BEGINS, INSIDE, ENDS, SINGLE = range(len(TAGS))
FOLLOWS = np.array([[1, 1, 0, 0, 1], [0, 0, 1, 1, 0], [0, 0, 1, 1, 0], [1, 1, 0, 0, 1], [1, 1, 0, 0, 1]], dtype=bool)
"""Whether the second tag may follow the first, [tags, tags]."""
FIRST = np.array([1, 1, 0, 0, 1], dtype=bool)
"""Whether a text may begin with a tag."""
LAST = np.array([1, 0, 0, 1, 1], dtype=bool)
"""Whether a text may end with a tag."""

LONGEST = 20
"""The longest name looked for, in characters."""

VECTOR = 128
WEIGHTS = Path(__file__).parent / "lists" / "taggers.safetensors"

# Characters that are read at once.
_BATCH = 8192
# Probability below which a string is not worth a mention.
_LEAST = 0.01
# Probability of a name, in the first tagger's eyes, that lets the others read the text.
_SUSPECTED = 0.1
_LOWEST = np.float32(-20.0)


class Tagger:
    """The tagger.

    Args:
        weights: by name, as ``fit.py`` writes them: for each layer ``N.input`` [2, inputs, 3 h], ``N.bias`` [2, 3 h],
            ``N.gates`` [2, h, 2 h] and ``N.candidate`` [2, h, h], forward and backward; ``1.marks`` [MARKS, 6 h];
            ``tags`` [2 h, 5] and ``tags.bias`` [5]; ``steps`` [5, 5].
        vectors: of the characters, [characters, 128]; the last is that of an unknown one.
        numbers: by character, its row.
        words: the lists whose marks the weights were fitted to.
    """

    def __init__(
        self, weights: Mapping[str, Floats], vectors: Floats, numbers: Mapping[str, int], words: NameWords
    ) -> None:
        w = {name: np.asarray(value, np.float32) for name, value in weights.items()}
        self._numbers, self._unknown, self._words = numbers, len(vectors) - 1, words
        self._table = np.concatenate([vectors @ w["1.input"][way] + w["1.bias"][way] for way in (0, 1)], axis=1)
        self._marks = w["1.marks"]
        self._second = np.concatenate(list(w["2.input"]), axis=1), w["2.bias"].reshape(-1)
        self._layers = [(w[f"{layer}.gates"], w[f"{layer}.candidate"]) for layer in (1, 2)]
        self._tags = w["tags"], w["tags.bias"]
        self._steps = np.where(FOLLOWS, np.exp(w["steps"]), 0).astype(np.float32)

    def read(self, texts: Sequence[str]) -> list[dict[Span, float]]:
        """The probability of each string of a text that it is a whole name, where that is 0.01 and more.

        Args:
            texts: half-width and Simplified (``names.plain``).
        """
        result: list[dict[Span, float]] = [{} for _ in texts]
        by_length: dict[int, list[int]] = defaultdict(list)
        for place, text in enumerate(texts):
            if text:
                by_length[len(text)].append(place)
        for length, places in by_length.items():
            size = max(1, _BATCH // length)
            for start in range(0, len(places), size):
                batch = places[start : start + size]
                for row, span, sure in self._names(self.scores([texts[place] for place in batch])):
                    result[batch[row]][span] = sure
        return result

    def scores(self, texts: Sequence[str]) -> Floats:
        """Scores of every tag at every character of texts of one length, [length, texts, TAGS]."""
        numbers, unknown, length = self._numbers, self._unknown, len(texts[0])
        # No listed string holds the mark between two texts.
        joined = "\n".join(texts) + "\n"
        ids = np.array([numbers.get(character, unknown) for character in joined]).reshape(len(texts), length + 1)
        marks = word_lists.marks(self._words.find(joined), len(joined)).reshape(len(texts), length + 1, len(MARKS))
        ids, marks = ids[:, :-1].T, marks[:, :-1].transpose(1, 0, 2)
        inputs = self._table[ids]
        inputs += marks @ self._marks
        weight, bias = self._second
        inputs = _bidirectional(inputs, *self._layers[0]) @ weight
        inputs += bias
        hidden = _bidirectional(inputs, *self._layers[1])
        weight, bias = self._tags
        scores: Floats = hidden @ weight + bias
        return scores

    def _names(self, scores: Floats) -> Iterator[tuple[int, Span, float]]:
        """Names in texts of one length, with their probability by the forward-backward algorithm."""
        length, texts, tags = scores.shape
        # Far below what any decision needs, so that no product of a few vanishes.
        potentials = np.exp(np.maximum(scores - scores.max(2, keepdims=True), _LOWEST))
        forward, backward = np.empty_like(potentials), np.empty_like(potentials)
        state = potentials[0] * FIRST
        for place in range(length):
            if place:
                state = (state @ self._steps) * potentials[place]
            # Scaled so that forward * backward sums to 1 over the tags.
            scale = state.sum(1, keepdims=True)
            state = state / scale
            potentials[place] /= scale
            forward[place] = state
        state = np.broadcast_to(LAST.astype(np.float32), (texts, tags))
        state = state / (forward[-1] * state).sum(1, keepdims=True)
        backward[-1] = state
        for place in range(length - 1, 0, -1):
            state = (state * potentials[place]) @ self._steps.T
            backward[place - 1] = state
        alone = forward[:, :, SINGLE] * backward[:, :, SINGLE]
        for place, text in zip(*(alone >= _LEAST).nonzero(), strict=True):
            yield int(text), (int(place), int(place) + 1), float(alone[place, text])
        starts, rows = (forward[:, :, BEGINS] * backward[:, :, BEGINS] >= _LEAST).nonzero()
        path, before = forward[starts, rows, BEGINS], BEGINS
        for size in range(2, min(LONGEST, length) + 1):
            here = starts + size - 1
            inside = here < length
            starts, rows, path, here = starts[inside], rows[inside], path[inside], here[inside]
            ended = path * self._steps[before, ENDS] * potentials[here, rows, ENDS] * backward[here, rows, ENDS]
            for number in (ended >= _LEAST).nonzero()[0]:
                start = int(starts[number])
                yield int(rows[number]), (start, start + size), float(ended[number])
            path, before = path * self._steps[before, INSIDE] * potentials[here, rows, INSIDE], INSIDE


class Committee:
    """Taggers of which the first reads every text, and the others those in which it suspects a name.

    What they make of a string is put together by the geometric mean of its odds. They differ in what they get wrong, so
    together they are surer than each.

    Args:
        members: the taggers.
    """

    def __init__(self, members: Sequence[Tagger]) -> None:
        self._members = tuple(members)

    def read(self, texts: Sequence[str]) -> list[dict[Span, float]]:
        """As ``Tagger.read``; a text in which the first suspects no name has none."""
        first, *others = self._members
        result = first.read(texts)
        suspected = [place for place, spans in enumerate(result) if max(spans.values(), default=0) >= _SUSPECTED]
        votes = [member.read([texts[place] for place in suspected]) for member in others]
        joined = {place: _mean([result[place], *each]) for place, *each in zip(suspected, *votes, strict=True)}
        return [joined.get(place, {}) for place in range(len(texts))]


def _mean(votes: Sequence[Mapping[Span, float]]) -> dict[Span, float]:
    """The geometric mean of each span's odds, as a probability; where one has none, half the least is taken."""
    result = {}
    for span in dict.fromkeys(span for vote in votes for span in vote):
        sure = (min(max(vote.get(span, _LEAST / 2), _LEAST / 2), 1 - 1e-6) for vote in votes)
        result[span] = 1 / (1 + exp(-sum(log(p / (1 - p)) for p in sure) / len(votes)))
    return result


@lru_cache(maxsize=1)
def load() -> Committee:
    """The taggers with the committed weights.

    Raises:
        ConfigError: the character vectors in the installed jieba are missing.
        DataError: they are damaged.
    """
    return committee(load_file(WEIGHTS))


def committee(weights: Mapping[str, Floats]) -> Committee:
    """Taggers of weights whose names begin with a tagger's number."""
    numbers, vectors = characters()
    words = word_lists.load()
    apart: dict[int, dict[str, Floats]] = defaultdict(dict)
    for name, value in weights.items():
        number, rest = name.split(".", 1)
        apart[int(number)][rest] = value
    return Committee([Tagger(apart[number], vectors, numbers, words) for number in sorted(apart)])


def characters() -> tuple[dict[str, int], Floats]:
    """LAC's characters with their rows, and their vectors, [characters, 128]; the last row is an unknown one's.

    Raises:
        ConfigError: a file is missing.
        DataError: one is damaged.
    """
    lines = installed_file("jieba", "jieba/lac_small/word.dic").read_text(encoding="utf-8").split("\n")
    pairs = (line.split("\t") for line in lines)
    numbers = {pair[1]: int(pair[0]) for pair in pairs if len(pair) == 2}
    unknown = numbers.pop("OOV")
    file = installed_file("jieba", "jieba/lac_small/model_baseline/word_emb")
    vectors = read_tensor(file, (max(*numbers.values(), unknown) + 1, VECTOR))
    return numbers, np.concatenate([vectors, vectors[unknown : unknown + 1]])


def read_tensor(path: Path, shape: tuple[int, ...]) -> Floats:
    """Read a float32 tensor in PaddlePaddle's format: version, level of detail, a protobuf with type and shape, data.

    Raises:
        DataError: the file holds another type or shape.
    """
    data = path.read_bytes()
    size = 4 * int(np.prod(shape))
    try:
        version, levels, inner, described = struct.unpack_from("<IQIi", data)
    except struct.error as error:
        raise DataError(f"{path} is truncated; install jieba again") from error
    if (version, levels, inner) != (0, 0, 0) or len(data) != 20 + described + size or data[20:22] != b"\x08\x05":
        raise DataError(f"{path} does not hold a float32 tensor of shape {shape}; install jieba again")
    return np.frombuffer(data, "<f4", offset=20 + described).reshape(shape)


def _bidirectional(inputs: Floats, gates: Floats, candidate: Floats) -> Floats:
    """Run a layer's two directions over [length, texts, 6 h] and join their states to [length, texts, 2 h]."""
    length, texts, width = inputs.shape
    hidden = width // 6
    joined = np.empty((length, texts, 2 * hidden), np.float32)
    half = np.float32(0.5)
    for way, order in enumerate((range(length), range(length - 1, -1, -1))):
        mine = inputs[:, :, way * 3 * hidden : (way + 1) * 3 * hidden]
        state = np.zeros((texts, hidden), np.float32)
        for place in order:
            # The logistic function by the hyperbolic tangent, which numpy has vectorised.
            gated = state @ gates[way]
            gated += mine[place, :, : 2 * hidden]
            gated *= half
            np.tanh(gated, out=gated)
            gated *= half
            gated += half
            update, reset = gated[:, :hidden], gated[:, hidden:]
            # The reset gate acts on the state before the product, as in Cho et al. (2014), not as in cuDNN.
            reset *= state
            new = reset @ candidate[way]
            new += mine[place, :, 2 * hidden :]
            np.tanh(new, out=new)
            new -= state
            new *= update
            state += new
            joined[place, :, way * hidden : (way + 1) * hidden] = state
    return joined
