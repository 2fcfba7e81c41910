"""The numbers of the paper's Tables 5, 6 and 7, in %, so that what is measured here can stand beside them.

A row of ``TABLE_5`` is a row of the table. In ``TABLE_6`` and ``TABLE_7`` a set has a row for each method. Names of
sets are those of ``wukong.evaluate.sets``.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Recalls(NamedTuple):
    """A row of Table 6 or 7 in the order of its columns, in %; None where the paper has a dash.

    Attributes:
        image_to_text: Recall@1, @5 and @10; None for a set that is only searched by text, or where only the mean is
            published.
        text_to_image: the same.
        mean_recall: the mean of them (MR).
        other_split: whether the paper marks the number, because its data split is another one.
    """

    image_to_text: tuple[float, float, float] | None
    text_to_image: tuple[float, float, float] | None
    mean_recall: float
    other_split: bool = False


MODELS_OF_TABLE_5 = (
    "ResNet50",
    "ResNet101",
    "ViT-B/32",
    "ViT-B/16",
    "Wukong ViT, global",
    "Wukong ViT",
    "Wukong ViT-500M",
    "Wukong Swin, global",
    "Wukong Swin",
)
"""The columns of Table 5. The first four have the global similarity too; the other three are token-wise."""

TABLE_5: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "cifar10": (49.0, 60.3, 89.0, 89.5, 93.6, 90.6, 90.3, 95.3, 95.5),
        "cifar100": (23.5, 31.1, 57.3, 49.4, 64.6, 66.3, 65.3, 69.1, 77.2),
        "caltech101": (72.3, 76.3, 83.6, 84.4, 86.0, 89.9, 89.2, 87.6, 91.6),
        "caltech256": (58.4, 64.3, 70.5, 75.4, 76.8, 86.2, 86.0, 78.2, 88.4),
        "sports": (78.0, 83.3, 90.6, 88.1, 86.8, 97.8, 96.9, 93.4, 99.1),
        "flowers102": (29.0, 30.9, 38.0, 42.9, 55.1, 69.4, 71.6, 54.5, 75.1),
        "food101": (37.0, 43.6, 42.7, 49.4, 53.5, 70.0, 65.2, 46.6, 66.1),
        "pets": (41.7, 43.8, 44.9, 51.2, 46.4, 61.3, 67.0, 47.7, 64.5),
        "sun397": (33.1, 38.4, 39.8, 42.7, 44.9, 60.2, 58.9, 42.4, 56.5),
        "imagenet": (28.3, 32.8, 33.2, 38.3, 44.8, 54.0, 54.3, 43.6, 58.5),
        "imagenet-r": (38.9, 47.1, 52.3, 61.9, 67.4, 72.2, 77.5, 49.3, 55.3),
        "imagenet-a": (14.8, 20.8, 22.2, 35.4, 55.1, 52.2, 53.2, 36.8, 41.9),
        "imagenet-sketch": (16.0, 20.6, 24.0, 29.0, 33.3, 36.5, 36.8, 24.7, 31.4),
        "dtd": (22.4, 25.2, 27.1, 31.7, 35.6, 46.4, 44.6, 31.1, 39.8),
        "dogs": (12.1, 12.6, 17.3, 23.3, 21.1, 29.4, 35.4, 22.9, 40.3),
        "eurosat": (17.6, 12.5, 35.3, 43.9, 39.7, 25.5, 32.3, 28.8, 21.0),
        "aircraft": (10.1, 10.0, 10.3, 14.8, 20.8, 22.3, 21.5, 8.9, 10.1),
    }
)
"""Table 5: top-1 accuracy of zero-shot classification, a number for each of ``MODELS_OF_TABLE_5``."""

AVERAGE_OF_TABLE_5 = (34.2, 38.4, 45.8, 50.1, 54.4, 60.6, 61.5, 50.6, 59.5)
"""Its last row, Average, as printed."""

_TOWERS = {
    ("resnet50_clip", "global"): "ResNet50",
    ("resnet101_clip", "global"): "ResNet101",
    ("vit_base_patch32_clip", "global"): "ViT-B/32",
    ("vit_base_patch16_clip", "global"): "ViT-B/16",
    ("vit_large_patch14_clip", "global"): "Wukong ViT, global",
    ("vit_large_patch14_clip", "token"): "Wukong ViT",
    ("swin_large_patch4_window7", "global"): "Wukong Swin, global",
    ("swin_large_patch4_window7", "token"): "Wukong Swin",
}
_MANY_PAIRS = 300_000_000


def column_of(tower: str, similarity: str, pairs: int) -> str | None:
    """Return which of ``MODELS_OF_TABLE_5`` a model stands for; None if none.

    Args:
        tower: timm's name of its image tower.
        similarity: ``global`` or ``token``.
        pairs: number of pairs that it was trained on; Wukong ViT-500M has more than the others.
    """
    titles = [title for (begin, kind), title in _TOWERS.items() if tower.startswith(begin) and kind == similarity]
    title = titles[0] if titles else None
    return "Wukong ViT-500M" if title == "Wukong ViT" and pairs > _MANY_PAIRS else title


_VIT, _VIT_500M, _SWIN = "Wukong ViT", "Wukong ViT-500M", "Wukong Swin"

TABLE_6: Mapping[str, Mapping[str, Recalls]] = MappingProxyType(
    {
        "flickr8k-cn": {
            _VIT: Recalls((70.0, 91.6, 96.6), (53.5, 79.3, 87.9), 79.8),
            _VIT_500M: Recalls((65.9, 90.2, 95.7), (52.6, 80.0, 88.6), 78.8),
            _SWIN: Recalls((52.1, 78.2, 87.3), (41.0, 68.4, 79.1), 67.7),
        },
        "flickr30k-cn": {
            _VIT: Recalls((78.9, 96.2, 98.1), (55.7, 81.2, 87.9), 83.0),
            _VIT_500M: Recalls((77.9, 95.4, 98.1), (55.7, 81.8, 88.7), 82.9),
            _SWIN: Recalls((65.8, 89.2, 95.0), (44.5, 72.2, 81.2), 74.7),
        },
        "coco-cn": {
            _VIT: Recalls((56.9, 82.4, 90.9), (52.7, 79.9, 88.6), 75.2),
            _VIT_500M: Recalls((56.0, 81.0, 91.6), (52.4, 79.7, 88.8), 74.9),
            _SWIN: Recalls((48.7, 77.3, 88.6), (50.6, 79.3, 88.9), 72.2),
        },
        "muge": {
            _VIT: Recalls(None, (37.6, 63.4, 73.6), 58.2),
            _VIT_500M: Recalls(None, (42.9, 68.5, 77.5), 63.0),
            _SWIN: Recalls(None, (36.2, 61.1, 71.5), 56.3),
        },
    }
)
"""Table 6: zero-shot retrieval. The paper has no zero-shot number for AIC-ICC."""

TABLE_7: Mapping[str, Mapping[str, Recalls]] = MappingProxyType(
    {
        "flickr8k-cn": {
            _VIT: Recalls((80.3, 95.3, 98.4), (68.6, 90.3, 95.3), 88.0),
            _VIT_500M: Recalls((81.5, 96.7, 98.8), (68.9, 90.6, 95.4), 88.7),
            _SWIN: Recalls((77.5, 94.7, 97.4), (62.1, 87.1, 93.4), 85.4),
        },
        "flickr30k-cn": {
            _VIT: Recalls((90.6, 99.0, 99.7), (77.3, 94.7, 97.3), 93.1),
            _VIT_500M: Recalls((90.3, 99.2, 99.7), (77.9, 94.5, 97.2), 93.1),
            _SWIN: Recalls((86.9, 97.6, 99.3), (71.1, 91.5, 95.4), 90.3),
        },
        "coco-cn": {
            "EmbN": Recalls(None, None, 73.2),
            "PARALLEL-EmbN": Recalls(None, None, 76.0),
            "S-LIWE": Recalls(None, None, 73.6),
            "MULE": Recalls(None, None, 75.9, other_split=True),
            "SMALR": Recalls(None, None, 77.5, other_split=True),
            "M³P": Recalls(None, None, 86.2),
            "UNITER": Recalls(None, None, 87.3),
            "LightningDOT": Recalls(None, None, 88.4),
            "UC²": Recalls(None, None, 89.8),
            _VIT: Recalls((68.9, 91.9, 96.8), (73.0, 93.4, 97.1), 86.9),
            _VIT_500M: Recalls((72.0, 93.3, 97.6), (73.8, 93.4, 97.2), 87.9),
            _SWIN: Recalls((69.3, 94.0, 97.4), (69.3, 93.0, 97.7), 86.8),
        },
        "aic-icc": {
            "WenLan 2.0": Recalls((45.6, 68.0, 76.3), (34.1, 58.9, 69.1), 58.7),
            _VIT: Recalls((55.6, 76.9, 83.6), (45.7, 69.5, 77.9), 68.2),
            _VIT_500M: Recalls((55.0, 76.1, 82.9), (45.5, 69.7, 77.8), 67.8),
            _SWIN: Recalls((53.7, 76.0, 82.9), (41.9, 66.7, 75.5), 66.1),
        },
        "muge": {
            _VIT: Recalls(None, (44.5, 71.9, 81.3), 65.9),
            _VIT_500M: Recalls(None, (49.1, 76.1, 84.0), 69.7),
            _SWIN: Recalls(None, (45.1, 71.2, 80.5), 65.6),
        },
    }
)
"""Table 7: retrieval after fine-tuning on the training part of the set."""
