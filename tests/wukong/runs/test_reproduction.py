"""What differs between an output and the one that was made again."""

from pathlib import Path
from typing import Any

import pytest

from wukong.runs import reproduction
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage

FILES = {"a.bin": b"a", "b.bin": b"b"}


def made(
    folder: Path, files: dict[str, bytes] = FILES, parent: Manifest | None = None, config: Any = None, **values: Any
) -> Manifest:
    parents = [parent] if parent else []
    stage = Stage(storage.from_path(folder), "filter", config or {"length": {"most": 9}}, parents)
    for name, content in files.items():
        storage.write_bytes(stage.path(name), content)
    return stage.commit([stage.describe(name) for name in files], **{"counts": {"pairs": 7}, **values})


def test_the_same_output_elsewhere_is_equal(tmp_path: Path) -> None:
    compared = reproduction.compare(made(tmp_path / "a"), made(tmp_path / "b"))
    assert compared.is_equal and compared.why == () and len(compared.now) == 64


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"files": {**FILES, "b.bin": b"other"}}, "1 of 2 files differ: b.bin"),
        ({"files": {"a.bin": b"a"}}, "1 of 2 files differ: b.bin"),
        ({"config": {"length": {"most": 8}}}, "config length.most: 9 there, 8 now"),
        ({"counts": {"pairs": 6}}, "counts pairs: 7 there, 6 now"),
        ({"metrics": {"recall": 0.5}}, "metrics recall: None there, 0.5 now"),
    ],
)
def test_what_differs_is_named(tmp_path: Path, changed: dict[str, Any], why: str) -> None:
    compared = reproduction.compare(made(tmp_path / "a"), made(tmp_path / "b", **changed))
    assert not compared.is_equal and compared.why == (why,)


def test_an_output_of_another_parent_says_so(tmp_path: Path) -> None:
    parents = [Stage(storage.from_path(tmp_path), "crawl", {"n": n}).commit([]) for n in range(2)]
    compared = reproduction.compare(*(made(tmp_path / str(n), parent=parents[n]) for n in range(2)))
    assert compared.why == ("it was made from another output of crawl",)


def test_only_causes_are_circumstances() -> None:
    before = {"revision": "a1", "image": "", "python": "3.11.7", "created": "1", "seconds": 2.0}
    now = {"revision": "b2", "image": "", "python": "3.11.9", "created": "3", "seconds": 4.0}
    said = ["python: 3.11.7 there, 3.11.9 now", "revision: a1 there, b2 now"]
    assert reproduction.circumstances(before, now) == said
    assert reproduction.circumstances({}, {"image": "x"}) == ["image: unknown there, x now"]
