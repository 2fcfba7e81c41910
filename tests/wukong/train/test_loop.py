from collections.abc import Callable
from pathlib import Path

import pytest
import small
import torch
import workers

from wukong.errors import ConfigError, DataError
from wukong.train.loop import Epoch, train


def ignore(_epoch: Epoch, _write: Callable[[Path], None]) -> None:
    pass


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_training_lowers_the_loss_and_logs_progress(caplog: pytest.LogCaptureFixture) -> None:
    model, pairs = small.make()
    with caplog.at_level("INFO", "wukong.progress"):
        history = train(model, pairs, small.SETTINGS, 0, ignore)
    assert caplog.messages[-1].startswith("training: 96 of 96 pairs (")  # 3 batches of 8, 4 times
    assert [epoch.epoch for epoch in history] == [1, 2, 3, 4]
    assert history[-1].loss < 0.8 * history[0].loss


@pytest.mark.parametrize("optimizer", ["lamb", "adamw"])
def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path, optimizer: str) -> None:
    settings = small.SETTINGS.model_copy(update={"optimizer": optimizer, "token_dropout": 0.2})
    whole, pairs = small.make(dropout=0.2)
    expected = train(whole, pairs, settings, 7, ignore)

    class KilledError(Exception):
        pass

    def kill_after_two(epoch: Epoch, write: Callable[[Path], None]) -> None:
        write(tmp_path)
        if epoch.epoch == 2:
            raise KilledError

    cut, pairs = small.make(dropout=0.2)
    with pytest.raises(KilledError):
        train(cut, pairs, settings, 7, kill_after_two)
    resumed, pairs = small.make(dropout=0.2)
    history = train(resumed, pairs, settings, 7, ignore, resume=tmp_path)
    assert [epoch.loss for epoch in history] == [epoch.loss for epoch in expected]
    for name, value in weights(resumed).items():
        assert torch.equal(value, whole.state_dict()[name]), name


def _train_share(rank: int, count: int, similarity: str) -> dict[str, torch.Tensor]:
    model, pairs = small.make(similarity=similarity)
    train(model, pairs, small.SETTINGS, 0, ignore)
    return weights(model)


@pytest.mark.slow
@pytest.mark.parametrize("similarity", ["global", "token"])
def test_two_workers_train_the_same_model_as_one_worker(tmp_path: Path, similarity: str) -> None:
    alone = _train_share(0, 1, similarity)
    first, second = workers.run(2, tmp_path, _train_share, similarity)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        torch.testing.assert_close(value, alone[name], rtol=1e-3, atol=1e-4)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    model, pairs = small.make()
    train(model, pairs, small.SETTINGS.model_copy(update={"epochs": 1}), 0, lambda _epoch, write: write(tmp_path))
    other, pairs = small.make(similarity="token")
    other.image_head = torch.nn.Linear(small.WIDTH, 4)
    with pytest.raises(DataError, match="another architecture"):
        train(other, pairs, small.SETTINGS, 0, ignore, resume=tmp_path)
    model, pairs = small.make()
    with pytest.raises(DataError, match="trained other parameters"):
        train(model, pairs, small.SETTINGS.model_copy(update={"image_head_rate": 0.1}), 0, ignore, resume=tmp_path)
    (tmp_path / "optimizer.safetensors").write_bytes(b"cut short")
    with pytest.raises(DataError, match="cannot be read"):
        train(model, pairs, small.SETTINGS, 0, ignore, resume=tmp_path)


def test_features_that_are_not_numbers_end_the_run() -> None:
    model, pairs = small.make()
    pairs.features[0, 3] = torch.nan
    with pytest.raises(DataError, match=r"caption '绿色的苹果' are not finite, in step \d \(epoch [12]\)"):
        train(model, pairs, small.SETTINGS, 0, ignore)


def test_a_loss_that_is_not_a_number_names_the_step_and_what_broke() -> None:
    model, pairs = small.make()
    model.text_head.weight.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(
        DataError, match=r"loss is nan in step 2 \(epoch 1\): the weights text_head.weight are not finite"
    ):
        train(model, pairs, small.SETTINGS, 0, ignore)
    model, pairs = small.make()
    model.settings = model.settings.model_copy(update={"min_temperature": 1e-45})
    with torch.no_grad():
        model.log_scale.fill_(89.0)  # beyond the largest float32
    with pytest.raises(DataError, match=r"step 1 \(epoch 1\) though all weights are finite, at a temperature of 0"):
        train(model, pairs, small.SETTINGS, 0, ignore)


def test_weights_that_are_not_finite_after_the_last_step_are_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = small.make()
    break_at = 4 * (len(pairs) // small.SETTINGS.batch_size)
    steps = iter(range(1, break_at + 1))
    clamp = model.clamp_temperature

    def clamp_and_break() -> None:
        clamp()
        if next(steps) == break_at:
            model.text_head.weight.data[0, 0] = torch.inf

    monkeypatch.setattr(model, "clamp_temperature", clamp_and_break)
    seen: list[int] = []
    with pytest.raises(DataError, match=r"text_head.weight are not finite after epoch 4"):
        train(model, pairs, small.SETTINGS, 0, lambda epoch, _write: seen.append(epoch.epoch))
    assert seen == [1, 2, 3]


def test_a_batch_larger_than_the_data_is_refused() -> None:
    model, pairs = small.make()
    with pytest.raises(ConfigError, match=r"pairs \(28\)"):
        train(model, pairs, small.SETTINGS.model_copy(update={"batch_size": 64}), 0, ignore)


def test_the_temperature_stays_above_its_bound() -> None:
    model, pairs = small.make()
    model.settings = model.settings.model_copy(update={"min_temperature": 0.5})
    history = train(model, pairs, small.SETTINGS, 0, ignore)
    assert all(epoch.temperature > 0.499 for epoch in history)
