"""An image encoder of your own: a model that timm knows by name once this module is imported.

Wukong makes image encoders by timm. A model that is registered there works in ``model.image.name``. It needs:
``forward_features`` [images, width, rows, columns], ``forward_head`` with ``pre_logits``, and ``group_matcher``, which
names the layer groups that ``lock`` counts. In a pipeline every process must import the module: import it at the end of
``wukong/model/image_encoder.py``.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

default_cfgs = generate_default_cfgs({"tiny_encoder.mine": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}})
"""How images are scaled: timm reads this name, and keys are the model's name and the name of its weights."""


class TinyEncoder(nn.Module):
    """Two convolutions; 16 x 16 pixels become one token of width 32."""

    def __init__(self, num_classes: int = 0, **_: Any) -> None:
        super().__init__()
        self.num_features, self.num_classes = 32, num_classes
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 4, stride=4), nn.GELU())
        self.blocks = nn.Sequential(nn.Conv2d(16, 32, 4, stride=4), nn.GELU())

    def forward_features(self, pixels: Tensor) -> Tensor:
        """Compute the tokens, as a grid: [images, 32, rows, columns]."""
        grid: Tensor = self.blocks(self.stem(pixels))
        return grid

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Compute the pooled feature: the mean of the tokens, [images, 32]."""
        return features.mean((2, 3))

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Name the layer groups, as timm's models do."""
        return {"stem": r"^stem", "blocks": r"^blocks"}

    def get_classifier(self) -> nn.Module:
        """Return the classifier, of which there is none."""
        return nn.Identity()


@register_model
def tiny_encoder(pretrained: bool = False, **options: Any) -> TinyEncoder:
    """The name ``tiny_encoder``, which ``model.image.name`` takes."""
    model: TinyEncoder = build_model_with_cfg(TinyEncoder, "tiny_encoder", pretrained, **options)
    return model
