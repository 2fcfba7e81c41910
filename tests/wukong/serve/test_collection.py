import shutil
from pathlib import Path

import colours
import pyarrow as pa
import pytest

from wukong.errors import DataError
from wukong.serve import collection
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest

RED, BLUE = colours.encoded(colours.picture("红"), "JPEG"), colours.encoded(colours.picture("蓝"), "JPEG")
SHARDS = {
    "train/00000": [("a" * 20, "红", RED, "one"), ("b" * 20, "蓝", BLUE, "two")],
    "test/00000": [("c" * 20, "红色", RED, "one"), ("d" * 20, "蓝", BLUE, "three")],
    "dropped/00000": [("e" * 20, "不要", BLUE, "four")],
}


def test_a_picture_of_several_pairs_is_one_with_all_their_captions(tmp_path: Path) -> None:
    """The manifest sorts its parts, so that of the test set comes first; dropped pairs are no part."""
    found = collection.of(colours.stage(tmp_path, SHARDS).uri)
    captions = {key: texts for piece in found.pieces for key, texts in piece.captions.items()}
    assert captions == {"c" * 20: ("红色", "红"), "d" * 20: ("蓝",), "b" * 20: ("蓝",)}
    assert found.pictures == 3
    read = {key: (place, read()) for piece in found.pieces for key, place, read in found.read_piece(piece)}
    assert {key: data for key, (_, data) in read.items()} == {"c" * 20: RED, "d" * 20: BLUE, "b" * 20: BLUE}
    for place, data in read.values():
        assert found.read(place) == data


def listed_anew(made: Manifest, uri: str) -> None:
    """List a file in its manifest as it lies there now, as if its stage had written it so."""
    path = uri.removeprefix(f"{made.uri}/")
    part = manifest.describe(made.uri, path, made.parts.named([path]).rows)
    changed = made.model_copy(update={"parts": made.parts.replaced({path: part})})
    manifest.save(changed, storage.join(made.uri, "manifest.json"))


def test_a_pair_with_several_captions_is_found_by_each(tmp_path: Path) -> None:
    made = colours.stage(tmp_path, SHARDS)
    uri = storage.join(made.uri, "train/00000.parquet")
    table = storage.read_table(uri)
    several = [[{"caption": "红", "count": 2}, {"caption": "红色的", "count": 1}], None]
    storage.write_table(uri, table.append_column("captions", pa.array(several)))
    listed_anew(made, uri)
    captions = {key: texts for piece in collection.of(made.uri).pieces for key, texts in piece.captions.items()}
    assert captions == {"c" * 20: ("红色", "红", "红色的"), "d" * 20: ("蓝",), "b" * 20: ("蓝",)}


def test_a_copied_stage_is_read_where_it_is(tmp_path: Path) -> None:
    made = colours.stage(tmp_path / "here", SHARDS)
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = made.uri.replace("/here/", "/there/")
    found = collection.of(storage.join(moved, "manifest.json"))
    assert found.digest == made.digest
    (piece,) = [piece for piece in found.pieces if piece.name == "train-00000"]
    assert [read() for _, _, read in found.read_piece(piece)] == [BLUE]


def test_a_folder_has_every_picture_once_and_changes_its_digest_with_its_captions(tmp_path: Path) -> None:
    uri = colours.folder(tmp_path, {"a.jpg": ["红", "红色", "红"], "b.jpg": []}, {"a.jpg": RED, "b.jpg": BLUE})
    found = collection.of(uri)
    (piece,) = found.pieces
    assert list(piece.captions.values()) == [("红", "红色"), ()]
    assert [read() for _, _, read in found.read_piece(piece)] == [RED, BLUE]
    (tmp_path / "b.txt").write_text("蓝", encoding="utf-8")
    assert collection.of(uri).digest != found.digest
    assert collection.of(str(tmp_path)).pictures == 2


def test_what_is_no_collection_is_refused(tmp_path: Path) -> None:
    made = colours.stage(tmp_path, {"dropped/00000": SHARDS["dropped/00000"]}, "validate")
    with pytest.raises(DataError, match="output of the stage validate, which holds no shards with pictures: give"):
        collection.of(made.uri)
    with pytest.raises(DataError, match=r"^--data: there is nothing at"):
        collection.of(str(tmp_path / "none"))


def test_a_shard_without_one_of_its_pictures_is_an_error(tmp_path: Path) -> None:
    made = colours.stage(tmp_path, {"train/00000": SHARDS["train/00000"]})
    other = colours.stage(tmp_path / "other", {"train/00000": SHARDS["train/00000"][:1]})
    storage.write_bytes(
        storage.join(made.uri, "train/00000.tar"), storage.read_bytes(storage.join(other.uri, "train/00000.tar"))
    )
    listed_anew(made, storage.join(made.uri, "train/00000.tar"))
    found = collection.of(made.uri)
    with pytest.raises(DataError, match=r"lacks the pictures of 1 of its pairs, the first b{20}\.jpg"):
        list(found.read_piece(found.pieces[0]))
