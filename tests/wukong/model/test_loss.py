from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import workers

from wukong.model.loss import contrastive, exchanged, gathered, global_loss, pairwise, token_loss


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def written_out(image: np.ndarray, text: np.ndarray, scale: float) -> float:
    """Section 4.3, term by term."""
    b = len(image)
    total = 0.0
    for k in range(b):
        s_image = [scale * float(image[k] @ text[j]) for j in range(b)]
        s_text = [scale * float(text[k] @ image[j]) for j in range(b)]
        total += -np.log(np.exp(s_image[k]) / sum(np.exp(s_image))) / b
        total += -np.log(np.exp(s_text[k]) / sum(np.exp(s_text))) / b
    return total / 2


def test_global_loss_is_the_formula_of_the_paper() -> None:
    image, text = unit(7, 5), unit(7, 5, seed=1)
    loss = global_loss(image, text, torch.tensor(14.3, dtype=torch.float64))
    assert loss.item() == pytest.approx(written_out(image.numpy(), text.numpy(), 14.3), rel=1e-6)


def test_equal_captions_are_not_each_others_negatives() -> None:
    image, text = unit(4, 6), unit(4, 6, seed=1)
    text[2] = text[0]
    captions = torch.tensor([5, 8, 5, 9])
    loss = global_loss(image, text, torch.tensor(10.0), captions)
    # Computed by hand: rows 0 and 2 have one candidate less.
    expected = 0.0
    for scores in (10 * image @ text.T, 10 * text @ image.T):
        for row in range(4):
            kept = [column for column in range(4) if column == row or captions[column] != captions[row]]
            expected += (torch.logsumexp(scores[row, kept], 0) - scores[row, row]).item() / 8
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert loss < global_loss(image, text, torch.tensor(10.0))


def test_the_softmax_loss_equals_torchs() -> None:
    scores = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(contrastive(scores), F.cross_entropy(scores, torch.arange(6)))


def token_scores(image: torch.Tensor, text: torch.Tensor, counted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Section 4.3, pair by pair, over the tokens that count."""
    to_text = torch.empty(len(image), len(text), dtype=image.dtype)
    to_image = torch.empty_like(to_text)
    for i in range(len(image)):
        for j in range(len(text)):
            products = image[i] @ text[j][counted[j]].T
            to_text[i, j] = products.max(1).values.mean()
            to_image[i, j] = products.max(0).values.mean()
    return to_text, to_image


def token_batch(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 7, (rows,), generator=generator)
    counted = (torch.arange(6) < lengths[:, None]) & (torch.arange(6) > 0)
    return unit(rows, 9, 5, seed=seed), unit(rows, 6, 5, seed=seed + 1), counted


def test_token_loss_is_the_formula_of_the_paper() -> None:
    image, text, counted = token_batch(6)
    to_text, to_image = token_scores(image, text, counted)
    own = torch.arange(6)
    expected = (F.cross_entropy(9 * to_text, own) + F.cross_entropy(9 * to_image.T, own)) / 2
    torch.testing.assert_close(token_loss(image, text, counted, torch.tensor(9.0)), expected)


def sigmoid_written_out(scores: np.ndarray, scale: float, bias: float) -> float:
    """Equation 1 of Zhai et al. 2023, term by term."""
    b = len(scores)
    total = 0.0
    for i in range(b):
        for j in range(b):
            z = 1.0 if i == j else -1.0
            total += np.log(1 / (1 + np.exp(z * (-scale * scores[i, j] - bias))))
    return -total / b


def test_sigmoid_loss_is_the_published_formula() -> None:
    image, text = unit(7, 5), unit(7, 5, seed=1)
    scale, bias = torch.tensor(10.0, dtype=torch.float64), torch.tensor(-10.0, dtype=torch.float64)
    loss = global_loss(image, text, scale, bias=bias)
    assert loss.item() == pytest.approx(sigmoid_written_out((image @ text.T).numpy(), 10, -10), rel=1e-12)
    image, text, counted = token_batch(6)
    sides = [sigmoid_written_out(side.numpy(), 10, -10) for side in token_scores(image, text, counted)]
    loss = token_loss(image, text, counted, scale, bias=bias)
    assert loss.item() == pytest.approx(sum(sides) / 2, rel=1e-12)


def test_gradients_of_the_sigmoid_loss_equal_finite_differences() -> None:
    image, text = unit(4, 5).requires_grad_(), unit(4, 5, seed=1).requires_grad_()
    scale, bias = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (5.0, -3.0))
    captions = torch.tensor([1, 2, 1, 3])
    assert torch.autograd.gradcheck(
        lambda image, text, scale, bias: global_loss(image, text, scale, captions, bias),
        (image, text, scale, bias),
    )


def test_equal_captions_do_not_enter_the_sigmoid_loss() -> None:
    scores = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    excluded = torch.zeros(4, 4, dtype=torch.bool)
    excluded[[0, 2], [2, 0]] = True
    excluded[torch.arange(4), torch.arange(4)] = True
    expected = 0.0
    for row in range(4):
        for column in range(4):
            if row == column or {row, column} != {0, 2}:
                answer = 1 if row == column else -1
                expected += float(F.softplus(-answer * scores[row, column])) / 4
    assert pairwise(scores, excluded).item() == pytest.approx(expected, rel=1e-12)


def _share(rank: int, count: int, kind: str, objective: str) -> dict[str, torch.Tensor]:
    rows = 12 // count
    mine = slice(rank * rows, (rank + 1) * rows)
    scale, bias = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (9.0, -4.0))
    captions = torch.tensor([1, 2, 1, 3, 4, 5, 6, 3, 7, 7, 8, 1])[mine]
    options = (scale, captions, bias if objective == "sigmoid" else None)
    image, text, counted = token_batch(12)
    if kind == "global":
        image, text = image[:, 0], text[:, 0]
    image, text = image[mine].requires_grad_(), text[mine].requires_grad_()
    if kind == "global":
        loss = global_loss(image, text, *options)
    else:
        longest = int(counted[mine].nonzero()[:, 1].max()) + 1  # workers pad to lengths of their own
        loss = token_loss(image, text[:, :longest], counted[mine, :longest], *options)
    loss.backward()
    found = {"loss": loss.detach(), "image": image.grad, "text": text.grad, "scale": scale.grad}
    return found | ({"bias": bias.grad} if objective == "sigmoid" else {})


CASES = [(kind, objective) for kind in ("global", "token") for objective in ("softmax", "sigmoid")]


def _shares(rank: int, count: int) -> dict[str, dict[str, torch.Tensor]]:
    return {f"{kind}, {objective}": _share(rank, count, kind, objective) for kind, objective in CASES}


@pytest.mark.long
@pytest.mark.parametrize("count", [2, 3, 4])
def test_several_workers_equal_one(tmp_path: Path, count: int) -> None:
    found = workers.run(count, tmp_path, _shares)
    for case, alone in _shares(0, 1).items():
        shares = [shares[case] for shares in found]
        # A worker's gradient is that of its own loss; the mean over workers is the gradient of the whole batch.
        together = {
            name: torch.cat([share[name] for share in shares]) / count
            if name in {"image", "text"}
            else torch.stack([share[name] for share in shares]).mean(0)
            for name in alone
        }
        for name, value in together.items():
            torch.testing.assert_close(
                value, alone[name], rtol=1e-9, atol=1e-12, msg=lambda m, what=f"{case} {name}": f"{what}: {m}"
            )


def _bytes_sent() -> int:
    """Bytes that this process has written, including sockets, as counted by the kernel."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar"))


ROWS, PATCHES, WORDS, WIDTH = 16, 400, 8, 64
SCORES = 256


def _traffic(rank: int, count: int) -> dict[str, torch.Tensor]:
    image = F.normalize(torch.randn(ROWS, PATCHES, WIDTH), dim=-1).requires_grad_()
    text = F.normalize(torch.randn(ROWS, WORDS, WIDTH), dim=-1).requires_grad_()
    scale, captions = torch.tensor(9.0, requires_grad=True), torch.arange(ROWS) + rank
    counted = torch.ones(ROWS, WORDS, dtype=torch.bool)
    sent = {}
    for name, bias in (("softmax", None), ("sigmoid", torch.tensor(-4.0))):
        dist.barrier()
        before = _bytes_sent()
        token_loss(image, text, counted, scale, captions, bias).backward()
        sent[name] = torch.tensor(_bytes_sent() - before)
    scores = torch.randn(SCORES, count * SCORES)
    dist.barrier()
    before = _bytes_sent()
    exchanged(scores)
    sent["exchange"] = torch.tensor(_bytes_sent() - before)
    return sent


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the kernel's count of bytes is Linux's")
def test_workers_exchange_only_text_tokens_and_scores(tmp_path: Path) -> None:
    """Both directions count: tokens and scores, and their gradients. Image tokens would be 50 times as many bytes."""
    text, scores, image = 4 * ROWS * WORDS * WIDTH, 4 * ROWS * 2 * ROWS, 4 * ROWS * PATCHES * WIDTH
    for sent in workers.run(2, tmp_path, _traffic):
        assert 2 * text < sent["sigmoid"] < sent["softmax"] < 3 * (text + scores) + 5_000 < image / 10
        # A worker sends the scores of the other's captions, not also those of its own.
        assert 1 <= sent["exchange"] / (4 * SCORES**2) < 1.1


def _gathered_gradient(rank: int, count: int) -> dict[str, torch.Tensor]:
    local = torch.zeros(1, 64, dtype=torch.bfloat16, requires_grad=True)
    weights = torch.randn(count, count, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    (gathered(local) * weights[rank]).sum().backward()
    assert local.grad is not None
    return {"found": local.grad[0], "expected": weights[:, rank].double().sum(0).bfloat16()}


@pytest.mark.slow
def test_gradients_of_gathered_vectors_are_summed_in_float32(tmp_path: Path) -> None:
    """In bfloat16, four workers' sums would be rounded three times."""
    for found in workers.run(4, tmp_path, _gathered_gradient):
        assert torch.equal(found["found"], found["expected"])
