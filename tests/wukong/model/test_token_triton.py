"""The Triton kernels against the other implementation: on a GPU, or else by Triton's interpreter."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and os.environ.setdefault("TRITON_INTERPRET", "1") and "triton" in sys.modules:
    pytest.skip(
        "Triton was imported before it could be told to interpret: run this file alone", allow_module_level=True
    )
pytest.importorskip("triton")

from wukong.model import similarity, token_triton  # noqa: E402

# The interpreter multiplies the bits of bfloat16, not its values.
LOW = torch.bfloat16 if DEVICE == "cuda" else torch.float16


def batch(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    images, texts, patches, words, width = shape
    generator = torch.Generator().manual_seed(sum(shape))
    image = F.normalize(torch.randn(images, patches, width, generator=generator), dim=-1)
    text = F.normalize(torch.randn(texts, words, width, generator=generator), dim=-1)
    counted = torch.rand(texts, words, generator=generator) < 0.6
    counted[torch.arange(texts), torch.randint(words, (texts,), generator=generator)] = True
    return image.to(DEVICE, dtype), text.to(DEVICE, dtype), counted.to(DEVICE)


@pytest.mark.parametrize(
    "shape", [(3, 4, 49, 32, 256), (2, 3, 5, 7, 12), (2, 2, 257, 20, 40), (2, 2, 20, 300, 16), (1, 1, 1, 1, 3)]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (LOW, 2e-2)])
def test_scores_and_gradients_are_the_same(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, tolerance: float
) -> None:
    image, text, counted = batch(shape, dtype)
    weights = [torch.randn(shape[:2], generator=torch.Generator().manual_seed(n)).to(DEVICE) for n in (1, 2)]
    results = []
    for function, precision in ((token_triton.token_similarity, dtype), (similarity.token_similarity, torch.float64)):
        leaves = [tensor.to(precision).clone().requires_grad_() for tensor in (image, text)]
        scores = function(*leaves, counted)
        gradients = torch.autograd.grad(sum((s * w).sum() for s, w in zip(scores, weights, strict=True)), leaves)
        results.append([*scores, *gradients])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def test_padding_has_no_influence_whatever_it_holds() -> None:
    image, text, counted = batch((3, 4, 10, 6, 16), torch.float32)
    clean = token_triton.token_similarity(image, text, counted)
    text[~counted] = 100.0
    torch.testing.assert_close(token_triton.token_similarity(image, text, counted), clean)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from wukong.model import token_triton

TYPES = {"image": "*bf16", "text": "*bf16", "gradient": "*bf16", "counted": "*i1", "word": "*u8", "patch": "*u8",
         "to_text": "*fp32", "to_image": "*fp32"}
SIZES = {"N1": 256, "N2": 32, "K": 64, "M": 64, "D": 128, "KEEP": 1}
for kernel in (token_triton._scores, token_triton._image_gradient, token_triton._text_gradient):
    names = kernel.arg_names
    signature = {name: "constexpr" if name in SIZES else TYPES.get(name, "i32") for name in names}
    sizes = {(names.index(name),): value for name, value in SIZES.items() if name in names}
    compiled = triton.compile(ASTSource(kernel, signature, sizes), target=GPUTarget("cuda", 90, 32))
    assert "mma" in compiled.asm["ptx"], "no tensor cores"
"""


@pytest.mark.slow
def test_kernels_compile_for_a_gpu() -> None:
    """The interpreter takes Python that the compiler refuses; compiling needs no GPU."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", COMPILE], check=True, env=environment)
