"""Prompts for zero-shot classification (appendix A.1): CLIP's 80 ImageNet prompts in Chinese; ``{}`` is the class name.

There are two translations: ``AUTHORS``, by the paper's authors, and ``PROMPTS``, by this project. The authors
translated by hand, mostly more freely and with repetitions: 78 of their 80 are distinct. Six of ours are equal to
theirs. A third list is Chinese-CLIP's own, read from its installed package.

Chinese has no articles. Where two English templates differ only in "a" and "the", the Chinese ones differ in "一个" and
"这个" or in word order, so that there are 80 distinct prompts.
"""

import ast
import functools
import hashlib
from collections.abc import Mapping

from wukong.errors import ConfigError, DataError
from wukong.runtime.installed import installed_file

PROMPTS = (
    "一张糟糕的{}的照片。",
    "一张有许多{}的照片。",
    "一座{}的雕塑。",
    "一张难以看清{}的照片。",
    "这个{}的低分辨率照片。",
    "一幅{}的渲染图。",
    "一幅{}的涂鸦墙画。",
    "这个{}的糟糕照片。",
    "这个{}的裁剪照片。",
    "一个{}的纹身。",
    "这个刺绣的{}。",
    "一张很难看清的{}的照片。",
    "一张明亮的{}的照片。",
    "一张干净的{}的照片。",
    "一张肮脏的{}的照片。",
    "这个{}的昏暗照片。",
    "一幅{}的图画。",
    "一张我的{}的照片。",
    "这个塑料{}。",
    "这个很酷的{}的照片。",
    "一张{}的特写照片。",
    "这个{}的黑白照片。",
    "这个{}的绘画。",
    "一幅{}的绘画。",
    "这个{}的像素化照片。",
    "这个{}的雕塑。",
    "这个{}的明亮照片。",
    "一张{}的裁剪照片。",
    "一个塑料{}。",
    "这个肮脏的{}的照片。",
    "一张因JPEG压缩而受损的{}的照片。",
    "这个{}的模糊照片。",
    "这个{}的照片。",
    "这个{}的好照片。",
    "这个{}的渲染图。",
    "电子游戏中的一个{}。",
    "一张只有一个{}的照片。",
    "一幅{}的简笔画。",
    "这个{}的特写照片。",
    "一张{}的照片。",
    "这个折纸{}。",
    "电子游戏中的这个{}。",
    "一幅{}的素描。",
    "这个{}的简笔画。",
    "一个折纸{}。",
    "一张低分辨率的{}的照片。",
    "这个玩具{}。",
    "这个{}的艺术再现。",
    "这个干净的{}的照片。",
    "一张大{}的照片。",
    "一幅{}的艺术再现。",
    "一张漂亮的{}的照片。",
    "一张奇怪的{}的照片。",
    "一张模糊的{}的照片。",
    "一个卡通{}。",
    "一件{}的艺术作品。",
    "这个{}的素描。",
    "一个刺绣的{}。",
    "一张像素化的{}的照片。",
    "我拍的这个{}的照片。",
    "这个{}的因JPEG压缩而受损的照片。",
    "一张好的{}的照片。",
    "一个毛绒{}。",
    "这个漂亮的{}的照片。",
    "这个小{}的照片。",
    "这个奇怪的{}的照片。",
    "这个卡通{}。",
    "这个{}的艺术作品。",
    "这个{}的图画。",
    "这个大{}的照片。",
    "一张{}的黑白照片。",
    "这个毛绒{}。",
    "一张昏暗的{}的照片。",
    "我拍的一张{}的照片。",
    "这个{}的涂鸦墙画。",
    "一个玩具{}。",
    "我拍的我的{}的照片。",
    "一张很酷的{}的照片。",
    "一张小{}的照片。",
    "这个{}的纹身。",
)
"""This project's prompts."""

AUTHORS = (
    "{}的照片。",
    "质量差的{}的照片。",
    "许多{}的照片。",
    "{}的雕塑。",
    "难以看到{}的照片。",
    "{}的低分辨率照片。",
    "{}的渲染。",
    "涂鸦{}。",
    "{}的糟糕照片。",
    "{}的裁剪照片。",
    "{}的纹身。",
    "{}的刺绣照片。",
    "很难看到{}的照片。",
    "{}的明亮照片。",
    "一张干净的{}的照片。",
    "一张包含{}的照片。",
    "{}的深色照片。",
    "{}的手绘画。",
    "我的{}的照片。",
    "不自然的{}的照片。",
    "一张酷的{}的照片。",
    "{}的特写照片。",
    "{}的黑白照片。",
    "一幅{}的画。",
    "一幅{}的绘画。",
    "一张{}的像素照片。",
    "{}的雕像。",
    "一张{}的明亮照片。",
    "{}的裁剪照片。",
    "人造的{}的照片。",
    "一张关于{}的照片。",
    "损坏的{}的jpeg照片。",
    "{}的模糊照片。",
    "{}的相片。",
    "一张{}的好照片。",
    "{}的渲染照。",
    "视频游戏中的{}。",
    "一张{}的照片。",
    "{}的涂鸦。",
    "{}的近距离照片。",
    "{}的折纸。",
    "{}在视频游戏中。",
    "{}的草图。",
    "{}的涂鸦照。",
    "{}的折纸形状。",
    "低分辨率的{}的照片。",
    "玩具{}。",
    "{}的副本。",
    "{}的干净的照片。",
    "一张大{}的照片。",
    "{}的重现。",
    "一张漂亮的{}的照片。",
    "一张奇怪的{}的照片。",
    "模糊的{}的照片。",
    "卡通{}。",
    "{}的艺术作品。",
    "{}的素描。",
    "刺绣{}。",
    "{}的像素照。",
    "{}的拍照。",
    "{}的损坏的照片。",
    "高质量的{}的照片。",
    "毛绒玩具{}。",
    "漂亮的{}的照片。",
    "小{}的照片。",
    "照片是奇怪的{}。",
    "漫画{}。",
    "{}的艺术照。",
    "{}的图形。",
    "大{}的照片。",
    "黑白的{}的照片。",
    "{}毛绒玩具。",
    "一张{}的深色照片。",
    "{}的摄影图。",
    "{}的涂鸦照。",
    "玩具形状的{}。",
    "拍了{}的照片。",
    "酷酷的{}的照片。",
    "照片里的小{}。",
    "{}的刺青。",
)
"""The authors' prompts, in the order of Chinese-CLIP's ``imagenet_zeroshot_templates.py`` (MIT), which has them from
the authors' evaluation code. Two stand twice, and so have twice the weight in a mean."""

CHINESE_CLIP = "cn-clip"

_BY_NAME = {"authors": AUTHORS, "ours": PROMPTS}
NAMES = (*_BY_NAME, CHINESE_CLIP)
"""The names of the lists of prompts."""

_FILE = "cn_clip/eval/cvinw_zeroshot_templates.py"
_DIGEST = "ae3324fae56ada29571f1aafb2b42179bc4c67729558b89afebe36df9d795629"
_INSTALL = "pip install --no-deps cn-clip==1.6.0"
_LISTS = {
    "flowers102": "flower_templates",
    "food101": "food_templates",
    "aircraft": "aircraft_templates",
    "eurosat": "eurosat_templates",
}
"""Which of Chinese-CLIP's lists its ``zeroshot_evaluation.py`` takes for a set; all others have the first."""
_FIRST = "openai_templates"


def of(name: str, data_set: str = "") -> tuple[str, ...]:
    """Return a list of prompts, in its order, repetitions included.

    Args:
        name: one of ``NAMES``.
        data_set: name of the set that is measured. Chinese-CLIP has prompts of its own for some; it makes no difference
            to the others.

    Raises:
        DataError: there is no such list.
        ConfigError: Chinese-CLIP's list is asked for, and the package cn-clip is missing or another version.
    """
    if name == CHINESE_CLIP:
        return _chinese_clip()[_LISTS.get(data_set, _FIRST)]
    if name not in _BY_NAME:
        raise DataError(f"there are no prompts {name!r}; there are: {', '.join(NAMES)}")
    return _BY_NAME[name]


@functools.cache
def _chinese_clip() -> Mapping[str, tuple[str, ...]]:
    """Read the lists of the package cn-clip without running its code: ``NAME = [lambda c: f"...{c}...", ...]``."""
    path = installed_file("cn-clip", _FILE, _INSTALL)
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != _DIGEST:
        raise ConfigError(f"{path} has not the prompts of cn-clip 1.6.0 (SHA-256 {_DIGEST[:8]}…): run `{_INSTALL}`")
    templates = {}
    for statement in ast.parse(data).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.List):
            (target,) = statement.targets
            templates[ast.unparse(target)] = tuple(_text(entry) for entry in statement.value.elts)
    return templates


def _text(entry: ast.expr) -> str:
    """Return the f-string of a lambda with ``{}`` in the place of its argument."""
    parts = entry.body.values if isinstance(entry, ast.Lambda) and isinstance(entry.body, ast.JoinedStr) else []
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)
