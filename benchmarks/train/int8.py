"""Measure what int8 costs: the cosine between stored and exact features, and the loss of a training on them.

    python benchmarks/train/int8.py [--pictures 1024] [--epochs 8] [--catalogue FILE]

Features are of the demo's image tower with its real weights, of pictures of the demo's corpus, which ``make run``
fetches. The same model is trained on float16 and on int8 features with two seeds, so that the difference can be
compared with that of two seeds.
"""

import argparse
import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from plan import InMemory

from infra.corpus import cache_folder
from wukong.config import documents
from wukong.data import feature_files, images
from wukong.data.tokenizer import Tokenizer
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.train.loop import train


def largest_catalogue() -> Path:
    found = sorted(cache_folder().glob("catalogue-*.parquet"), key=lambda path: path.stat().st_size)
    if not found:
        raise SystemExit(f"no catalogue in {cache_folder()}: `make run` fetches the demo's corpus")
    return found[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=8, help="0 for the cosines alone")
    parser.add_argument("--catalogue", type=Path)
    options = parser.parse_args()
    catalogue = options.catalogue or largest_catalogue()
    torch.set_num_threads(1)
    overrides = ["pretrain.workers=1", f"pretrain.epochs={max(1, options.epochs)}", "pretrain.whiten_image_head=false"]
    experiment = documents.load(Path("configs/demo.yaml"), [*overrides, "pretrain.batch_size=128"])
    model, settings = experiment.model, experiment.pretrain
    rows = pq.read_table(catalogue, columns=["file", "title"]).to_pylist()
    rows = [row for row in rows if (catalogue.parent / row["file"]).exists()]
    rows = rows[:: max(1, len(rows) // options.pictures)][: options.pictures]

    tower = ImageEncoder(model.image).for_inference()
    pooled, tokens = [], []
    for start in range(0, len(rows), 32):
        shown = [
            images.evaluation_view(images.decode((catalogue.parent / row["file"]).read_bytes()), model.image.image_size)
            for row in rows[start : start + 32]
        ]
        with torch.inference_mode():
            found = tower(images.to_tensor(shown))
        pooled.append(found.pooled.half())
        tokens.append(found.tokens[:, ::8].half())
    exact = {"pooled": torch.cat(pooled), "token-wise": torch.cat(tokens)}
    stored = {}
    for kind, values in exact.items():
        stored[kind] = feature_files.dequantise(*feature_files.quantise(values))
        cosine = F.cosine_similarity(values.float(), stored[kind].float(), dim=-1)
        print(f"{kind}: cosine of {cosine.numel():,} vectors: mean {cosine.mean():.6f}, least {cosine.min():.6f}")

    if not options.epochs:
        return
    tokenizer = Tokenizer.of(model.text)
    captions = [row["title"] for row in rows]
    losses: dict[tuple[str, int], float] = {}
    for seed in (0, 1):
        for dtype, values in (("float16", exact["pooled"]), ("int8", stored["pooled"])):
            torch.manual_seed(seed)
            dual = DualEncoder(model, tokenizer, feature_width=values.shape[-1])
            losses[dtype, seed] = train(dual, InMemory(values[None], captions, tokenizer), settings, seed)[-1].loss
            print(f"{dtype}, seed {seed}: loss of epoch {options.epochs} {losses[dtype, seed]:.5f}", flush=True)
    of_dtype = max(abs(losses["int8", seed] - losses["float16", seed]) for seed in (0, 1))
    of_seed = abs(losses["float16", 1] - losses["float16", 0])
    print(f"largest difference by the dtype {of_dtype:.5f}, by the seed {of_seed:.5f}")


if __name__ == "__main__":
    sys.exit(main())
