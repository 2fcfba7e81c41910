"""Show which rule drops which caption, with the rule of ``repetition.py`` among the rules.

First copy the rule to where rules are: ``cp examples/own_rule/repetition.py wukong/curate/rules/``.
"""

import sys

import numpy as np
import polars as pl

from wukong.config import documents
from wukong.curate import rules
from wukong.curate.caption_counts import CaptionCounts

CAPTIONS = ("一只猫在窗台上", "哈哈哈哈哈哈", "000.jpg", "a cat")


def main() -> int:
    """Apply all rules to a few captions and print the decisions."""
    experiment = documents.loads(
        "{name: own-rule, crawl: {engine: urls, endpoint: 'file:///list.csv'}}", ["filter.max_repetition=0.5"]
    )
    pairs = pl.DataFrame({"caption": CAPTIONS}).with_columns(width=pl.lit(300), height=pl.lit(300))
    no_counts = CaptionCounts(np.empty(0, np.uint64), np.empty(0, np.int64))
    columns = rules.compute(pairs, experiment.filter, no_counts, rules.load(experiment.filter))
    for caption, reason in zip(CAPTIONS, rules.decide(columns, experiment.filter), strict=True):
        sys.stdout.write(f"{caption}\t{reason or 'kept'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
