"""What may be a person's name in a caption, and what speaks for and against it.

A candidate is described twice: by its characters, its place and the dictionary (``FEATURES``), and by what LAC makes of
the caption (``LAC_FEATURES``). ``wukong.curate.names`` weighs both.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from math import log

import ahocorasick_rs

from wukong.curate import lac, name_words
from wukong.curate.name_words import NameWords

Span = tuple[int, int]

FEATURES = (
    "bias",
    "sure in lexicon",
    "well known",
    "well known, two characters",
    "part of a known name",
    "a word",
    "part of a word",
    "a place's name",
    "likelier than words",
    "chinese",
    "chinese form",
    "two characters",
    "foreign",
    "foreign form",
    "japanese form",
    "with a dot",
    "with a letter",
    "no form",
    "cut at a dot",
    "ends in a title",
    "nickname",
    "brand",
    "person before",
    "person after",
    "memorial after",
    "title after",
    "thing after",
    "listed",
    "length",
)
LAC_FEATURES = (
    "name",
    "name begins",
    "place begins",
    "organisation begins",
    "title begins",
    "verb after",
    "noun after",
    "word ends",
)

# What stands right before a person, right after one, after a thing that is called like one; and titles.
_BEFORE_PERSON = (
    "演员|歌手|歌星|影星|明星|导演|编剧|主持人|主持|作家|诗人|词人|画家|大师|书法家|艺术家|音乐家|钢琴家|作曲家|歌唱家|舞蹈家|"
    "指挥家|科学家|物理学家|化学家|数学家|文学家|思想家|哲学家|教育家|政治家|军事家|革命家|企业家|慈善家|收藏家|漫画家|雕塑家|"
    "设计师|摄影师|厨师|律师|教师|医师|工程师|摄影|记者|通讯员|作者|编辑|教授|院士|博士|医生|护士|校长|院长|园长|市长|县长|省长|"
    "镇长|村长|村支书|书记|主席|总统|总理|首相|大臣|部长|局长|主任|科长|队长|班长|连长|教练|球星|球员|球王|选手|冠军|运动员|名将|"
    "民警|交警|警察|消防员|战士|烈士|老兵|英雄|劳模|村民|居民|农民|市民|同学|学生|老师|班主任|新郎|新娘|志愿者|董事长|总裁|总经理|"
    "创始人|经理|网红|博主|主播|模特|女星|男星|女神|男神|天王|天后|影帝|影后|饰演者|图为|图片由|拍摄者|供图|皇帝|皇后|将军|元帅|"
    "国王|女王|王子|公主|法师|道长|大叔|大爷|大妈|快递员|司机|员工|职工|工人|航天员|宇航员|飞行员|法官|检察官|主演|配音|作词|作曲|"
    "演唱|翻唱|撰文|供稿|文|图|父亲|母亲|妻子|丈夫|儿子|女儿|男友|女友|老公|老婆|得主|巨星|传奇|少年|男孩|女孩|姑娘|奶奶|爷爷|阿姨"
)
_AFTER_PERSON = (
    "出席|亮相|现身|饰演|饰|主演|出演|扮演|演唱|献唱|导演|执导|代言|接受|夺冠|夺得|夺金|获得|荣获|获|摄|致辞|讲话|演讲|讲述|讲解|"
    "结婚|离婚|恋情|婚礼|婚纱|去世|逝世|诞辰|故居|旧居|故里|纪念馆|纪念|雕像|塑像|铜像|画像|墓|祠|传记|日记|近照|旧照|老照片|生活照|"
    "写真|剧照|街拍|同款|造型|演唱会|新歌|专辑|单曲|作品|书法|真迹|手稿|名言|语录|生日|点燃|参加|率领|带领|率|访问|访华|采访|退役|"
    "签名|签售|合影|直播|自拍|机场|素颜|私服|扣篮|进球|射门|夫妇|夫妻|一家|一行|本人|在|为|与|和|给|向|被|说|称|谈|曾|已|正在|"
    "同志|先生|女士|小姐|老师|教授|院士|博士|医生|主任|书记|校长|院长|同学|主席|总统|总理|首相|将军|烈士|教练|总经理|董事长|"
    "主持|朗诵|表演|跳舞|唱|讲|品|摄影|撰文|供图|新剧|新片|电影|全集|小说|诗|词"
)
_AFTER_THING = (
    "酒店|宾馆|饭店|大厦|广场|商场|集团|公司|银行|咖啡|餐厅|香水|手表|汽车|轮胎|品牌|专柜|专卖|旗舰店|店|馆|牌|系列|正品|男款|女款|"
    "男士|女士|款|鞋|包|衣|裤|裙|帽|袜|表|链|戒|镯|耳|茶|酒|酱|油|醋|面|粉|糖|饼|糕|菜|肉|鸭|鸡|鱼|膏|霜|液|水|乳|机|车|路|街|"
    "镇|村|县|市|山|河|江|湖|岛|桥|港|区|院|园|寺|塔|庙|氏|家|大院|花|草|树|木|果|豆|瓜|琴|条|粑|格|笔|箱|灯|椅|凳|床|桌|柜|杯|壶|"
    "碗|盘|锅|刀|剪|纸|漆|砖|板|布|绳|针|线|锁|袋|盒|瓶|罐|桶|犬|猫|鸟|虾|蟹|参|药|汤|粥|丸|串|饺|馍|卷|石|玉|珠宝|奖"
)
_MEMORIALS = "故居|旧居|故里|故宅|旧宅|纪念馆|纪念堂|纪念碑|雕像|铜像|塑像|石像|墓|祠|陵园|草堂"
_LONG_TITLES = (
    "先生|女士|小姐|太太|夫人|老师|教授|院士|博士|医生|大夫|护士|导演|编剧|总理|主席|总统|总裁|董事长|总经理|经理|总监|主任|书记|"
    "市长|县长|省长|部长|局长|处长|校长|院长|园长|所长|队长|班长|厂长|行长|村长|会长|团长|将军|元帅|上将|少校|同学|同志|师傅|大师|"
    "律师|法官|警官|记者|编辑|教练|工程师|大爷|大妈|大叔|大姐|大哥|大娘|大嫂|大婶|阿姨|叔叔|奶奶|爷爷|妹妹|姐姐|哥哥|弟弟|姑娘|"
    "公子|公主|少爷|老爷|道长|掌柜|员外|老板|太医|大侠|大圣|美女|帅哥|主播"
)
_SHORT_TITLES = "总导工姐哥叔婶嫂姨爷婆妈爸局处董氏府家村庄记妃帝嫔皇后王公"

_HAN = name_words.HAN
_DOTS = "·•・‧．"
_BEFORE = re.compile(rf"(?:{_BEFORE_PERSON})[:：/／ 　]?$")
_AFTER = re.compile(rf"\s?(?:{_AFTER_PERSON})")
_THING = re.compile(_AFTER_THING)
_MEMORIAL = re.compile(_MEMORIALS)
_TITLE = re.compile(rf"\s?(?:{_LONG_TITLES}|[{_SHORT_TITLES}])")
_ENDS_IN_TITLE = re.compile(rf".{{1,2}}[{_SHORT_TITLES}]")
_ONLY_TITLED = re.compile(rf"(.{{1,2}}?)(?:{_LONG_TITLES})")
_NICKNAME = re.compile(rf"[老小阿大][{_HAN}]|[{_HAN}][总董导氏局]")
_DOTTED = re.compile(rf"[{_HAN}A-Za-z]{{1,7}}(?:[{_DOTS}][{_HAN}A-Za-z]{{1,8}}){{1,3}}")
_MIXED = re.compile(r"[A-Za-z]{1,5}[罗酱仔哥姐妹]|[阿大小老][A-Z][a-z]{0,5}")
_WRITTEN = re.compile(rf"[{_HAN}A-Za-z][{_HAN}A-Za-z{_DOTS}]*[{_HAN}A-Za-z]")
_HAN_ONLY = re.compile(rf"[{_HAN}]+")
_LISTED = frozenset("、&＆/／")
# Least log ratio of a transliterated name, and log odds of any, for a string to be looked at.
_LEAST_FOREIGN, _LEAST_ODDS = 3.0, -1.0
# Log ratio that lets every string of a form be looked at.
_SURE = 100.0
# A name in LAC's eyes with less probability is not looked at.
_LEAST_NAME = 0.02
_NO_RATIO = -9.0


@dataclass(frozen=True)
class _Text:
    """A text with what all its candidates need: words of the dictionary, known names and brands in it."""

    text: str
    words: name_words.Segmented
    known: list[Span]
    brands: list[Span]


@dataclass(frozen=True)
class Candidates:
    """The candidates of one text and their features but LAC's, [candidates, FEATURES]."""

    about: _Text
    spans: list[Span]
    features: list[list[float]]


_NOTHING = Candidates(_Text("", name_words.Segmented([], [], [], []), [], []), [], [])


@lru_cache(maxsize=1)
def _finders() -> tuple[ahocorasick_rs.AhoCorasick, ahocorasick_rs.AhoCorasick]:
    """Finders of known names and of brands."""
    words = name_words.load()
    names, brands = sorted({*words.lexicon, *words.people}), name_words.read_list("brands.txt")
    longest = ahocorasick_rs.MatchKind.LeftmostLongest
    return ahocorasick_rs.AhoCorasick(names), ahocorasick_rs.AhoCorasick(brands, matchkind=longest)


def propose(text: str, words: NameWords) -> Candidates:
    """Spans that may be names by their characters alone, described."""
    names, brand = _finders()
    known = [(start, end) for _, start, end in names.find_matches_as_indexes(text, overlapping=True)]
    if known:
        known = [span for span in known if (name := text[slice(*span)]) in words.lexicon or name in words.people]
    formed, marked = _formed(text, words), _marked(text)
    if not (known or formed or marked):
        return _NOTHING
    segmented = words.segment(text)
    spans = {(s, e) for s, e, ratio in formed if ratio + segmented.without(s, e) > _LEAST_ODDS}
    spans.update(known, marked)
    if not spans:
        return _NOTHING
    brands = [(start, end) for _, start, end in brand.find_matches_as_indexes(text)]
    about = _Text(text, segmented, known, brands)
    return _described(about, spans, words)


def add_read(found: Candidates, reading: lac.Reading, words: NameWords) -> Candidates:
    """The candidates together with those that only LAC sees."""
    starts, sizes = (reading.names > _LEAST_NAME).nonzero()
    spans = {(start, start + size + 1) for start, size in zip(starts.tolist(), sizes.tolist(), strict=True)}
    more = _described(found.about, spans.difference(found.spans), words)
    return Candidates(found.about, found.spans + more.spans, found.features + more.features)


def read_features(span: Span, reading: lac.Reading) -> list[float]:
    """LAC's view of a span, as ``LAC_FEATURES`` names it."""
    start, end = span
    names = reading.names[start].tolist()
    here = reading.begins[start].tolist()
    after = reading.begins[end].tolist() if end < len(reading.begins) else None
    return [
        _logit(names[end - start - 1] if end - start <= lac.LONGEST else 0.0),
        _logit(sum(names)),
        here[_PLACE],
        here[_ORGANISATION],
        here[_TITLED],
        0.0 if after is None else after[_VERB],
        0.0 if after is None else after[_NOUN],
        1.0 if after is None else sum(after),
    ]


_PLACE, _ORGANISATION, _TITLED, _NOUN, _VERB = (
    list(lac.GROUPS).index(group) for group in ("place", "organisation", "title", "noun", "verb")
)


def _logit(probability: float) -> float:
    """Log odds over 4, within those of 1e-4."""
    sure = min(max(probability, 1e-4), 1 - 1e-4)
    return log(sure / (1 - sure)) / 4


def _formed(text: str, words: NameWords) -> list[tuple[int, int, float]]:
    """Strings of the form of a Chinese, Japanese or transliterated name, with the log ratio of a name against text."""
    found = [*words.foreign_in(text, _LEAST_FOREIGN), *words.chinese_in(text, _LEAST_ODDS)]
    for match in words.japanese_begun.finditer(text):
        found += [(match.start(), end, _SURE) for end in range(match.end() + 1, min(len(text), match.end() + 3) + 1)]
    return found


def _marked(text: str) -> set[Span]:
    """Strings that a dot or a letter makes look like a name (迈克尔·乔丹, C罗)."""
    spans = {match.span() for match in _MIXED.finditer(text)}
    for match in _DOTTED.finditer(text):
        # Where such a name begins and ends among other words is for the features to say.
        dots = [place for place in range(*match.span()) if text[place] in _DOTS]
        lows, highs = range(match.start(), min(dots[0], match.start() + 4)), range(dots[-1] + 2, match.end() + 1)
        spans.update((low, high) for low in lows for high in highs)
    return spans


def _is_possible(name: str, words: NameWords) -> bool:
    """Whether a string may be a full name: no brackets and the like, nor a surname with a title or in a nickname."""
    if _WRITTEN.fullmatch(name) is None or name.isascii():
        return False
    if name in words.people:
        return True
    if len(name) == 2 and _NICKNAME.fullmatch(name):
        return name[0] not in words.surnames and name[1] not in words.surnames
    titled = _ONLY_TITLED.fullmatch(name)
    return titled is None or (len(titled[1]) > 1 and titled[1] not in words.surnames)


def _described(about: _Text, spans: set[Span], words: NameWords) -> Candidates:
    text = about.text
    kept, features = [], []
    for start, end in sorted(spans):
        if not _is_possible(text[start:end], words):
            continue
        before = _BEFORE.search(text, max(0, start - 6), start) is not None
        after = _AFTER.match(text, end) is not None
        span = (start, end)
        branded = any(low < end and start < high and not _goes_beyond(text, span, low) for low, high in about.brands)
        # A brand is a person where a title, or something only a person does, is near.
        if branded and not (before or after):
            continue
        kept.append(span)
        features.append(_features(about, span, words, before, after, branded))
    return Candidates(about, kept, features)


def _goes_beyond(text: str, span: Span, brand: int) -> bool:
    """Whether a string is more than the brand that begins in it (迈克尔·乔丹)."""
    return span[0] < brand or any(dot in text[slice(*span)] for dot in _DOTS)


def _holds(outer: Span, inner: Span) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1] and outer != inner


def _features(about: _Text, span: Span, words: NameWords, before: bool, after: bool, branded: bool) -> list[float]:
    text, (start, end) = about.text, span
    name, size = text[start:end], end - start
    dotted, mixed = _DOTTED.fullmatch(name) is not None, _MIXED.fullmatch(name) is not None
    chinese = words.chinese(name) if size <= 4 else None
    foreign = None if _HAN_ONLY.fullmatch(name) is None else words.transliterated(name)
    japanese = 3 <= size <= 5 and words.from_japanese(name)
    sure, famous = words.lexicon.get(name, 0.0), name in words.people
    inside = _UNKNOWN
    for low, high, value in about.words.longer:
        # 故居 and the like after a name make a word of the dictionary (鲁迅故居), and the name stays one.
        if value > inside and _holds((low, high), span) and not (low == start and _AFTER.fullmatch(text, end, high)):
            inside = value
    ratio = max(
        _NO_RATIO if chinese is None else chinese,
        _NO_RATIO if foreign is None else foreign,
        3.0 * size * (1.0 if famous else sure),
    )
    odds = ratio + about.words.without(start, end)
    strange = foreign is not None and size > 2 and foreign > 0
    return [
        1.0,
        sure,
        float(famous),
        float(famous and size == 2),
        float(any(_holds(other, span) for other in about.known)),
        (words.words.get(name, _UNKNOWN) - _UNKNOWN) / 8,
        (inside - _UNKNOWN) / 8,
        float(name in words.places),
        0.0 if dotted or mixed else min(max(odds / 5, -3.0), 3.0),
        0.0 if chinese is None else min(max(chinese / 5, -1.0), 2.4),
        float(chinese is not None),
        float(size == 2 and not mixed),
        0.0 if foreign is None or chinese is not None else min(max(foreign / size, -3.0), 3.0),
        float(strange),
        float(japanese),
        float(dotted),
        float(mixed),
        float(not (chinese is not None or strange or japanese or dotted or mixed)),
        float((start > 1 and text[start - 1] in _DOTS) or (end < len(text) - 1 and text[end] in _DOTS)),
        float(sure < 0.5 and _ENDS_IN_TITLE.fullmatch(name) is not None),
        float(_NICKNAME.fullmatch(name) is not None),
        float(branded),
        float(before),
        float(after),
        float(_MEMORIAL.match(text, end) is not None),
        float(_TITLE.match(text, end) is not None),
        float(_THING.match(text, end) is not None),
        float((start > 0 and text[start - 1] in _LISTED) or (end < len(text) and text[end] in _LISTED)),
        size / 4,
    ]


_UNKNOWN = name_words.UNKNOWN
