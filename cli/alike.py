"""Takedown by example: print what is near a picture as a list that a takedown takes."""

from collections.abc import Sequence
from typing import Annotated

import typer

from wukong.commands.output import Console, print_data

DISTANCE = 31
"""The distance that PDQ's authors recommend (``wukong.curate.pdq.DISTANCE``)."""

COSINE = 0.8
"""Copies with other edges stay above it; a frame takes most of them below."""

LikeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--like",
        metavar="PICTURE",
        help="Print a LIST of what is near this picture, a path or a URI, and change nothing (repeatable).",
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


def print_near(
    root: str,
    like: Sequence[str],
    like_hashes: Sequence[str],
    indexes: Sequence[str],
    *,
    distance: int,
    cosine: float,
    model: str | None,
) -> None:
    """Print the list of what is near: by pictures, and by vectors what is near by them alone.

    Args:
        root: URI of the experiment, or of one stage's output.
        like: URIs of pictures.
        like_hashes: URIs of lists of hashes.
        indexes: URIs under which indexes of a search are kept.
        distance: the most bits in which hashes may differ.
        cosine: the least cosine of vectors.
        model: address of a model that indexes were made with.

    Raises:
        ConfigError: an example is no picture, or a list is of other hashes.
        DataError: there are no pictures at the place.
    """
    from wukong.publish import alike

    told = Console(stderr=True, highlight=False, soft_wrap=True)
    shown = alike.read_examples(like)
    for example in shown:
        if not len(example.hashes):
            told.print(
                f"{example.name} has too little in it to be compared by its hash: only equal files and vectors count",
                markup=False,
            )
    outputs = alike.outputs_at(root)
    hits, unread = alike.by_pictures(root, outputs, [*shown, *alike.read_lists(like_hashes)], distance)
    if unread:
        told.print(f"{unread:,} stored pictures cannot be decoded and were not compared")
    if shown and cosine < 1 and alike.has_vectors(root, outputs, indexes):
        from wukong.publish import alike_vectors

        models = [model] if model else []
        by_vectors, left_out = alike_vectors.near(root, outputs, shown, indexes, models, cosine)
        known = {hit.key for hit in hits}
        hits += [hit for hit in by_vectors if hit.key not in known]
        for why in left_out:
            told.print(why, markup=False)
    if hits:
        print_data(alike.as_list(alike.described(outputs, hits)), newline=False)
    else:
        told.print(f"Nothing is near at {root}", markup=False)
