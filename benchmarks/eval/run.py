"""One measured piece of work of bench.py, in a process of its own; the last line of output is JSON.

    python benchmarks/eval/run.py retrieval IMAGES TEXTS [--token-wise] [--limit IMAGES TEXTS]
    python benchmarks/eval/run.py {ours,exact,products,loop} IMAGES CLASSES PROMPTS [--of CLASSES]

``--of`` measures some of as many classes, with names as long as theirs are. ``exact`` computes all scores in float32.
``products`` is only the products of matrices that this needs, without padding and without the maxima: no method that
computes all products in float32 is quicker. Token-wise retrieval has its vectors in files, as ``wukong evaluate`` has.
Seconds are elapsed, ``cpu`` are those of all cores together, which other work on the machine changes less. ``bytes`` is
the peak of the process; ``bytes_before`` of them were there before the work, most of them torch's libraries.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "model"))
import measure

from wukong.evaluate import answers, best_words, classification, retrieval
from wukong.evaluate.blocks import Files
from wukong.evaluate.prompts import PROMPTS
from wukong.evaluate.protocol import PROTOCOLS, Protocol
from wukong.evaluate.vectors import BLOCK, Pieces, Rows, StoredTexts, block, slices
from wukong.model.dual import Texts
from wukong.model.similarity import Scores, global_similarity, token_similarity

WIDTH, PATCHES, CONTEXT = 256, 49, 32
"""Width of the paper's embedding, patches of a 224 px picture at ViT-B/32, tokens of a text at most."""


class Random:
    """A model whose texts have random vectors, one for each character, [CLS] and [SEP]."""

    name, digest, scale = "random", "0", 20.0

    def __init__(self, token_wise: bool, exact: bool = False) -> None:
        self.token_wise, self.exact = token_wise, exact

    def encode_images(self, pictures: Sequence[object], protocol: Protocol) -> Tensor:
        raise NotImplementedError

    def encode_texts(self, texts: Sequence[str], protocol: Protocol) -> Texts:
        lengths = torch.tensor([min(len(text) + 2, CONTEXT) for text in texts])
        return random_texts(lengths, self.token_wise)

    def similarity(self, image: Tensor, text: Texts) -> Scores:
        if self.token_wise:
            return token_similarity(image, *text)
        return global_similarity(image, text.vectors)

    def image_to_text(self, image: Tensor, text: Texts) -> Tensor:
        return best_words.exact(image, text)

    def rough_image_to_text(self, image: Tensor, text: Texts) -> Tensor | None:
        return None if self.exact else best_words.rough(image, text)


def random_texts(lengths: Tensor, token_wise: bool) -> Texts:
    counted = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
    counted[:, 0] = False
    if not token_wise:
        return Texts(F.normalize(torch.randn(len(lengths), WIDTH), dim=-1), counted)
    vectors = torch.empty(*counted.shape, WIDTH).normal_()
    for part in vectors.split(1024):
        part.div_(part.norm(dim=-1, keepdim=True))
    return Texts(vectors, counted)


def random_images(count: int, token_wise: bool) -> Tensor:
    vectors = torch.empty(count, *((PATCHES,) if token_wise else ()), WIDTH).normal_()
    for part in vectors.split(1024):
        part.div_(part.norm(dim=-1, keepdim=True))
    return vectors


def stored(images: int, lengths: Tensor, folder: Path) -> tuple[Pieces, StoredTexts]:
    """Write vectors of tokens to files as an evaluation does, a thousand images or texts in each.

    A thousand are drawn; the numbers of the next thousand are the same, turned by one place.
    """
    files, longest = Files(folder), int(lengths.max())

    def pieces(name: str, drawn: Tensor, count: int) -> Pieces:
        parts = list(slices(count))
        for number, rows in enumerate(parts):
            files.write(f"{name}/{number}", {"vectors": drawn[: rows.stop - rows.start].roll(number, 2)})
        sizes = [rows.stop - rows.start for rows in parts]
        return Pieces(sizes, lambda number: files.read(f"{name}/{number}")["vectors"])

    drawn = random_images(BLOCK, token_wise=True)
    words = random_texts(torch.full((BLOCK,), longest), token_wise=True).vectors
    counted = torch.arange(longest)[None, :] < lengths[:, None]
    counted[:, 0] = False
    return pieces("images", drawn, images), StoredTexts(pieces("texts", words, len(lengths)), counted)


def search(images: int, texts: int, token_wise: bool, limit: tuple[int, int], folder: Path) -> dict[str, float]:
    """Search in both directions; the time of all pairs is in proportion to those of ``limit`` images and texts.

    The vectors of all are there, and the first ones are searched.
    """
    lengths = torch.randint(12, 23, (texts,))  # table 2: a caption has 22 tokens in the mean
    random = Random(token_wise)
    image: Rows
    text: Texts | StoredTexts
    if token_wise:
        image, text = stored(images, lengths, folder)
    else:
        image, text = random_images(images, token_wise), random_texts(lengths, token_wise)
    started, cpu = time.perf_counter(), time.process_time()
    searched = image[slice(0, limit[0])] if limit[0] < images else image
    asked = block(text, slice(0, limit[1])) if limit[1] < texts else text
    owners = [[number * len(searched) // len(asked.counted)] for number in range(len(asked.counted))]
    pairs = retrieval.Pairs.of(owners, len(searched), every_image=False)
    found = retrieval.search(searched, asked, pairs, random.similarity)
    names = [[str(number) for number in range(count)] for count in (pairs.texts, pairs.images)]
    result = answers.of_retrieval(found, pairs, *names, share=False).intervals()
    taken = time.perf_counter() - started
    share = len(searched) * len(asked.counted) / (images * texts)
    return {
        "seconds": taken / share,
        "cpu": (time.process_time() - cpu) / share,
        "share": share,
        "mean": result["mean_recall"].value,
    }


def names(count: int, of: int) -> list[str]:
    return [f"第{number}种物品" for number in range(0, of, of // count)][:count]


def ours(images: int, called: list[str], prompts: int, cache: Path, exact: bool) -> dict[str, float]:
    random, rules = Random(token_wise=True, exact=exact), PROTOCOLS["paper"]
    image = random_images(images, token_wise=True)
    held = classification.embed(random, called, PROMPTS[:prompts], rules, Files(cache))
    started, cpu = time.perf_counter(), time.process_time()
    classification.scores(random, image, held, rules)
    return {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}


def products(images: int, called: list[str], prompts: int) -> dict[str, float]:
    """Only the products, in blocks of the best size of some that were tried."""
    random, rules = Random(token_wise=True), PROTOCOLS["paper"]
    columns = random_images(images, token_wise=True).flatten(0, 1).T
    text = random.encode_texts([prompt.format(name) for name in called for prompt in PROMPTS[:prompts]], rules)
    tokens = text.vectors[text.counted]
    started, cpu = time.perf_counter(), time.process_time()
    for rows in tokens.split(1024):
        for first in range(0, columns.shape[1], 4900):
            torch.mm(rows, columns[:, first : first + 4900])
    return {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}


def loop(images: int, called: list[str], prompts: int) -> dict[str, float]:
    """The usual way: for each template all classes at the full context, every product masked and reduced."""
    random, rules = Random(token_wise=True), PROTOCOLS["paper"]
    image = random_images(images, token_wise=True)
    total = torch.zeros(images, len(called))
    taken = spent = 0.0
    for prompt in PROMPTS[:prompts]:
        text = random.encode_texts([prompt.format(name) for name in called], rules)
        more = CONTEXT - text.vectors.shape[1]
        vectors, counted = F.pad(text.vectors, (0, 0, 0, more)), F.pad(text.counted, (0, more))
        started, cpu = time.perf_counter(), time.process_time()
        for first in range(0, images, 25):  # 200 MB of products
            products = torch.einsum("ipd,ctd->icpt", image[first : first + 25], vectors)
            products = products.masked_fill(~counted[None, :, None], -torch.inf)
            total[first : first + 25] += products.amax(3).mean(2)
        taken += time.perf_counter() - started
        spent += time.process_time() - cpu
    return {"seconds": taken, "cpu": spent}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=["retrieval", "ours", "exact", "products", "loop"])
    parser.add_argument("sizes", type=int, nargs="+")
    parser.add_argument("--token-wise", action="store_true")
    parser.add_argument("--limit", type=int, nargs=2, default=(sys.maxsize, sys.maxsize))
    parser.add_argument("--of", type=int)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    measure.reset_peak()
    before = measure.resident()
    with tempfile.TemporaryDirectory() as scratch:
        if options.work == "retrieval":
            images, texts = options.sizes
            found = search(images, texts, options.token_wise, options.limit, Path(scratch))
        else:
            images, classes, prompts = options.sizes
            called = names(classes, options.of or classes)
            if options.work in {"ours", "exact"}:
                found = ours(images, called, prompts, Path(scratch), options.work == "exact")
            else:
                found = (products if options.work == "products" else loop)(images, called, prompts)
    print(json.dumps({**found, "bytes": measure.peak(), "bytes_before": before}))


if __name__ == "__main__":
    main()
