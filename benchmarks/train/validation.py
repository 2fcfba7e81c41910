"""Measure for how long a validation stops a training: a hold-out of stored features, one worker, one thread.

With ``--memory``, measure instead how much one worker of forty holds of a set of the paper's size, by torch's own
account of what it allocates. The other workers are not there; what is gathered is this worker's, as often as there are
workers. A similarity is that of the first tokens, so that only the memory is real.
"""

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

sys.path.insert(0, str(Path(__file__).parents[2]))

from wukong.config.model import Model
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.evaluate import best_words, classification, prompts, retrieval
from wukong.evaluate import model as evaluated
from wukong.evaluate.data_set import ClassificationData, Data, RetrievalData
from wukong.evaluate.protocol import OWN, PROTOCOLS
from wukong.evaluate.published import Caption
from wukong.model.dual import DualEncoder, Texts
from wukong.model.similarity import Scores
from wukong.train.validation import Task, Validator

WIDTH, PATCHES = 768, 49


class _ComparedError(Exception):
    """A worker has compared its images with texts; what is left needs no more memory."""


class _None:
    """Images that nobody asks for, because their features are stored."""

    def __len__(self) -> int:
        return 0

    def image(self, i: int) -> Image.Image:
        raise IndexError(i)


def first_tokens(_self: DualEncoder, image: Tensor, text: Texts) -> Scores:
    """Similarities in both directions, as different tensors, as the token-wise ones are."""
    scores = image[:, 0].float() @ text.vectors[:, 0].float().T
    return Scores(scores, scores.clone())


def first_tokens_of_pairs(image: Tensor, text: Tensor, *_more: object) -> Scores:
    scores = (image[:, 0] * text[:, 0]).sum(1)
    return Scores(scores, scores.clone())


def stopped(function: Callable[..., Any]) -> Callable[..., None]:
    """Stop behind a function: the blocks that follow hold as much as the first one."""

    def once(*arguments: object, **named: object) -> None:
        function(*arguments, **named)
        raise _ComparedError

    return once


def memory(images: int, tokens: int, texts: int, workers: int) -> None:
    """Print what a worker holds at most, for retrieval and for classification, on the path of a GPU."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=workers)
    tokenizer, ids = Tokenizer(packaged_vocabulary()), [str(number) for number in range(images)]
    asked = len(prompts.of(PROTOCOLS["paper"].prompts))
    names = [f"类{number}" for number in range(texts // asked)]
    labels = np.arange(images) % len(names)
    text = "一二三四五六七八九十" * 3  # cut to 32 tokens
    captions = [Caption(f"{number:06d}{text}", (number % images,)) for number in range(texts)]
    sets: list[Data] = [
        RetrievalData("retrieval", "test", ids, captions, True, _None(), "retrieval"),
        ClassificationData("imagenet", "test", names, ids, labels, _None(), "classification", names),
    ]
    settings = {"text": {"layers": 1, "heads": 2, "width": 16}, "embedding": 256, "similarity": "token"}
    dual = DualEncoder(Model.model_validate(settings), tokenizer, feature_width=12).eval()
    with torch.no_grad():
        dual.text.tokens.weight.mul_(50)  # random weights alone give all texts nearly one vector
    share = -(-images // workers)
    for data in sets:
        validate = Validator([Task(data, PROTOCOLS["paper"], torch.randn(share, tokens, 12).half())], tokenizer)
        with (
            patch.object(best_words, "half_is_quicker", lambda _device: True),
            patch.object(DualEncoder, "similarity", first_tokens),
            patch.object(evaluated, "token_similarity_of_pairs", first_tokens_of_pairs),
            patch.object(best_words, "exact", lambda image, text, _with_first: image[:, 0] @ text.vectors[:, 0].T),
            patch.object(retrieval, "search_tile", stopped(retrieval.search_tile)),
            patch.object(classification, "_compute_again", stopped(classification._compute_again)),
            torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile,
            suppress(_ComparedError),
        ):
            validate(dual)
        moments = sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())
        peak = max(accumulate(event.nbytes() for event in moments if event.name() == "[memory]"))
        print(
            f"{data.title}: {images} images of {tokens} tokens, {texts} texts, {workers} workers: a worker "
            f"holds at most {peak / 2**30:.2f} GiB, of which its images are {4 * share * tokens * 256 / 2**30:.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--layers", type=int, default=3, help="of the text tower of width 768")
    parser.add_argument("--memory", action="store_true", help="of a worker of 40, 50,000 pictures, 80,000 texts")
    arguments = parser.parse_args()
    if arguments.memory:
        memory(50_000, 256, 80_000, 40)
        return
    torch.set_num_threads(1)
    tokenizer = Tokenizer(packaged_vocabulary())
    known = [token for token in tokenizer.vocabulary.split("\n") if len(token) == 1 and "一" <= token <= "龥"]
    captions = [
        "".join(known[(31 * number + 7 * place) % 2000] for place in range(22)) for number in range(arguments.pairs)
    ]
    ids = [str(number) for number in range(arguments.pairs)]
    relevant = [Caption(text, (number,)) for number, text in enumerate(captions)]
    data = RetrievalData("held", "holdout", ids, relevant, False, _None(), "held")
    for similarity in ("global", "token"):
        torch.manual_seed(0)
        text = {"layers": arguments.layers, "heads": 12, "width": 768}
        model = Model.model_validate({"text": text, "embedding": 256, "similarity": similarity})
        dual = DualEncoder(model, tokenizer, feature_width=WIDTH).eval()
        shape = (arguments.pairs, WIDTH) if similarity == "global" else (arguments.pairs, PATCHES, WIDTH)
        validator = Validator([Task(data, OWN, torch.randn(shape).half())], tokenizer)
        began, used = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            for start in range(0, arguments.pairs, 256):
                dual.embed_text(tokenizer(captions[start : start + 256]))
        texts = time.process_time() - used
        began, used = time.perf_counter(), time.process_time()
        validator(dual)
        took, used = time.perf_counter() - began, time.process_time() - used
        print(
            f"{similarity}: {arguments.pairs} pairs, {arguments.layers} layers: {took:.1f} s, {used:.1f} of processor; "
            f"the texts alone {texts:.1f} of processor",
            flush=True,
        )


if __name__ == "__main__":
    main()
