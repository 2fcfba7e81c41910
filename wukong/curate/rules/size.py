"""Image rules of section 3.1, over the size recorded when the picture was downloaded."""

import polars as pl


def shorter_side(width: pl.Expr, height: pl.Expr) -> pl.Expr:
    """Pixels of the shorter side of the original picture; 0 where the size is unknown."""
    return pl.min_horizontal(width.fill_null(0), height.fill_null(0)).cast(pl.Int32)


def aspect_ratio(width: pl.Expr, height: pl.Expr) -> pl.Expr:
    """Long side over short side, at least 1; infinite where a side is 0 or unknown."""
    long = pl.max_horizontal(width.fill_null(0), height.fill_null(0)).cast(pl.Float32)
    short = pl.min_horizontal(width.fill_null(0), height.fill_null(0)).cast(pl.Float32)
    return pl.when(short > 0).then(long / short).otherwise(float("inf")).cast(pl.Float32)
