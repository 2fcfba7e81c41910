"""Person names, which section 3.2 replaces by ``<人名>``."""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

MASK = "<人名>"
_SURNAMES = (
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林罗郑梁谢宋唐许韩冯邓曹彭曾萧田董袁潘于蒋蔡余杜叶程苏魏吕丁任沈姚卢姜崔钟谭陆汪"
    "范金石廖贾夏韦付方白邹孟熊秦邱江尹薛闫段雷侯龙史陶黎贺顾毛郝龚邵万钱严覃武戴莫孔向汤"
)
_DOUBLE_SURNAMES = "欧阳|司马|上官|诸葛|东方|皇甫|尉迟|公孙|慕容|令狐|司徒|夏侯|端木|南宫"
_GATE = re.compile(rf"(?:{_DOUBLE_SURNAMES}|[{_SURNAMES}])[\u4e00-\u9fff]{{1,2}}")


def mask(captions: Iterable[str]) -> list[str]:
    """Replace every person name in each caption by ``<人名>``."""
    return [_mask(caption) if _GATE.search(caption) else caption for caption in captions]


def _mask(caption: str) -> str:
    pieces = []
    for pair in _tagger().cut(caption):
        pieces.append(MASK if pair.flag == "nr" and _plausible(pair.word) else pair.word)
    return "".join(pieces)


def _plausible(word: str) -> bool:
    """A surname and one or two characters that is no word of the dictionary: 安静 is a word, 张伟明 is not."""
    import jieba

    return bool(_GATE.fullmatch(word)) and not jieba.dt.FREQ.get(word)


@lru_cache(maxsize=1)
def _tagger() -> Any:
    import logging

    import jieba
    import jieba.posseg

    jieba.setLogLevel(logging.WARNING)
    jieba.initialize()
    return jieba.posseg


def suspects(caption: str) -> list[str]:
    """What may still be a person name in a masked caption: more is suspected than ``mask`` replaces."""
    if not _GATE.search(caption):
        return []
    return [pair.word for pair in _tagger().cut(caption) if pair.flag == "nr" and _GATE.fullmatch(pair.word)]
