"""Evaluations are read as they were stored, if this version knows their format."""

from pathlib import Path

import measured
import numpy as np
import pytest

from wukong.errors import DataError
from wukong.evaluate import results, stored
from wukong.store import storage

RIGHT = np.random.default_rng(3).random(40) < 0.5


def test_an_evaluation_is_read_as_it_was_stored(tmp_path: Path) -> None:
    outcomes = [measured.searched("a", RIGHT), measured.classified("b", RIGHT)]
    made = measured.evaluation(storage.from_path(tmp_path), outcomes)
    found = stored.read(made.uri)
    assert found.tables.keys() == {"a", "b"}
    assert found.document == storage.read_json(storage.join(made.uri, "evaluation.json"))


@pytest.mark.parametrize("known", [None, results.FORMAT - 1, results.FORMAT + 1, "1"])
def test_another_format_is_refused_with_what_to_do(known: object) -> None:
    with pytest.raises(DataError, match=r"^x was written by another version of Wukong, .* or delete it and run again"):
        stored.check({"format": known, "tasks": []}, "x")
