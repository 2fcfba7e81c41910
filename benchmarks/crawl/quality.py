"""SSIM of stored images against a full decode with area resize: ``quality.py PICTURES TAR ...``; prints JSON.

Run it in an environment with scikit-image. The last part of an image's URL is its file name.
"""

import io
import json
import sys
import tarfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from skimage.metrics import structural_similarity


def reference(path: Path, size: int = 256) -> np.ndarray:
    pixels = np.asarray(Image.open(path).convert("RGB"))
    scale = size / min(pixels.shape[:2])
    target = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
    return cv2.resize(pixels, target, interpolation=cv2.INTER_AREA) if scale < 1 else pixels


def main(pictures: Path, tars: list[str]) -> None:
    scores, seen = [], set()
    for name in tars:
        with tarfile.open(name) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}
        for key in {name.partition(".")[0] for name in files}:
            source = json.loads(files[f"{key}.json"])["url"].rpartition("/")[2].partition("?")[0]
            if source in seen:
                continue
            seen.add(source)
            expected = reference(pictures / source)
            got = np.asarray(Image.open(io.BytesIO(files[f"{key}.jpg"])).convert("RGB"))
            if got.shape == expected.shape:
                scores.append(float(structural_similarity(expected, got, channel_axis=2)))
            else:
                scores.append(0.0)
    print(json.dumps({"pictures": len(scores), "mean": float(np.mean(scores)), "worst": float(np.min(scores))}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
