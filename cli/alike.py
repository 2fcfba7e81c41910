"""Takedown by example: list what is near a picture, show it, and ask a person what of it goes."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from wukong.commands.output import Console, Table, wide
from wukong.errors import ConfigError
from wukong.runtime.language import message, translated
from wukong.store import storage

if TYPE_CHECKING:
    from wukong.publish.alike import Example, Hit, Match

DISTANCE = 31
"""The distance that PDQ's authors recommend (``wukong.curate.pdq.DISTANCE``)."""

COSINE = 0.8
"""Copies with other edges stay above it; a frame takes most of them below."""

LikeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--like",
        metavar="PICTURE",
        help="In the place of LIST: find what is near this picture, a path or a URI (repeatable).",
    ),
]
LikeHashesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--like-hashes",
        metavar="FILE",
        help="As --like, for the pictures of a list of PDQ or MD5 hashes, which nobody sees (repeatable).",
    ),
]
ConfirmOption = Annotated[
    list[str] | None,
    typer.Option("--confirm", metavar="KEY,KEY", help="With --like: take out these of what was listed (repeatable)."),
]
YesOption = Annotated[
    bool, typer.Option("--yes", help="With --like: take out all that is equal or near by hash, without a question.")
]
DistanceOption = Annotated[
    int,
    typer.Option("--distance", min=0, max=100, help="With --like: the most bits of 256 in which hashes may differ."),
]
CosineOption = Annotated[
    float,
    typer.Option("--cosine", min=0, max=1, help="With --like: the least cosine of vectors; 1 to compare no vectors."),
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="With --like: the model of the search's index, if the experiment did not train it."),
]
SheetOption = Annotated[
    Path | None,
    typer.Option("--sheet", metavar="FILE", help="With --like: write a page of what is near, its pictures blurred."),
]
ShowOption = Annotated[bool, typer.Option("--show", help="Do not blur the pictures of --sheet.")]


@dataclass(frozen=True)
class Asked:
    """What is looked for, and how.

    Attributes:
        like: URIs of pictures.
        like_hashes: URIs of lists of hashes.
        distance: the most bits in which hashes may differ.
        cosine: the least cosine of vectors.
        indexes: URIs under which indexes of a search are kept.
        model: address of a model that indexes were made with.
        sheet: file of the page to write.
        show: whether its pictures are not blurred.
    """

    like: Sequence[str]
    like_hashes: Sequence[str]
    distance: int
    cosine: float
    indexes: Sequence[str]
    model: str | None
    sheet: Path | None
    show: bool


def confirmed(
    console: Console, root: str, asked: Asked, keys: Sequence[str] | None, *, yes: bool, ask: bool
) -> bytes | None:
    """List what is near, and return what a person confirms as a list of a takedown; None if that is nothing.

    Args:
        console: where matches are listed.
        root: URI of the experiment, or of one stage's output.
        asked: what is looked for.
        keys: keys that are confirmed, with commas between them.
        yes: whether all that is equal or near by hash is confirmed.
        ask: whether to ask for each match if nothing is confirmed, at a terminal.

    Raises:
        ConfigError: an example is no picture, a list is of other hashes, or a key is not among the matches.
        DataError: there are no pictures at the place.
    """
    from wukong.publish import alike

    examples = [*alike.read_examples(asked.like), *alike.read_lists(asked.like_hashes)]
    matches = _matches(console, root, asked, examples)
    if not matches:
        console.print(f"Nothing is near at {root}", markup=False)
        return None
    _print(console, matches)
    if asked.sheet is not None:
        from wukong.publish import near_pictures

        page = near_pictures.render(matches, alike.pictures(matches), blurred=not asked.show)
        storage.write_bytes(storage.from_path(asked.sheet), page.encode())
        console.print(f"{asked.sheet} shows them; delete it when it is not needed any more", markup=False)
    named = {key.strip() for each in keys or () for key in each.split(",")} - {""}
    if unknown := named - {match.hit.key for match in matches}:
        raise ConfigError(f"--confirm: {', '.join(sorted(unknown))} is not among what is near: take keys of the table")
    chosen = [match for match in matches if match.hit.key in named or (yes and match.hit.level != "vector")]
    if not named and not yes:
        if not ask or not sys.stdin.isatty():
            console.print(
                "Nothing was taken out: say --confirm KEY,KEY for some of them, or --yes for all that are equal or "
                "near by hash; at a terminal you are asked for each"
            )
            return None
        chosen = [match for match in matches if typer.confirm(translated(_question(match)))]
    if not chosen:
        console.print("Nothing was confirmed, and nothing is changed")
        return None
    return alike.list_of(chosen, examples)


def _question(match: "Match") -> str:
    return message(f"Take out {match.hit.key} ({_level(match.hit)}), {match.caption[:40]!r}?")


def _matches(console: Console, root: str, asked: Asked, examples: "Sequence[Example]") -> "list[Match]":
    """Find what is near, by pictures first, and by vectors what is near by them alone."""
    from wukong.publish import alike

    for example in examples:
        if example.picture and not len(example.hashes):
            console.print(
                f"{example.name} has too little in it to be compared by its hash: only equal files and vectors count",
                markup=False,
            )
    outputs = alike.outputs_at(root)
    hits, unread = alike.by_pictures(root, outputs, examples, asked.distance)
    if unread:
        console.print(f"{unread:,} stored pictures cannot be decoded and were not compared")
    known = {hit.key for hit in hits}
    seen = [example for example in examples if example.picture]
    if seen and asked.cosine < 1 and alike.has_vectors(root, outputs, asked.indexes):
        from wukong.publish import alike_vectors

        models = [asked.model] if asked.model else []
        by_vectors, left_out = alike_vectors.near(root, outputs, seen, asked.indexes, models, asked.cosine)
        hits += [hit for hit in by_vectors if hit.key not in known]
        for why in left_out:
            console.print(why, markup=False)
    return alike.described(outputs, hits, alike.made_of_pictures(root, outputs, asked.indexes))


def _level(hit: "Hit") -> str:
    """Say by what a picture is near, and how near."""
    if hit.level == "equal":
        return message("equal file")
    if hit.level == "hash":
        return message(f"hash, {hit.distance:.0f} bits")
    return message(f"vector, cosine {1 - hit.distance:.3f}")


def _print(console: Console, matches: "Sequence[Match]") -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("key", "near by", "caption", "url", "where"):
        table.add_column(column, no_wrap=True)
    for match in matches:
        facts = (Text(match.caption), Text(match.url), Text(", ".join(match.where)))
        table.add_row(match.hit.key, translated(_level(match.hit)), *facts)
    wide(console).print(table, crop=False)
