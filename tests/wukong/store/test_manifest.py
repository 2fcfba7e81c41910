import hashlib
import json
from pathlib import Path

import pytest

from wukong.errors import DataError
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest, Stage


def commit(
    root: Path, name: str = "crawl", config: dict[str, int] | None = None, parents: tuple[Manifest, ...] = ()
) -> Manifest:
    stage = Stage(storage.from_path(root), name, config or {"a": 1}, parents)
    storage.write_bytes(stage.path("data/part.bin"), b"12345")
    return stage.commit([stage.describe("data/part.bin", rows=5)], counts={"pairs": 5}, dropped={"small": 2})


def test_equal_inputs_meet_in_the_same_place(tmp_path: Path) -> None:
    first = commit(tmp_path)
    again = Stage(storage.from_path(tmp_path), "crawl", {"a": 1})
    assert again.uri == first.uri
    assert again.finished() == first


@pytest.mark.parametrize("change", ["name", "config", "parents", "version"])
def test_any_other_input_is_another_place(tmp_path: Path, change: str) -> None:
    root = storage.from_path(tmp_path)
    base = Stage(root, "crawl", {"a": 1})
    other = {
        "name": Stage(root, "filter", {"a": 1}),
        "config": Stage(root, "crawl", {"a": 2}),
        "parents": Stage(root, "crawl", {"a": 1}, [commit(tmp_path / "other")]),
        "version": Stage(root, "crawl", {"a": 1}, version=2),
    }[change]
    assert other.key != base.key
    assert other.finished() is None


def test_without_a_manifest_there_is_no_output(tmp_path: Path) -> None:
    stage = Stage(storage.from_path(tmp_path), "crawl", {})
    storage.write_bytes(stage.path("data/part.bin"), b"12345")
    stage.commit_task("00000", {"rows": 5})
    assert stage.finished() is None
    assert stage.finished_task("00000", lambda _: ()) == {"rows": 5}
    assert stage.finished_task("00001", lambda _: ()) is None
    with pytest.raises(DataError, match="has not finished"):
        manifest.load(stage.uri)


def test_the_digest_ignores_where_and_when_but_nothing_else(tmp_path: Path) -> None:
    first, second = commit(tmp_path / "a"), commit(tmp_path / "b")
    assert first.uri != second.uri
    assert first.digest == second.digest
    children = [commit(tmp_path / each, "filter", parents=(of,)) for each, of in (("a", first), ("b", second))]
    assert children[0].digest == children[1].digest, "where its parents lie is left out too"
    assert first.model_copy(update={"counts": {"pairs": 6}}).digest != first.digest
    assert first.model_copy(update={"parts": ()}).digest != first.digest


def test_parts_carry_the_sha256_of_their_bytes(tmp_path: Path) -> None:
    (part,) = commit(tmp_path).parts
    assert (part.bytes, part.rows) == (5, 5)
    assert part.sha256 == hashlib.sha256(b"12345").hexdigest()


def test_a_child_leads_back_to_its_parents(tmp_path: Path) -> None:
    parent = commit(tmp_path)
    child = manifest.load(commit(tmp_path, "filter", parents=(parent,)).uri)
    assert [(p.stage, p.digest) for p in child.parents] == [("crawl", parent.digest)]
    assert manifest.load(child.parents[0].uri) == parent


def test_part_uris_select_by_prefix_and_suffix(tmp_path: Path) -> None:
    done = commit(tmp_path)
    assert done.part_uris("data/", ".bin") == [storage.join(done.uri, "data/part.bin")]
    assert done.part_uris("other/") == []


@pytest.mark.parametrize("broken", ["[]", '{"format": 1, "stage": "x"}'])
def test_something_else_is_not_taken_for_a_manifest(tmp_path: Path, broken: str) -> None:
    file = tmp_path / "manifest.json"
    file.write_text(broken)
    with pytest.raises(DataError, match=r"manifest\.json is not a manifest"):
        manifest.load(storage.from_path(file))


@pytest.mark.parametrize("version", [{"format": 2}, {"schema_version": 1}, {}])
def test_what_another_version_wrote_is_refused_with_what_to_do(tmp_path: Path, version: dict[str, int]) -> None:
    """Manifests that were written before the first format called it ``schema_version``."""
    done = commit(tmp_path)
    uri = storage.join(done.uri, "manifest.json")
    value = storage.read_json(uri)
    del value["format"]
    storage.write_json(uri, value | version)
    with pytest.raises(DataError, match=r"manifest\.json was written by another version of Wukong, .*another storage"):
        manifest.load(done.uri)


def test_the_file_is_plain_json_with_sorted_keys(tmp_path: Path) -> None:
    done = commit(tmp_path)
    text = storage.read_bytes(storage.join(done.uri, "manifest.json")).decode()
    assert list(json.loads(text)) == sorted(json.loads(text))
