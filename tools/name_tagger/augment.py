"""Variation of labelled captions while taggers are fitted: more names and more sentences than were written.

A name is replaced by another of its kind, two captions are joined, and dictionary words in plain contexts are added as
captions without a name. Every function draws from the generator that it is given, so the same seed gives the same
captions.
"""

import random
import re
from collections import defaultdict
from collections.abc import Sequence

from tools.name_tagger.captions import Labelled
from wukong.curate.names import normalized, word_lists
from wukong.curate.text.characters import MAIN_BLOCK

_REPLACED = 0.5
"""Probability that a name is replaced."""

_JOINTS = (" ", " ", "，", "_", " | ", "")
_CONTEXTS = ("{}", "{}", "{}", "{}图片", "手绘{}", "{}简笔画", "一张{}的照片", "{}高清大图", "{}素材", "{}介绍")
_DOTS = "·•・‧．"
_COMMON = re.compile(f"[{MAIN_BLOCK}]+")


class NamePool:
    """Names by kind, from which a name's replacement is drawn.

    They are those of the labelled captions, of ``people.txt`` and of jieba's dictionary, and new combinations of a
    Chinese surname and the characters of given names.

    Args:
        labelled: the names in the captions that are fitted on.
    """

    def __init__(self, labelled: Sequence[str]) -> None:
        self._single, self._double = word_lists.surnames()
        self._japanese = set(word_lists.read_list("japanese.txt"))
        dictionary = [word for word, _, flag in word_lists.dictionary() if flag.startswith("nr") and len(word) > 1]
        self._pools: dict[str, list[list[str]]] = defaultdict(list)
        for pool in (list(labelled), word_lists.read_list("people.txt"), dictionary):
            kinds: dict[str, list[str]] = defaultdict(list)
            for name in pool:
                kinds[self.kind(name)].append(name)
            for kind, members in kinds.items():
                self._pools[kind].append(members)
        chinese = {size: [n for pool in self._pools[f"chinese {size}"] for n in pool] for size in (2, 3)}
        chinese[3] = [name for name in chinese[3] if name[:2] not in self._double]
        self._surnames = [name[0] for members in chinese.values() for name in members]
        self._given = {1: [name[1] for name in chinese[2]], 2: [name[1:] for name in chinese[3]]}

    def kind(self, name: str) -> str:
        """The kind of a name.

        ``chinese 2``, ``chinese 3`` and ``chinese 4`` are Chinese names by their number of characters; ``dotted`` is
        transliterated (汤姆·克鲁斯); ``mixed`` has other characters than Chinese (C罗); the rest is ``japanese`` or
        ``other``.
        """
        if any(dot in name for dot in _DOTS):
            return "dotted"
        if _COMMON.fullmatch(name) is None:
            return "mixed"
        if name[:2] in self._double and len(name) in (3, 4):
            return f"chinese {len(name)}"
        if name[0] in self._single and len(name) in (2, 3):
            return f"chinese {len(name)}"
        if 3 <= len(name) <= 5 and (name[:2] in self._japanese or name[:3] in self._japanese):
            return "japanese"
        return "other"

    def like(self, name: str, generator: random.Random) -> str:
        """Another name of the same kind."""
        kind = self.kind(name)
        if kind.startswith("chinese") and generator.random() < 0.4:
            return self._combined(int(kind[-1]), generator)
        return generator.choice(generator.choice(self._pools[kind]))

    def _combined(self, size: int, generator: random.Random) -> str:
        """A Chinese name of 2 to 4 characters, combined of a surname and a given name."""
        if size == 4 or (size == 3 and generator.random() < 0.08):
            surname = generator.choice(self._double)
            if size == 4 and generator.random() < 0.2:  # the surnames of husband and wife
                surname = generator.choice(self._surnames) + generator.choice(self._surnames)
            return surname + generator.choice(self._given[size - 2])
        surname = generator.choice(self._surnames if generator.random() < 0.75 else self._single)
        if size == 3 and generator.random() < 0.5:
            return surname + "".join(generator.choice(self._given[2])[place] for place in (0, 1))
        return surname + generator.choice(self._given[size - 1])


def replace_names(caption: Labelled, pool: NamePool, generator: random.Random) -> Labelled:
    """The caption with some of its names replaced by others of their kind; names with a space stay."""
    text, names, end, old = "", [], 0, caption.text
    for start, stop in caption.names:
        text += old[end:start]
        name = old[start:stop]
        if generator.random() < _REPLACED and not re.search(r"\s", name):
            name = pool.like(name, generator)
        names.append((len(text), len(text) + len(name)))
        text, end = text + name, stop
    return Labelled(text + old[end:], names)


def join(first: Labelled, second: Labelled, generator: random.Random) -> Labelled:
    """Two captions as one, with a space between them where a name would touch the other caption."""
    joint = generator.choice(_JOINTS)
    ends_in_name = bool(first.names) and first.names[-1][1] == len(first.text)
    begins_with_name = bool(second.names) and second.names[0][0] == 0
    if ends_in_name or begins_with_name:
        joint = " "
    moved = len(first.text) + len(joint)
    names = [(start + moved, end + moved) for start, end in second.names]
    return Labelled(first.text + joint + second.text, first.names + names)


def nameless_words() -> list[str]:
    """The dictionary's words of 2 to 4 characters that are no names."""
    people = set(word_lists.read_list("people.txt"))
    return [
        word
        for word, frequency, flag in word_lists.dictionary()
        if frequency >= 5 and 2 <= len(word) <= 4 and flag[0] in "nvail" and not flag.startswith("nr")
        if word not in people
    ]


def nameless_caption(words: Sequence[str], generator: random.Random) -> Labelled:
    """A caption without a name: one of some words in a plain context."""
    context = generator.choice(_CONTEXTS)
    return Labelled(normalized(context.format(generator.choice(words))), [])
