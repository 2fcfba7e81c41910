"""The perceptual hash beside that of ImageHash: time, and how far a picture's hash moves when it is stored again.

    pip install --target /tmp/imagehash --no-deps ImageHash PyWavelets
    PYTHONPATH=.:/tmp/imagehash python benchmarks/curate/perceptual_hash.py

Prints one line a hash. ImageHash is not a dependency; ``docs/dependencies.md`` says why.
"""

import io
import time
from collections.abc import Callable

import imagehash
import numpy as np
from PIL import Image, ImageDraw

from wukong.curate.phash import perceptual_hash

PICTURES = 120
FLAT = ("#000", "#fff", "#3355aa", "#112233", "#808080")


def drawing(seed: int, size: tuple[int, int]) -> Image.Image:
    """A dozen ellipses of random colours."""
    generator = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(generator.integers(0, 256, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, w, h = generator.random(4)
        box = (x * size[0], y * size[1], (x + w / 2) * size[0], (y + h / 2) * size[1])
        draw.ellipse(box, fill=tuple(generator.integers(0, 256, 3)))
    return image


def encoded(image: Image.Image, quality: int = 95) -> bytes:
    target = io.BytesIO()
    image.save(target, "JPEG", quality=quality)
    return target.getvalue()


def theirs(picture: bytes) -> int:
    return int(str(imagehash.phash(Image.open(io.BytesIO(picture)))), 16)


def seconds(hash_of: Callable[[bytes], int], pictures: list[bytes]) -> float:
    started = time.perf_counter()
    for picture in pictures:
        hash_of(picture)
    return (time.perf_counter() - started) / len(pictures)


def main() -> None:
    drawings = [drawing(seed, (400, 300)) for seed in range(PICTURES)]
    pictures = [encoded(image) for image in drawings]
    stored_again = [encoded(image.resize((256, 192)), 60) for image in drawings]
    large = [encoded(drawing(seed, (1600, 1200))) for seed in range(12)]
    for name, hash_of in ("wukong", perceptual_hash), ("imagehash.phash", theirs):
        hashes = [hash_of(picture) for picture in pictures]
        again = [hash_of(picture) for picture in stored_again]
        moved = [(one ^ other).bit_count() for one, other in zip(hashes, again, strict=True)]
        nearest = min((one ^ other).bit_count() for n, one in enumerate(hashes) for other in hashes[:n])
        flat = {hash_of(encoded(Image.new("RGB", (300, 300), colour))) for colour in FLAT}
        print(
            f"{name}: {1e6 * seconds(hash_of, pictures):.0f} us a picture of 400 x 300, "
            f"{1e6 * seconds(hash_of, large):.0f} us of 1600 x 1200; stored again, "
            f"{sum(bits <= 3 for bits in moved)} of {len(moved)} hashes differ in at most 3 bits, the furthest in "
            f"{max(moved)}; two different pictures differ in at least {nearest}; {len(flat)} hashes of {len(FLAT)} "
            "pictures of one colour"
        )


if __name__ == "__main__":
    main()
