"""Measure what the first pass of a token-wise search loses: recall@10 of all pairs, by how many pictures are ranked.

    python benchmarks/serve/first_pass.py --model URI --data URI [--pictures 4000] [--queries 300]

Pictures and queries, their captions, are those of the data; the model must be token-wise. A search ranks ``FIRST_PASS``
pictures of each shard by the tokens, those whose means are nearest to the mean of the query's.
"""

import argparse
from itertools import islice

import numpy as np
import torch
from torch import Tensor

import wukong
from wukong.evaluate.model import OwnModel
from wukong.model.dual import Texts
from wukong.serve import collection
from wukong.serve.query import search_forms
from wukong.serve.search import FIRST_PASS

BEST = 10
DEPTHS = (50, 100, FIRST_PASS, 400, 800, 1_600)
_BATCH, _RANKED = 64, 512


def encoded(model: OwnModel, found: collection.Collection, pictures: int, queries: int) -> tuple[Tensor, Texts]:
    """Token vectors of pictures as an index has them, float16 [pictures, tokens, d], and captions of these pictures."""
    images: list[Tensor] = []
    captions: dict[str, None] = {}
    read = ((key, data, piece) for piece in found.pieces for key, _, data in found.read_piece(piece))
    of_piece: dict[str, dict[str, tuple[str, ...]]] = {}
    while batch := [(key, data(), piece) for key, data, piece in islice(read, min(_BATCH, pictures - len(images)))]:
        images += list(model.saved.encode_image([data for _, data, _ in batch]).half())
        for key, _, piece in batch:
            mine = of_piece.setdefault(piece.name, piece.captions)
            captions |= dict.fromkeys(search_forms(mine[key]))
    drawn = np.random.default_rng(0).permutation(len(captions))[:queries]
    forms = [*captions]
    return torch.stack(images), model.saved.encode_text([forms[row] for row in drawn.tolist()], strict=False)


def recalled(model: OwnModel, pictures: Tensor, texts: Texts) -> dict[int, float]:
    """The share of the ten best of all pairs that lie among the first, by how many those are."""
    weight = texts.counted[..., None]
    means = (texts.vectors * weight).sum(1) / weight.sum(1).clamp_min(1)
    rank = (means @ pictures.float().mean(1).T).argsort(1, descending=True).argsort(1)
    blocks = pictures.split(_RANKED)
    scores = torch.cat([model.similarity(block.float(), texts).text_to_image for block in blocks]).T
    ranks = rank.gather(1, scores.topk(min(BEST, len(pictures)), dim=1).indices)
    return {depth: float((ranks < depth).float().mean()) for depth in DEPTHS}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--pictures", type=int, default=4_000)
    parser.add_argument("--queries", type=int, default=300)
    options = parser.parse_args()
    model = OwnModel(wukong.load(options.model), options.model)
    if not model.token_wise:
        parser.error(f"{options.model} has one vector for a picture: name a token-wise model")
    pictures, texts = encoded(model, collection.of(options.data), options.pictures, options.queries)
    print(f"{len(pictures):,} pictures, {len(texts.vectors):,} queries")
    for depth, recall in recalled(model, pictures, texts).items():
        print(f"  {depth:,} ranked: recall@{BEST} {recall:.4f}")


if __name__ == "__main__":
    main()
