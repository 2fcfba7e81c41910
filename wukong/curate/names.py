"""Person names, which section 3.2 replaces by ``<人名>``.

LAC tags names well but is slow and, on captions, takes brands and titles for names and misses names out of context.
So it is asked only about captions that a cheap gate lets through, and its answer is put right by a lexicon, a list of
brands and rules on titles, neighbours and length. Everything happens on a form of the caption in which full-width and
Traditional characters are replaced one for one, so that places in it are places in the caption.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal
from unicodedata import normalize

import ahocorasick_rs

from wukong.curate import lac
from wukong.curate.simplified import table

Span = tuple[int, int]
Care = Literal["precise", "balanced", "thorough"]

MASK = "<人名>"
_LISTS = Path(__file__).parent / "name_lists"
_HAN = "\u4e00-\u9fff"
_DOT = "·•・‧．"
# Characters that transliterations of foreign names are made of.
_FOREIGN = (
    "阿埃艾爱安昂奥巴白拜班邦贝本比彼宾波伯勃博卜布查察昌楚茨达戴丹当道德登邓狄迪蒂丁东杜多厄恩尔法凡范菲费芬丰佛弗"
    "夫福甫盖甘冈高戈哥格根贡古瓜圭哈海汉豪赫亨洪胡华怀惠霍基吉季加嘉贾简杰金津卡凯坎康考柯科克肯孔库夸奎昆拉腊莱"
    "赖兰朗劳勒雷蕾黎里理利立丽莉莲连列琳林隆卢鲁路露伦罗洛吕玛马麦迈曼芒茅梅门蒙米密敏明缪摩莫默姆木穆拿娜纳乃奈"
    "南内尼涅妮宁纽农努诺欧帕派潘庞培佩彭蓬皮匹平珀普奇齐恰乔切钦琼丘让热日荣茹瑞若撒萨塞赛桑瑟森沙山珊尚舍申生圣"
    "施史士舒朔斯丝思苏索塔泰坦汤唐陶特藤提廷图托陀瓦万旺威韦维卫温文翁沃乌伍武西希锡席夏香肖谢欣辛兴雄休许雅亚延扬"
    "耶叶伊易因英永尤于雨约越泽曾扎詹张哲珍芝朱兹卓佐"
)
_GIVEN_ENDS = "的了是在和与及或不有也就都而被把从向对为之其这那个们上下中里"
_TITLES = (
    "先生|女士|小姐|太太|夫人|老师|教授|院士|博士|医生|大夫|护士|导演|编剧|总理|主席|总统|总裁|董事长|经理|总监|主任|书记|"
    "市长|县长|省长|部长|局长|处长|校长|院长|所长|队长|班长|厂长|行长|村长|会长|团长|将军|元帅|上将|少校|同学|同志|师傅|"
    "大师|律师|法官|警官|记者|编辑|教练|工程师|大爷|大妈|大叔|大姐|大哥|大娘|阿姨|叔叔|奶奶|爷爷|姑娘|公子|少爷|道长|"
    "总|导|工|姐|哥|叔|婶|嫂|姨|爷|婆|妈|局|处|董|氏|府|家|村|庄|记"
)
_BEFORE_PERSON = (
    "演员|歌手|歌星|影星|明星|导演|编剧|主持人|作家|诗人|画家|书法家|艺术家|音乐家|钢琴家|科学家|数学家|物理学家|设计师|"
    "摄影师|摄影|记者|通讯员|作者|律师|教授|院士|博士|医生|护士|校长|院长|市长|县长|书记|主席|总统|总理|首相|部长|局长|"
    "队长|教练|球星|球员|选手|冠军|运动员|名将|民警|交警|消防员|战士|烈士|英雄|村民|居民|同学|学生|老师|班主任|新郎|新娘|"
    "志愿者|企业家|董事长|总裁|创始人|网红|博主|主播|模特|女星|男星|女神|男神|饰演者|图为|图片由|拍摄者|供图|大师"
)
_AFTER_PERSON = (
    "出席|亮相|现身|饰演|主演|出演|扮演|演唱|献唱|导演|执导|代言|接受采访|夺冠|夺得|获得|荣获|获|摄|致辞|讲话|演讲|讲述|"
    "结婚|离婚|恋情|婚礼|去世|逝世|诞辰|故居|纪念馆|雕像|画像|传记|日记|近照|旧照|老照片|写真|剧照|街拍|同款|造型|演唱会|"
    "新歌|专辑|作品|书法|真迹|生日|点燃|参加|率领|带领|率|访问|访华|同志|先生|女士|老师|教授|导演|院士|扣篮|进球|射门|"
    "采访|退役|签名|合影|直播间"
)
_AFTER_THING = "酒店|宾馆|大厦|广场|商场|集团|公司|银行|咖啡|餐厅|香水|手表|汽车|轮胎|品牌|专柜|专卖店|旗舰店|文学奖"


@dataclass(frozen=True)
class _Lists:
    """The lists and what is compiled from them."""

    surnames: frozenset[str]
    gate: re.Pattern[str]
    lexicon: frozenset[str]
    known: ahocorasick_rs.AhoCorasick
    words: tuple[str, ...]
    brands: ahocorasick_rs.AhoCorasick


def mask(captions: Iterable[str], care: Care = "balanced") -> list[str]:
    """Replace every person name in each caption by ``<人名>``."""
    texts = list(captions)
    return [_replace(text, spans) for text, spans in zip(texts, find(texts, care), strict=True)]


def find(captions: Sequence[str], care: Care = "balanced") -> list[list[Span]]:
    """Find the person names in each caption, as places of the first character and after the last, in order.

    Args:
        captions: any strings.
        care: ``precise`` masks fewer words that are no names, ``thorough`` leaves fewer names unmasked.
    """
    texts = [_plain(caption) for caption in captions]
    passed = [place for place, text in enumerate(texts) if care == "thorough" or _may_hold_name(text)]
    result: list[list[Span]] = [[] for _ in captions]
    tagged = lac.load().tag([texts[place] for place in passed])
    for place, tags in zip(passed, tagged, strict=True):
        result[place] = _settle(texts[place], _tagged_spans(tags), care)
    return result


def suspects(captions: Sequence[str]) -> list[bool]:
    """Whether a masked caption may still hold a name: more is suspected than ``mask`` replaces."""
    return [bool(spans) for spans in find([caption.replace(MASK, "。") for caption in captions], "thorough")]


def _replace(text: str, spans: Sequence[Span]) -> str:
    pieces, end = [], 0
    for start, stop in spans:
        pieces += [text[end:start], MASK]
        end = stop
    return "".join([*pieces, text[end:]])


class _Plain(dict[int, int]):
    """Each character's half-width, Simplified form, worked out when first met."""

    def __missing__(self, code: int) -> int:
        form = "\ufffd" if 0xD800 <= code <= 0xDFFF else normalize("NFKC", chr(code))
        plain = ord(form) if len(form) == 1 else code
        plain = table().get(plain, plain)
        self[code] = plain
        return plain


_PLAIN = _Plain()


def _plain(caption: str) -> str:
    return caption.translate(_PLAIN)


@lru_cache(maxsize=1)
def _lists() -> _Lists:
    def read(name: str) -> list[str]:
        lines = (_LISTS / name).read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line and not line.startswith("#")]

    single, double = read("surnames.txt")
    lexicon, brands = read("lexicon.txt"), read("brands.txt")
    long = [name for name in lexicon if len(name) > 2]
    gate = re.compile(
        rf"(?:{'|'.join(double.split())}|[{single}])[{_HAN}]|[{_HAN}][{_DOT}][{_HAN}]|[{_FOREIGN}]{{3}}|[A-Za-z][罗仔]"
    )
    return _Lists(
        surnames=frozenset([*single, *double.split()]),
        gate=gate,
        lexicon=frozenset(lexicon),
        known=ahocorasick_rs.AhoCorasick(long, matchkind=ahocorasick_rs.MatchKind.LeftmostLongest),
        words=tuple(long),
        brands=ahocorasick_rs.AhoCorasick(brands),
    )


def _may_hold_name(text: str) -> bool:
    return _lists().gate.search(text) is not None


def _tagged_spans(tags: lac.Tags) -> list[Span]:
    names = lac.load().tags
    spans: list[Span] = []
    start: int | None = None
    for place, tag in enumerate([*tags, -1]):
        name = names[tag] if tag >= 0 else "O"
        if start is not None and name not in ("PER-I", "nr-I"):
            spans.append((start, place))
            start = None
        if name in ("PER-B", "nr-B"):
            start = place
    return spans


def _settle(text: str, spans: Sequence[Span], care: Care) -> list[Span]:
    """Put the tagger's spans right and add what it missed."""
    lists = _lists()
    kept: list[Span] = []
    for span in spans:
        kept += _trimmed(text, span)
    for span in _lexicon_spans(text, care):
        # A longer name from the lexicon replaces what was tagged of it; otherwise what was tagged stands.
        crossed = [other for other in kept if _overlap(span, other)]
        if not crossed or any(start == span[0] and end < span[1] for start, end in crossed):
            kept = [other for other in kept if other not in crossed] + [span]
    if care != "thorough":
        branded = [(start, end) for _, start, end in lists.brands.find_matches_as_indexes(text)]
        kept = [
            span for span in kept if not any(_overlap(span, brand) for brand in branded) or _person_is_near(text, span)
        ]
        thing = re.compile(_AFTER_THING)
        kept = [
            span
            for span in kept
            if _person_is_near(text, span) or not (_is_word(text, span) or thing.match(text, span[1]))
        ]
    if care == "precise":
        kept = [span for span in kept if looks_like_name(text[slice(*span)]) or _person_is_near(text, span)]
    return sorted(set(kept))


def _overlap(one: Span, other: Span) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _is_word(text: str, span: Span) -> bool:
    """Whether the span is a word of the dictionary that is no name (鲍鱼), or lies inside a longer one (埃菲尔铁塔)."""
    words, lexicon, (start, end) = _other_words(), _lists().lexicon, span
    name = text[start:end]
    if name in lexicon:
        return False
    # The dictionary's parts of speech are rough: 拿破仑 is a noun there. Only a word of two characters is taken at it.
    named = len(name) > 2
    for low in range(max(0, start - 2), start + 1):
        for high in range(end, min(len(text), end + 3) + 1):
            if text[low:high] in words and not (named and high - low == len(name)):
                return True
    return False


@lru_cache(maxsize=1)
def _other_words() -> frozenset[str]:
    """The words of jieba's dictionary, of at least two characters, whose part of speech is not a person."""
    import jieba

    lines = (Path(jieba.__file__).parent / "dict.txt").read_text(encoding="utf-8").splitlines()
    entries = (line.split(" ") for line in lines)
    return frozenset(word for word, _, flag in entries if len(word) > 1 and not flag.startswith("nr"))


def _trimmed(text: str, span: Span) -> list[Span]:
    """Cut a tagged span to the name: no quotes, titles or neighbours; nothing where only a surname is left."""
    lists = _lists()
    start, end = span
    while start < end and not re.match(rf"[{_HAN}A-Za-z]", text[start]):
        start += 1
    while start < end and not re.match(rf"[{_HAN}A-Za-z]", text[end - 1]):
        end -= 1
    name = text[start:end]
    if not re.search(rf"[{_HAN}]", name):
        return []
    if (titled := re.fullmatch(rf"(.+?)(?:{_TITLES})", name)) and name not in lists.lexicon:
        short = titled[1]
        if short in lists.surnames or short in ("老", "小", "大", "阿"):
            return []
        if len(name) - len(short) > 1 and len(short) > 1:
            end, name = start + len(short), short
    if re.fullmatch(rf"[老小阿大][{_HAN}]", name) and name[1] in lists.surnames and name not in lists.lexicon:
        return []
    if len(name) < 2:
        return []
    return [(start + low, start + high) for low, high in _separated(name)]


def _separated(name: str) -> list[Span]:
    """Names that were tagged as one, apart; and a name without the words that were taken for part of it."""
    lists = _lists()
    whole = [(0, len(name))]
    if re.search(rf"[{_DOT}]", name) or name in lists.lexicon or len(name) < 4:
        return whole
    if _foreign_share(name) >= 0.75:
        return whole
    if name[:2] in lists.surnames:
        return [(0, min(len(name), 4))]
    if name[0] not in lists.surnames:
        return whole
    for length in (3, 2):
        rest = name[length:]
        if len(rest) in (2, 3) and rest[0] in lists.surnames:
            return [(0, length), (length, len(name))]
    for length in (3, 2):
        if name[:length] in lists.lexicon:
            return [(0, length)]
    return whole if len(name) == 4 and name[2] not in _GIVEN_ENDS else [(0, 3)]


def _lexicon_spans(text: str, care: Care) -> list[Span]:
    lists = _lists()
    found = [(start, end) for _, start, end in lists.known.find_matches_as_indexes(text)]
    if care == "precise":
        found = [span for span in found if _person_is_near(text, span)]
    return found


def _person_is_near(text: str, span: Span) -> bool:
    before, after = text[: span[0]], text[span[1] :]
    return bool(re.search(rf"(?:{_BEFORE_PERSON})[:：]?\s*$", before) or re.match(rf"\s*(?:{_AFTER_PERSON})", after))


def looks_like_name(name: str) -> bool:
    """Whether a word has the form of a name: a surname and one or two characters, or a transliteration."""
    lists = _lists()
    if name in lists.lexicon or re.search(rf"[{_DOT}]", name):
        return True
    chinese = (name[0] in lists.surnames and len(name) <= 3) or (name[:2] in lists.surnames and len(name) <= 4)
    return chinese or (len(name) >= 3 and _foreign_share(name) >= 0.75)


def _foreign_share(name: str) -> float:
    return sum(character in _FOREIGN for character in name) / len(name)
