"""Fit on all labelled captions but one file, and measure on that file, at several thresholds.

The shipped weights are not touched. It takes as long as a fit, about 12 minutes on two cores.

    python benchmarks/curate/names/held_out.py pages --errors
"""

import argparse

import numpy as np
import score

from tools.name_tagger import captions, fit
from wukong.curate import names
from wukong.curate.names import tagger


def main() -> None:
    """Fit, and print precision and recall at each threshold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    files = {path.stem: captions.read(path) for path in score.train()}
    parser.add_argument("held_out", choices=files, help="the file of captions/train to leave out and to measure on")
    parser.add_argument("--errors", action="store_true", help="list the errors in it")
    options = parser.parse_args()
    weights = fit.fit([caption for name, some in files.items() if name != options.held_out for caption in some])
    measured = files[options.held_out]
    read = tagger.committee(weights).read([names.normalized(text) for text, _ in measured])
    for threshold in np.arange(-1, 3.5, 0.5):
        found = [names.select(probabilities, threshold) for probabilities in read]
        title = f"{options.held_out}, threshold {threshold:+.1f}"
        score.show(title, options.held_out, lambda _, found=found: found)
    for (text, spans), probabilities in zip(measured, read, strict=True):
        found = names.select(probabilities, names.THRESHOLDS["balanced"])
        if options.errors and found != spans:
            print("   ", text, *([text[start:end] for start, end in some] for some in (spans, found)))


if __name__ == "__main__":
    main()
