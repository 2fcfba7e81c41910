"""Synthetic captions: words of jieba's dictionary, some captions repeated as often as on the web.

    python benchmarks/curate/captions.py FOLDER CAPTIONS [--parts 100] [--repeated 0.3]

A share of the captions is drawn from a pool whose nth caption is about 1/n as frequent as its first; the others are
new. One in ten ends with a camera's file name or a site's phrase, as web captions do.
"""

import argparse
from pathlib import Path

import jieba
import numpy as np
import polars as pl

POOL = 1_000_000


def words() -> pl.Series:
    lines = (Path(jieba.__file__).parent / "dict.txt").read_text(encoding="utf-8").splitlines()
    entries = (line.split(" ") for line in lines)
    frequent = sorted(((int(count), word) for word, count, _ in entries if 1 < len(word) < 6), reverse=True)
    return pl.Series([word for _, word in frequent[:65_536]])


def make(count: int, seed: int, vocabulary: pl.Series) -> pl.Series:
    """Captions of six to eight words, distinct except by chance; one in ten has an ending as on web pages."""
    generator = np.random.default_rng(seed)
    columns = [vocabulary.gather(generator.integers(0, len(vocabulary), count)) for _ in range(8)]
    frame = pl.DataFrame({f"w{number}": column for number, column in enumerate(columns)})
    frame = frame.with_columns(
        length=pl.Series(generator.integers(6, 9, count)),
        tail=pl.Series(generator.integers(0, 20, count)),
        number=pl.Series(generator.integers(0, 10_000, count)),
    )
    whole = pl.concat_str(
        *(f"w{number}" for number in range(6)),
        *(pl.when(pl.col("length") > number).then(f"w{number}").otherwise(pl.lit("")) for number in (6, 7)),
        pl.when(pl.col("tail") == 0)
        .then(pl.concat_str(pl.lit(" IMG_"), "number"))
        .when(pl.col("tail") == 1)
        .then(pl.lit(" - 高清图片"))
        .otherwise(pl.lit("")),
    )
    return frame.select(caption=whole)["caption"]


def corpus(count: int, seed: int, vocabulary: pl.Series, pool: pl.Series, repeated: float) -> pl.Series:
    """Captions, a share of which is drawn from a pool, the nth of it with a probability in proportion to 1 / n."""
    generator = np.random.default_rng((seed, 1))
    again = np.flatnonzero(generator.random(count) < repeated)
    ranks = np.floor(len(pool) ** generator.random(len(again))).astype(np.int64) - 1
    return make(count, seed, vocabulary).scatter(again, pool.gather(ranks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("captions", type=int)
    parser.add_argument("--parts", type=int, default=100)
    parser.add_argument("--repeated", type=float, default=0.3)
    options = parser.parse_args()
    vocabulary = words()
    pool = make(POOL, 0, vocabulary)
    options.folder.mkdir(parents=True, exist_ok=True)
    for part in range(options.parts):
        some = corpus(options.captions // options.parts, part + 1, vocabulary, pool, options.repeated)
        target = options.folder / f"{part:05d}.parquet"
        some.to_frame().write_parquet(target, compression="zstd", compression_level=1)


if __name__ == "__main__":
    main()
