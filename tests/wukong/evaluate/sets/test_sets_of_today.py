"""Sets that are not in the paper: what is special in the form of each, and what is refused."""

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import published_sets as published
import pytest
from PIL import Image

from wukong.errors import DataError
from wukong.evaluate import class_names, paper, paper_tables, results, sets, zero_shot
from wukong.evaluate.data_set import Classification, ClassificationData, Counts, Retrieval
from wukong.evaluate.formats.pictures import Encoded
from wukong.evaluate.protocol import PROTOCOLS


def classification(name: str, images: int, **changes: Any) -> Classification:
    full = sets.of(name)
    assert isinstance(full, Classification)
    return replace(full, splits=dict.fromkeys(full.splits, images), **changes)


def retrieval(name: str, images: int, captions: int) -> Retrieval:
    full = sets.of(name)
    assert isinstance(full, Retrieval)
    return replace(full, splits={"test": Counts(images, captions)})


def test_the_published_numbers() -> None:
    numbers = {
        name: sets.of(name).splits for name in ("xm3600-zh", "xflickr30kco-zh", "dci-cn", "imagenet-v2", "boxclass-cn")
    }
    assert numbers == {
        "xm3600-zh": {"test": (3_600, 7_174)},  # MTEB's descriptive_stats of XM3600T2IRetrieval, zh
        "xflickr30kco-zh": {"test": (2_000, 2_000)},  # IGLUE's file, and MTEB's
        "dci-cn": {"test": (7_805, 7_805)},  # Densely Captioned Images
        "imagenet-v2": dict.fromkeys(("matched-frequency", "threshold-0.7", "top-images"), 10_000),  # its README
        "boxclass-cn": {"test": 66_258},  # FG-CLIP 2, section 3.4
    }
    boxes = sets.of("boxclass-cn")
    assert isinstance(boxes, Classification) and boxes.number_of_classes == 566


# --- ImageNet-V2 ---


def test_a_folder_of_imagenet_v2_is_a_class_by_its_number(tmp_path: Path) -> None:
    """Sorted as text, as torchvision's ImageFolder sorts, folder 10 would be class 2."""
    names = tuple((f"n{i:08d}", f"thing {i}", f"物{i}") for i in range(12))
    for split, folder in (
        ("matched-frequency", "imagenetv2-matched-frequency-format-val"),
        ("threshold-0.7", "imagenetv2-threshold0.7-format-val"),
        ("top-images", "imagenetv2-top-images-format-val"),
    ):
        for label in range(12):
            published.distinct(tmp_path / folder / str(label) / f"{label:x}{len(split)}.jpeg", label)
        data = classification("imagenet-v2", 12, names=names).read(tmp_path, split)
        assert data.split == split and data.labels.tolist() == [int(name.partition("/")[0]) for name in data.ids]
        for i in range(12):
            mean = np.asarray(data.image(i)).reshape(-1, 3).mean(0)
            assert np.abs(mean - published.colour(int(data.labels[i]))).max() < 6
    (tmp_path / "imagenetv2-top-images-format-val" / "11").rename(tmp_path / "imagenetv2-top-images-format-val" / "x")
    with pytest.raises(DataError, match=r"top-images-format-val are not the 12 .*: 1 missing \(11\); 1 unknown \(x\)"):
        classification("imagenet-v2", 12, names=names).read(tmp_path, "top-images")


def test_imagenet_v2_has_imagenets_classes_in_every_list() -> None:
    full = sets.of("imagenet-v2")
    assert isinstance(full, Classification) and full.classes == class_names.of("imagenet")
    data = ClassificationData(
        "imagenet-v2", "x", (), (), np.zeros(0, np.int64), published_none(), "x", named_as=full.named_as
    )
    for names in ("authors", "corrected"):
        rules = replace(PROTOCOLS["paper"], class_names=names)
        assert list(zero_shot._names(data, rules)) == [each.chinese for each in class_names.of("imagenet", names)]
    assert "imagenet-v2" not in class_names.SETS, "those are the sets of Table 5"
    assert all(rules.split("imagenet-v2") == "matched-frequency" for rules in PROTOCOLS.values())


def published_none() -> Any:
    return None


# --- BoxClass-CN ---


def boxes(folder: Path) -> dict[str, Any]:
    """A picture of 40 x 30 random pixels without loss, and three boxes in it."""
    (folder / "images").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "images" / "000010.jpg", "PNG")
    content = {
        "images": [{"id": 77, "file_name": "000010.jpg"}],
        "categories": [{"id": 1, "name": "猫"}, {"id": 2, "name": "车"}],
        "annotations": [
            {"image_id": 77, "category_id": 2, "bbox": [3.9, 5.2, 10.7, 8.1]},
            {"image_id": 77, "category_id": 1, "bbox": [35, 25, 0.4, 5]},
            {"image_id": 77, "category_id": 2, "bbox": [30, 20, 20, 20]},
        ],
    }
    save(folder, content)
    return content


def save(folder: Path, content: object) -> None:
    (folder / "valid_category_data_total_zh.json").write_text(json.dumps(content), "utf-8")


def test_a_box_is_cut_out_of_its_picture(tmp_path: Path) -> None:
    boxes(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    data = classification("boxclass-cn", 3, named_in_files=2).read(tmp_path)
    assert (data.names, data.classes, data.labels.tolist()) == (("猫", "车"), ("猫", "车"), [1, 0, 1])
    np.testing.assert_array_equal(np.asarray(data.image(0)), pixels[5:13, 3:13])
    np.testing.assert_array_equal(np.asarray(data.image(1)), pixels[25:30, 35:36])
    outside = np.zeros((20, 20, 3), np.uint8)
    outside[:10, :10] = pixels[20:, 30:]
    np.testing.assert_array_equal(np.asarray(data.image(2)), outside)
    assert list(zero_shot._names(data, PROTOCOLS["paper"])) == ["猫", "车"]


def test_a_cut_picture_is_known_by_its_whole_file(tmp_path: Path) -> None:
    boxes(tmp_path)
    data = classification("boxclass-cn", 3, named_in_files=2).read(tmp_path)
    assert isinstance(data.images, Encoded)
    whole = hashlib.sha256((tmp_path / "images" / "000010.jpg").read_bytes()).hexdigest()
    for i in range(3):
        assert data.images.digest(i) == whole
        with Image.open(io.BytesIO(data.images.file(i)[0])) as opened:
            assert opened.size == data.image(i).size


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("annotations", 1, "image_id"), 78, r"annotation 1 of .*json \(78, 1, .*\) names no image or category"),
        (("annotations", 1, "category_id"), 3, "annotation 1 .* names no image or category"),
        (("annotations", 1, "category_id"), 0, "annotation 1 .* names no image or category"),
        (("annotations", 1, "bbox"), [1, 2, 3], "annotation 1 .* or its box is not x, y, width and height"),
        (("annotations", 1, "bbox"), [1, 2, 0, 3], "annotation 1 .* or its box is not x, y, width and height"),
        (("annotations", 1, "bbox"), [1, 2, "3", 3], "annotation 1 .* or its box is not"),
        (("annotations", 1, "bbox"), [1, 2, None, 3], "annotation 1 .* or its box is not"),
        (("categories", 1, "id"), 7, r"the categories of .* are not numbered 1, 2, 3"),
        (("images", 0, "file_name"), "9.jpg", r"3 of the 3 images that .* names are not .*first is 9\.jpg"),
    ],
)  # fmt: skip
def test_damaged_boxes_are_refused(place: tuple[str, int, str], value: object, message: str, tmp_path: Path) -> None:
    content = boxes(tmp_path)
    content[place[0]][place[1]][place[2]] = value
    save(tmp_path, content)
    with pytest.raises(DataError, match=message):
        classification("boxclass-cn", 3, named_in_files=2).read(tmp_path)


def test_other_files_and_another_number_of_classes_are_refused(tmp_path: Path) -> None:
    content = boxes(tmp_path)
    with pytest.raises(DataError, match=r"boxclass-cn\), split test: 2 classes in .*, but 566 are published"):
        classification("boxclass-cn", 3).read(tmp_path)
    others: list[object] = [{"categories": []}, [1], {**content, "annotations": [{}]}]
    for other in others:
        save(tmp_path, other)
        with pytest.raises(
            DataError, match=r"total_zh\.json has not the lists 'categories', 'images' and 'annotations'"
        ):
            classification("boxclass-cn", 3, named_in_files=2).read(tmp_path)


# --- captions ---


def test_xm3600_without_chinese_captions_is_refused(tmp_path: Path) -> None:
    published.xm3600_zh(tmp_path, 3, 5, published.distinct)
    path = tmp_path / "captions.jsonl"
    rows: list[dict[str, object]] = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    wrong: list[dict[str, object]] = [
        {"zh": {"caption": []}}, {"zh": {}}, {"zh": ["狗"]}, {"image/key": 7}, {"zh": {"caption": [3]}}
    ]  # fmt: skip
    for changed in wrong:
        published.text(path, [json.dumps(each) for each in (rows[0], {**rows[1], **changed}, rows[2])])
        with pytest.raises(DataError, match=r"line 2 of .*captions\.jsonl has no 'image/key', or no list 'caption'"):
            retrieval("xm3600-zh", 3, 5).read(tmp_path)
    del rows[1]["zh"]
    published.text(path, [json.dumps(each) for each in rows])
    with pytest.raises(DataError, match=r"line 2 of .*captions\.jsonl"):
        retrieval("xm3600-zh", 3, 5).read(tmp_path)


def test_a_part_of_xm3600_is_another_set(tmp_path: Path) -> None:
    published.xm3600_zh(tmp_path, 4, 7, published.distinct)
    path = tmp_path / "captions.jsonl"
    path.write_text("\n".join(path.read_text("utf-8").splitlines()[:3]), "utf-8")
    with pytest.raises(DataError, match=r"XM3600-zh \(xm3600-zh\), split test: 3 images in .*, but 4 are published"):
        retrieval("xm3600-zh", 4, 7).read(tmp_path)


def test_xflickr30kco_is_found_in_a_clone_and_refused_without_a_caption(tmp_path: Path) -> None:
    ids, truth = published.xflickr30kco_zh(tmp_path, 5, 1, published.distinct)
    clone = tmp_path / "datasets" / "xFlickrCO"
    clone.mkdir(parents=True)
    (tmp_path / "annotations").rename(clone / "annotations")
    data = retrieval("xflickr30kco-zh", 5, 5).read(tmp_path)
    assert (list(data.image_ids), [tuple(each) for each in data.captions]) == (ids, truth)
    assert "1007129816" in ids and "COCO_val2014_001007129816" in ids, "one number, two pictures"
    path = clone / "annotations" / "zh" / "test.jsonl"
    path.write_text(path.read_text("utf-8") + '\n{"sentences": [], "id": 1, "img_path": "1.jpg"}', "utf-8")
    with pytest.raises(DataError, match=r"line 7 of .*test\.jsonl has no 'img_path', or no list 'sentences'"):
        retrieval("xflickr30kco-zh", 5, 5).read(tmp_path)


@pytest.mark.parametrize("line", ["images/sa_1.jpg 一只狗", "images/sa_1.jpg\t", "\t一只狗", "images/sa_1.jpg\t狗\t猫"])
def test_a_line_of_dci_that_is_no_caption_is_named(line: str, tmp_path: Path) -> None:
    published.dci_cn(tmp_path, 3, 1, published.distinct)
    path = tmp_path / "image_caption_trans.txt"
    path.write_text(f"{path.read_text('utf-8')}{line}\n", "utf-8")
    with pytest.raises(DataError, match=r"line 4 of .*image_caption_trans\.txt is not PATH<TAB>CAPTION"):
        retrieval("dci-cn", 3, 3).read(tmp_path)


def test_the_pictures_of_dci_may_lie_side_by_side(tmp_path: Path) -> None:
    ids, _ = published.dci_cn(tmp_path, 4, 1, published.distinct)
    for path in list((tmp_path / "images").rglob("sa_*.jpg")):
        path.rename(tmp_path / "images" / path.name)
    data = retrieval("dci-cn", 4, 4).read(tmp_path)
    assert list(data.image_ids) == ids
    for i in range(4):
        assert np.abs(np.asarray(data.image(i)).reshape(-1, 3).mean(0) - published.colour(i)).max() < 6


# --- the paper's tables ---


def test_no_table_of_the_paper_has_one_of_them() -> None:
    others = {*sets.REGISTRY} - {*paper.TABLE_5, *paper.TABLE_7}
    assert {"xm3600-zh", "xflickr30kco-zh", "dci-cn", "boxclass-cn", "imagenet-v2", "word-order"} <= others
    made = [*results.tables([], []).values(), *(paper_tables.table(number, []) for number in ("5", "6", "7"))]
    assert {row["set"] for table in made for row in table["rows"]} == {*paper.TABLE_5, *paper.TABLE_7}
