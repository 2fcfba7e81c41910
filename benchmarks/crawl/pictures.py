"""Make images for the crawl benchmark: crops of real photographs, with sizes as on the web.

Run it in an environment with scikit-image, whose wheel contains the photographs:
``python pictures.py FOLDER COUNT SEED [narrow]``.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data as skimage_data

PHOTOGRAPHS = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "rocket.jpg",
)
LONG_SIDE = (640, 1024)
RATIO = (1.0, 1.8)
QUALITY = (85, 95)


def make(folder: Path, count: int, seed: int, narrow: bool = False) -> None:
    """Write ``count`` different JPEGs of about 100 KB; equal seeds give equal files; narrow ones have ratio 4 : 1."""
    rng = np.random.default_rng(seed)
    source = Path(skimage_data.__file__).parent
    photographs = [Image.open(source / name).convert("RGB") for name in PHOTOGRAPHS]
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        photograph = photographs[rng.integers(len(photographs))]
        long, ratio = int(rng.integers(*LONG_SIDE)), rng.uniform(*RATIO)
        if narrow:
            long, ratio = round(long * 2.0), 4.0
        size = (long, round(long / ratio))
        if rng.random() < 0.4:
            size = size[::-1]
        scale = min(photograph.width / size[0], photograph.height / size[1]) * rng.uniform(0.8, 1.0)
        width, height = size[0] * scale, size[1] * scale
        left, top = rng.uniform(0, photograph.width - width), rng.uniform(0, photograph.height - height)
        picture = photograph.resize(size, Image.Resampling.LANCZOS, box=(left, top, left + width, top + height))
        if rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        name = f"narrow-{number:05d}.jpg" if narrow else f"{number:05d}.jpg"
        picture.save(folder / name, quality=int(rng.integers(*QUALITY)))


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:] == ["narrow"])
