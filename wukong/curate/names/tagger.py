"""A tagger of person names in numpy: the probability of each span of a text that it is a whole name.

Two bidirectional GRU layers (Cho et al. 2014, "Learning Phrase Representations using RNN Encoder-Decoder", equations 5
to 8) read the vector and the word-list features of each character. A linear-chain CRF (Lafferty et al. 2001,
"Conditional Random Fields") over the tags outside, begins, inside, ends and single turns their scores into
probabilities. The character vectors are those of Baidu's LAC (Jiao et al. 2018, "Chinese Lexical Analysis with Deep
Bi-GRU-CRF Network"), which jieba ships; ``fit.py`` fits all other weights.

For speed, texts of equal length form one batch, and the first layer's product with each character vector is computed
once, when the tagger is made.
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
from wukong.runtime.installed import installed_file

Floats = npt.NDArray[np.float32]
Span = tuple[int, int]

TAGS = ("outside", "begins", "inside", "ends", "single")
OUTSIDE, BEGINS, INSIDE, ENDS, SINGLE = range(len(TAGS))
FOLLOWS = np.array([[1, 1, 0, 0, 1], [0, 0, 1, 1, 0], [0, 0, 1, 1, 0], [1, 1, 0, 0, 1], [1, 1, 0, 0, 1]], dtype=bool)
"""Whether the second tag may follow the first, [TAGS, TAGS]."""
FIRST = np.array([1, 1, 0, 0, 1], dtype=bool)
"""Whether a text may begin with a tag, [TAGS]."""
LAST = np.array([1, 0, 0, 1, 1], dtype=bool)
"""Whether a text may end with a tag, [TAGS]."""

LONGEST = 20
"""The longest name that is found, in characters."""

VECTOR = 128
"""Length of a character vector."""

WEIGHTS = Path(__file__).parent / "lists" / "taggers.safetensors"

# Characters in a batch.
_BATCH = 8192
# Spans with a lower probability are left out of the result.
_LOWEST_PROBABILITY = 0.01
# The other taggers read a text if the first gives a span of it at least this probability.
_SUSPECTED = 0.1
# A tag's score is raised to this much below the best tag's, so that products of potentials do not underflow.
_LOWEST_SCORE = np.float32(-20.0)


class Tagger:
    """One tagger; h is the number of its states in each direction.

    Args:
        weights: by name, as ``fit.py`` writes them. Of each layer N, forward and backward: ``N.input`` [2, inputs,
            3 h], ``N.bias`` [2, 3 h], ``N.gates`` [2, h, 2 h] and ``N.candidate`` [2, h, h]; of the features
            ``1.marks`` [MARKS, 6 h]; of the CRF ``tags`` [2 h, 5], ``tags.bias`` [5] and the transitions ``steps``
            [5, 5].
        vectors: the vectors of the characters, [characters, 128]; the last row is for unknown characters.
        rows: by character, the index of its vector.
        words: the words whose features the weights were fitted to.
    """

    def __init__(
        self, weights: Mapping[str, Floats], vectors: Floats, rows: Mapping[str, int], words: NameWords
    ) -> None:
        w = {name: np.asarray(value, np.float32) for name, value in weights.items()}
        self._rows, self._unknown, self._words = rows, len(vectors) - 1, words
        self._table = np.concatenate([vectors @ w["1.input"][each] + w["1.bias"][each] for each in (0, 1)], axis=1)
        self._marks = w["1.marks"]
        self._second = np.concatenate(list(w["2.input"]), axis=1), w["2.bias"].reshape(-1)
        self._layers = [(w[f"{layer}.gates"], w[f"{layer}.candidate"]) for layer in (1, 2)]
        self._tags = w["tags"], w["tags.bias"]
        self._steps = np.where(FOLLOWS, np.exp(w["steps"]), 0).astype(np.float32)

    def read(self, texts: Sequence[str]) -> list[dict[Span, float]]:
        """Tag texts.

        Args:
            texts: in half-width and Simplified characters (``names.normalized``).

        Returns:
            For each text, the spans [start, end) that are a whole name with a probability of at least 0.01, with it.
        """
        result: list[dict[Span, float]] = [{} for _ in texts]
        by_length: dict[int, list[int]] = defaultdict(list)
        for number, text in enumerate(texts):
            if text:
                by_length[len(text)].append(number)
        for length, numbers in by_length.items():
            size = max(1, _BATCH // length)
            for start in range(0, len(numbers), size):
                batch = numbers[start : start + size]
                for row, span, probability in self._names(self.scores([texts[number] for number in batch])):
                    result[batch[row]][span] = probability
        return result

    def scores(self, texts: Sequence[str]) -> Floats:
        """The score of each tag at each character, before the CRF, [length, texts, TAGS].

        Args:
            texts: all of one length.
        """
        rows, unknown, length = self._rows, self._unknown, len(texts[0])
        # No word contains the newline between two texts, so no word is found across them.
        joined = "\n".join(texts) + "\n"
        ids = np.array([rows.get(character, unknown) for character in joined]).reshape(len(texts), length + 1)
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
        """The spans of texts of one length that may be names, by the forward-backward algorithm.

        Args:
            scores: [length, texts, TAGS].

        Yields:
            The index of the text, the span, and the probability that it is a whole name.
        """
        length, texts, tags = scores.shape
        potentials = np.exp(np.maximum(scores - scores.max(2, keepdims=True), _LOWEST_SCORE))
        forward, backward = np.empty_like(potentials), np.empty_like(potentials)
        state = potentials[0] * FIRST
        for position in range(length):
            if position:
                state = (state @ self._steps) * potentials[position]
            # Scale each step, so that forward * backward sums to 1 over the tags.
            scale = state.sum(1, keepdims=True)
            state = state / scale
            potentials[position] /= scale
            forward[position] = state
        state = np.broadcast_to(LAST.astype(np.float32), (texts, tags))
        state = state / (forward[-1] * state).sum(1, keepdims=True)
        backward[-1] = state
        for position in range(length - 1, 0, -1):
            state = (state * potentials[position]) @ self._steps.T
            backward[position - 1] = state
        alone = forward[:, :, SINGLE] * backward[:, :, SINGLE]
        for position, text in zip(*(alone >= _LOWEST_PROBABILITY).nonzero(), strict=True):
            yield int(text), (int(position), int(position) + 1), float(alone[position, text])
        starts, rows = (forward[:, :, BEGINS] * backward[:, :, BEGINS] >= _LOWEST_PROBABILITY).nonzero()
        path, before = forward[starts, rows, BEGINS], BEGINS
        for size in range(2, min(LONGEST, length) + 1):
            here = starts + size - 1
            inside = here < length
            starts, rows, path, here = starts[inside], rows[inside], path[inside], here[inside]
            ended = path * self._steps[before, ENDS] * potentials[here, rows, ENDS] * backward[here, rows, ENDS]
            for number in (ended >= _LOWEST_PROBABILITY).nonzero()[0]:
                start = int(starts[number])
                yield int(rows[number]), (start, start + size), float(ended[number])
            path, before = path * self._steps[before, INSIDE] * potentials[here, rows, INSIDE], INSIDE


class Committee:
    """Several taggers, whose odds of each span are combined by the geometric mean.

    The taggers make different errors, so their mean is more accurate than one of them. For speed, the first tagger
    reads every text, and the others only those texts in which the first suspects a name.

    Args:
        members: the taggers, the fastest first.
    """

    def __init__(self, members: Sequence[Tagger]) -> None:
        self._members = tuple(members)

    def read(self, texts: Sequence[str]) -> list[dict[Span, float]]:
        """Tag texts, as ``Tagger.read`` does; a text in which the first tagger suspects no name has no spans."""
        first, *others = self._members
        result = first.read(texts)
        suspected = [number for number, spans in enumerate(result) if max(spans.values(), default=0) >= _SUSPECTED]
        votes = [member.read([texts[number] for number in suspected]) for member in others]
        combined = {number: _mean([result[number], *each]) for number, *each in zip(suspected, *votes, strict=True)}
        return [combined.get(number, {}) for number in range(len(texts))]


def _mean(votes: Sequence[Mapping[Span, float]]) -> dict[Span, float]:
    """The geometric mean of each span's odds, as a probability.

    A tagger that did not return the span counts with half the lowest probability that it returns.
    """
    result, absent = {}, _LOWEST_PROBABILITY / 2
    for span in dict.fromkeys(span for vote in votes for span in vote):
        clipped = (min(max(vote.get(span, absent), absent), 1 - 1e-6) for vote in votes)
        result[span] = 1 / (1 + exp(-sum(log(p / (1 - p)) for p in clipped) / len(votes)))
    return result


@lru_cache(maxsize=1)
def load() -> Committee:
    """The taggers with the shipped weights.

    Raises:
        ConfigError: jieba, or the file of character vectors in it, is missing.
        DataError: the file of character vectors is damaged.
    """
    return committee(load_file(WEIGHTS))


def committee(weights: Mapping[str, Floats]) -> Committee:
    """Make taggers of weights.

    Args:
        weights: by name; each name is the number of a tagger, a dot, and the name that ``Tagger`` takes.
    """
    rows, vectors = characters()
    words = word_lists.load()
    by_tagger: dict[int, dict[str, Floats]] = defaultdict(dict)
    for name, value in weights.items():
        number, rest = name.split(".", 1)
        by_tagger[int(number)][rest] = value
    return Committee([Tagger(by_tagger[number], vectors, rows, words) for number in sorted(by_tagger)])


def characters() -> tuple[dict[str, int], Floats]:
    """LAC's character vectors.

    Returns:
        By character, the index of its vector; and the vectors, [characters, 128], the last for unknown characters.

    Raises:
        ConfigError: jieba, or a file in it, is missing.
        DataError: a file is damaged.
    """
    lines = installed_file("jieba", "jieba/lac_small/word.dic").read_text(encoding="utf-8").split("\n")
    pairs = (line.split("\t") for line in lines)
    rows = {pair[1]: int(pair[0]) for pair in pairs if len(pair) == 2}
    unknown = rows.pop("OOV")
    file = installed_file("jieba", "jieba/lac_small/model_baseline/word_emb")
    vectors = read_tensor(file, (max(*rows.values(), unknown) + 1, VECTOR))
    return rows, np.concatenate([vectors, vectors[unknown : unknown + 1]])


def read_tensor(path: Path, shape: tuple[int, ...]) -> Floats:
    """Read a float32 tensor in PaddlePaddle's format: version, level of detail, a protobuf with type and shape, data.

    Raises:
        DataError: the file is truncated, or holds another type or shape.
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
    """Run a GRU layer in both directions.

    Args:
        inputs: the products of the input and the input weights, biases added, [length, texts, 6 h]: of the forward
            direction update gate, reset gate and candidate, then of the backward direction.
        gates: recurrent weights of update and reset gate, [2, h, 2 h].
        candidate: recurrent weights of the candidate state, [2, h, h].

    Returns:
        Forward and backward states, concatenated, [length, texts, 2 h].
    """
    length, texts, width = inputs.shape
    hidden = width // 6
    states = np.empty((length, texts, 2 * hidden), np.float32)
    half = np.float32(0.5)
    for direction, order in enumerate((range(length), range(length - 1, -1, -1))):
        part = inputs[:, :, direction * 3 * hidden : (direction + 1) * 3 * hidden]
        state = np.zeros((texts, hidden), np.float32)
        for position in order:
            # The logistic function is computed as 0.5 + 0.5 tanh(x / 2): numpy has a vectorised tanh.
            gated = state @ gates[direction]
            gated += part[position, :, : 2 * hidden]
            gated *= half
            np.tanh(gated, out=gated)
            gated *= half
            gated += half
            update, reset = gated[:, :hidden], gated[:, hidden:]
            # The reset gate multiplies the state before the product, as in Cho et al. (2014), not after it as in cuDNN.
            # The update gate is 1 where the state is replaced; in Cho et al. it is 1 where the state stays.
            reset *= state
            new = reset @ candidate[direction]
            new += part[position, :, 2 * hidden :]
            np.tanh(new, out=new)
            new -= state
            new *= update
            state += new
            states[position, :, direction * hidden : (direction + 1) * hidden] = state
    return states
