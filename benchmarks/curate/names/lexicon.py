"""Write ``wukong/curate/name_lists/lexicon.txt``: names that LAC knows but does not see in every context.

A word of jieba's dictionary whose part of speech is a person (``nr``, ``nrt``, ``nrfg``), or that has the form of a
name, is kept when LAC tags it a person in at least three of four neutral contexts; never one that LAC takes for a place
or an organisation where a place is asked for, or that is but the beginning of a more frequent word.

    python benchmarks/curate/names/lexicon.py
"""

import re
from pathlib import Path

import jieba

from wukong.curate import lac, names

PERSON_CONTEXTS = ("{}照片", "图为{}", "{}出席活动现场", "记得{}说过的话")
PLACE_CONTEXTS = ("位于{}的风景", "{}旅游攻略", "{}机场", "{}国家地图")
MIN_FREQUENCY = 5
TITLED = re.compile(
    r".(?:先生|女士|小姐|太太|夫人|老师|经理|姑娘|老爷|总兵|道友|师叔|师父|将军|皇后|皇帝|大人|公公|婆婆|爷|氏)$"
)
TARGET = Path(__file__).parents[3] / "wukong" / "curate" / "name_lists" / "lexicon.txt"


def tagged(model: lac.Lac, words: list[str], context: str, kinds: tuple[str, ...]) -> list[bool]:
    """Whether exactly the word is tagged one of ``kinds`` where it stands in the context."""
    begins = {number for number, tag in enumerate(model.tags) if tag in {f"{kind}-B" for kind in kinds}}
    inside = {number for number, tag in enumerate(model.tags) if tag in {f"{kind}-I" for kind in kinds}}
    start = context.index("{}")
    result = []
    for word, tags in zip(words, model.tag([context.format(word) for word in words]), strict=True):
        end = start + len(word)
        whole = tags[start] in begins and all(tag in inside for tag in tags[start + 1 : end])
        result.append(whole and (end == len(tags) or tags[end] not in inside))
    return result


def candidates() -> dict[str, int]:
    """Words that may be names, and in how many contexts each may be missed."""
    allowed, longest, frequencies = {}, {}, {}
    for line in (Path(jieba.__file__).parent / "dict.txt").read_text(encoding="utf-8").splitlines():
        word, frequency, flag = line.split(" ")
        frequencies[word] = int(frequency)
        if not flag.startswith("nr"):
            for end in range(2, len(word)):
                longest[word[:end]] = max(longest.get(word[:end], 0), int(frequency))
        if not re.fullmatch("[\u4e00-\u9fff·]{2,8}", word):
            continue
        # Many names have another part of speech in the dictionary (拿破仑 is a noun, 莫奈 an adverb).
        person = flag in ("nr", "nrt", "nrfg") and int(frequency) >= MIN_FREQUENCY
        if person or (not flag.startswith("nr") and names.looks_like_name(word)):
            allowed[word] = 1
    # A name that only begins another word (阿尔卑 of 阿尔卑斯山) is none, nor is a nickname one (老李).
    begins = {word for word in allowed if longest.get(word, 0) >= frequencies[word]}
    return {w: n for w, n in allowed.items() if w not in begins and not re.match("[老小阿大].$", w)}


def main() -> None:
    """Build the list."""
    model = lac.load()
    allowed = candidates()
    for context in PERSON_CONTEXTS:
        words = list(allowed)
        hits = tagged(model, words, context, ("PER", "nr"))
        allowed = {w: allowed[w] - (not hit) for w, hit in zip(words, hits, strict=True) if hit or allowed[w]}
    words = [word for word in allowed if not TITLED.search(word)]
    for context in PLACE_CONTEXTS:
        placed = tagged(model, words, context, ("LOC", "ORG", "ns", "nt", "nz", "nw"))
        words = [word for word, hit in zip(words, placed, strict=True) if not hit]
    header = (
        "# Made by benchmarks/curate/names/lexicon.py from jieba's dictionary and the LAC model that jieba ships.\n"
    )
    TARGET.write_text(header + "".join(f"{word}\n" for word in sorted(words)), encoding="utf-8")
    print(f"{len(words)} names in {TARGET}")


if __name__ == "__main__":
    main()
