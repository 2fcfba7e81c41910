"""A batch on its way to a device: the device is ``meta``, which copies nothing."""

import torch

from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.train.batches import Batch, onto

META = torch.device("meta")
CAPTIONS = ["猫", "一只红色的鸟站在树上看着远方"]


def batch() -> Batch:
    ids = Tokenizer(packaged_vocabulary())(CAPTIONS)
    numbers = torch.arange(len(ids))
    return Batch(torch.randn(len(ids), 12).half(), ids, numbers, numbers)


def test_a_device_gets_captions_of_a_rounded_length_and_the_processor_keeps_their_lengths(monkeypatch) -> None:
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    given, pad = batch(), Tokenizer(packaged_vocabulary()).pad
    assert given.ids.shape == (2, 16)
    moved = given.to(META, pad, 32)
    assert {each.device for each in (moved.features, moved.ids, moved.captions)} == {META}
    assert len(pinned) == 3
    assert moved.features.dtype == torch.float16
    assert moved.lengths is not None
    assert moved.lengths.tolist() == [3, 16]
    for columns, most, expected in ((13, 32, 16), (13, 15, 15), (9, 32, 16)):
        part = Batch(given.features, given.ids[:, :columns], given.captions, given.rows)
        assert part.to(META, pad, most).ids.shape == (2, expected)


def test_a_processor_gets_a_batch_as_it_is_and_the_iterator_is_closed() -> None:
    given, closed = batch(), []

    def endless():
        try:
            while True:
                yield given
        finally:
            closed.append(True)

    batches = onto(torch.device("cpu"), endless(), 0, 32)
    assert next(batches) is given
    batches.close()
    assert closed == [True]
