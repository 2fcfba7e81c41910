import math
import time
from collections.abc import Callable
from itertools import accumulate, pairwise
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

import pytest
import small
import torch
import workers
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from safetensors.torch import save_file
from timm.optim import Lamb

from wukong.config.training import Checkpointing, Training, Validating
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.errors import ConfigError, DataError
from wukong.model.dual import DualEncoder
from wukong.runtime import events
from wukong.store import storage
from wukong.train import checkpoint, loop, optimizer
from wukong.train.looks import Look
from wukong.train.loop import Validate, train
from wukong.train.state import Epoch, Validated, Validations

EVERY_STEP = small.SETTINGS.model_copy(update={"log_every": 1})


class KilledError(Exception):
    pass


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def storing(steps: int, **changed: object) -> Training:
    """Settings that store a checkpoint every so many steps."""
    stored = small.SETTINGS.checkpoint.model_copy(update={"steps": steps})
    return small.SETTINGS.model_copy(update={"checkpoint": stored, **changed})


def test_training_lowers_the_loss_and_logs_progress(caplog: pytest.LogCaptureFixture) -> None:
    model, pairs = small.make()
    with caplog.at_level("INFO"):
        history = train(model, pairs, small.SETTINGS, 0)
    assert caplog.messages[-1].startswith("training: 96 of 96 pairs (")  # 3 batches of 8, 4 times
    assert "each epoch leaves out 4 of 28 pairs, which do not fill a batch of 8" in caplog.messages
    assert [epoch.epoch for epoch in history] == [1, 2, 3, 4]
    assert history[-1].loss < 0.8 * history[0].loss


def run_until(step: int, uri: str, settings: Training, validate: Validate | None = None) -> None:
    """Train from the newest checkpoint, and die after a step."""
    model, pairs = small.make(dropout=0.2)
    writer = checkpoint.Writer(uri)
    clamp, steps = model.clamp_temperature, iter(range(1, step + 1))

    def clamp_or_die() -> None:
        clamp()
        if next(steps) == step:
            raise KilledError

    model.clamp_temperature = clamp_or_die  # type: ignore[method-assign]
    with pytest.raises(KilledError):
        train(model, pairs, settings, 7, checkpoints=writer, resume=checkpoint.newest(uri), validate=validate)
    writer.wait()
    writer.close()


@pytest.mark.parametrize("optimizer", ["lamb", "adamw"])
@examples(max_examples=4, deadline=None)
@given(cuts=st.lists(st.integers(1, 12), min_size=1, max_size=3), every=st.integers(1, 5))
def test_a_run_cut_anywhere_and_resumed_ends_with_the_same_weights(
    tmp_path_factory: pytest.TempPathFactory, optimizer: str, cuts: list[int], every: int
) -> None:
    settings = storing(every, optimizer=optimizer)
    whole, pairs = small.make(dropout=0.2)
    expected = train(whole, pairs, settings, 7)
    uri = storage.from_path(tmp_path_factory.mktemp("checkpoints"))
    taken = 0
    for cut in cuts:
        found = checkpoint.newest(uri)
        taken = int(found.rpartition("checkpoint_")[2][:9]) if found else 0
        if taken + cut <= 12:
            run_until(cut, uri, settings)
    resumed, pairs = small.make(dropout=0.2)
    history = train(resumed, pairs, settings, 7, resume=checkpoint.newest(uri))
    assert [(e.epoch, e.loss, e.temperature) for e in history] == [(e.epoch, e.loss, e.temperature) for e in expected]
    for name, value in weights(resumed).items():
        assert torch.equal(value, whole.state_dict()[name]), name


def _train_on(folder: Path, name: str) -> None:
    """Go on from the newest checkpoint to the end."""
    torch.set_num_threads(1)
    uri, (model, pairs) = storage.from_path(folder / name), small.make(dropout=0.2)
    writer = checkpoint.Writer(uri)
    train(model, pairs, storing(1, epochs=20), 7, checkpoints=writer, resume=checkpoint.newest(uri))
    writer.close()
    save_file(model.state_dict(), folder / f"{name}.safetensors")


@pytest.mark.slow
def test_a_run_killed_twice_at_any_moment_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """SIGKILL of the whole process, also while a checkpoint is written."""

    def start(name: str) -> BaseProcess:
        (tmp_path / name).mkdir(exist_ok=True)
        process = get_context("forkserver").Process(target=_train_on, args=(tmp_path, name))
        process.start()
        return process

    calm = start("calm")
    calm.join()
    kills = 0
    for wait in (0.0, 0.05):
        before = checkpoint.newest(storage.from_path(tmp_path / "killed"))
        process = start("killed")
        while process.is_alive() and checkpoint.newest(storage.from_path(tmp_path / "killed")) == before:
            time.sleep(0.01)
        time.sleep(wait)
        kills += process.is_alive()
        process.kill()
        process.join()
    assert kills == 2, "the run ended before it could be killed"
    last = start("killed")
    last.join()
    assert calm.exitcode == last.exitcode == 0
    assert (tmp_path / "killed.safetensors").read_bytes() == (tmp_path / "calm.safetensors").read_bytes()


def _train_shares(_rank: int, _count: int, similarities: tuple[str, ...]) -> dict[str, dict[str, torch.Tensor]]:
    found = {}
    for similarity in similarities:
        model, pairs = small.make(similarity=similarity)
        history = train(model, pairs, small.SETTINGS, 0)
        found[similarity] = weights(model) | {"loss": torch.tensor([epoch.loss for epoch in history])}
    return found


def steps_stored(tmp_path: Path, seconds_a_step: float, seconds_a_write: float, **checkpointing: float) -> list[int]:
    """The steps whose checkpoints are written, of 16 epochs of three steps, by a clock that is played."""
    clock, stored = [0.0], []

    class Played(checkpoint.Writer):
        def prepare(self, *_: object) -> None:
            pass

        def save(self, model: object, optimizer: object, step: int, *_: object, shared: bool) -> None:
            assert not shared
            stored.append(step)
            self.writing = seconds_a_write

    model, pairs = small.make()
    clamp = model.clamp_temperature

    def clamp_and_tick() -> None:
        clamp()
        clock[0] += seconds_a_step

    model.clamp_temperature = clamp_and_tick  # type: ignore[method-assign]
    settings = Training(epochs=16, batch_size=8, log_every=1, views=1, checkpoint=Checkpointing(**checkpointing))
    writer = Played(storage.from_path(tmp_path))
    with mock.patch("wukong.train.loop.time.monotonic", lambda: clock[0]):
        train(model, pairs, settings, 0, checkpoints=writer)
    writer.close()
    return stored


@pytest.mark.parametrize(
    ("seconds", "written", "settings", "between"),
    [
        (0.1, 0.05, {}, 48),  # 16 epochs in 5 s: the last step alone
        (5.0, 0.05, {}, 12),  # an epoch takes 15 s, so every fourth
        (30.0, 0.05, {}, 3),  # each epoch
        (30.0, 20.0, {}, 9),  # 10 % of the time: 200 s and more
        (30.0, 120.0, {}, 20),  # the share makes no pause longer than ten minutes, and then one is due
        (5.0, 0.05, {"least_seconds": 0, "most_share": 1}, 3),
        (5.0, 0.05, {"steps": 1, "least_seconds": 0, "most_share": 1}, 1),
        (5.0, 0.05, {"steps": 1}, 12),
        (5.0, 0.05, {"steps": 1, "least_seconds": 10}, 2),
    ],
)
def test_checkpoints_are_not_written_too_often(
    tmp_path: Path, seconds: float, written: float, settings: dict[str, float], between: int
) -> None:
    stored = steps_stored(tmp_path, seconds, written, **settings)
    *earlier, last = stored
    assert last == 48, "the last is always stored"
    assert stored[0] <= between
    assert {later - before for before, later in pairwise(earlier)} <= {between}
    assert len(stored) >= 48 // between


def test_a_run_in_float16_leaves_out_steps_that_overflow_and_goes_on_with_its_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scalers = []

    class Large(torch.amp.GradScaler):
        def __init__(self, device: str, enabled: bool) -> None:
            super().__init__(device, init_scale=2.0**28, enabled=enabled)
            scalers.append(self)

    monkeypatch.setattr(torch.amp, "GradScaler", Large)
    settings = small.SETTINGS.model_copy(update={"precision": "float16"})
    writer = checkpoint.Writer(storage.from_path(tmp_path), keep=9)
    model, pairs = small.make()
    train(model, pairs, settings, 0, checkpoints=writer)
    writer.close()
    resumed, pairs = small.make()
    first = min(file.parent for file in tmp_path.rglob("checkpoint.json"))
    train(resumed, pairs, settings, 0, resume=storage.from_path(first))
    assert scalers[0].get_scale() == scalers[1].get_scale() < 2.0**28
    for name, value in weights(resumed).items():
        assert torch.equal(value, weights(model)[name]), name


@pytest.mark.long
@pytest.mark.parametrize(("count", "similarities"), [(2, ("global", "token", "pooled")), (4, ("global",))])
def test_workers_train_the_same_model_as_one_worker(tmp_path: Path, count: int, similarities: tuple[str, ...]) -> None:
    of_workers = workers.run(count, tmp_path, _train_shares, similarities)
    for similarity, alone in _train_shares(0, 1, similarities).items():
        first, *others = (each[similarity] for each in of_workers)
        for name, value in first.items():
            assert all(torch.equal(value, other[name]) for other in others), name
            torch.testing.assert_close(value, alone[name], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(first["loss"], alone["loss"], rtol=0, atol=1e-5)


def _train_wide(kind: str) -> dict[str, torch.Tensor]:
    """Train with the project's optimiser, or with timm's LAMB on whole gradients; rows have 64 numbers."""

    def whole(model: DualEncoder, settings: Training) -> Lamb:
        groups = optimizer.parameter_groups(model, settings)
        return Lamb(groups, betas=optimizer.BETAS, eps=settings.epsilon, max_grad_norm=None, always_adapt=True)

    model, pairs = small.make(dropout=0.2, width=64)
    with mock.patch.object(optimizer, "build", whole if kind == "whole" else optimizer.build):
        train(model, pairs, small.SETTINGS, 0)
    gradient = model.text.tokens.weight.grad
    assert gradient is not None and gradient.is_sparse == (kind == "rows")
    return weights(model)


def _train_wides(_rank: int, _count: int) -> list[dict[str, torch.Tensor]]:
    return [_train_wide(kind) for kind in ("rows", "whole")]


@pytest.mark.long
@pytest.mark.parametrize("count", [1, 2])
def test_gradients_of_used_rows_give_the_weights_of_whole_gradients(tmp_path: Path, count: int) -> None:
    ours, timms = workers.run(count, tmp_path, _train_wides)[0]
    for name, value in timms.items():
        assert torch.equal(ours[name], value), name


def _resize(rank: int, count: int, uri: str) -> dict[str, torch.Tensor]:
    """Train on as many workers as there are, up to the end or the first epoch."""
    model, pairs = small.make()
    writer = checkpoint.Writer(uri)
    found = checkpoint.newest(uri)

    def stop(epoch: Epoch) -> None:
        if count == 2 and epoch.epoch == 2:
            raise KilledError

    history: list[Epoch] = []
    try:
        history = train(model, pairs, small.SETTINGS, 0, stop, checkpoints=writer, resume=found)
    except KilledError:
        writer.wait()
    writer.close()
    return {"loss": torch.tensor([epoch.loss for epoch in history], dtype=torch.float64)}


@pytest.mark.slow
def test_a_run_on_two_workers_goes_on_with_one(tmp_path: Path) -> None:
    uri = storage.from_path(tmp_path / "checkpoints")
    workers.run(2, tmp_path, _resize, uri)
    assert checkpoint.newest(uri) is not None
    resized = _resize(0, 1, uri)["loss"]
    model, pairs = small.make()
    alone = [epoch.loss for epoch in train(model, pairs, small.SETTINGS, 0)]
    assert resized.tolist() == pytest.approx(alone, abs=1e-5)


def test_checkpoints_of_something_else_are_refused(tmp_path: Path) -> None:
    uri = storage.from_path(tmp_path)
    writer = checkpoint.Writer(uri)
    model, pairs = small.make()
    train(model, pairs, small.SETTINGS.model_copy(update={"epochs": 1}), 0, checkpoints=writer)
    writer.close()
    found = checkpoint.newest(uri)
    assert found is not None and "checkpoint_000000003-" in found
    other, _ = small.make(similarity="token")
    other.image_head = torch.nn.Linear(small.WIDTH, 4)
    with pytest.raises(DataError, match="another architecture"):
        train(other, pairs, small.SETTINGS, 0, resume=found)
    model, pairs = small.make()
    with pytest.raises(DataError, match="trained other parameters"):
        train(model, pairs, small.SETTINGS.model_copy(update={"image_head_rate": 0.1}), 0, resume=found)
    model, pairs = small.make()
    pairs.digest = "another"
    with pytest.raises(DataError, match="28 pairs with the digest digest, and the data has 28 with another"):
        train(model, pairs, small.SETTINGS, 0, resume=found)


@pytest.mark.parametrize("head", ["image_head", "text_head"])
def test_a_head_without_a_learning_rate_stays_as_it_began(head: str) -> None:
    model, pairs = small.make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, pairs, small.SETTINGS.model_copy(update={"epochs": 1, f"{head}_rate": 0.0}), 0)
    same = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert {name for name in same if "head" in name} == {f"{head}.weight", f"{head}.bias"}


def test_features_that_are_not_numbers_end_the_run() -> None:
    model, pairs = small.make()
    pairs.features[0, 3] = torch.nan
    pairs.features[1, 3] = torch.nan
    with pytest.raises(DataError, match=r"loss is nan in step [123] \(epoch 1\)"):
        train(model, pairs, small.SETTINGS.model_copy(update={"batch_size": 28}), 0)


def test_a_loss_that_is_not_a_number_names_the_step_and_what_broke() -> None:
    model, pairs = small.make()
    model.text_head.weight.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(DataError, match=r"the weights text_head.weight are not finite after step 1 \(epoch 1\)"):
        train(model, pairs, EVERY_STEP, 0)
    model, pairs = small.make()
    model.text_head.weight.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(
        DataError, match=r"loss is nan in step 2 \(epoch 1\): the weights log_scale, .* are not finite now"
    ):
        train(model, pairs, small.SETTINGS, 0)
    model, pairs = small.make()
    model.settings = model.settings.model_copy(update={"min_temperature": 1e-45})
    with torch.no_grad():
        model.log_scale.fill_(89.0)  # beyond the largest float32
    model.requires_grad_(False)
    model.log_scale.requires_grad_()
    model.log_scale.register_hook(torch.zeros_like)
    with pytest.raises(DataError, match=r"step 1 \(epoch 1\) though all weights are finite, at a temperature of 0"):
        train(model, pairs, EVERY_STEP, 0)


def test_weights_that_are_not_finite_are_not_saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
    writer = checkpoint.Writer(storage.from_path(tmp_path))
    with pytest.raises(DataError, match=r"text_head.weight are not finite after step 12 \(epoch 4\)"):
        train(model, pairs, small.SETTINGS, 0, lambda epoch: seen.append(epoch.epoch), checkpoints=writer)
    writer.wait()
    writer.close()
    assert seen == [1, 2, 3]
    assert "checkpoint_000000012" not in (checkpoint.newest(storage.from_path(tmp_path)) or "")


def test_a_batch_larger_than_the_data_is_refused() -> None:
    model, pairs = small.make()
    with pytest.raises(ConfigError, match=r"pairs \(28\)"):
        train(model, pairs, small.SETTINGS.model_copy(update={"batch_size": 64}), 0)


def test_the_temperature_stays_above_its_bound() -> None:
    model, pairs = small.make()
    model.settings = model.settings.model_copy(update={"min_temperature": 0.5})
    history = train(model, pairs, small.SETTINGS, 0)
    assert all(epoch.temperature > 0.499 for epoch in history)


def test_what_is_measured_is_reported_every_few_steps() -> None:
    looks: list[Look] = []
    model, pairs = small.make()
    gradients: list[float] = []
    clamp = model.clamp_temperature

    def clamp_and_measure() -> None:
        squares = [weight.grad.square().sum() for weight in model.parameters() if weight.grad is not None]
        gradients.append(math.sqrt(sum(squares)))
        clamp()

    model.clamp_temperature = clamp_and_measure  # type: ignore[method-assign]
    history = train(model, pairs, small.SETTINGS.model_copy(update={"log_every": 2}), 0, after_look=looks.append)
    assert [look.step for look in looks] == [2, 3, 4, 6, 8, 9, 10, 12]
    assert [look.gradient_norm for look in looks] == pytest.approx([gradients[look.step - 1] for look in looks])
    assert (2 * looks[0].loss + looks[1].loss) / 3 == pytest.approx(history[0].loss)
    assert looks[-1].seconds_left == 0 and all(0 <= look.waiting_share <= 1 for look in looks)
    assert all(look.samples_per_second > 0 and look.memory_gib > 0 for look in looks)


def test_captions_of_a_step_are_as_long_as_the_longest_of_them() -> None:
    _, pairs = small.make()
    tokenizer = Tokenizer(packaged_vocabulary())
    lengths = []
    for batch in pairs.batches(8, 0):
        wanted = tokenizer.lengths([small.CAPTIONS[row] for row in batch.rows.tolist()])
        assert batch.ids.shape == (8, max(wanted))
        lengths.append(max(wanted))
    assert max(lengths) < tokenizer.max_tokens


def test_a_batch_that_the_workers_cannot_divide_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = small.make()
    monkeypatch.setattr(loop, "world", lambda: (0, 3))
    with pytest.raises(ConfigError, match="a batch of 8 pairs cannot be divided between 3 workers: change batch_size"):
        train(model, pairs, small.SETTINGS, 0)


def of_weights(model: torch.nn.Module) -> dict[str, float]:
    """A metric that is a function of the weights; measuring it draws random numbers, as an evaluator may."""
    assert not model.training
    torch.rand(3)
    return {"retrieval/holdouts/mean_recall": math.sin(1000 * float(model.text_head.weight.detach().double().sum()))}


def validating(**changed: object) -> Training:
    settings = storing(4)
    return settings.model_copy(update={"validation": Validating.model_validate({"every_steps": 2, **changed})})


def test_validation_does_not_change_the_weights() -> None:
    plain, pairs = small.make(dropout=0.2)
    expected = train(plain, pairs, storing(4), 7)
    model, pairs = small.make(dropout=0.2)
    found: list[Validated] = []
    history = train(model, pairs, validating(every_steps=5), 7, validate=of_weights, after_validation=found.append)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in weights(model).items())
    assert [(e.epoch, e.loss) for e in history] == [(e.epoch, e.loss) for e in expected]
    assert model.training and [each.step for each in found] == [5, 10, 12]
    assert dict(found[-1].metrics) == of_weights(model.eval())


def test_who_watches_is_told_the_losses_and_the_metric_that_decides_with_the_best_so_far(tmp_path: Path) -> None:
    model, pairs = small.make(dropout=0.2)
    found: list[Validated] = []
    settings = validating(keep="best", every_steps="epoch")
    with events.received(tmp_path / "events") as reader:
        history = train(model, pairs, settings, 7, validate=of_weights, after_validation=found.append)
        told = [event for event in reader.new() if isinstance(event, events.Measured)]
    assert [event.value for event in told if event.name == "loss"] == [epoch.loss for epoch in history]
    values = [each.metrics[settings.validation.metric] for each in found]
    assert [event.value for event in told if event.name == settings.validation.metric] == values
    assert [event.best for event in told if event.name != "loss"] == [*accumulate(values, max)]
    assert [each.best for each in found] == [*accumulate(values, max)]


def test_validation_after_each_epoch() -> None:
    model, pairs = small.make(dropout=0.2)
    found: list[Validated] = []
    settings = validating(every_steps="epoch")
    train(model, pairs, settings, 7, validate=of_weights, after_validation=found.append)
    steps = len(pairs) // settings.batch_size
    assert [each.step for each in found] == [steps * epoch for epoch in range(1, settings.epochs + 1)]


@pytest.mark.parametrize("cuts", [[5], [3, 2], [8, 1]])
def test_the_best_model_is_kept_and_found_again_after_cuts(tmp_path: Path, cuts: list[int]) -> None:
    settings = validating(keep="best")
    whole, pairs = small.make(dropout=0.2)
    seen: dict[int, tuple[float, dict[str, torch.Tensor]]] = {}

    def measure(model: torch.nn.Module) -> dict[str, float]:
        metrics = of_weights(model)
        seen[len(seen)] = (*metrics.values(), weights(model))
        return metrics

    train(whole, pairs, settings, 7, validate=measure)
    best = max(seen, key=lambda number: (seen[number][0], -number))
    uri = storage.from_path(tmp_path)
    for cut in cuts:
        run_until(cut, uri, settings, of_weights)
    model, pairs = small.make(dropout=0.2)
    writer = checkpoint.Writer(uri, keep=1)
    train(model, pairs, settings, 7, checkpoints=writer, resume=checkpoint.newest(uri), validate=of_weights)
    writer.close()
    last = checkpoint.newest(uri)
    assert last is not None
    progress = checkpoint.load_weights(last)[1]["validations"]
    assert (progress["best"], progress["step"]) == (seen[best][0], 2 * best + 2)
    assert [entry["step"] for entry in progress["history"]] == [2, 4, 6, 8, 10, 12]
    state, _ = checkpoint.load_weights(progress["checkpoint"])
    assert all(torch.equal(value, seen[best][1][name]) for name, value in state.items())
    kept = {file.split("checkpoint_")[1][:9] for file in storage.list_files(uri, "checkpoint.json")}
    assert kept == {f"{2 * best + 2:09d}", "000000012"}


def test_training_ends_early_and_stays_ended(tmp_path: Path) -> None:
    values = [0.1, 0.4, 0.4, 0.39, 0.9]

    def falling(left: list[float]) -> Callable[[torch.nn.Module], dict[str, float]]:
        return lambda _: {"retrieval/holdouts/mean_recall": left.pop(0)}

    settings = validating(keep="best", patience=2)
    uri = storage.from_path(tmp_path)
    run_until(5, uri, settings, falling(list(values)))  # the checkpoint of step 4 has waited for none yet
    model, pairs = small.make(dropout=0.2)
    writer = checkpoint.Writer(uri)
    history = train(
        model, pairs, settings, 7, checkpoints=writer, resume=checkpoint.newest(uri), validate=falling(values[2:])
    )
    writer.close()
    whole, pairs = small.make(dropout=0.2)
    expected = train(whole, pairs, settings, 7, validate=falling(list(values)))
    assert [(e.epoch, e.loss) for e in history] == [(e.epoch, e.loss) for e in expected]
    assert [epoch.epoch for epoch in history] == [
        1,
        2,
        3,
    ]  # the third is a part: 8 steps are 2 epochs of 3, and 2 steps
    last = checkpoint.newest(uri)
    assert last is not None and "checkpoint_000000008-" in last
    progress = checkpoint.load_weights(last)[1]["validations"]
    assert progress["stopped"] and (progress["best"], progress["step"]) == (0.4, 4)
    again, pairs = small.make(dropout=0.2)
    assert train(again, pairs, settings, 7, resume=last, validate=falling([])) == history
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in weights(again).items())


def test_a_metric_that_its_task_does_not_have_is_named() -> None:
    model, pairs = small.make()
    with pytest.raises(
        DataError, match=r"'retrieval/holdouts/top1', and step 2 measured retrieval/holdouts/mean_recal"
    ):
        train(model, pairs, validating(keep="best", metric="retrieval/holdouts/top1"), 0, validate=of_weights)


def test_a_model_that_cannot_be_measured_yet_is_worse_than_any() -> None:
    settings = validating(keep="best", patience=3).validation
    found = Validations()
    metric = "retrieval/holdouts/mean_recall"
    judged = [found.judge(step, values, settings) for step, values in enumerate([{}, {metric: 0.0}, {}, {metric: 0.0}])]
    assert judged == [False, True, False, False]
    assert (found.best, found.step, found.waited, found.stopped) == (0.0, 1, 2, False)
    found.judge(4, {}, settings)
    assert found.stopped
    with pytest.raises(DataError, match="is not a number after step 5"):
        found.judge(5, {metric: math.nan}, settings)
