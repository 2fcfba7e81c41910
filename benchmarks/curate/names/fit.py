"""Fit ``wukong/curate/names/lists/taggers.safetensors`` on the labelled captions, or show how well it generalises.

The loss is the conditional random field's negative log likelihood of the labelled tags. Captions are varied as they are
met: names give way to others of their kind, from the captions, the lists, the dictionary, or put together of a surname
and the characters of given names; marks of the lists go missing, so that names on no list are found too; two captions
become one; and words of the dictionary in plain contexts are added as captions without a name. The weights are the
exponential mean of the last two thirds of the steps. The taggers differ in size and seed and are fitted side by side.

    python benchmarks/curate/names/fit.py                              # on all captions; some 12 minutes on two cores
    python benchmarks/curate/names/fit.py --held-out pages --errors    # on all but a file, to see how it does on that
"""

import argparse
import multiprocessing
import os
import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
import score
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from wukong.curate import names
from wukong.curate.names import tagger, word_lists
from wukong.curate.names.tagger import BEGINS, ENDS, FIRST, FOLLOWS, INSIDE, LAST, OUTSIDE, SINGLE, TAGS, VECTOR, Span
from wukong.curate.names.word_lists import KINDS, MARKS, Found

Labelled = tuple[str, list[Span]]

# States in a direction, of each tagger; the first reads every caption and is to be quick.
HIDDEN = (48, 64, 64)
EPOCHS, BATCH, RATE, DROPOUT = 16, 64, 5e-3, 0.3
LONGEST = 60
# How often a name is replaced; a second caption is joined on; a dictionary word is added, as a share of the captions.
REPLACED, JOINED, PLAIN = 0.5, 0.15, 0.25
# How often all marks of some kinds go missing in a caption, and any one mark.
MISSING = ((("person",), 0.15), (("dictionary name",), 0.15), (("brand",), 0.2), (("place", "word", "rare word"), 0.1))
MISSING_ONE = 0.08
JOINTS = (" ", " ", "，", "_", " | ", "")
CONTEXTS = ("{}", "{}", "{}", "{}图片", "手绘{}", "{}简笔画", "一张{}的照片", "{}高清大图", "{}素材", "{}介绍")
DOTS = "·•・‧．"


class Model(nn.Module):
    """The tagger in torch; its parameters have the names and shapes of ``tagger.Tagger``'s weights."""

    def __init__(self, vectors: np.ndarray, hidden: int) -> None:
        super().__init__()
        self.vectors = torch.tensor(vectors)
        self.weights = nn.ParameterDict()
        for layer, inputs in ((1, VECTOR), (2, 2 * hidden)):
            self.weights[f"{layer}_input"] = torch.randn(2, inputs, 3 * hidden) * 0.8 * inputs**-0.5
            # Update gates begin nearly shut, so that a state lasts.
            self.weights[f"{layer}_bias"] = torch.cat([torch.full((2, hidden), -1.0), torch.zeros(2, 2 * hidden)], 1)
            squares = [nn.init.orthogonal_(torch.empty(hidden, hidden)) for _ in range(6)]
            self.weights[f"{layer}_gates"] = torch.stack([torch.cat(squares[:2], 1), torch.cat(squares[2:4], 1)])
            self.weights[f"{layer}_candidate"] = torch.stack(squares[4:])
        self.weights["1_marks"] = torch.zeros(len(MARKS), 6 * hidden)
        self.weights["tags"] = torch.randn(2 * hidden, len(TAGS)) * (2 * hidden) ** -0.5
        self.weights["tags_bias"] = torch.zeros(len(TAGS))
        self.weights["steps"] = torch.zeros(len(TAGS), len(TAGS))

    def exported(self) -> dict[str, np.ndarray]:
        """The weights by the tagger's names."""
        return {name.replace("_", "."): value.detach().numpy() for name, value in self.weights.items()}

    def scores(self, ids: Tensor, marks: Tensor, there: Tensor) -> Tensor:
        """Scores of every tag, [texts, length, TAGS]; ``there`` is 1 where a text goes on and 0 after its end."""
        hidden = dropout(self.vectors[ids], DROPOUT / 2, self.training)
        for layer in (1, 2):
            weight, bias = self.weights[f"{layer}_input"], self.weights[f"{layer}_bias"]
            inputs = torch.einsum("ntx,dxh->dnth", hidden, weight) + bias[:, None, None]
            if layer == 1:
                inputs = inputs + (marks @ self.weights["1_marks"]).unflatten(-1, (2, -1)).movedim(-2, 0)
            hidden = dropout(self._layer(layer, inputs, there), DROPOUT, self.training)
        return hidden @ self.weights["tags"] + self.weights["tags_bias"]

    def _layer(self, layer: int, inputs: Tensor, there: Tensor) -> Tensor:
        gates, candidate = self.weights[f"{layer}_gates"], self.weights[f"{layer}_candidate"]
        size = candidate.shape[-1]
        # The backward direction reads both turned round, the padding first, which leaves its state at 0.
        inputs = torch.stack([inputs[0], inputs[1].flip(1)])
        going = torch.stack([there, there.flip(1)])[..., None]
        state, states = inputs.new_zeros(2, len(there), size), []
        for place in range(there.shape[1]):
            gated = torch.sigmoid(inputs[:, :, place, : 2 * size] + torch.bmm(state, gates))
            update, reset = gated[..., :size], gated[..., size:]
            new = torch.tanh(inputs[:, :, place, 2 * size :] + torch.bmm(reset * state, candidate))
            state = state + going[:, :, place] * update * (new - state)
            states.append(state)
        both = torch.stack(states, 2)
        return torch.cat([both[0], both[1].flip(1)], -1)

    def loss(self, ids: Tensor, marks: Tensor, there: Tensor, tags: Tensor) -> Tensor:
        """Mean negative log likelihood of the tags, [texts, length]."""

        def barred(allowed: np.ndarray) -> Tensor:
            return torch.where(torch.tensor(allowed), 0.0, -1e4)

        scores = self.scores(ids, marks, there)
        steps = self.weights["steps"] + barred(FOLLOWS)
        chosen = scores.gather(2, tags[..., None])[..., 0]
        total, labelled = scores[:, 0] + barred(FIRST), chosen[:, 0]
        for place in range(1, scores.shape[1]):
            on = there[:, place]
            new = torch.logsumexp(total[:, :, None] + steps, 1) + scores[:, place]
            total = torch.where(on[:, None] > 0, new, total)
            labelled = labelled + on * (chosen[:, place] + steps[tags[:, place - 1], tags[:, place]])
        return (torch.logsumexp(total + barred(LAST), 1) - labelled).mean()


class Names:
    """Names by kind, to put in the place of others.

    Args:
        some: names of the captions that are fitted on.
    """

    def __init__(self, some: Sequence[str]) -> None:
        single, double = word_lists.read_list("surnames.txt")
        self._single, self._double = list(single), double.split()
        self._japanese = set(word_lists.read_list("japanese.txt"))
        known = [word for word, _, flag in word_lists.dictionary() if flag.startswith("nr") and len(word) > 1]
        self._pools: dict[str, list[list[str]]] = defaultdict(list)
        for pool in (list(some), word_lists.read_list("people.txt"), known):
            kinds: dict[str, list[str]] = defaultdict(list)
            for name in pool:
                kinds[self.kind(name)].append(name)
            for kind, members in kinds.items():
                self._pools[kind].append(members)
        chinese = {size: [n for pool in self._pools[f"chinese {size}"] for n in pool] for size in (2, 3)}
        chinese[3] = [name for name in chinese[3] if name[:2] not in self._double]
        self._surnames = [name[0] for members in chinese.values() for name in members]
        self._given = {1: [name[1] for name in chinese[2]], 2: [name[1:] for name in chinese[3]]}

    def kind(self, name: str) -> str:
        """Chinese of 2, 3 or 4 characters, Japanese, with a dot, of mixed script, or another."""
        if any(dot in name for dot in DOTS):
            return "dotted"
        if re.fullmatch("[\u4e00-\u9fff]+", name) is None:
            return "mixed"
        if name[:2] in self._double and len(name) in (3, 4):
            return f"chinese {len(name)}"
        if name[0] in self._single and len(name) in (2, 3):
            return f"chinese {len(name)}"
        if 3 <= len(name) <= 5 and (name[:2] in self._japanese or name[:3] in self._japanese):
            return "japanese"
        return "other"

    def like(self, name: str, generator: random.Random) -> str:
        """Another name of the kind."""
        kind = self.kind(name)
        if kind.startswith("chinese") and generator.random() < 0.4:
            size = int(kind[-1])
            if size == 4 or (size == 3 and generator.random() < 0.08):
                # A double surname, or those of husband and wife.
                pair = generator.choice(self._double)
                if size == 4 and generator.random() < 0.2:
                    pair = generator.choice(self._surnames) + generator.choice(self._surnames)
                return pair + generator.choice(self._given[size - 2])
            surname = generator.choice(self._surnames if generator.random() < 0.75 else self._single)
            if size == 3 and generator.random() < 0.5:
                return surname + "".join(generator.choice(self._given[2])[place] for place in (0, 1))
            return surname + generator.choice(self._given[size - 1])
        return generator.choice(generator.choice(self._pools[kind]))


def replaced(caption: Labelled, pool: Names, generator: random.Random) -> Labelled:
    """The caption with some of its names replaced by others."""
    text, spans, end, out = "", [], 0, caption[0]
    for start, stop in caption[1]:
        text += out[end:start]
        name = out[start:stop]
        if generator.random() < REPLACED and not re.search(r"\s", name):
            name = pool.like(name, generator)
        spans.append((len(text), len(text) + len(name)))
        text, end = text + name, stop
    return text + out[end:], spans


def joined(one: Labelled, other: Labelled, generator: random.Random) -> Labelled:
    """Two captions as one."""
    joint = generator.choice(JOINTS)
    if (one[1] and one[1][-1][1] == len(one[0])) or (other[1] and other[1][0][0] == 0):
        joint = " "
    moved = len(one[0]) + len(joint)
    return one[0] + joint + other[0], one[1] + [(start + moved, end + moved) for start, end in other[1]]


def batch(
    captions: Sequence[Labelled],
    numbers: Mapping[str, int],
    unknown: int,
    words: word_lists.NameWords,
    generator: random.Random,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What ``Model.loss`` takes, with some marks missing."""
    length = max(len(text) for text, _ in captions) + 1
    together = "".join(text.ljust(length, "\n") for text, _ in captions)
    ids = torch.tensor([numbers.get(character, unknown) for character in together]).reshape(-1, length)
    missing = np.array(
        [
            sum(1 << KINDS.index(kind) for kinds, share in MISSING if generator.random() < share for kind in kinds)
            for _ in captions
        ],
        np.uint8,
    )
    kinds, start, end = words.find(together)
    kinds &= ~missing[start // length]
    kinds[np.random.default_rng(generator.getrandbits(32)).random(len(kinds)) < MISSING_ONE] = 0
    marks = torch.from_numpy(word_lists.marks(Found(kinds, start, end), len(together))).reshape(-1, length, len(MARKS))
    there, tags = torch.zeros(ids.shape), torch.full(ids.shape, OUTSIDE)
    for row, (text, spans) in enumerate(captions):
        there[row, : len(text)] = 1
        for start, end in spans:
            tags[row, start:end] = INSIDE
            tags[row, start], tags[row, end - 1] = (BEGINS, ENDS) if end - start > 1 else (SINGLE, SINGLE)
    return ids[:, :-1], marks[:, :-1], there[:, :-1], tags[:, :-1]


def plain_words() -> list[str]:
    """Words of the dictionary that are no names."""
    people = set(word_lists.read_list("people.txt"))
    return [
        word
        for word, frequency, flag in word_lists.dictionary()
        if frequency >= 5 and 2 <= len(word) <= 4 and flag[0] in "nvail" and not flag.startswith("nr")
        if word not in people
    ]


def fit(captions: Sequence[Labelled], hidden: int, seed: int) -> dict[str, np.ndarray]:
    """The weights of a tagger fitted on captions."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    generator = random.Random(seed)
    numbers, vectors = tagger.characters()
    words = word_lists.load()
    captions = [(names.plain(text), spans) for text, spans in captions]
    plain = plain_words()
    pool = Names([text[start:end] for text, spans in captions for start, end in spans])
    model = Model(vectors, hidden)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=1e-2)
    steps = EPOCHS * (int(len(captions) * (1 + PLAIN)) // BATCH + 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: min(1, done / 100) * max(0.02, 1 - done / steps)
    )
    mean = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.995))
    step = 0
    for _ in tqdm(range(EPOCHS), desc=f"tagger {seed}", unit="epoch", position=seed):
        drawn = []
        alone: list[Labelled] = [
            (names.plain(generator.choice(CONTEXTS).format(generator.choice(plain))), [])
            for _ in range(int(len(captions) * PLAIN))
        ]
        for caption in [*captions, *alone]:
            made = replaced(caption, pool, generator)
            if generator.random() < JOINED:
                made = joined(made, replaced(generator.choice(captions), pool, generator), generator)
            if 0 < len(made[0]) <= LONGEST:
                drawn.append(made)
        # Captions of about one length go together, in a random order of batches.
        drawn.sort(key=lambda made: len(made[0]) + 4 * generator.random())
        batches = [drawn[start : start + BATCH] for start in range(0, len(drawn), BATCH)]
        generator.shuffle(batches)
        model.train()
        for some in batches:
            optimizer.zero_grad()
            model.loss(*batch(some, numbers, len(vectors) - 1, words, generator)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 2.0)
            optimizer.step()
            schedule.step()
            step += 1
            if step > steps / 3:
                mean.update_parameters(model)
    return mean.module.exported()


def fit_all(captions: Sequence[Labelled]) -> dict[str, np.ndarray]:
    """The weights of all taggers, each under its number."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(len(HIDDEN), os.cpu_count() or 1), context) as pool:
        fitted = list(pool.map(partial(fit, captions), HIDDEN, range(len(HIDDEN))))
    return {f"{number}.{name}": w for number, weights in enumerate(fitted) for name, w in weights.items()}


def main() -> None:
    """Fit and write, or hold a file out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    files = {path.stem: score.read(path.stem) for path in score.tuning()}
    parser.add_argument("--held-out", choices=files, help="a file of tuning captions to leave out and to measure on")
    parser.add_argument("--errors", action="store_true", help="list what was got wrong in it")
    options = parser.parse_args()
    weights = fit_all([caption for name, some in files.items() if name != options.held_out for caption in some])
    if not options.held_out:
        save_file({name: value.astype(np.float16) for name, value in weights.items()}, tagger.WEIGHTS)
        return
    captions = files[options.held_out]
    read = tagger.committee(weights).read([names.plain(text) for text, _ in captions])
    for least in np.arange(-1, 3.5, 0.5):
        found = [names.chosen(sure, least) for sure in read]
        score.show(f"{options.held_out}, least log odds {least:+.1f}", options.held_out, lambda _, found=found: found)
    for (text, spans), sure in zip(captions, read, strict=True):
        found = names.chosen(sure, names.LEAST["balanced"])
        if options.errors and found != spans:
            print("   ", text, *([text[start:end] for start, end in some] for some in (spans, found)))


if __name__ == "__main__":
    main()
