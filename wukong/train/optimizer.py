"""The optimiser and the learning rate of section 5.1: LAMB, weight decay on matrices only, warm-up and cosine."""

import math
from typing import Any

import torch
from timm.optim import Lamb
from torch import nn

from wukong.config import Training
from wukong.model.dual import DualEncoder

BETAS = (0.9, 0.999)


def parameter_groups(model: DualEncoder, settings: Training) -> list[dict[str, Any]]:
    """Split the trainable parameters into those with weight decay and those without, the image head's apart.

    Without are biases, norms, token and position embeddings and the temperature (section 5.1): with are the matrices of
    layers, which torch and timm call ``weight``; class tokens, positions and their biases have names of their own.
    ``rate`` is what a group's learning rate is multiplied with.
    """
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    head = {id(parameter) for parameter in model.image_head.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        exempt = parameter.ndim < 2 or id(parameter) in embeddings or not name.endswith(".weight")
        rate = settings.image_head_rate if id(parameter) in head else 1.0
        if parameter.requires_grad:
            groups.setdefault((0.0 if exempt else settings.weight_decay, rate), []).append(parameter)
    return [{"params": members, "weight_decay": decay, "rate": rate} for (decay, rate), members in groups.items()]


def build(model: DualEncoder, settings: Training) -> torch.optim.Optimizer:
    """The optimiser of a training run: table 4's LAMB, or AdamW."""
    groups = parameter_groups(model, settings)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=BETAS, eps=settings.epsilon)
    # always_adapt: the paper scales every layer's step by its trust ratio, decayed or not; timm's default does not.
    lamb: torch.optim.Optimizer = Lamb(
        groups, lr=settings.learning_rate, betas=BETAS, eps=settings.epsilon, max_grad_norm=None, always_adapt=True
    )
    return lamb


def learning_rate(step: int, steps: int, settings: Training) -> float:
    """The rate of one step: linear from near zero over the warm-up, then half a cosine down to zero.

    Args:
        step: 0 for the first.
        steps: of the whole run.
        settings: peak and length of the warm-up.
    """
    warmup = math.ceil(settings.warmup_fraction * steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
