"""What people write on a run."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wukong.errors import ConfigError
from wukong.runs import notes
from wukong.store import storage

KEYS = st.from_regex(r"[a-z0-9\u4e00-\u9fff][a-z0-9\u4e00-\u9fff. _-]{0,20}", fullmatch=True).map(str.strip)


@given(st.dictionaries(KEYS, st.text("值 =v\n1").map(str.strip)))
def test_tags_in_words_are_read_again(tags: dict[str, str]) -> None:
    assert notes.parse_tags(notes.in_words(tags)) == tags


def test_a_change_leaves_the_rest(tmp_path: Path) -> None:
    run = storage.from_path(tmp_path)
    assert notes.read(run) == notes.Note()
    notes.write(run, "第一次", {"用途": "baseline", "batch": "64"}, [])
    notes.write(run, None, {"batch": "128", "x": ""}, ["用途", "none"])
    assert notes.read(run) == notes.Note(text="第一次", tags={"batch": "128", "x": ""})
    assert notes.write(run, "", {}, ["x", "batch"]) == notes.read(run) == notes.Note()


@pytest.mark.parametrize("entry", ["=x", "", "wukong.run=x", "mlflow.note.content=x", "a/b=1", "a" * 64])
def test_what_cannot_be_a_key_is_refused(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"--tag .*for instance --tag purpose=baseline"):
        notes.parse_tags([entry])


def test_what_two_people_write_at_once_is_all_there(tmp_path: Path) -> None:
    run = storage.from_path(tmp_path)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda number: notes.write(run, None, {f"k{number}": "x"}, []), range(40)))
    assert notes.read(run).tags == {f"k{number}": "x" for number in range(40)}
