"""Compare the global losses and their gradients with open_clip's, in float64: print the largest differences.

    PYTHONPATH=FOLDER python benchmarks/model/open_clip_losses.py

``bench.py`` installs open_clip in ``FOLDER``. Differences are relative to open_clip's largest absolute value.
"""

import json
import sys

import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, SigLipLoss

from wukong.model.loss import global_loss


def main() -> None:
    torch.manual_seed(0)
    largest = dict.fromkeys(("softmax", "sigmoid"), 0.0)
    for batch in (1, 2, 7, 64, 256):
        rows = [F.normalize(torch.randn(batch, 256, dtype=torch.float64), dim=-1) for _ in range(2)]
        for name in largest:
            leaves = [*rows, torch.tensor(14.3, dtype=torch.float64)]
            if name == "sigmoid":
                leaves.append(torch.tensor(-10.0, dtype=torch.float64))
            sides = []
            for ours in (True, False):
                given = [leaf.clone().requires_grad_() for leaf in leaves]
                image, text, scale, *bias = given
                if ours:
                    loss = global_loss(image, text, scale, bias=bias[0] if bias else None)
                else:
                    loss = SigLipLoss()(*given) if bias else ClipLoss()(*given)
                sides.append([loss.detach(), *torch.autograd.grad(loss, given)])
            for found, expected in zip(*sides, strict=True):
                difference = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
                largest[name] = max(largest[name], float(difference))
    sys.stdout.write(json.dumps(largest) + "\n")


if __name__ == "__main__":
    main()
