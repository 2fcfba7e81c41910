from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import workers

from wukong.model.loss import contrastive, global_loss, token_loss


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
    # By hand: rows 0 and 2 see one candidate fewer.
    expected = 0.0
    for scores in (10 * image @ text.T, 10 * text @ image.T):
        for row in range(4):
            kept = [column for column in range(4) if column == row or captions[column] != captions[row]]
            expected += (torch.logsumexp(scores[row, kept], 0) - scores[row, row]).item() / 8
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert loss < global_loss(image, text, torch.tensor(10.0))


def test_label_smoothing_is_torchs() -> None:
    scores = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    expected = F.cross_entropy(scores, torch.arange(6), label_smoothing=0.2)
    torch.testing.assert_close(contrastive(scores, label_smoothing=0.2), expected)


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
    torch.testing.assert_close(token_loss(image, text, counted, torch.tensor(9.0)), expected.float())


def _share(rank: int, count: int, kind: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    rows = 8 // count
    mine = slice(rank * rows, (rank + 1) * rows)
    scale = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
    captions = torch.tensor([1, 2, 1, 3, 4, 5, 6, 3])[mine]
    image, text, counted = token_batch(8)
    if kind == "global":
        image, text = image[:, 0], text[:, 0]
    image, text = image[mine].requires_grad_(), text[mine].requires_grad_()
    if kind == "global":
        loss = global_loss(image, text, scale, captions, 0.1)
    else:
        longest = int(counted[mine].nonzero()[:, 1].max()) + 1  # workers pad to lengths of their own
        loss = token_loss(image, text[:, :longest], counted[mine, :longest], scale, captions, 0.1)
    loss.backward()
    return {"loss": loss.detach(), "image": image.grad, "text": text.grad, "scale": scale.grad}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["global", "token"])
@pytest.mark.parametrize("count", [2, 4])
def test_several_workers_equal_one(tmp_path: Path, kind: str, count: int) -> None:
    alone = _share(0, 1, kind)
    shares = workers.run(count, tmp_path, _share, kind)
    mean = {name: torch.stack([share[name] for share in shares]).mean(0) for name in ("loss", "scale")}
    # A worker's gradient is of its own loss; the mean over workers is of the joined batch.
    joined = {name: torch.cat([share[name] for share in shares]) / count for name in ("image", "text")}
    for name, value in {**mean, **joined}.items():
        torch.testing.assert_close(value, alone[name], rtol=1e-5, atol=1e-7)
