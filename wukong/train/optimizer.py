"""Optimiser and learning rate schedule of section 5.1: LAMB, weight decay on matrices only, warm-up and cosine."""

import math
from typing import Any

import torch
from timm.optim import Lamb
from torch import nn

from wukong.config.training import Training
from wukong.model.dual import DualEncoder

BETAS = (0.9, 0.999)


def parameter_groups(model: DualEncoder, settings: Training) -> list[dict[str, Any]]:
    """Divide the trainable parameters into groups by weight decay and learning rate.

    Weight decay applies only to the weight matrices of layers (section 5.1). These are the parameters that torch and
    timm name ``weight`` and that have two or more dimensions. It does not apply to biases, norms, token and position
    embeddings, class tokens and the temperature. The image head is in a separate group.

    Returns:
        Parameter groups for an optimiser; ``rate`` is the factor on the group's learning rate.
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
    """Create the optimiser of a training run: LAMB as in table 4, or AdamW."""
    groups = parameter_groups(model, settings)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=BETAS, eps=settings.epsilon)
    # always_adapt: the LAMB paper scales the step of every layer by its trust ratio; by default timm does so only for
    # layers with weight decay.
    lamb: torch.optim.Optimizer = Lamb(
        groups, lr=settings.learning_rate, betas=BETAS, eps=settings.epsilon, max_grad_norm=None, always_adapt=True
    )
    return lamb


def learning_rate(step: int, steps: int, settings: Training) -> float:
    """Return the learning rate of one step: a linear increase during warm-up, then half a cosine down to zero.

    Args:
        step: number of the step, 0 for the first.
        steps: number of steps of the whole run.
        settings: settings of the training; ``learning_rate`` and ``warmup_fraction`` are used.
    """
    warmup = math.ceil(settings.warmup_fraction * steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
