"""Made-up pictures that are hard to tell apart: which unlike ones are taken for the same, and which copies are found.

    python benchmarks/overlap/unlike.py [--pictures 300]

Three kinds are drawn, with fixed seeds: *smooth* ones (slow waves of colour with grain, as sky or skin), *objects* (one
shape of one colour on white) and *horizons* (two areas of slowly changing colour, one above the other). Of each kind as
many are tests as are trained on, and no two are the same. Each passes through the functions by which the filter's rule
computes its columns. A false hit is a training picture that is said to show a test picture. Then the tests themselves
are planted: unchanged, as JPEG of quality 30, and cut along one side. A JSON line is printed for each kind.
"""

import argparse
import json
from collections.abc import Callable, Mapping

import numpy as np
from bench import ASKED, columns
from changes import CHANGES, encoded
from PIL import Image, ImageDraw

from wukong.curate import overlap, pdq

SIDE = 256

Random = np.random.Generator


def smooth(random: Random) -> Image.Image:
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    pixels = np.broadcast_to(random.uniform(60, 190, 3), (SIDE, SIDE, 3)).copy()
    for _ in range(12):
        across, down = random.normal(0, 1.5, 2)
        wave = np.cos(2 * np.pi * (across * x + down * y + random.random()))
        pixels += wave[..., None] * random.normal(0, 6, 3)
    return of_pixels(pixels + random.normal(0, 2, (SIDE, SIDE, 1)))


def on_white(random: Random) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), "white")
    draw, colour = ImageDraw.Draw(image), tuple(int(value) for value in random.integers(0, 220, 3))
    width, height = random.uniform(0.3, 0.85, 2) * SIDE
    box = ((SIDE - width) / 2, (SIDE - height) / 2, (SIDE + width) / 2, (SIDE + height) / 2)
    if random.integers(2):
        draw.ellipse(box, fill=colour)
    else:
        angles = np.sort(random.uniform(0, 2 * np.pi, int(random.integers(3, 9))))
        draw.polygon([(SIDE / 2 + np.cos(a) * width / 2, SIDE / 2 + np.sin(a) * height / 2) for a in angles], colour)
    return image


def horizon(random: Random) -> Image.Image:
    edge = int(random.uniform(0.3, 0.7) * SIDE)
    pixels = np.empty((SIDE, SIDE, 3))
    for rows in (slice(0, edge), slice(edge, SIDE)):
        ends = random.uniform(30, 225, (2, 3))
        part = np.linspace(0, 1, rows.stop - rows.start)[:, None]
        pixels[rows] = ((1 - part) * ends[0] + part * ends[1])[:, None]
    return of_pixels(pixels + random.normal(0, 2, (SIDE, SIDE, 1)))


def of_pixels(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


KINDS: Mapping[str, Callable[[Random], Image.Image]] = {"smooth": smooth, "objects": on_white, "horizons": horizon}
COPIES = ("JPEG quality 30", "25 % off one side", "to 16:9")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=300, help="tests of each kind, and as many that are trained on")
    count = parser.parse_args().pictures
    for seed, (kind, drawn) in enumerate(KINDS.items()):
        random = np.random.default_rng(seed)
        tests, training = ([drawn(random) for _ in range(count)] for _ in range(2))
        known = columns((str(number), encoded(image)) for number, image in enumerate(tests))
        forms, quality = pdq.dihedral(tests)
        vectors, small = known["vector"].to_numpy(), known["thumbnail"].to_list()
        search = overlap.Search(overlap.Tests(kind, known["key"].to_list(), forms, quality, vectors, small), ASKED)
        mistaken = search.found(columns((str(number), encoded(image)) for number, image in enumerate(training)))
        found = {"unchanged": search.found(known)}
        for name in COPIES:
            changed = (CHANGES[name](image, random, image) for image in tests)
            found[name] = search.found(columns((str(n), encoded(image)) for n, image in enumerate(changed)))
        shares = {name: each.filter(each["key"] == each["picture"]).height / count for name, each in found.items()}
        false = {
            "of_comparisons": len(mistaken) / count**2,
            "of_training_pictures": mistaken["key"].n_unique() / count,
        }
        print(json.dumps({"kind": kind, "pictures": count, "false_hits": false, "found": shares}), flush=True)


if __name__ == "__main__":
    main()
