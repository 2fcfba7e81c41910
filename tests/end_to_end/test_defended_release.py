"""From search to card in one run: a crawl with planted test pictures, duplicates and pictures that must not be there.

What was planted is the oracle: each card, funnel, page and release must tell exactly that.
"""

import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import polars as pl
import pytest
import yaml
from english import english
from loopback_web import Web, answering
from onnx_models import settings, train_classifier, watermarked
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from wukong_command import Wukong

from infra import stack
from infra.site import acjson
from wukong.crawl.url import key_of
from wukong.curate import pdq
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest

pytestmark = pytest.mark.long

HOST = "pictures.test"
WORDS = ("风景", "静物", "花园", "街道", "海边", "山谷")
COLOURS = ("红色", "蓝色", "绿色", "黄色", "紫色", "橙色", "白色", "黑色", "灰色", "粉色")
THINGS = ("灯笼", "小船", "自行车", "雨伞", "书桌", "茶壶", "风筝", "椅子", "木门", "苹果", "篮子", "花瓶")
SIDE = 512
ORDINARY, HELD = 110, 24
FORBIDDEN_SEED = 3_003
"""Of a picture with enough in it for PDQ."""
FRAMED_FROM = 7
"""The first of the held-out pictures that are there a second time with a frame."""
NEAR_FROM = 5
"""The first of the ordinary pictures that are there a second time with a narrow edge cut away."""
EXAMINED = range(2_000, 2_012)
"""Seeds of the pictures of a test set that others know by its hashes."""
FORBIDDEN, UNSAFE, MARKED, DUPLICATES, NEAR, OF_FOLDER, OF_HOLDOUT = 1, 1, 3, 4, 3, 6, 3
PLANTED = {
    "forbidden": FORBIDDEN,
    "sensitive": 1,
    "unsafe": UNSAFE,
    "watermark": MARKED,
    "duplicate_image": DUPLICATES,
    "near_duplicate": NEAR,
    "overlap": OF_FOLDER + OF_HOLDOUT,
}

TITLES = {
    "picture on no list of forbidden ones": FORBIDDEN,
    "no sensitive word": 1,
    "safe picture, by a model": UNSAFE,
    "no watermark, by a model": MARKED,
    "picture not seen before": DUPLICATES,
    "no picture nearly the same, by vectors": NEAR,
    "no picture or caption of a test set": OF_FOLDER + OF_HOLDOUT,
}


def drawn(seed: int) -> Image.Image:
    """A picture of soft shapes that looks like no other one."""
    random = np.random.default_rng(seed)
    ground = random.integers(0, 200, (3, 3, 3), dtype=np.uint8)
    image = Image.fromarray(ground).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(10):
        left, top = (int(value) for value in random.integers(-60, 460, 2))
        width, height = (int(value) for value in random.integers(60, 260, 2))
        shape = draw.ellipse if random.integers(2) else draw.rectangle
        colour = tuple(int(value) for value in random.integers(0, 200, 3))
        shape((left, top, left + width, top + height), fill=colour)
    return image.filter(ImageFilter.GaussianBlur(6))


def grid(seed: int) -> Image.Image:
    """A harmless pattern: straight lines on a plain ground."""
    random = np.random.default_rng(seed)
    ground, ink = (tuple(map(int, colour)) for colour in random.integers(0, 256, (2, 3)))
    image = Image.new("RGB", (SIDE, SIDE), ground)
    draw = ImageDraw.Draw(image)
    for at in range(0, SIDE, int(random.integers(24, 40))):
        draw.line([(at, 0), (at, SIDE)], fill=ink, width=8)
        draw.line([(0, at), (SIDE, at)], fill=ink, width=8)
    return image


def framed(image: Image.Image) -> Image.Image:
    return ImageOps.expand(image, 16, "white")


def jpeg(image: Image.Image, quality: int = 95) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def half(image: Image.Image) -> Image.Image:
    return image.resize((SIDE // 2, SIDE // 2), Image.Resampling.LANCZOS)


def pictures() -> dict[str, bytes]:
    """What the site has, by path."""
    ordinary = [drawn(seed) for seed in range(ORDINARY)]
    held = [drawn(1_000 + seed) for seed in range(HELD)]
    tested = [drawn(seed) for seed in EXAMINED]
    site = {f"/web/{number}.jpg": jpeg(image) for number, image in enumerate(ordinary)}
    site |= {f"/held/{number}.jpg": jpeg(image) for number, image in enumerate(held)}
    site["/planted/forbidden-0.jpg"] = jpeg(half(drawn(FORBIDDEN_SEED)), 60)
    site["/planted/sensitive-0.jpg"] = jpeg(drawn(3_001))
    site["/planted/unsafe-0.jpg"] = jpeg(grid(3_002))
    site |= {f"/planted/watermark-{n}.jpg": jpeg(watermarked(drawn(3_100 + n), n)) for n in range(MARKED)}
    site |= {f"/planted/duplicate-{n}.jpg": site[f"/web/{n}.jpg"] for n in range(2)}
    site |= {f"/planted/duplicate-{n}.jpg": jpeg(half(ordinary[n]), 80) for n in range(2, DUPLICATES)}
    cut = (8, 8, SIDE - 8, SIDE - 8)
    site |= {f"/planted/near-{n}.jpg": jpeg(ordinary[NEAR_FROM + n].crop(cut)) for n in range(NEAR)}
    copies = [jpeg(tested[0], 30), jpeg(tested[1], 30), jpeg(half(tested[2])), jpeg(half(tested[3]))]
    copies += [jpeg(ImageOps.mirror(image)) for image in tested[4:OF_FOLDER]]
    site |= {f"/planted/tested-{number}.jpg": data for number, data in enumerate(copies)}
    return site | {f"/planted/held-{n}.jpg": jpeg(framed(held[FRAMED_FROM + n])) for n in range(OF_HOLDOUT)}


def caption(number: int, path: str) -> str:
    if path == "/planted/sensitive-0.jpg":
        return "诚信代开fapiao的广告图片"
    place = WORDS[number % len(WORDS)]
    return f"{place}里{COLOURS[number % 10]}的{THINGS[number // 10 % 12]}在阳光下"


class Site:
    """A search site, in Baidu's format, with its pictures."""

    def __init__(self) -> None:
        self.pictures = pictures()
        self.web = Web()
        self.web.handlers["/robots.txt"] = answering(b"", status="404 Not Found")
        self.web.fallback = self._answer

    async def _answer(self, path: str, writer: Any) -> None:
        if path.startswith("/search/acjson"):
            fields = parse_qs(urlsplit(path).query)
            word, offset = fields["word"][0], int(fields["pn"][0])
            found = [
                acjson.ImageResult(
                    f"http://{HOST}{each}",
                    f"http://{HOST}{each}",
                    f"http://{HOST}/",
                    caption(n, each),
                    SIDE,
                    SIDE,
                    "jpg",
                )
                for n, each in enumerate(self.pictures)
                if WORDS[n % len(WORDS)] == word
            ]
            page = found[offset : offset + int(fields["rn"][0])]
            text = acjson.answer(word, page, len(found), offset)
            await answering(text.encode(), "application/json")(path, writer)
        else:
            await answering(self.pictures[path])(path, writer)


def classifiers(folder: Path) -> dict[str, dict[str, Any]]:
    """A model that calls grids unsafe, and one that finds watermarks."""
    plain = [drawn(5_000 + seed) for seed in range(150)]
    marked = [watermarked(image, 100 + number) for number, image in enumerate(plain)]
    framed_ones, grids = [framed(image) for image in plain[:30]], [grid(6_000 + seed) for seed in range(40)]

    def trained(name: str, without: Sequence[Image.Image], having: Sequence[Image.Image]) -> dict[str, Any]:
        file = train_classifier(folder / f"{name}.onnx", [*without, *having], [0] * len(without) + [1] * len(having))
        how = {"input": {"size": 96, "resize": "squash"}, "output": {"range": [0, 1]}}
        return {"model": settings(file, **how), "max_score": 0.5}

    return {
        "unsafe": trained("unsafe", [*plain, *framed_ones, *marked], grids),
        "watermark": trained("watermark", [*plain, *framed_ones], marked),
    }


def experiment(folder: Path, fingerprints: Path) -> dict[str, Any]:
    queries, listed = folder / "queries.txt", folder / "forbidden.txt"
    queries.write_text("\n".join(WORDS), encoding="utf-8")
    (forbidden,), _ = pdq.hashes([drawn(FORBIDDEN_SEED)])
    listed.write_text(f"{forbidden.tobytes().hex()}\n", encoding="ascii")
    return {
        "name": "defended",
        "crawl": {
            "queries": storage.from_path(queries),
            "endpoint": f"http://{HOST}/search/acjson",
            "politeness": {"contact": "test@crawler.test"},
        },
        "filter": {
            "forbidden": {"lists": [storage.from_path(listed)]},
            "word_disguises": ["pinyin"],
            "duplicate_images": "similar",
            "near_duplicates": {"min_cosine": 0.98},
            "decontaminate": {
                "sets": ["held"],
                "hashes": [storage.from_path(fingerprints)],
                "min_cosine": 0.6,
            },
            "split": {"holdouts": [{"name": "held", "title": "Held-out pictures", "source": "*/held/*"}]},
            **classifiers(folder),
        },
        "validation": {"min_pairs": 50},
        "model": {
            "image": {"name": "tf_efficientnet_lite0", "weights": "package", "image_size": 96, "block": 4},
            "text": {"layers": 2, "width": 64, "heads": 2},
            "embedding": 64,
        },
        "pretrain": {"epochs": 2, "batch_size": 32, "threads": 1},
        "finetune": {"epochs": 1, "batch_size": 32, "threads": 1},
        "registry": {"first": "any"},
        "release": {"files": 2, "licence": "CC-BY-4.0"},
    }


@dataclass(frozen=True)
class Run:
    """The run and what it was made from."""

    wukong: Wukong
    config: Path
    examined: Path
    said: str

    def stage(self, name: str, run: str = "first") -> Manifest:
        return manifest.load(storage.read_json(f"s3://wukong/defended/runs/{run}/{name}.json")["manifest"])

    def page(self, name: str, run: str = "first") -> str:
        return english((self.wukong.home / "runs" / run / name).read_text(encoding="utf-8"))


def words(page: str) -> str:
    """The text of a page, its elements apart by one space."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.partition("<main>")[2]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder, site = tmp_path_factory.mktemp("defended"), Site()
    examined, fingerprints, config = folder / "examined", folder / "examined.parquet", folder / "experiment.yaml"
    examined.mkdir()
    for seed in EXAMINED:
        (examined / f"{seed}.png").write_bytes(_png(drawn(seed)))
    wukong = Wukong(folder / "home", WUKONG_CONNECT_TO=f"{HOST}=127.0.0.1:{site.web.port}")
    with pytest.MonkeyPatch.context() as patch:
        try:
            made = wukong("hashes", str(examined), "--output", str(fingerprints))
            assert made.returncode == 0, made.stderr
            config.write_text(yaml.safe_dump(experiment(folder, fingerprints)), encoding="utf-8")
            done = wukong("run", "--config", str(config), "--name", "first")
            assert done.returncode == 0, done.stdout + done.stderr
            for name, value in stack.load(wukong.home).environment().items():
                patch.setenv(name, value)
            yield Run(wukong, config, examined, done.stdout)
        finally:
            wukong("down")
            site.web.stop()


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def planted(name: str, count: int) -> set[str]:
    return {key_of(f"http://{HOST}/planted/{name}-{number}.jpg") for number in range(count)}


def test_each_rule_drops_what_was_planted_for_it(run: Run) -> None:
    filtered = run.stage("filter")
    assert {name: rows for name, rows in filtered.dropped.items() if rows} == PLANTED
    assert filtered.counts["pairs"] == len(pictures())
    assert filtered.counts["overlap/examined"] == OF_FOLDER and filtered.counts["overlap/held"] == OF_HOLDOUT
    assert filtered.counts["train"] == ORDINARY and filtered.counts["held"] == HELD


def test_the_card_and_the_funnels_name_each_with_its_count(run: Run) -> None:
    for page in ("docs/card.html", "report.html"):
        text = words(run.page(page))
        for title, rows in TITLES.items():
            assert re.search(rf"{title} [\d,]+ −{rows}\b", text), (page, title)


def test_the_card_says_which_pictures_it_means(run: Run) -> None:
    text = words(run.page("docs/card.html"))
    share = f"{100 * OF_FOLDER / len(pictures()):.2g}"
    assert f"Overlap with examined: {OF_FOLDER} pictures, {share} % of all pairs; they were left out." in text
    assert f"Overlap with held: {OF_HOLDOUT} pictures" in text
    assert "fraud 1" in text, "the kind of the word"
    assert "made by a test" in text, "the licence of the weights"
    shown = set(re.findall(r'data-key="(\w+)"', run.page("docs/card.html")))
    assert shown & planted("tested", OF_FOLDER) and not shown & planted("forbidden", FORBIDDEN)


def test_the_evaluation_names_what_was_found_and_left_out(run: Run) -> None:
    section = words(run.page("evaluation.html")).partition("Overlap with the training data")[2]
    assert re.search(rf"Held-out pictures fine-tuned 0 of {HELD} {OF_HOLDOUT} ", section)


def test_the_release_has_none_of_them(run: Run, tmp_path: Path) -> None:
    done = run.wukong("release", "--config", str(run.config), "--output", str(tmp_path / "set"))
    assert done.returncode == 0, done.stdout + done.stderr
    files = sorted((tmp_path / "set").glob("*.csv"))
    released = {key_of(url) for file in files for url in pl.read_csv(file)["url"]}
    assert len(files) == 2 and len(released) == ORDINARY
    must_not = ("forbidden", "sensitive", "unsafe", "watermark", "tested", "held")
    assert not released & {key for name in must_not for key in planted(name, ORDINARY)}
    for name, first, count in (("duplicate", 0, DUPLICATES), ("near", NEAR_FROM, NEAR)):
        for number in range(count):
            of_two = {
                key_of(f"http://{HOST}/{place}.jpg") for place in (f"planted/{name}-{number}", f"web/{first + number}")
            }
            assert len(released & of_two) == 1, "of two pictures that show the same one is left"
    described = json.loads((tmp_path / "set/croissant.json").read_text(encoding="utf-8"))
    assert described["license"] == "CC-BY-4.0"
    summary = english((tmp_path / "set/docs/training_summary.html").read_text(encoding="utf-8"))
    assert f"{ORDINARY}" in words(summary)
    card = words(english((tmp_path / "set/docs/card.html").read_text(encoding="utf-8")))
    assert all(re.search(rf"{title} [\d,]+ −{rows}\b", card) for title, rows in TITLES.items())


def test_a_takedown_by_example_finds_the_planted_copy(run: Run) -> None:
    example = str(run.examined / f"{EXAMINED[0]}.png")
    done = run.wukong("takedown", "--like", example, "--dry-run", "--config", str(run.config))
    assert done.returncode == 0, done.stdout + done.stderr
    (copy,) = planted("tested", 1)
    (line,) = (each for each in done.stdout.splitlines() if copy in each)
    assert re.search(r"hash, \d+ bits", line)
    assert len(re.findall(r"hash, \d+ bits", done.stdout)) == 1, "no other picture is near"


def test_marked_pictures_are_trained_on_and_the_evaluation_tells_both_numbers(run: Run) -> None:
    change = "filter.decontaminate.action=mark"
    done = run.wukong("run", "--config", str(run.config), "--name", "marked", "--set", change)
    assert done.returncode == 0, done.stdout + done.stderr
    assert storage.read_json("s3://wukong/defended/runs/marked/crawl.json")["reused"]
    filtered = run.stage("filter", "marked")
    assert {name: rows for name, rows in filtered.dropped.items() if rows} == {
        name: rows for name, rows in PLANTED.items() if name != "overlap"
    }
    assert filtered.counts["train"] == ORDINARY + OF_FOLDER + OF_HOLDOUT
    assert "they are marked" in words(run.page("docs/card.html", "marked"))
    document = storage.read_json(f"{run.stage('evaluate', 'marked').uri}/evaluation.json")
    found = next(each for each in document["overlaps"] if each["model"] == "finetuned")
    assert (found["overlap"], found["left_out"], found["pictures"]) == (OF_HOLDOUT, 0, HELD)
    assert {"clean", "overlap", "difference"} <= found["results"]["mean_recall"].keys()
    section = words(run.page("evaluation.html", "marked")).partition("Overlap with the training data")[2]
    assert f"{OF_HOLDOUT} of {HELD}" in section
