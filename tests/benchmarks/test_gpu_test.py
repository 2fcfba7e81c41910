"""The command for the first minutes on a GPU: rehearsed on a processor, and what it says without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
REHEARSED = {
    "kernels": ("tf32", "float32", "float16"),
    "step": ("waits for the GPU", "image tower", "text tower", "backward", "optimiser", "wukong plan", "peak memory"),
    "stored": ("captions a second",),
    "pictures": ("the loader alone", "the tower alone", "features of", "waits for data"),
    "token": ("kernels 2 x", "blocks 2 x", "naive 2 x"),
    "peers": ("from pictures", "from stored features", "open_clip"),
    "validation": ("on the processor", "a validation of"),
    "reduce": ("all-reduce of",),
}
"""Parts, and what their tables name."""


def _run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/model/gpu.py", *options]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=False, capture_output=True, text=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_why_nothing_is_measured(tmp_path: Path) -> None:
    done = _run("--page", str(tmp_path / "page.md"))
    assert done.returncode == 0
    assert done.stdout.startswith("skipped: there is no GPU here (t")
    assert not list(tmp_path.iterdir())


_FEW = ("kernels", "token", "stored", "validation", "reduce")
_TOWERS = [pytest.param((part,), marks=pytest.mark.long, id=part) for part in ("step", "pictures", "peers")]


@pytest.mark.parametrize("parts", [pytest.param(_FEW, marks=pytest.mark.long, id="few"), *_TOWERS])
def test_every_part_runs_and_is_on_the_page(tmp_path: Path, parts: tuple[str, ...]) -> None:
    if "peers" in parts:
        pytest.importorskip("open_clip_train")
    page = tmp_path / "page.md"
    done = _run("--rehearse", "--page", str(page), "--only", *parts)
    assert done.returncode == 0, done.stdout + done.stderr
    said = page.read_text()
    for name in ("torch", "triton", "timm", "cores"):
        assert f"| {name} | " in said
    for part in parts:
        assert f"`{part}` took" in said
        for what in REHEARSED[part]:
            assert what in said, said
    assert "no error" not in said
    assert "the rest" not in said, said


@pytest.mark.slow
def test_a_part_that_fails_is_on_the_page_and_the_others_go_on(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    broken = (
        "import sys; sys.argv = ['gpu.py', '--rehearse', '--page', sys.argv[1], '--only', 'kernels', 'token'];"
        "sys.path.insert(0, 'benchmarks/model'); import gpu\n"
        "def part(_sizes):\n"
        "    yield gpu.Row('something', '1')\n"
        "    raise RuntimeError('planted')\n"
        "gpu.PARTS['kernels'] = ('Kernels', part)\n"
        "gpu.main()"
    )
    command = [sys.executable, "-c", broken, str(page)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=False, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    said = page.read_text()
    assert "| something | 1 |" in said
    assert "| the rest | RuntimeError: planted | no error | missed |" in said
    assert "`token` took" in said
