"""Weigh and time the wheel beside open_clip, each in an environment of what it requires and no other package.

    python benchmarks/package/bench.py [--rounds 7]

For both, pip says what it would install in a clean environment, in the versions that are installed here; what is not
here, it installs. The rest are links to the packages here, so that both have the same torch. Each loads a ViT-S/16 of
its own with random weights from a folder, and encodes a picture and a caption, in a process of its own. The processes
take turns. It asks an index, and prints tables in Markdown.
"""

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Collection
from importlib import metadata
from pathlib import Path

import numpy as np
import open_clip
import torch
from packaging.utils import canonicalize_name
from PIL import Image
from safetensors.torch import save_file

from infra.images import build
from wukong.config.model import Model
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.model import saved_model
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.store import storage

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
OF_TORCH = re.compile(r"(torch|torchvision|nvidia-.*|cuda-.*|triton)")
"""What both have, and most of it differs by the build of torch."""

OURS, THEIRS = "Wukong", f"open_clip {open_clip.__version__}"
IMPORT = {OURS: "import wukong", THEIRS: "import open_clip"}
LOAD = {
    OURS: "import sys, wukong\nmodel = wukong.load(sys.argv[1])",
    THEIRS: """
import sys, open_clip
model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{sys.argv[1]}")
model.eval()
""",
}
ENCODE = {
    OURS: "model.encode_image(sys.argv[2]); model.encode_text('red apple')",
    THEIRS: """
import torch
from PIL import Image
tokenizer = open_clip.get_tokenizer(f"local-dir:{sys.argv[1]}")
with torch.no_grad(), Image.open(sys.argv[2]) as picture:
    model.encode_image(transform(picture)[None]); model.encode_text(tokenizer(["red apple"]))
""",
}
MODULES = "\nimport sys; print(len(sys.modules))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        wheel = built(work)
        needs = {OURS: f"{wheel}[model]", THEIRS: f"open_clip_torch=={open_clip.__version__}"}
        wanted = {name: would_install(need, work) for name, need in needs.items()}
        for name, versions in wanted.items():
            versions.pop("wukong-vlm", None)
            print(f"{name}: {' '.join(sorted(each for each in versions if not OF_TORCH.fullmatch(each)))}")
        pythons = {name: environment(work / str(number), wanted[name]) for number, name in enumerate(wanted)}
        install(pythons[OURS], wheel)
        models = {OURS: our_model(work / "ours"), THEIRS: their_model(work / "theirs")}
        weigh(pythons, models)
        compare(pythons, models, picture(work / "picture.jpg"), options.rounds)


def built(work: Path) -> Path:
    build.copy_tracked(work / "source")
    made = ("wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={work}", work / "source")
    subprocess.run([*PIP, *made], check=True)
    (wheel,) = work.glob("*.whl")
    return wheel


def would_install(need: str, work: Path) -> dict[str, str]:
    """Return the versions that pip would install in a clean environment, of those here where they are here."""
    here = {canonicalize_name(each.name): each.version.partition("+")[0] for each in metadata.distributions()}
    here.pop("wukong-vlm", None)
    constraints, report = work / "here.txt", work / "report.json"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in here.items()))
    dry = ("install", "--dry-run", "--ignore-installed", f"--constraint={constraints}", f"--report={report}")
    subprocess.run([*PIP, *dry, need], check=True)
    entries = [entry["metadata"] for entry in json.loads(report.read_text())["install"]]
    return {canonicalize_name(entry["name"]): entry["version"] for entry in entries}


def environment(folder: Path, versions: dict[str, str]) -> Path:
    """Make an environment of these distributions and return its Python; those that are here are links."""
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    others = []
    for name, version in versions.items():
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            others.append(f"{name}=={version}")
            continue
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(str(distribution.locate_file(top)))
    python = folder / "bin" / "python"
    if others:
        install(python, *others)
    return python


def install(python: Path, *needs: str | Path) -> None:
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([*PIP, f"--python={python}", "install", "--no-deps", *needs], check=True, env=alone)


def our_model(folder: Path) -> Path:
    settings = Model.model_validate(
        {
            "image": {"name": "vit_small_patch16_224", "weights": "random", "image_size": 224, "view": "crop"},
            "text": {"layers": 12, "heads": 6, "width": 384},
            "embedding": 384,
        }
    )
    tokenizer = Tokenizer(packaged_vocabulary())
    saved_model.save(
        storage.from_path(folder), DualEncoder(settings, tokenizer, ImageEncoder(settings.image)), tokenizer
    )
    return folder


def their_model(folder: Path) -> Path:
    folder.mkdir()
    config = {"model_cfg": open_clip.get_model_config("ViT-S-16"), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    state = open_clip.create_model("ViT-S-16").state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "open_clip_model.safetensors")
    return folder


def picture(path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)).save(path)
    return path


def weigh(pythons: dict[str, Path], models: dict[str, Path]) -> None:
    print("\n| | packages | of them torch and its parts | MiB without these | MiB in all | MiB of the model |")
    print("|---|---|---|---|---|---|")
    for name, python in pythons.items():
        (packages,) = python.parents[1].glob("lib/python*/site-packages")
        each = {canonicalize_name(found.name): mib(found) for found in metadata.distributions(path=[str(packages)])}
        torchs = [size for distribution, size in each.items() if OF_TORCH.fullmatch(distribution)]
        model = sum(file.stat().st_size for file in models[name].iterdir()) / 2**20
        total = sum(each.values())
        print(f"| {name} | {len(each)} | {len(torchs)} | {total - sum(torchs):.0f} | {total:.0f} | {model:.0f} |")


def mib(distribution: metadata.Distribution) -> float:
    """Return the size of a distribution's files, without bytecode."""
    paths = (Path(str(file.locate())) for file in distribution.files or () if file.suffix != ".pyc")
    return sum(path.stat().st_size for path in paths if path.is_file()) / 2**20


def compare(pythons: dict[str, Path], models: dict[str, Path], shown: Path, rounds: int) -> None:
    programs = {
        "an empty program": dict.fromkeys(pythons, ""),
        "`import torch`": dict.fromkeys(pythons, "import torch"),
        "the import of the library": IMPORT,
        "import and load": LOAD,
        "import, load, first picture and caption": {name: LOAD[name] + "\n" + ENCODE[name] for name in pythons},
    }
    print(f"\n| median of {rounds} processes: seconds (of a core) | {' | '.join(pythons)} |\n|---|---|---|")
    for label, codes in programs.items():
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in pythons}
        for turn in range(rounds + 1):
            for name, python in pythons.items():
                took = timed(python, codes[name], (models[name], shown))
                if turn:  # the first writes bytecode and fills the cache of files
                    measured[name].append(took)
        medians = (map(statistics.median, zip(*measured[name], strict=True)) for name in pythons)
        print(f"| {label} | " + " | ".join("{:.2f} ({:.2f})".format(*median) for median in medians) + " |", flush=True)
    counts = {name: run(python, LOAD[name] + MODULES, (models[name], shown)) for name, python in pythons.items()}
    print(f"| modules in memory, the model loaded | {' | '.join(counts[name].split()[-1] for name in pythons)} |")


def timed(python: Path, code: str, arguments: Collection[Path]) -> tuple[float, float]:
    """Return the seconds that a program takes, and those of a core."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    run(python, code, arguments)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def run(python: Path, code: str, arguments: Collection[Path]) -> str:
    command = [str(python), "-I", "-c", code, *map(str, arguments)]
    quiet = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=quiet).stdout


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
