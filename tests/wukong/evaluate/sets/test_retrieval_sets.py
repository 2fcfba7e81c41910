"""Readers of the retrieval sets: each on its owner's form with its traps, compared with the truth."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import published_sets as published
import pytest

from wukong.errors import DataError
from wukong.evaluate import paper, sets
from wukong.evaluate.data_set import Counts, Retrieval
from wukong.evaluate.published import Caption, NotThereError
from wukong.evaluate.sets import aic_icc

IMAGES = 7
CAPTIONS = {
    "flickr8k-cn": 35,
    "flickr30k-cn": 35,
    "coco-cn": 10,
    "aic-icc": 35,
    "muge": 3,
    "xm3600-zh": 13,
    "xflickr30kco-zh": 7,
    "dci-cn": 7,
}
TABLE_8 = {
    ("flickr8k-cn", "train"): (6_000, 30_000),
    ("flickr8k-cn", "val"): (1_000, 5_000),
    ("flickr8k-cn", "test"): (1_000, 5_000),
    ("flickr30k-cn", "train"): (29_783, 148_915),
    ("flickr30k-cn", "val"): (1_000, 5_000),
    ("flickr30k-cn", "test"): (1_000, 5_000),
    ("coco-cn", "train"): (18_341, 20_065),
    ("coco-cn", "val"): (1_000, 1_100),
    ("coco-cn", "test"): (1_000, 1_053),
    ("aic-icc", "train"): (210_000, 1_050_000),
    ("aic-icc", "val"): (30_000, 150_000),
    ("muge", "train"): (129_380, 248_786),
    ("muge", "val"): (29_806, 5_008),
    ("muge", "test"): (30_399, 5_004),
}


def small(name: str, captions: int | None = None) -> Retrieval:
    full = sets.of(name)
    assert isinstance(full, Retrieval)
    counts = Counts(IMAGES, CAPTIONS[name] if captions is None else captions)
    return replace(full, splits=dict.fromkeys(full.splits, counts))


def written(name: str, folder: Path) -> tuple[list[str], published.Captions]:
    second = {"coco-cn": 3, "muge": 3, "xm3600-zh": 13}.get(name, 5)
    return getattr(published, name.replace("-", "_"))(folder, IMAGES, second, published.distinct)


def test_the_counts_are_those_of_table_8():
    for (name, split), counts in TABLE_8.items():
        assert sets.of(name).splits[split] == counts


def test_the_paper_measures_these_splits():
    chosen = {name: sets.of(name).split for name in paper.TABLE_7}
    assert chosen == {"flickr8k-cn": "test", "flickr30k-cn": "test", "coco-cn": "test", "aic-icc": "val-10k",
                      "muge": "val"}  # fmt: skip
    assert sets.of("aic-icc").splits["val-10k"] == (10_000, 50_000)
    assert [name for name in chosen if sets.of(name).text_to_image_only] == ["muge"]


@pytest.mark.parametrize("name", CAPTIONS)
def test_every_published_line_is_a_caption(name, tmp_path):
    ids, truth = written(name, tmp_path / name)
    data = small(name).read(tmp_path / name)
    assert list(data.image_ids) == ids
    assert [tuple(each) for each in data.captions] == truth
    assert data.answered
    for i in range(IMAGES):
        assert np.abs(np.asarray(data.image(i)).reshape(-1, 3).mean(0) - published.colour(i)).max() < 6
    if name != "flickr30k-cn":
        assert [each.text for each in data.captions][:2] == ["一只狗在草地上"] * 2  # equal captions are two


@pytest.mark.parametrize("name", CAPTIONS)
def test_what_is_not_there_is_named_with_how_to_get_it(name, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "nowhere", tmp_path / "empty"):
        with pytest.raises(NotThereError) as raised:
            small(name).read(folder)
        message, how = str(raised.value), sets.of(name).how_to_get
        assert message.startswith(sets.of(name).title)
        assert all(each in message for each in (*how.download, how.place, str(folder)))


@pytest.mark.parametrize("name", CAPTIONS)
def test_another_number_of_captions_is_refused(name, tmp_path):
    written(name, tmp_path)
    found, expected = CAPTIONS[name], CAPTIONS[name] + 1
    split = sets.of(name).split
    with pytest.raises(DataError, match=rf"{name}\), split {split}: {found} captions in .*, but {expected} are"):
        small(name, expected).read(tmp_path)


@pytest.mark.parametrize("name", [name for name in CAPTIONS if name != "muge"])
def test_a_missing_image_is_named(name, tmp_path):
    ids, _ = written(name, tmp_path)
    (lost,) = tmp_path.rglob(f"{ids[4].removesuffix('.jpg')}.jpg")
    lost.unlink()
    with pytest.raises(NotThereError, match=rf"1 of the 7 images .* the first is .*{lost.name}"):
        small(name).read(tmp_path)


def test_flickr8k_cn_translated_and_whole(tmp_path):
    ids, truth = written("flickr8k-cn", tmp_path)
    translated = small("flickr8k-cn").read(tmp_path, "test-translated")
    assert [tuple(each) for each in translated.captions] == truth
    published.distinct(tmp_path / "Flicker8k_Dataset" / "9_of_another_part.jpg", 50)
    full = sets.of("flickr8k-cn")
    whole = replace(full, splits={"all": Counts(8, 36)}).read(tmp_path, "all")
    assert list(whole.image_ids) == ["9_of_another_part", *ids]
    assert whole.captions[-1] == ("别的", (0,))


def test_flickr30k_cn_by_a_machine_has_no_parts_of_speech(tmp_path):
    name = "flickr30kzhbbosonval"
    published.distinct(tmp_path / "flickr30k-images" / "36979.jpg", 0)
    published.text(tmp_path / name / "ImageSets" / f"{name}.txt", ["36979"], "\r\n")
    lines = ["36979#zhb#0 两 个 人  在 街上", "36979#zhb#1 比分 是 3:a  结束"]
    published.text(tmp_path / name / "TextData" / f"seg.{name}.caption.txt", lines, "\r\n")
    data = replace(small("flickr30k-cn"), splits={"val": Counts(1, 2)}).read(tmp_path, "val")
    assert [each.text for each in data.captions] == ["两个人，在街上", "比分是3:a，结束"]


def test_an_image_without_caption_is_named(tmp_path):
    written("coco-cn", tmp_path)
    path = tmp_path / "coco-cn-version1805v1.1" / "imageid.human-written-caption.txt"
    lines = [line for line in path.read_text("utf-8").split("\n") if "000000000005#" not in line]
    path.write_text("\n".join(lines), "utf-8")
    with pytest.raises(DataError, match="1 images have no caption, the first is COCO_train2014_000000000005"):
        small("coco-cn", 9).read(tmp_path)


def test_a_line_that_is_no_caption_is_named(tmp_path):
    written("coco-cn", tmp_path)
    path = tmp_path / "coco-cn-version1805v1.1" / "imageid.human-written-caption.txt"
    path.write_text(path.read_text("utf-8") + "COCO_train2014_0000000000", "utf-8")
    with pytest.raises(DataError, match=r"line 13 of .*caption\.txt is not IMAGE#n text but 'COCO_train2014_00"):
        small("coco-cn").read(tmp_path)


def test_the_first_images_of_aic_icc_in_the_order_of_the_file(tmp_path, monkeypatch):
    ids, truth = published.aic_icc(tmp_path, IMAGES, 5, published.distinct, listed=12)
    monkeypatch.setitem(aic_icc._ROWS, "val-10k", (None, IMAGES))
    data = small("aic-icc").read(tmp_path)
    assert list(data.image_ids) == ids
    assert [tuple(each) for each in data.captions] == truth


def test_a_truncated_list_of_aic_icc_is_refused(tmp_path):
    published.aic_icc(tmp_path, IMAGES, 5, published.distinct)
    (path,) = tmp_path.rglob("caption_validation_annotations_20170910.json")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="ends within its list"):
        small("aic-icc").read(tmp_path)


def test_muge_in_the_form_of_chinese_clip(tmp_path):
    ids, truth = published.muge(tmp_path / "muge", IMAGES, 3, None, "chinese-clip")
    data = small("muge").read(tmp_path / "muge")
    assert list(data.image_ids) == ids
    assert [tuple(each) for each in data.captions] == truth
    assert data.text_to_image_only
    assert np.abs(np.asarray(data.image(5)).reshape(-1, 3).mean(0) - published.colour(5)).max() < 6


def test_coco_cn_in_the_form_of_chinese_clip(tmp_path):
    (tmp_path / "one").mkdir()
    published.muge(tmp_path / "one" / "x", IMAGES, IMAGES, None, "chinese-clip")
    for old, new in (("valid_imgs.tsv", "test_imgs.tsv"), ("valid_texts.jsonl", "test_texts.jsonl")):
        (tmp_path / "one" / "x" / old).rename(tmp_path / "one" / new)
    data = small("coco-cn", IMAGES).read(tmp_path / "one")
    assert len(data) == len(data.captions) == IMAGES
    assert not data.text_to_image_only


def test_the_test_part_of_muge_has_no_answers(tmp_path):
    published.muge(tmp_path, IMAGES, 3, None)
    (tmp_path / "MR_valid_imgs.tsv").rename(tmp_path / "MR_test_imgs.tsv")
    rows = [json.loads(line) for line in (tmp_path / "MR_valid_queries.jsonl").read_text("utf-8").splitlines()]
    kept = [json.dumps({key: row[key] for key in ("query_id", "query_text")}) for row in rows]
    published.text(tmp_path / "MR_test_queries.jsonl", kept)
    data = small("muge").read(tmp_path, "test")
    assert not data.answered
    assert [each.images for each in data.captions] == [()] * 3


def test_a_query_without_answer_among_others_is_refused(tmp_path):
    published.muge(tmp_path, IMAGES, 3, None)
    path = tmp_path / "MR_valid_queries.jsonl"
    published.text(path, [*path.read_text("utf-8").rstrip("\n").split("\n"), '{"query_id": 9, "query_text": "包"}'])
    with pytest.raises(DataError, match="caption 3, '包', has no image"):
        small("muge", 4).read(tmp_path)


def test_a_truncated_table_is_refused_before_it_is_measured(tmp_path):
    published.muge(tmp_path, IMAGES, 3, None)
    path = tmp_path / "MR_valid_imgs.tsv"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"image 6 \(byte .*MR_valid_imgs\.tsv\) cannot be decoded"):
        small("muge").read(tmp_path)


def test_a_query_for_an_image_that_is_not_there_is_named(tmp_path):
    published.muge(tmp_path, IMAGES, 3, None)
    path = tmp_path / "MR_valid_imgs.tsv"
    path.write_bytes(path.read_bytes().partition(b"\n")[2])
    with pytest.raises(DataError, match=r"line 1 of .* names the image 1000002, which is not in the table"):
        small("muge").read(tmp_path)


def test_an_image_that_is_there_twice_is_refused(tmp_path):
    published.muge(tmp_path, IMAGES, 3, None)
    path = tmp_path / "MR_valid_imgs.tsv"
    first, second, rest = path.read_bytes().split(b"\n", 2)
    path.write_bytes(b"\n".join([first, second.replace(b"1000005", b"1000002"), rest]))
    asked = tmp_path / "MR_valid_queries.jsonl"
    asked.write_text(asked.read_text("utf-8").replace("1000005", "1000002"), "utf-8")
    with pytest.raises(DataError, match="the image 1000002 is there 2 times"):
        small("muge").read(tmp_path)


def test_the_digest_follows_the_captions(tmp_path):
    written("coco-cn", tmp_path)
    data = small("coco-cn").read(tmp_path)
    assert data.digest == small("coco-cn").read(tmp_path).digest
    text, of = data.captions[0]
    assert replace(data, captions=[Caption(text + "。", of), *data.captions[1:]]).digest != data.digest
    assert replace(data, captions=[Caption(text, (of[0] - 1,)), *data.captions[1:]]).digest != data.digest
    assert replace(data, captions=data.captions[::-1]).digest == data.digest, "the same set in another order"
    last = len(data) - 1
    backwards = [Caption(text, tuple(last - i for i in of)) for text, of in data.captions]
    assert replace(data, image_ids=data.image_ids[::-1], captions=backwards).digest == data.digest


def test_aic_iccs_validation_part_is_what_is_measured_and_what_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published.aic_icc(tmp_path, IMAGES, 5, published.Linked(tmp_path / "picture.jpg"))
    assert aic_icc._ROWS == {"val-10k": (None, 10_000), "val-20k": (10_000, None)}
    monkeypatch.setattr(aic_icc, "_ROWS", {"val-10k": (None, 2), "val-20k": (2, None)})
    full = sets.of("aic-icc")
    assert isinstance(full, Retrieval) and full.splits["val-20k"] == Counts(20_000, 100_000)
    splits = {"val": Counts(IMAGES, 35), "val-10k": Counts(2, 10), "val-20k": Counts(IMAGES - 2, 25)}
    whole, measured, others = (replace(full, splits=splits).read(tmp_path, name) for name in splits)
    assert [*measured.image_ids, *others.image_ids] == whole.image_ids
    texts = [[caption.text for caption in data.captions] for data in (whole, measured, others)]
    assert texts[0] == texts[1] + texts[2]
    assert [others.image_ids[i] for caption in others.captions for i in caption.images] == [
        each for each in others.image_ids for _ in range(5)
    ]
