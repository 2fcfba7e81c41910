"""Optimiser and learning rate schedule of section 5.1: LAMB, weight decay on matrices only, warm-up and cosine."""

import math
from collections.abc import Callable
from typing import Any, overload

import torch
from timm.optim import Lamb
from torch import Tensor, nn

from wukong.config.training import Training
from wukong.model.dual import DualEncoder
from wukong.train import gradients

BETAS = (0.9, 0.999)


def parameter_groups(model: DualEncoder, settings: Training) -> list[dict[str, Any]]:
    """Divide the trainable parameters into groups by weight decay and learning rate.

    Weight decay applies only to the weight matrices of layers (section 5.1). These are the parameters that torch and
    timm name ``weight`` and that have two or more dimensions. It does not apply to biases, norms, token and position
    embeddings, class tokens and the temperature. A head whose learning rate differs is in a separate group.

    Returns:
        Parameter groups for an optimiser; ``rate`` is the factor on the group's learning rate.
    """
    embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    rates = {id(parameter): settings.text_head_rate for parameter in model.text_head.parameters()}
    for head in filter(None, (model.image_head, model.image_pooling)):
        rates |= {id(parameter): settings.image_head_rate for parameter in head.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        exempt = parameter.ndim < 2 or id(parameter) in embeddings or not name.endswith(".weight")
        if parameter.requires_grad:
            group = (0.0 if exempt else settings.weight_decay, rates.get(id(parameter), 1.0))
            groups.setdefault(group, []).append(parameter)
    return [{"params": members, "weight_decay": decay, "rate": rate} for (decay, rate), members in groups.items()]


def build(model: DualEncoder, settings: Training) -> torch.optim.Optimizer:
    """Create the optimiser of a training run: LAMB as in table 4, or AdamW.

    On a processor, LAMB lets the word pieces' embedding give sparse gradients: a batch uses few of its rows.
    """
    groups = parameter_groups(model, settings)
    words = model.text.tokens
    on_processor = model.log_scale.device.type == "cpu"
    words.sparse = settings.optimizer == "lamb" and on_processor and words.weight.requires_grad
    if words.sparse:
        words.weight.register_hook(gradients.summed)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=BETAS, eps=settings.epsilon)
    # always_adapt: the LAMB paper scales the step of every layer by its trust ratio; by default timm does so only for
    # layers with weight decay.
    return RowLamb(
        groups, lr=settings.learning_rate, betas=BETAS, eps=settings.epsilon, max_grad_norm=None, always_adapt=True
    )


class RowLamb(Lamb):  # type: ignore[misc]  # timm publishes no types
    """timm's LAMB; of an embedding with sparse gradients it computes only the rows that ever had a gradient.

    A row without one has no moments, and an embedding has no weight decay: its update is zero. The norms of the layer
    are still of all its rows, summed in timm's order. So on one thread the weights are those of timm's LAMB on dense
    gradients, to the bit where a row has a multiple of 64 numbers: of others the processor's vectors end elsewhere.
    """

    def __init__(self, groups: list[dict[str, Any]], **settings: Any) -> None:
        super().__init__(groups, **settings)
        self._rows: dict[nn.Parameter, _Rows] = {}

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move all weights; for the argument see ``torch.optim.Optimizer``."""
        sparse = [
            (group, weight, weight.grad)
            for group in self.param_groups
            for weight in group["params"]
            if weight.grad is not None and weight.grad.is_sparse
        ]
        for _, weight, _ in sparse:
            weight.grad = None
        result: float | None = super().step(closure)
        for group, weight, gradient in sparse:
            self._step_rows(group, weight, gradient)
            weight.grad = gradient
        return result

    def _step_rows(self, group: dict[str, Any], weight: nn.Parameter, gradient: Tensor) -> None:
        """Move the rows of a weight that ever had a gradient, as ``timm.optim.lamb`` moves a tensor on a processor."""
        state, (beta1, beta2), step = self.state[weight], group["betas"], group["step"].item()
        if not state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        if weight not in self._rows:
            self._rows[weight] = _Rows(weight, state)
        moved, whole = self._rows[weight].of(gradients.summed(gradient))
        average, square = state["exp_avg"][moved], state["exp_avg_sq"][moved]
        average.lerp_(whole, 1 - beta1)
        square.mul_(beta2).addcmul_(whole, whole, value=1 - beta2)
        state["exp_avg"][moved], state["exp_avg_sq"][moved] = average, square
        spread = (square.sqrt_() / (1 - beta2**step) ** 0.5).add_(group["eps"])
        update = average.div_(1 - beta1**step).div_(spread)
        own, size = weight.norm(2.0), self._rows[weight].norm(moved, update)
        update.mul_(torch.where((own > 0) & (size > 0), own / size, 1.0))
        weight[moved] = weight[moved].add_(update, alpha=-group["lr"])


class _Rows:
    """The rows of an embedding that had a gradient, in this run or in the one whose optimiser it took up."""

    def __init__(self, weight: nn.Parameter, state: dict[str, Tensor]) -> None:
        self._moved = (state["exp_avg"] != 0).any(1) | (state["exp_avg_sq"] != 0).any(1)
        self._update = torch.zeros_like(weight)

    def of(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return the numbers of the rows that move, and their gradients, of a coalesced sparse gradient."""
        rows = gradient.indices()[0]
        self._moved[rows] = True
        moved = self._moved.nonzero().squeeze(1)
        whole = gradient.values().new_zeros(len(moved), gradient.shape[1])
        whole[torch.searchsorted(moved, rows)] = gradient.values()
        return moved, whole

    def norm(self, moved: Tensor, update: Tensor) -> Tensor:
        """Return the norm of the update of all rows, of which those that do not move are zero."""
        self._update[moved] = update
        size: Tensor = self._update.norm(2.0)
        return size


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
