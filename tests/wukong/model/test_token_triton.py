"""The Triton kernels compared with the other implementation, on a GPU or in Triton's interpreter."""

import json
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

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


# Images, texts, patches, words, width; 257 and 577 patches are several blocks.
SHAPES = [
    (3, 4, 49, 32, 256),
    (2, 3, 5, 7, 12),
    (2, 2, 257, 20, 40),
    (1, 2, 577, 9, 24),
    (2, 2, 20, 300, 16),
    (1, 1, 1, 1, 3),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_first", [False, True], ids=["without [CLS]", "with [CLS]"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (LOW, 2e-2)])
def test_scores_and_gradients_are_the_same(
    shape: tuple[int, int, int, int, int], with_first: bool, dtype: torch.dtype, tolerance: float
) -> None:
    compare(shape, with_first, dtype, tolerance)


@pytest.mark.parametrize("shared", [9_000, 12_000])
def test_blocks_for_little_memory_give_equal_results(shared: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_triton, "shared_memory", lambda _device: shared)
    cut = token_triton.blocks(70, 20, 40, 4, shared)
    assert cut is not None and cut.rows < 70
    compare((2, 2, 70, 20, 40), True, torch.float32, 1e-5)


def compare(shape: tuple[int, int, int, int, int], with_first: bool, dtype: torch.dtype, tolerance: float) -> None:
    """Compare the kernels' scores and gradients with those of the blocks in double precision."""
    image, text, counted = batch(shape, dtype)
    weights = [torch.randn(shape[:2], generator=torch.Generator().manual_seed(n)).to(DEVICE) for n in (1, 2)]
    results = []
    for function, precision in ((kernels, dtype), (similarity.token_similarity, torch.float64)):
        leaves = [tensor.to(precision).clone().requires_grad_() for tensor in (image, text)]
        scores = function(*leaves, counted, with_first)
        gradients = torch.autograd.grad(sum((s * w).sum() for s, w in zip(scores, weights, strict=True)), leaves)
        results.append([*scores, *gradients])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def kernels(
    image: torch.Tensor, text: torch.Tensor, counted: torch.Tensor, with_first: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    matched = counted.clone()
    matched[:, 0] |= with_first
    return token_triton.token_similarity(image, text, torch.stack([matched, counted]))


def test_the_content_of_padding_has_no_influence() -> None:
    image, text, counted = batch((3, 4, 10, 6, 16), torch.float32)
    clean = kernels(image, text, counted)
    text[~counted] = 100.0
    torch.testing.assert_close(kernels(image, text, counted), clean)


# Bytes of shared memory that a program may take: CUDA C++ Programming Guide, "Technical Specifications per Compute
# Capability": 7.5, 8.6 and 8.9, 8.0, 9.0.
MEMORY = [64 * 1024, 99 * 1024, 163 * 1024, 227 * 1024]


@given(
    st.integers(1, 3000), st.integers(1, 512), st.integers(1, 2048), st.sampled_from([2, 4]), st.sampled_from(MEMORY)
)
def test_blocks_fit_for_every_model(patches: int, words: int, width: int, item: int, limit: int) -> None:
    cut = token_triton.blocks(patches, words, width, item, limit)
    if (words > 256, item, limit) == (True, 4, MEMORY[0]):
        return  # the weights alone would fill it
    assert cut is not None
    n = 1 << max(4, (words - 1).bit_length())
    for size in (cut.rows, cut.depth, cut.gradient_rows, cut.gradient_columns):
        assert size >= 16 and size & (size - 1) == 0  # what tensor cores and Triton take
    assert token_triton.forward_shared(cut.rows, n, cut.depth, cut.stages, item) <= limit
    backward = (cut.gradient_rows, n, cut.gradient_columns, cut.gradient_stages, item)
    assert token_triton.backward_shared(*backward) <= limit
    # The numbers that a thread accumulates must fit into its 255 registers.
    assert cut.rows * n <= 64 * 32 * cut.warps
    assert max(cut.gradient_rows * n, max(cut.gradient_rows, n) * cut.gradient_columns) <= 64 * 32 * 4
    assert token_triton.does_not_fit(patches, 65535, words, width, item, limit) == ""


@pytest.mark.parametrize(
    ("patches", "texts", "words", "limit", "reason"),
    [
        (49, 2**16, 32, MEMORY[0], "65536 captions at a time are more than the kernels take, 65535"),
        (49, 8, 513, MEMORY[3], "up to 1024 text tokens"),
        (49, 8, 32, 5_000, "more than the 5000 bytes of shared memory"),
    ],
)
def test_the_reason_why_shapes_do_not_fit_is_given(
    patches: int, texts: int, words: int, limit: int, reason: str
) -> None:
    assert reason in token_triton.does_not_fit(patches, texts, words, 256, 2, limit)


@pytest.mark.skipif(DEVICE == "cuda", reason="the kernels are reached without a GPU here")
def test_without_memory_for_the_kernels_the_blocks_run_and_warn_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    similarity._warn_once.cache_clear()
    used = []
    run = token_triton.token_similarity

    def watched(*given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        used.append(given[1].shape[1])
        return run(*given)

    monkeypatch.setattr(token_triton, "token_similarity", watched)
    for words in (600, 601, 30):
        image, text, counted = batch((2, 2, 5, words, 12), torch.float32)
        expected = similarity.token_similarity(image, text, counted)
        with monkeypatch.context() as patched:
            patched.setattr(similarity, "_kernels_run", lambda _image: True)
            torch.testing.assert_close(tuple(similarity.token_similarity(image, text, counted)), tuple(expected))
    assert used == [30]
    (said,) = [record.getMessage() for record in caplog.records if "without Triton's kernels" in record.getMessage()]
    assert "up to 1024 text tokens" in said


COMPILE = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from wukong.model import token_triton

REAL = {2: "*bf16", 4: "*fp32"}
for capability, limit, patches, words, width, item in json.loads(sys.argv[1]):
    cut = token_triton.blocks(patches, words, width, item, limit)
    types = dict.fromkeys(("image", "text", "gradient"), REAL[item]) | {"counted": "*i1", "matched": "*i1"}
    types |= {"word": "*u8", "patch": "*i16", "to_text": "*fp32", "to_image": "*fp32"}
    n = token_triton._size(words)
    forward = {"M": cut.rows, "N2": n, "K": cut.depth, "KEEP": 1}
    backward = {"M": cut.gradient_rows, "N2": n, "D": cut.gradient_columns}
    most = (
        token_triton.forward_shared(cut.rows, n, cut.depth, cut.stages, item),
        token_triton.backward_shared(cut.gradient_rows, n, cut.gradient_columns, cut.gradient_stages, item),
    )
    for kernel, sizes, warps, stages, reckoned in (
        (token_triton._scores, forward, cut.warps, cut.stages, most[0]),
        (token_triton._image_gradient, backward, 4, cut.gradient_stages, most[1]),
        (token_triton._text_gradient, backward, 4, cut.gradient_stages, most[1]),
    ):
        names = kernel.arg_names
        signature = {name: "constexpr" if name in sizes else types.get(name, "i32") for name in names}
        values = {(names.index(name),): value for name, value in sizes.items()}
        # A launch tells the compiler the same: addresses, and sometimes the width, can be divided by 16.
        whole = [name for name in names if name in types or (name == "width" and width % 16 == 0)]
        hints = {(names.index(name),): [["tt.divisibility", 16]] for name in whole}
        source = ASTSource(kernel, signature, values, hints)
        options = {"num_warps": warps, "num_stages": stages}
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        what = f"{kernel.__name__} {patches} x {words} x {width} {item} sm_{capability}"
        assert compiled.metadata.shared <= reckoned <= limit, (what, compiled.metadata.shared, reckoned, limit, cut)
        if item == 2:
            assert "mma" in compiled.asm["ptx"], f"{what}: no tensor cores"
        print(what, compiled.metadata.shared, reckoned, limit, cut, flush=True)
"""

# Compute capability, its shared memory, patches (577 is 336 pixels in patches of 14, with one to spare), words, width,
# bytes a number.
COMPILED = [
    (90, MEMORY[3], 256, 32, 256, 2),
    (90, MEMORY[3], 577, 32, 256, 2),
    (86, MEMORY[1], 577, 32, 256, 4),
    (80, MEMORY[2], 49, 300, 100, 2),
]


@pytest.mark.slow
def test_compiled_kernels_use_no_more_memory_than_computed() -> None:
    """The interpreter accepts code that the compiler refuses; compiling needs no GPU."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", COMPILE, json.dumps(COMPILED)], check=True, env=environment)
