"""Crops of photographs against test sets of the paper's size: what is dropped by mistake, what is found, what it costs.

    python benchmarks/overlap/photographs.py [--training 50000] [--tests 336690] [--seconds 280]

Training pictures are crops of the photographs in Debian's ``gcompris-qt-data``, test pictures crops of those in its
wallpapers: no photograph is in both, so whatever is found is a false hit. The test pictures are dealt into as many sets
as the paper has, because each set gives its own candidates. Each crop passes through decoding and the functions by
which the filter's rule computes its columns. The rate is of training pictures that would be dropped; its interval is
drawn by training photograph (bootstrap), and where there is no false hit its end is 3 / photographs.

A crop of each training photograph is also planted under the changes of ``changes.py``, in a test set with a set's share
of the others. Last, a process of its own holds the stored test pictures, repeated up to the 336,690 of the paper, and
tells its peak memory and the seconds of a core for a million training pictures.

Crops, vectors and what was found are stored in parts in ``--folder``: a run that is killed, or that ``--seconds`` ends
(exit status 3), goes on where it stopped. What was found is kept under a digest of the search's source.
"""

import argparse
import hashlib
import io
import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from bench import ASKED, columns
from changes import CHANGES, encoded
from PIL import Image

from wukong.curate import alignment, overlap, pdq
from wukong.data.decoding import decode
from wukong.runtime import environment

PAPER = 336_690
TRAINED = ("gcompris-qt-data",)
TESTED = ("lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04", "mate-backgrounds", "plasma-workspace-wallpapers")
OF_PHOTOGRAPHS = r"(erase|explore_\w+|clickgame|categorization|details)\.rcc"
DRAWN = r"abstract|desktop|analogpattern|Painting|screenshot|images_dark|/\d{3,4}x[^/]*(?<!2560x1600)\.jpg"
SETS, PART, LARGEST, SIDE = 22, 500, 1280, 256
GOAL, MEMORY = 1e-3, 2 << 30

Photographs = Sequence[tuple[str, Image.Image]]


def photographs(packages: Sequence[str], folder: Path) -> Photographs:
    """The distinct photographs in Debian packages, with their names; Qt's .rcc files hold some uncompressed."""
    files = []
    for package in packages:
        place = folder / package
        if not place.is_dir():
            place.mkdir(parents=True)
            subprocess.run(["apt-get", "download", package], cwd=place, check=True, capture_output=True)
            subprocess.run(["dpkg", "-x", *map(str, place.glob("*.deb")), str(place)], check=True)
        files += [path for path in sorted(place.rglob("*")) if path.is_file() and path.suffix in {".jpg", ".rcc"}]
    found: dict[bytes, tuple[str, Image.Image]] = {}
    for path in files:
        data = path.read_bytes()
        if path.suffix == ".jpg" and not re.search(DRAWN, str(path)):
            starts = [0]
        elif re.fullmatch(OF_PHOTOGRAPHS, path.name):
            starts = [each.start() for each in re.finditer(rb"\xff\xd8\xff|RIFF....WEBP", data, re.DOTALL)]
        else:
            continue
        for start in starts:
            try:
                image = Image.open(io.BytesIO(data[start:]), formats=["JPEG", "WEBP"])
                if image.mode != "RGB" or min(image.size) < SIDE:
                    continue
                image.load()
            except OSError:  # bytes that only look like the beginning of a picture
                continue
            image.thumbnail((LARGEST, LARGEST))
            found.setdefault(hashlib.sha256(image.tobytes()).digest(), (f"{path.stem}/{start}", image))
    return list(found.values())


def crop(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """A window of a fifth of the picture or more, in a usual form, as a crawl stores it."""
    form = float(random.choice([3 / 4, 1, 4 / 3, 3 / 2, 16 / 9]))
    area = random.uniform(0.2, 0.9) * image.width * image.height
    width = min(image.width, round((area * form) ** 0.5))
    height = min(image.height, round(width / form))
    left, upper = int(random.integers(image.width - width + 1)), int(random.integers(image.height - height + 1))
    scale = SIDE / min(width, height)
    size = (round(width * scale), round(height * scale))
    return image.resize(size, Image.Resampling.LANCZOS, (left, upper, left + width, upper + height))


def crops(given: Photographs, numbers: range, seed: int) -> list[tuple[str, bytes]]:
    """Crops as JPEG; of a number always the same one, and the photographs in turn."""
    named = (given[number % len(given)] for number in numbers)
    return [
        (f"{name}:{number}", encoded(crop(image, np.random.default_rng([seed, number]))))
        for number, (name, image) in zip(numbers, named, strict=True)
    ]


def fingerprints(pictures: Sequence[tuple[str, bytes]]) -> pl.DataFrame:
    """What is compared of pictures, with the hashes of their mirrored forms as test pictures have them."""
    forms, quality = pdq.dihedral([decode(data) for _, data in pictures])
    return columns(pictures).with_columns(
        forms=pl.Series([each.tobytes() for each in forms]), quality=pl.Series(quality)
    )


def tests_of(name: str, rows: pl.DataFrame) -> overlap.Tests:
    forms = np.frombuffer(b"".join(rows["forms"]), np.uint8).reshape(len(rows), pdq.FORMS, pdq.BYTES)
    quality, vectors = rows["quality"].to_numpy(), rows["vector"].to_numpy()
    return overlap.Tests(name, rows["key"].to_list(), forms, quality, vectors, rows["thumbnail"].to_list())


class Parts:
    """Tables that are computed once and stored. ``seconds`` after the start the run ends instead of computing one."""

    def __init__(self, folder: Path, seconds: float | None) -> None:
        self._folder, self._end = folder, time.monotonic() + (seconds or float("inf"))

    def get(self, name: str, compute: Callable[[], pl.DataFrame]) -> pl.DataFrame:
        path = self._folder / f"{name}.parquet"
        if not path.exists():
            if time.monotonic() > self._end:
                print(f"stopped before {name}; run it again to go on", file=sys.stderr)
                raise SystemExit(3)
            path.parent.mkdir(parents=True, exist_ok=True)
            compute().write_parquet(path.with_suffix(".part"))
            path.with_suffix(".part").rename(path)
        return pl.read_parquet(path)

    def fingerprints(self, kind: str, given: Photographs, count: int, seed: int) -> list[pl.DataFrame]:
        starts = range(0, count, PART)
        return [
            self.get(
                f"{kind}/{start:07}", lambda start=start: fingerprints(crops(given, range(start, start + PART), seed))
            )
            for start in starts
        ]


def interval(rows: pl.DataFrame) -> list[float]:
    """95 % of the share of hits, drawn by photograph."""
    of_photograph = rows.group_by("photograph").agg(pl.col("picture").is_not_null().sum().alias("hits"), pl.len())
    hits, count = of_photograph["hits"].to_numpy(), of_photograph["len"].to_numpy()
    if not hits.any():
        return [0.0, 3 / len(hits)]
    drawn = np.random.default_rng(0).integers(len(hits), size=(10_000, len(hits)))
    return [float(end) for end in np.quantile(hits[drawn].sum(1) / count[drawn].sum(1), [0.025, 0.975])]


def searched(searches: Sequence[overlap.Search], rows: pl.DataFrame) -> pl.DataFrame:
    """A row for each training picture: the test picture that it agrees with best, if any, and seconds of a core."""
    began = time.process_time()
    hits = pl.concat([each.found(rows) for each in searches])
    taken = (time.process_time() - began) / len(rows)
    best = hits.sort("distance").unique("key", keep="first").select("key", "picture", "level", "distance")
    photograph = pl.col("key").str.split(":").list.first()
    return rows.select("key", photograph=photograph, seconds=pl.lit(taken)).join(best, on="key", how="left")


def cost(folder: Path) -> None:
    """Print what searching at the paper's size takes; the process holds nothing else."""
    stored = pl.concat([pl.read_parquet(each) for each in sorted((folder / "tested").glob("*.parquet"))])
    training = pl.read_parquet(min((folder / "trained").glob("*.parquet"))).head(200)
    searches = []
    for number in range(SETS):
        rows = np.arange(number, PAPER, SETS) % len(stored)
        searches.append(overlap.Search(tests_of(str(number), stored[rows]), ASKED))
    seconds = searched(searches, training)["seconds"][0] * 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds_for_a_million": round(seconds), "peak_bytes": peak}))


def planted(given: Photographs, beside: Photographs) -> list[tuple[str, bytes]]:
    """The crops that are planted under each change, with ``CHANGE/NUMBER`` as keys."""
    changed = []
    for name, change in CHANGES.items():
        for number, (_, data) in enumerate(crops(given, range(len(given)), 0)):
            random = np.random.default_rng([2, number])
            other = crop(beside[number % len(beside)][1], random)
            changed.append((f"{name}/{number}", encoded(change(decode(data), random, other))))
    return changed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=int, default=50_000, help="training pictures")
    parser.add_argument("--tests", type=int, default=PAPER, help="test pictures; the 22 sets of the paper have these")
    parser.add_argument("--seconds", type=float, help="end after so long with exit status 3, to go on in a later run")
    parser.add_argument("--folder", type=Path, default=environment.cache() / "overlap-photographs")
    parser.add_argument("--cost", action="store_true", help="measure memory and seconds of stored test pictures only")
    asked = parser.parse_args()
    if asked.cost:
        cost(asked.folder)
        return 0
    trained, tested = (photographs(each, asked.folder / "packages") for each in (TRAINED, TESTED))
    print(f"photographs: {len(trained)} to train on, {len(tested)} to test on", file=sys.stderr)
    parts = Parts(asked.folder, asked.seconds)
    training = parts.fingerprints("trained", trained, asked.training, 0)
    copies = parts.get("copies", lambda: fingerprints(planted(trained, tested)))
    tests = pl.concat(parts.fingerprints("tested", tested, asked.tests, 1))

    source = b"".join(Path(str(each.__file__)).read_bytes() for each in (overlap, alignment))
    results = f"{hashlib.sha256(source + repr(ASKED).encode()).hexdigest()[:12]}-{asked.tests}"
    searches = [overlap.Search(tests_of(str(number), tests[number::SETS]), ASKED) for number in range(SETS)]
    rows = pl.concat(
        parts.get(f"{results}/{number:05}", lambda some=some: searched(searches, some))
        for number, some in enumerate(training)
    )
    own = pl.concat([training[0].head(len(trained)), tests[::SETS]])
    found = parts.get(f"{results}/copies", lambda: overlap.Search(tests_of("planted", own), ASKED).found(copies))
    change, number = (pl.col("key").str.split("/").list.get(place) for place in (0, 1))
    hit = found.filter(number == pl.col("picture").str.split(":").list.last())
    shares = {
        name: {
            "found": len(some) / len(trained),
            "by_hash": len(some.filter(pl.col("level") == "hash")) / len(trained),
        }
        for name in CHANGES
        for some in [hit.filter(change == name)]
    }
    false = float(rows["picture"].is_not_null().mean())
    measured = {"training": len(rows), "tests": len(tests), "photographs": [len(trained), len(tested)]}
    measured |= {"false_hits": false, "interval": interval(rows), "recall": shares}
    measured["mean"] = float(np.mean([each["found"] for each in shares.values()]))
    command = [sys.executable, __file__, "--cost", "--folder", str(asked.folder)]
    costs = parts.get(f"{results}/cost", lambda: pl.read_ndjson(subprocess.check_output(command)))
    measured |= costs.to_dicts()[0]
    print(json.dumps(measured))
    return 0 if false <= GOAL and measured["peak_bytes"] <= MEMORY else 1


if __name__ == "__main__":
    sys.exit(main())
