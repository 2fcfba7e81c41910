"""Compare the text side of a training step, forward and backward, in our text encoder and in Hugging Face's BERT.

    python benchmarks/model/text_step.py ragged|full|short [--batch 32] [--threads 2] [--repeats 5]

Both have 12 layers, 12 heads, width 768 and 21,128 word pieces, without dropout, in float32; with the same head and the
same loss against the same image vectors. Hugging Face's BERT uses scaled-dot-product attention, its fastest here.
Batches are padded to their longest caption. The optimiser's step is the same for both and left out. Lengths: ``ragged``
as in table 2 (mean 22, deviation 7, at most 32), ``full`` all 32, ``short`` 3 to 12.
"""

import argparse
import json
import sys

import measure
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertModel

from wukong.model.loss import global_loss
from wukong.model.text_encoder import TextEncoder

VOCABULARY, LAYERS, HEADS, WIDTH, LONGEST, EMBEDDING = 21_128, 12, 12, 768, 32, 256


def captions(kind: str, batch: int) -> torch.Tensor:
    """Return token ids, padded with zeros to the longest caption."""
    generator = torch.Generator().manual_seed(0)
    lengths = {
        "ragged": (22 + 7 * torch.randn(batch, generator=generator)).round().long().clamp(3, LONGEST),
        "full": torch.full((batch,), LONGEST),
        "short": torch.randint(3, 13, (batch,), generator=generator),
    }[kind]
    ids = torch.randint(200, VOCABULARY, (batch, int(lengths.max())), generator=generator)
    return ids.masked_fill(torch.arange(ids.shape[1]) >= lengths[:, None], 0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("lengths", choices=["ragged", "full", "short"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    ids = captions(options.lengths, options.batch)
    image = F.normalize(torch.randn(options.batch, EMBEDDING), dim=-1)
    ours = TextEncoder(VOCABULARY, LAYERS, HEADS, WIDTH, LONGEST).train()
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=LONGEST,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="sdpa",
    )
    theirs = BertModel(config, add_pooling_layer=False).train()
    head = torch.nn.Linear(WIDTH, EMBEDDING)
    # Without padding pass no mask, which makes Hugging Face's BERT faster.
    mask = None if (ids != 0).all() else (ids != 0).long()

    def step(first: torch.Tensor) -> None:
        global_loss(image, F.normalize(head(first), dim=-1), torch.tensor(14.3)).backward()
        for module in (ours, theirs, head):
            module.zero_grad()

    works = {
        "ours": lambda: step(ours(ids, first=True)),
        "theirs": lambda: step(theirs(ids, attention_mask=mask).last_hidden_state[:, 0]),
    }
    found = measure.seconds(works, options.repeats)
    sys.stdout.write(json.dumps(found | {"real": int((ids != 0).sum()), "padded": ids.numel()}) + "\n")


if __name__ == "__main__":
    main()
