"""The tagger in torch, with gradients: what ``fit.py`` fits. ``tagger.py`` computes the same scores in numpy.

Its parameters have the names and shapes of ``tagger.Tagger``'s weights, with ``_`` in place of ``.``. torch's own
``nn.GRU`` computes another function: its reset gate multiplies after the product, and the shipped weights were fitted
with the gate before the product.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from wukong.curate.names.tagger import FIRST, FOLLOWS, LAST, TAGS, VECTOR, Floats
from wukong.curate.names.word_lists import MARKS

_FORBIDDEN = -1e4
"""Score of what the tags do not allow: low enough that its probability is 0 in float32."""


class TorchTagger(nn.Module):
    """Two bidirectional GRU layers (Cho et al. 2014) and a linear-chain CRF (Lafferty et al. 2001).

    Args:
        vectors: the vectors of the characters, [characters, 128]; not fitted.
        hidden: number of states in each direction, h.
        dropout: probability with which the output of a layer is set to 0; that of a character vector's element is half.
    """

    def __init__(self, vectors: Floats, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self._dropout = dropout
        self._vectors = torch.tensor(vectors)
        self._follows, self._first, self._last = (
            torch.where(torch.tensor(allowed), 0.0, _FORBIDDEN) for allowed in (FOLLOWS, FIRST, LAST)
        )
        self.weights = nn.ParameterDict()
        for layer, inputs in ((1, VECTOR), (2, 2 * hidden)):
            self.weights[f"{layer}_input"] = torch.randn(2, inputs, 3 * hidden) * 0.8 * inputs**-0.5
            # The bias of the update gate is -1, so that at first a state changes slowly.
            self.weights[f"{layer}_bias"] = torch.cat([torch.full((2, hidden), -1.0), torch.zeros(2, 2 * hidden)], 1)
            squares = [nn.init.orthogonal_(torch.empty(hidden, hidden)) for _ in range(6)]
            self.weights[f"{layer}_gates"] = torch.stack([torch.cat(squares[:2], 1), torch.cat(squares[2:4], 1)])
            self.weights[f"{layer}_candidate"] = torch.stack(squares[4:])
        self.weights["1_marks"] = torch.zeros(len(MARKS), 6 * hidden)
        self.weights["tags"] = torch.randn(2 * hidden, len(TAGS)) * (2 * hidden) ** -0.5
        self.weights["tags_bias"] = torch.zeros(len(TAGS))
        self.weights["steps"] = torch.zeros(len(TAGS), len(TAGS))

    def scores(self, ids: Tensor, marks: Tensor, inside: Tensor) -> Tensor:
        """The score of each tag at each character, before the CRF, [texts, length, TAGS].

        Args:
            ids: indices of the character vectors, [texts, length].
            marks: word-list features, [texts, length, MARKS].
            inside: 1 within a text and 0 in the padding after it, [texts, length].
        """
        hidden = dropout(self._vectors[ids], self._dropout / 2, self.training)
        for layer in (1, 2):
            weight, bias = self.weights[f"{layer}_input"], self.weights[f"{layer}_bias"]
            inputs = torch.einsum("ntx,dxh->dnth", hidden, weight) + bias[:, None, None]
            if layer == 1:
                inputs = inputs + (marks @ self.weights["1_marks"]).unflatten(-1, (2, -1)).movedim(-2, 0)
            hidden = dropout(self._states(layer, inputs, inside), self._dropout, self.training)
        scores: Tensor = hidden @ self.weights["tags"] + self.weights["tags_bias"]
        return scores

    def _states(self, layer: int, inputs: Tensor, inside: Tensor) -> Tensor:
        """The states of both directions of a layer, [texts, length, 2 h].

        Args:
            layer: 1 or 2.
            inputs: products with the input weights, [2, texts, length, 3 h].
            inside: as in ``scores``.
        """
        gates, candidate = self.weights[f"{layer}_gates"], self.weights[f"{layer}_candidate"]
        size = candidate.shape[-1]
        # The backward direction reads reversed texts. Their padding comes first and leaves the state at 0.
        inputs = torch.stack([inputs[0], inputs[1].flip(1)])
        going = torch.stack([inside, inside.flip(1)])[..., None]
        state, states = inputs.new_zeros(2, len(inside), size), []
        for place in range(inside.shape[1]):
            gated = torch.sigmoid(inputs[:, :, place, : 2 * size] + torch.bmm(state, gates))
            update, reset = gated[..., :size], gated[..., size:]
            new = torch.tanh(inputs[:, :, place, 2 * size :] + torch.bmm(reset * state, candidate))
            state = state + going[:, :, place] * update * (new - state)
            states.append(state)
        both = torch.stack(states, 2)
        return torch.cat([both[0], both[1].flip(1)], -1)

    def loss(self, ids: Tensor, marks: Tensor, inside: Tensor, tags: Tensor) -> Tensor:
        """The mean negative log likelihood of the labelled tags, a scalar.

        Args:
            ids: as in ``scores``, as are ``marks`` and ``inside``.
            marks: see there.
            inside: see there.
            tags: indices into ``TAGS``, [texts, length].
        """
        scores = self.scores(ids, marks, inside)
        steps = self.weights["steps"] + self._follows
        chosen = scores.gather(2, tags[..., None])[..., 0]
        # Log sums over all paths of tags up to a character, and the score of the labelled path.
        total, labelled = scores[:, 0] + self._first, chosen[:, 0]
        for place in range(1, scores.shape[1]):
            on = inside[:, place]
            new = torch.logsumexp(total[:, :, None] + steps, 1) + scores[:, place]
            total = torch.where(on[:, None] > 0, new, total)
            labelled = labelled + on * (chosen[:, place] + steps[tags[:, place - 1], tags[:, place]])
        return (torch.logsumexp(total + self._last, 1) - labelled).mean()


def exported(model: nn.Module) -> dict[str, Floats]:
    """The weights of a ``TorchTagger`` by the names that ``tagger.Tagger`` takes."""
    return {
        name.removeprefix("weights.").replace("_", "."): value.detach().numpy()
        for name, value in model.named_parameters()
    }
