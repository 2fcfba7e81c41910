"""The Triton kernels compared with the other implementation, on a GPU or in Triton's interpreter."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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

from wukong.model import similarity, token_blocks, token_triton  # noqa: E402
from wukong.model.token_blocks import Kernel, Precision  # noqa: E402

ROOT = Path(__file__).parents[3]
KERNELS: tuple[Kernel, ...] = ("scores", "image_gradient", "text_gradient")


@pytest.fixture(autouse=True)
def bfloat16_products(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The interpreter multiplies the bits of bfloat16, not its values: convert them to float32, which is exact."""
    if DEVICE == "cpu":
        import triton.language as tl
        from triton.runtime.interpreter import InterpreterBuilder

        dot: Callable[..., Any] = InterpreterBuilder.create_dot

        def exact(builder: Any, a: Any, b: Any, *rest: Any) -> Any:
            a, b = (builder.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
            return dot(builder, a, b, *rest)

        monkeypatch.setattr(InterpreterBuilder, "create_dot", exact)
    yield


def batch(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    images, texts, patches, words, width = shape
    generator = torch.Generator().manual_seed(sum(shape))
    image = F.normalize(torch.randn(images, patches, width, generator=generator), dim=-1)
    text = F.normalize(torch.randn(texts, words, width, generator=generator), dim=-1)
    counted = torch.rand(texts, words, generator=generator) < 0.6
    counted[torch.arange(texts), torch.randint(words, (texts,), generator=generator)] = True
    return image.to(DEVICE, dtype), text.to(DEVICE, dtype), counted.to(DEVICE)


# Images, texts, patches, words, width; 257 and 576 patches are several blocks, and so are 5 texts.
SHAPES = [
    (3, 5, 49, 32, 256),
    (2, 3, 5, 7, 12),
    (2, 2, 257, 20, 40),
    (1, 2, 576, 9, 24),
    (2, 2, 20, 300, 16),
    (1, 1, 1, 1, 3),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_first", [False, True], ids=["without [CLS]", "with [CLS]"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_scores_and_gradients_are_the_same(
    shape: tuple[int, int, int, int, int], with_first: bool, dtype: torch.dtype, tolerance: float
) -> None:
    compare(shape, with_first, dtype, tolerance)


def test_blocks_for_little_memory_give_equal_results(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = 18_000
    monkeypatch.setattr(token_triton, "shared_memory", lambda _device: shared)
    for kernel in KERNELS:
        cut = token_triton.blocks(kernel, 20, 40, "ieee", shared)[0]
        assert cut.patches < 70 and cut.depth < 40
    compare((2, 2, 70, 20, 40), True, torch.float32, 1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_all_blocks_that_are_measured_give_equal_results(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks for tensor cores, too, which float32 tokens use where TF32 is allowed."""
    first = token_triton.blocks
    cuts = first(kernel, 20, 40, "tf32", 100_000)
    assert len(cuts) == 4
    for cut in cuts:
        chosen = {other: first(other, 20, 40, "ieee", 100_000) for other in KERNELS} | {kernel: (cut,)}
        monkeypatch.setattr(token_triton, "blocks", lambda other, *_shape, chosen=chosen: chosen[other])
        compare((2, 3, 70, 20, 40), False, torch.float32, 1e-5)


def test_the_fastest_blocks_are_measured_once_and_never_where_the_choice_must_not_vary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuts = token_triton.blocks("scores", 32, 256, "half", MEMORY[3])
    tokens = SimpleNamespace(is_cuda=True, shape=(8, 49, 256), device="cuda:0", dtype=torch.bfloat16)
    times = {cuts[0]: 3.0, cuts[1]: 2.0, cuts[2]: 1.0, cuts[3]: None}
    launched: list[token_triton.Blocks] = []

    def measure(work: Callable[[], None], **_options: int) -> float:
        work()
        taken = times[launched[-1]]
        if taken is None:
            raise token_triton.OutOfResources(300_000, MEMORY[3], "shared memory")
        return taken

    monkeypatch.setattr(token_triton, "_fastest", {})
    monkeypatch.setattr(token_triton, "shared_memory", lambda _device: MEMORY[3])
    monkeypatch.setattr(token_triton.triton, "testing", SimpleNamespace(do_bench=measure))
    given: Any = ("scores", tokens, SimpleNamespace(shape=(8, 32, 256)), "half", launched.append)
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        torch.use_deterministic_algorithms(mode=True, warn_only=True)
        assert token_triton._chosen(*given) == cuts[0]
        assert not launched
        torch.use_deterministic_algorithms(mode=False)
        assert token_triton._chosen(*given) == cuts[2]
        assert token_triton._chosen(*given) == cuts[2]
        assert launched == list(cuts)
    finally:
        torch.use_deterministic_algorithms(mode=before[0], warn_only=before[1])


@pytest.mark.skipif(DEVICE == "cuda", reason="only the interpreter runs single programs")
def test_the_last_of_more_texts_than_a_grids_second_axis_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run two of many programs: the one with the last text and the last image, and one in the middle."""
    from triton.runtime.interpreter import InterpreterBuilder

    images, texts = 3, 70_001
    image, text, counted = batch((images, texts, 5, 2, 8), torch.float32)
    grids: list[int] = []
    programs: list[int] = []
    kernel = token_triton._scores

    class Watched:
        def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
            grids[:] = grid
            programs[:] = [grid[0] // 2, grid[0] - 1]
            launched: Callable[..., None] = kernel[(2,)]
            return launched

    def number(builder: InterpreterBuilder, x: int, y: int, z: int) -> None:
        builder.grid_idx = (programs[x], y, z)

    monkeypatch.setattr(token_triton, "_scores", Watched())
    monkeypatch.setattr(InterpreterBuilder, "set_grid_idx", number)
    found = kernels(image, text, counted)
    (count,) = grids
    cut = token_triton.blocks("scores", 2, 8, "ieee", token_triton.shared_memory(image.device))[0]
    group = cut.rows // 16
    groups = -(-texts // group)
    span = token_triton.images_of_a_program(images, groups)
    assert groups > 2**12 and span > 1
    assert count == groups * -(-images // span) < 2**31
    middle = count // 2 % groups * group
    for j in (texts - 1, middle, middle + group - 1):
        expected = similarity.token_similarity(image, text[j : j + 1], counted[j : j + 1])
        own = slice(count // 2 // groups * span, None) if j != texts - 1 else slice((images - 1) // span * span, None)
        for side, right in zip(found, expected, strict=True):
            torch.testing.assert_close(side[own, j][:span], right[own, 0][:span], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("images", "texts"), [(1, 1), (256, 10_240), (512, 512), (40_000, 10**7), (10**6, 10**6)])
def test_a_grid_is_never_too_large(images: int, texts: int) -> None:
    span = token_triton.images_of_a_program(images, texts)  # one text a group, the most programs
    assert 1 <= span <= images
    assert texts * -(-images // span) < 2**31


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


@pytest.mark.parametrize("kept", [False, True])
def test_torch_takes_the_kernels_as_operators(kept: bool) -> None:
    """Torch's own check: what an operator's signature, its fake form and its gradient promise, is what it does."""
    image, text, counted = batch((2, 3, 5, 7, 12), torch.float32)
    given = [tensor.clone().requires_grad_(kept) for tensor in (image, text)]
    both = torch.stack([counted, counted])
    operator = torch.ops.wukong.token_similarity.default
    torch.library.opcheck(operator, (*given, both, kept))
    scores, word, patch = operator(image, text, both, True)
    weights = torch.rand_like(scores)
    gradients = torch.ops.wukong.token_similarity_gradients.default
    torch.library.opcheck(gradients, (image, text, counted, *weights, word, patch))


def test_a_compiled_loss_is_one_graph_with_equal_gradients() -> None:
    image, text, counted = batch((2, 3, 5, 7, 12), torch.float32)
    found = []
    compiled = torch.compile(token_triton.token_similarity, backend="aot_eager", fullgraph=True)
    for function in (token_triton.token_similarity, compiled):
        leaves = [tensor.clone().requires_grad_() for tensor in (image, text)]
        to_text, to_image = function(*leaves, torch.stack([counted, counted]))
        found.append([to_text, to_image, *torch.autograd.grad((to_text.exp() + to_image).sum(), leaves)])
    torch.testing.assert_close(*found)


@given(st.integers(1, 512), st.integers(1, 2048), st.sampled_from(["half", "tf32", "ieee"]), st.sampled_from(MEMORY))
def test_blocks_fit_for_every_model(words: int, width: int, precision: Precision, limit: int) -> None:
    if (words > 256, precision == "half", limit) == (True, False, MEMORY[0]):
        return  # the weights alone would fill it
    assert token_triton.does_not_fit(words, width, precision, limit) == ""
    n, item = 1 << max(4, (words - 1).bit_length()), 2 if precision == "half" else 4
    for kernel in KERNELS:
        for cut in token_triton.blocks(kernel, words, width, precision, limit):
            for size in (cut.rows, cut.patches, cut.depth):
                assert size >= 16 and size & (size - 1) == 0  # what tensor cores and Triton take
            assert cut.rows % n == 0
            assert token_blocks.shared_bytes(kernel, cut, width, item) <= limit
            # The numbers that a thread accumulates must fit into its 255 registers, beside others.
            accumulated = {
                "scores": cut.rows * cut.patches,
                "image_gradient": cut.patches * cut.depth,
                "text_gradient": cut.rows * cut.depth,
            }[kernel]
            assert accumulated <= 64 * 32 * cut.warps


@pytest.mark.parametrize("limit", MEMORY[2:], ids=["A100", "H100"])
def test_an_h100_and_an_a100_build_weights_once_and_keep_texts(limit: int) -> None:
    for kernel in KERNELS:
        assert token_triton.blocks(kernel, 32, 256, "half", limit)[0].depth == 256


def test_float32_is_exact_unless_torch_may_round_to_tf32() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        assert token_triton.precision_of(torch.ones(1)) == "ieee"
        torch.set_float32_matmul_precision("high")
        assert token_triton.precision_of(torch.ones(1)) == "tf32"
        assert token_triton.precision_of(torch.ones(1, dtype=torch.bfloat16)) == "half"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("words", "limit", "reason"),
    [(513, MEMORY[3], "captions of 513 tokens"), (32, 5_000, "more than the 5000 bytes of shared memory")],
)
def test_the_reason_why_shapes_do_not_fit_is_given(words: int, limit: int, reason: str) -> None:
    assert reason in token_triton.does_not_fit(words, 256, "half", limit)


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
    for words in (600, 600, 30):
        image, text, counted = batch((2, 2, 5, words, 12), torch.float32)
        expected = similarity.token_similarity(image, text, counted)
        with monkeypatch.context() as patched:
            patched.setattr(similarity, "_kernels_run", lambda _image: True)
            torch.testing.assert_close(tuple(similarity.token_similarity(image, text, counted)), tuple(expected))
    assert used == [30]
    (said,) = [record.getMessage() for record in caplog.records if "without Triton's kernels" in record.getMessage()]
    assert "captions of 600 tokens" in said


# Compute capability, precision and tokens (576 are 336 pixels in patches of 14), and the most registers of a thread.
COMPILED = {
    "80:float16:576x32x256": 200,
    "80:bfloat16:49x300x100": 255,
    "86:float32:576x32x256": 200,
    "90:bfloat16:256x32x256": 200,
    "80:tf32:256x32x256": 255,
    "90:tf32:576x32x256": 255,
    "100:bfloat16:256x32x256": 255,
    "120:bfloat16:49x32x256": 200,
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler for CUDA is for Linux")
def test_compiled_kernels_keep_to_registers_and_shared_memory() -> None:
    """The interpreter accepts code that the compiler refuses; compiling needs no GPU.

    Registers are of one thread; spilled are the bytes of a thread that do not fit into them.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "benchmarks/model/kernels.py", *COMPILED]
    options: dict[str, Any] = {"env": environment | {"PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True}
    done = subprocess.run(command, cwd=ROOT, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(each["case"], each["kernel"]) for each in lines] == [(case, name) for case in COMPILED for name in KERNELS]
    for found in lines:
        gpu, precision, shape = found["case"].split(":")
        limit = {"80": MEMORY[2], "86": MEMORY[1], "120": MEMORY[1]}.get(gpu, MEMORY[3])
        assert found["shared"] <= found["computed"] <= limit, found
        assert found["spilled"] == 0, found
        assert found["registers"] <= COMPILED[found["case"]], found
        if precision != "float32":
            assert {"90": "wgmma", "100": "tcgen05"}.get(gpu, "mma.sync") in found["instructions"], found
        if shape != "49x300x100":
            assert "cp.async" in found["instructions"], found


@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler for CUDA is for Linux")
def test_kernels_that_spill_or_take_more_memory_than_computed_are_refused() -> None:
    spec = importlib.util.spec_from_file_location("kernels", ROOT / "benchmarks" / "model" / "kernels.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kernels"] = module  # for its dataclass
    spec.loader.exec_module(module)
    cut = token_blocks.blocks("scores", 32, 256, "half", MEMORY[3])[0]
    proper = module.Compiled("90:bfloat16:256x32x256", "scores", cut, True, 200, 0, 1000, 1000, [])
    assert proper.problem == ""
    assert "8 bytes" in replace(proper, spilled=8).problem
    assert replace(proper, spilled=8, first=False).problem == ""  # it is measured, and is not the fastest
    assert replace(proper, spilled=8, case="90:float32:256x32x256").problem == ""
    assert "computed" in replace(proper, shared=1001).problem
    assert "computed" in replace(proper, shared=MEMORY[3] + 1, computed=MEMORY[3] + 1).problem
