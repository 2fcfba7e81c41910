"""Compile the kernels of the token-wise similarity for GPUs, without one: their registers, spills and shared memory.

    PYTHONPATH=. python benchmarks/model/kernels.py [90:bfloat16:256x32x256 ...] [--all]

A case is a GPU's compute capability, the precision of the products, and image tokens x words of a caption x width. Of
each kernel the first block sizes are compiled, which ``deterministic: true`` takes; with ``--all`` all that a GPU
measures at its first call, and the kernel of an evaluation. The command ends with an error if a kernel takes more
shared memory than computed, or if the first of its block sizes spills registers, in exact float32 more than 64 bytes of
a thread. Each line of output is JSON. The version of Triton is the one that is imported: ``PYTHONPATH`` may name
another one first.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from wukong.model import token_blocks, token_triton
from wukong.model.token_blocks import Blocks, Kernel, Precision

MEMORY = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB of shared memory that a program may take, by compute capability: CUDA C++ Programming Guide, "Technical
Specifications per Compute Capability"."""
PRECISIONS: dict[str, tuple[Precision, str]] = {
    "bfloat16": ("half", "*bf16"),
    "float16": ("half", "*fp16"),
    "tf32": ("tf32", "*fp32"),
    "float32": ("ieee", "*fp32"),
}
GPUS = (80, 90, 100, 120)
"""A100, H100, B200 and RTX 5090."""
SHAPES = ("256x32x256", "49x32x256")
"""ViT-L/14's and Swin-L's tokens, in configs/paper."""
KERNELS: tuple[Kernel, ...] = ("scores", "image_gradient", "text_gradient")
_TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Compiled:
    """What a kernel takes on a GPU.

    Attributes:
        case: see above.
        kernel: its name; ``scores alone`` is that of an evaluation, which keeps no numbers of best matches.
        blocks: the block sizes.
        first: whether they are the first of the kernel.
        registers: of a thread, of 255.
        spilled: bytes of a thread that do not fit into them.
        shared: bytes of shared memory of a program.
        computed: the most bytes of it by ``token_blocks.shared_bytes``.
        instructions: those for tensor cores and for loads beside the computing that it has.
    """

    case: str
    kernel: str
    blocks: Blocks
    first: bool
    registers: int
    spilled: int
    shared: int
    computed: int
    instructions: list[str]

    @property
    def problem(self) -> str:
        """What is wrong with it; empty if nothing is."""
        gpu, precision, _ = self.case.split(":")
        if self.first and self.spilled > (64 if precision == "float32" else 0):
            return f"{self.spilled} bytes of registers are spilled"
        if not self.shared <= self.computed <= memory_of(gpu):
            return f"{self.shared} bytes of shared memory, {self.computed} computed"
        return ""


def memory_of(gpu: str) -> int:
    """Return the bytes of shared memory that a program may take on a GPU of a compute capability."""
    return MEMORY[int(gpu)] * 1024


def compiled(case: str, *, every: bool) -> Iterator[Compiled]:
    """Compile all kernels of a case, with all block sizes or the first."""
    gpu, precision, shape = case.split(":")
    patches, words, width = map(int, shape.split("x"))
    kind, pointer = PRECISIONS[precision]
    for kernel in KERNELS:
        cuts = token_blocks.blocks(kernel, words, width, kind, memory_of(gpu))
        for cut in cuts if every else cuts[:1]:
            for keeps in (True, False) if every and kernel == "scores" else (True,):
                made = _compile(kernel, cut, int(gpu), kind, pointer, (patches, words, width), keeps)
                registers, spilled = _usage(made.asm["cubin"])
                computed = token_blocks.shared_bytes(kernel, cut, width, 2 if kind == "half" else 4)
                taken = [name for name in ("wgmma", "tcgen05", "mma.sync", "cp.async") if name in made.asm["ptx"]]
                name = kernel if keeps else "scores alone"
                usage = (registers, spilled, made.metadata.shared, computed)
                yield Compiled(case, name, cut, cut == cuts[0], *usage, taken)


def _compile(
    name: Kernel, cut: Blocks, gpu: int, kind: Precision, pointer: str, shape: tuple[int, int, int], keeps: bool
) -> Any:
    patches, words, width = shape
    kernel, n = getattr(token_triton, f"_{name}"), token_blocks.padded(words)
    types = dict.fromkeys(("image", "text", "gradient"), pointer) | {"counted": "*i1", "matched": "*i1"}
    types |= dict.fromkeys(("to_text", "to_image", "of_patch", "of_word"), "*fp32")
    types |= {"word": "*u8" if words <= 256 else "*i16", "patch": "*u8" if patches <= 256 else "*i16"}
    sizes = {"WIDTH": width, "N2": n, "G": cut.rows // n, "P": cut.patches}
    sizes |= {"PRECISION": "tf32" if kind == "tf32" else "ieee"}
    sizes |= {"K": cut.depth, "KEEP": keeps} if name == "scores" else {"D": cut.depth}
    names = kernel.arg_names
    signature = {each: "constexpr" if each in sizes else types.get(each, "i32") for each in names}
    values = {(names.index(each),): value for each, value in sizes.items()}
    # A launch tells the compiler the same: addresses can be divided by 16.
    hints = {(names.index(each),): [["tt.divisibility", 16]] for each in names if each in types}
    source = ASTSource(kernel, signature, values, hints)
    options = {"num_warps": cut.warps, "num_stages": cut.stages}
    return triton.compile(source, target=GPUTarget("cuda", gpu, 32), options=options)


def _usage(cubin: bytes) -> tuple[int, int]:
    """Return the registers of a thread, and the bytes that do not fit into them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        said = subprocess.run([_TOOL, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    assert found is not None, said
    return int(found[1]), int(found[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [f"{gpu}:{precision}:{shape}" for gpu in GPUS for precision in PRECISIONS for shape in SHAPES]
    parser.add_argument("cases", nargs="*", default=every)
    parser.add_argument("--all", action="store_true")
    options = parser.parse_args()
    problems = 0
    for case in options.cases:
        for each in compiled(case, every=options.all):
            row = {**asdict(each), "blocks": each.blocks, "problem": each.problem, "triton": triton.__version__}
            print(json.dumps(row), flush=True)
            problems += bool(each.problem)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
