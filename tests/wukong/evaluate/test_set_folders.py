"""The folders of evaluation sets: what changes a digest, and what a set in an object store looks like to a reader."""

from pathlib import Path

import pytest

from wukong.errors import DataError
from wukong.evaluate import set_folders, sets
from wukong.store import storage


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "all sets" / "coco-cn" / "images"
    folder.mkdir(parents=True)
    (folder / "1.jpg").write_bytes(b"one")
    (folder.parent / "captions.txt").write_text("1#0\t红色的猫", "utf-8")
    return tmp_path / "all sets"


def test_the_names_are_those_of_the_registry() -> None:
    assert set(set_folders.NAMES) == set(sets.REGISTRY)


def test_a_mended_caption_is_another_set_and_another_place_is_not(root: Path, tmp_path: Path) -> None:
    before = set_folders.digest_of(storage.from_path(root), "coco-cn")
    root.rename(tmp_path / "moved")
    assert set_folders.digest_of(storage.from_path(tmp_path / "moved"), "coco-cn") == before
    captions = tmp_path / "moved" / "coco-cn" / "captions.txt"
    captions.write_text("1#0\t黑色的猫", "utf-8")  # as many bytes
    assert set_folders.digest_of(storage.from_path(tmp_path / "moved"), "coco-cn") != before
    captions.write_text("1#0\t红色的猫", "utf-8")
    assert set_folders.digest_of(storage.from_path(tmp_path / "moved"), "coco-cn") == before
    (tmp_path / "moved" / "coco-cn" / "images" / "2.jpg").write_bytes(b"two")
    assert set_folders.digest_of(storage.from_path(tmp_path / "moved"), "coco-cn") != before


def test_a_set_that_is_not_there_is_an_error_that_says_where_it_belongs(root: Path) -> None:
    with pytest.raises(DataError, match=r"set muge is not at file://.*/muge; docs/evaluation-sets.md"):
        set_folders.digest_of(storage.from_path(root), "muge")


def test_the_bytes_of_sets_are_those_of_their_files_and_what_is_not_there_has_none(root: Path) -> None:
    captions = len("1#0\t红色的猫".encode())
    assert set_folders.bytes_of(storage.from_path(root), ["coco-cn", "muge"]) == {"coco-cn": len(b"one") + captions}


def test_a_folder_of_this_machine_is_read_in_place(root: Path) -> None:
    with set_folders.local(storage.from_path(root), "coco-cn") as folder:
        assert folder == root / "coco-cn"


def test_of_a_set_in_a_store_the_lists_are_copied_and_the_copy_is_deleted(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, real = storage.from_path(root), {name: getattr(storage, name) for name in ("sizes", "download")}
    monkeypatch.setattr(
        storage,
        "sizes",
        lambda asked: {
            each.replace(uri, "s3://b/all"): size
            for each, size in real["sizes"](asked.replace("s3://b/all", uri)).items()
        },
    )
    monkeypatch.setattr(storage, "download", lambda asked, *to: real["download"](asked.replace("s3://b/all", uri), *to))
    (root / "coco-cn" / "test_imgs.tsv").write_bytes(b"1\taaaa")
    with set_folders.local("s3://b/all", "coco-cn") as folder:
        assert (folder / "images" / "1.jpg").read_bytes() == (folder / "test_imgs.tsv").read_bytes() == b""
        assert (folder / "captions.txt").read_text("utf-8") == "1#0\t红色的猫"
    assert not folder.exists()
