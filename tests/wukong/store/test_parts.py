"""Parts as columns, against a plain list of the same parts."""

import hashlib
import json
import pickle
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wukong.errors import DataError, StorageError
from wukong.store import manifest, storage
from wukong.store.manifest import MOST_IN_JSON, Manifest, Part, Stage
from wukong.store.parts import Parts

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
PART = st.builds(Part, path=TEXT, rows=st.integers(0, 2**50), bytes=st.integers(0, 2**50), sha256=TEXT)
LISTS = st.lists(PART, max_size=12)


def many(number: int) -> list[Part]:
    return [
        Part(path=f"parts/{n:05d}.{end}", rows=n, bytes=n, sha256=hashlib.sha256(b"%d" % n).hexdigest())
        for n in range(number // 2)
        for end in ("tar", "parquet")
    ]


def old_digest(made: Manifest) -> str:
    """The digest as it was computed before parts were columns: of the whole manifest as one JSON text."""
    value = made.model_dump(mode="json", exclude={"uri", "provenance"})
    value["parents"] = [parent.digest for parent in made.parents]
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@given(LISTS, TEXT, TEXT)
@settings(deadline=None)
def test_columns_are_the_list(given_parts: list[Part], start: str, end: str) -> None:
    parts = Parts.of(iter(given_parts))
    assert list(parts) == given_parts
    assert len(parts) == len(given_parts)
    assert [parts[n] for n in range(-len(parts), len(parts))] == 2 * given_parts
    assert list(parts[1:5]) == given_parts[1:5]
    assert list(parts[::-2]) == given_parts[::-2]
    assert (parts.rows, parts.bytes) == (sum(p.rows for p in given_parts), sum(p.bytes for p in given_parts))
    in_order = sorted(given_parts, key=lambda part: part.path)
    assert list(Parts.in_order(iter(given_parts))) == list(Parts.in_order(in_order)) == in_order
    below = [part for part in given_parts if part.path.startswith(start) and part.path.endswith(end)]
    assert list(parts.below(start, end)) == below
    assert parts.has(start) == (start in [part.path for part in given_parts])
    assert pickle.loads(pickle.dumps(parts)) == parts == Parts.of(given_parts)
    with pytest.raises(IndexError):
        parts[len(parts)]


@given(LISTS, LISTS, st.lists(TEXT, max_size=3))
@settings(deadline=None)
def test_some_are_replaced(old: list[Part], new: list[Part], gone: list[str]) -> None:
    expected = {part.path: part for part in [*old, *new] if part.path not in gone}
    changed = Parts.of({part.path: part for part in old}.values()).replaced({part.path: part for part in new}, gone)
    assert list(changed) == [expected[path] for path in sorted(expected)]


@given(LISTS, TEXT)
@settings(deadline=None)
def test_the_digest_is_that_of_one_json_text(parts: list[Part], text: str) -> None:
    config = {text: '"parts":[]', "parts": []}
    made = Manifest(stage=f'"parts":[]{text}', uri="", config=config, parts=Parts.of(parts), counts={"parts": 1})
    assert made.digest == old_digest(made)


def test_a_slice_is_pickled_without_the_rest() -> None:
    parts = Parts.of(many(4_000))
    assert len(pickle.dumps(parts[10:12])) < 2_000 < len(pickle.dumps(parts)) // 100


@pytest.mark.parametrize("over", [0, 2])
def test_many_parts_stand_in_a_table(tmp_path: Path, over: int) -> None:
    parts = many(MOST_IN_JSON + over)
    stage = Stage(storage.from_path(tmp_path), "crawl", {"a": 1})
    made = stage.commit(iter(parts), counts={"pairs": 5})
    value = storage.read_json(f"{stage.uri}/manifest.json")
    assert ("parts" in value) == (over == 0)
    assert len(storage.list_names(stage.uri)) == 1 + bool(over)
    loaded = manifest.load(stage.uri)
    assert loaded == made == stage.finished()
    assert list(loaded.parts) == sorted(parts, key=lambda part: part.path)
    assert loaded.digest == made.digest == old_digest(made)
    again = Stage(storage.from_path(tmp_path / "again"), "crawl", {"a": 1})
    again.commit(reversed(parts), counts={"pairs": 5})
    table = "parts_table"
    assert storage.read_json(f"{again.uri}/manifest.json").get(table) == value.get(table), "equal parts, equal bytes"


@pytest.mark.parametrize("damage", ["gone", "cut", "other", "rows"])
def test_a_damaged_table_is_refused(tmp_path: Path, damage: str) -> None:
    made = Stage(storage.from_path(tmp_path), "crawl", {}).commit(many(MOST_IN_JSON + 2))
    uri = f"{made.uri}/manifest.json"
    table = Path(storage.filesystem(manifest.table_uri(uri, storage.read_json(uri)) or "")[1])
    if damage == "gone":
        table.unlink()
    elif damage == "cut":
        table.write_bytes(table.read_bytes()[:-100])
    elif damage == "other":
        pq.write_table(pq.read_table(table).slice(1), table)
    else:
        value = storage.read_json(uri)
        value["parts_table"]["rows"] -= 1
        storage.write_json(uri, value)
    with pytest.raises((DataError, StorageError), match=rf"{table.name}.*delete .*/manifest\.json"):
        manifest.load(made.uri)


def test_a_manifest_that_is_replaced_takes_its_table_with_it(tmp_path: Path) -> None:
    made = Stage(storage.from_path(tmp_path), "crawl", {}).commit(many(MOST_IN_JSON + 4))
    uri = f"{made.uri}/manifest.json"
    storage.write_bytes(f"{made.uri}/failed-{'0' * 16}.parquet", b"another manifest's")
    smaller = made.model_copy(update={"parts": made.parts[:-1]})
    manifest.save(smaller, uri, storage.write_json)
    assert len(storage.list_names(made.uri)) == 4
    manifest.delete_old_tables(uri)
    assert len(storage.list_names(made.uri)) == 3
    assert manifest.load(uri) == smaller
    manifest.save(made.model_copy(update={"parts": many(2)}), uri, storage.write_json)
    manifest.delete_old_tables(uri)
    assert storage.list_names(made.uri) == [f"failed-{'0' * 16}.parquet", "manifest.json"]


def test_a_table_of_an_attempt_that_was_killed_is_no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(storage.from_path(tmp_path), "crawl", {})

    def killed(uri: str, value: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("wukong.store.fence.publish_bytes", killed)
        stage.commit(many(MOST_IN_JSON + 2))
    assert stage.finished() is None
    assert len(storage.list_names(stage.uri)) == 1
    stage.commit(many(MOST_IN_JSON + 2))
    assert len(storage.list_names(stage.uri)) == 2, "the table of the same parts has the same name"
