"""Wukong: from a list of Chinese words to an evaluated Chinese vision-language model.

``wukong.load(uri)`` gives a trained model: see ``wukong.model.package``.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wukong.model.package import load as load


def __getattr__(name: str) -> Any:
    # Only who loads a model waits for torch.
    if name == "load":
        from wukong.model.package import load

        return load
    raise AttributeError(f"module 'wukong' has no attribute {name!r}")
