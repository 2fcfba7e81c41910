"""Count the captions whose name is masked beside a picture with one large face.

It is for them that section 3.2 of the paper masks names: the picture shows who is meant. Masking takes the name away
and leaves the face, so a dataset card says how many such pairs there are.
"""

import polars as pl

from wukong.curate.names import MASK

NAME_AND_FACE = "name_and_face"
"""Name of the number in the counts of a filter's manifest."""

_LARGE = 0.04
"""Share of a picture that a large face covers at least: a fifth of its width and of its height."""


def count(pairs: pl.DataFrame) -> int:
    """Count the pairs that are left with a masked name in a caption and exactly one large face in the picture.

    Args:
        pairs: rows with ``faces``, ``caption`` and ``caption_original``. ``faces`` are boxes with ``width`` and
            ``height`` in shares of the picture's sides, null where no model read the picture. ``dropped_by`` and
            ``captions``, the list of several, count where they are there.
    """
    large = pl.element().struct.field("width") * pl.element().struct.field("height") >= _LARGE
    alone = pl.col("faces").list.eval(large).list.sum() == 1
    masked = _marks(pl.col("caption")) > _marks(pl.col("caption_original"))
    if "captions" in pairs.columns:
        fields = (pl.element().struct.field(name) for name in ("caption", "caption_original"))
        now, before = map(_marks, fields)
        masked |= pl.col("captions").list.eval(now > before).list.any().fill_null(value=False)
    left = pl.col("dropped_by").is_null() if "dropped_by" in pairs.columns else pl.lit(value=True)
    return int(pairs.select((alone & masked & left).sum()).item())


def _marks(texts: pl.Expr) -> pl.Expr:
    return texts.str.count_matches(MASK, literal=True)
