"""Write ``wukong/curate/name_lists/lexicon.txt``: names of jieba's dictionary, and how sure LAC is of each.

Every word of the dictionary is put into ten short contexts, some of which ask for a person, some for a place or a
thing, and most for neither. How sure LAC is of a name is the mean probability, over the contexts, that exactly the word
is one. A word that the dictionary calls a name is kept where that is 0.4 and more, any other where it is 0.85; titles
and nicknames never. Takes some five minutes.

    python benchmarks/curate/names/lexicon.py
"""

import re
from pathlib import Path

import numpy as np
from tqdm import tqdm

from wukong.curate import lac, name_words

CONTEXTS = (
    "{}照片", "图为{}", "{}出席活动现场", "记得{}说过的话", "{}",
    "{}图片大全", "位于{}的风景", "一款{}的价格", "关于{}的故事", "他买了{}",
)  # fmt: skip
LEAST_NAMED, LEAST_OTHER = 0.4, 0.85
OTHER_FLAGS = frozenset(("nz", "n", "ns", "nt", "d", "x", "i", "l", "v"))
TITLED = re.compile(
    r".(?:先生|女士|小姐|太太|夫人|老师|经理|姑娘|老爷|总兵|道友|师叔|师父|将军|皇后|皇帝|大人|公公|婆婆|爷|氏)$|^[老小阿大].$"
)
WRITTEN = re.compile("(?=.*[\u4e00-\u9fff])[\u4e00-\u9fff·A-Za-z]{2,8}")
BATCH = 4096
TARGET = Path(__file__).parents[3] / "wukong" / "curate" / "name_lists" / "lexicon.txt"


def main() -> None:
    """Build the list."""
    named = {}
    for word, _, flag in name_words.dictionary():
        if (flag.startswith("nr") or flag in OTHER_FLAGS) and WRITTEN.fullmatch(word):
            named[word] = flag.startswith("nr")
    words, model = list(named), lac.load()
    sure = np.zeros(len(words), np.float32)
    for context in tqdm(CONTEXTS):
        start = context.index("{}")
        for first in range(0, len(words), BATCH):
            batch = words[first : first + BATCH]
            readings = model.read([context.format(word) for word in batch])
            sure[first : first + BATCH] += [
                reading.names[start, len(word) - 1] for word, reading in zip(batch, readings, strict=True)
            ]
    sure /= len(CONTEXTS)
    kept = sorted(
        (word, value)
        for word, value in zip(words, sure.tolist(), strict=True)
        if value >= (LEAST_NAMED if named[word] else LEAST_OTHER) and not TITLED.search(word)
    )
    header = "# Made by benchmarks/curate/names/lexicon.py from jieba's dictionary and the LAC that it ships.\n"
    TARGET.write_text(header + "".join(f"{word}\t{value:.2f}\n" for word, value in kept), encoding="utf-8")
    print(f"{len(kept)} names in {TARGET}")


if __name__ == "__main__":
    main()
