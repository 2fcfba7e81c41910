"""The rules that judge pictures by a model: what they drop and store, what is not read anew, what is refused."""

import io
import tarfile

import numpy as np
import onnx_models
import polars as pl
import pytest
from onnx import helper
from PIL import Image
from pydantic import ValidationError

from wukong.config.filter import Filter
from wukong.curate import rules
from wukong.curate.pairs import OPTIONAL
from wukong.errors import ConfigError
from wukong.store import storage

SCORES = {"unsafe": "unsafe_score", "watermark": "watermark_score", "aesthetic": "aesthetic_score"}


def computed(tmp_path, images, settings):
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for number, image in enumerate(images):
            picture = io.BytesIO()
            image.save(picture, "PNG")
            entry = tarfile.TarInfo(f"{number:04d}.jpg")
            entry.size = len(picture.getvalue())
            tar.addfile(entry, io.BytesIO(picture.getvalue()))
    captions = {f"{number:04d}": ["图"] for number in range(len(images))}
    return rules.compute_from_pictures(storage.from_path(tmp_path / "00000.tar"), captions, settings)


def red(file, **output):
    """A model that scores how red a picture is; a picture whose sides are not as 3 to 2 it cannot read."""
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["pixels"]),
        helper.make_node("ReduceMean", ["pixels"], ["y"], axes=[2], keepdims=0),
    ]
    onnx_models.write(
        file,
        nodes,
        constants={"shape": np.array([1, 3, 32 * 64], np.int64)},
        input_shape=(1, *onnx_models.PICTURES[1:]),
    )
    return onnx_models.settings(file, input={"size": 32, "resize": "keep"}, output={"index": 0, **output})


def shades(*reds, size=(48, 32)):
    return [Image.new("RGB", size, (round(255 * red), 0, 0)) for red in reds]


def test_a_trained_classifier_finds_watermarks_on_pictures_that_it_has_not_seen(tmp_path):
    clean = [onnx_models.smooth_picture(seed) for seed in range(90)]
    both = [*clean, *(onnx_models.watermarked(image, seed) for seed, image in enumerate(clean))]
    labels = np.repeat([0, 1], 90)
    learned = [row for row in range(180) if row % 90 < 60]
    new = [row for row in range(180) if row % 90 >= 60]
    file = onnx_models.train_classifier(
        tmp_path / "w.onnx", [both[row] for row in learned], [labels[row] for row in learned]
    )
    model = onnx_models.settings(file, input={"size": 96, "resize": "squash"}, output={"range": (0, 1)})
    settings = Filter.model_validate({"watermark": {"model": model, "max_score": 0.5}})
    columns = computed(tmp_path, [both[row] for row in new], settings)
    dropped = np.array([name == "watermark" for name in rules.decide(columns, settings, "pictures")])
    assert not dropped[:30].any()
    assert dropped[30:].mean() > 0.9


@pytest.mark.parametrize(
    ("rule", "threshold", "dropped"),
    [
        ("unsafe", {"max_score": 0.5}, [None, None, "unsafe", None]),
        ("watermark", {"max_score": 0.5}, [None, None, "watermark", None]),
        ("aesthetic", {"min_score": 0.25}, ["aesthetic", None, None, None]),
    ],
)
def test_a_score_beyond_the_threshold_drops_a_pair_and_a_picture_that_cannot_be_read_is_counted(
    rule, threshold, dropped, tmp_path
):
    settings = Filter.model_validate({rule: {"model": red(tmp_path / "red.onnx", range=(0, 1)), **threshold}})
    assert rules.run_a_model(settings) and rules.decided("pictures", settings)[0].name == rule
    columns = computed(tmp_path, [*shades(0.2, 0.4, 0.6), *shades(0.9, size=(40, 40))], settings)
    assert columns.columns == ["key", SCORES[rule]]
    assert columns[SCORES[rule]].to_list() == pytest.approx([0.2, 0.4, 0.6, None], abs=1e-5)
    decided = columns.with_columns(dropped_by=rules.decide(columns, settings, "pictures"))
    assert decided["dropped_by"].to_list() == dropped
    assert rules.counts(decided, settings) == {f"unread/{rule}": 1}


def line_of_text(scores, top, left, height, width):
    """Mark the middle of a line, as such detectors do; return the area of the line that is grown around it."""
    scores[top : top + height, left : left + width] = 0.9
    more = 2 * 1.6 * width * height / (2 * (width + height))
    return (width + more) * (height + more) / scores.size


def test_the_share_of_text_is_measured_in_the_map_of_a_detector(tmp_path):
    """The detector is one that gives back the red of a picture as its map."""
    nodes = [helper.make_node("Conv", ["x", "kernel"], ["y"], kernel_shape=[1, 1])]
    kernel = np.array([1, 0, 0], np.float32).reshape(1, 3, 1, 1)
    file = onnx_models.write(
        tmp_path / "a.onnx", nodes, constants={"kernel": kernel}, outputs={"y": ("n", 1, "height", "width")}
    )
    model = onnx_models.settings(file, input={"size": 320, "resize": "keep"})
    scores = np.zeros((4, 320, 640))
    one = line_of_text(scores[1], 50, 50, 20, 500)
    two = line_of_text(scores[2], 50, 50, 20, 500) + line_of_text(scores[2], 200, 100, 20, 300)
    scores[3, 50:70, 50:550] = 0.4  # not sure enough for a line
    images = [Image.fromarray(np.stack([each * 255] + [each * 0] * 2, axis=2).astype(np.uint8)) for each in scores]
    tilted = images[2].rotate(20, Image.Resampling.BILINEAR, expand=True)
    settings = Filter.model_validate({"text_area": {"model": model, "max_share": 0.12}})
    columns = computed(tmp_path, [*images, tilted, Image.new("RGB", (640, 32))], settings)
    of_tilted = two * 320 * 640 / (tilted.width * tilted.height)
    assert columns["text_area"].to_list()[:4] == pytest.approx([0, one, two, 0], rel=0.1)
    assert columns["text_area"][4] == pytest.approx(of_tilted, rel=0.2)  # a map of fewer pixels
    assert columns["text_area"][5] is None
    assert rules.decide(columns, settings, "pictures").to_list() == [
        None,
        "text_area",
        "text_area",
        None,
        "text_area",
        None,
    ], (
        one,
        two,
        of_tilted,
    )


def faces_settings(tmp_path, **further):
    """A detector that takes the red of every fourth pixel for a face of 16 x 32 pixels, in the middle of its step."""
    nodes = [
        helper.make_node("Conv", ["x", "red"], ["heat"], kernel_shape=[1, 1], strides=[4, 4]),
        helper.make_node("Conv", ["x", "none", "size"], ["scale"], kernel_shape=[1, 1], strides=[4, 4]),
        helper.make_node("Conv", ["x", "none"], ["offset"], kernel_shape=[1, 1], strides=[4, 4]),
    ]
    constants = {
        "red": np.array([1, 0, 0], np.float32).reshape(1, 3, 1, 1),
        "none": np.zeros((2, 3, 1, 1), np.float32),
        "size": np.log(np.array([32 / 4, 16 / 4], np.float32)),
    }
    outputs = {name: ("n", channels, "h", "w") for name, channels in (("heat", 1), ("scale", 2), ("offset", 2))}
    file = onnx_models.write(tmp_path / "faces.onnx", nodes, constants=constants, outputs=outputs)
    model = onnx_models.settings(file, input={"size": 128, "resize": "keep"})
    return Filter.model_validate({"faces": {"model": model, **further}})


def people(*faces, size=(256, 128)):
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    for column, row, score in faces:
        pixels[4 * row, 4 * column, 0] = round(255 * score)
    return Image.fromarray(pixels)


def test_faces_are_stored_as_boxes_in_shares_of_the_sides_and_those_that_are_sure_are_counted(tmp_path):
    images = [
        people(),
        people((10, 8, 0.9)),
        people((10, 8, 0.9), (11, 9, 0.8), (40, 20, 0.6), (60, 20, 0.3), (30, 30, 0.1)),
        people((1, 2, 0.9)),
    ]
    settings = faces_settings(tmp_path, max_faces=1)
    columns = computed(tmp_path, [*images, people(size=(2560, 128))], settings)
    assert columns["faces"].dtype == pl.DataFrame(OPTIONAL.empty_table())["faces"].dtype
    none, one, three, cut, unread = (
        None if row is None else [tuple(face.values()) for face in row] for row in columns["faces"].to_list()
    )
    assert none == [] and unread is None
    assert one == [pytest.approx([(42 - 8) / 256, (34 - 16) / 128, 16 / 256, 32 / 128, 0.9], abs=2e-3)]
    # The second overlaps the first by more than three tenths, and the last is below what is stored.
    assert [face[4] for face in three] == pytest.approx([0.9, 0.6, 0.3], abs=2e-3)
    # Its middle lies at (6, 10), so its left and upper parts are outside.
    assert cut == [pytest.approx([0, 0, 14 / 256, 26 / 128, 0.9], abs=2e-3)]
    assert rules.decide(columns, settings, "pictures").to_list() == [None, None, "faces", None, None]
    surer = faces_settings(tmp_path, max_faces=1, min_score=0.7)
    assert rules.decide(columns, surer, "pictures").to_list() == [None] * 5
    decided = columns.with_columns(
        dropped_by=rules.decide(columns, settings, "pictures"),
        caption=pl.lit("<人名>"),
        caption_original=pl.lit("王小明"),
    )
    assert rules.counts(decided, settings) == {"unread/faces": 1, "with_faces": 2, "name_and_face": 0}
    large = columns.with_columns(
        faces=pl.lit([{"x": 0.1, "y": 0.1, "width": 0.4, "height": 0.4, "score": 0.9}], columns["faces"].dtype),
        dropped_by=pl.Series([None, None, None, "size", None], dtype=pl.String),
        caption=pl.lit("<人名>"),
        caption_original=pl.lit("王小明"),
    )
    assert rules.counts(large, settings) == {"unread/faces": 0, "with_faces": 4, "name_and_face": 4}


def test_thresholds_are_no_part_of_what_is_computed_and_the_model_is(tmp_path):
    def looked(**further):
        return rules.config_of(Filter.model_validate(further), exclude=rules.picture_thresholds())

    model = red(tmp_path / "red.onnx", range=(0, 1))
    for rule, one, other in (
        ("unsafe", {"max_score": 0.1}, {"max_score": 0.9}),
        ("watermark", {"max_score": 0.1}, {"max_score": 0.9}),
        ("aesthetic", {"min_score": 0.1}, {"min_score": 0.9}),
        ("text_area", {"max_share": 0.1}, {"max_share": 0.9}),
        ("faces", {"max_faces": 1}, {"min_score": 0.9, "blur_in_previews": True}),
    ):
        section = looked(**{rule: {"model": model, **one}})
        assert section == looked(**{rule: {"model": model, **other}})
        assert section["rule_versions"][rule] == 1
        assert section != looked(**{rule: {"model": model | {"sha256": "0" * 64}, **one}})
        assert looked()[rule] is None and rule not in looked()["rule_versions"]


@pytest.mark.parametrize(
    ("section", "refused"),
    [
        ({"unsafe": {"output": {}}}, "unsafe.model\n.*output.range is missing: write the least"),
        ({"watermark": {"output": {}}}, "watermark.model\n.*output.range is missing"),
        ({"aesthetic": {"output": {"range": (1, 10)}}}, "min_score is 0.5, and the model's scores are from 1 to 10"),
        ({"text_area": {"input": {"resize": "crop"}}}, "input.resize is 'crop': a detector sees the whole picture"),
        ({"faces": {"input": {"resize": "whole"}}}, "input.resize is 'whole': a detector sees the whole picture"),
    ],
)
def test_a_model_that_does_not_fit_its_rule_is_refused(section, refused):
    ((rule, further),) = section.items()
    model = {"uri": "file:///a.onnx", "sha256": "0" * 64, "licence": "MIT", **further}
    threshold = {"min_score": 0.5} if rule == "aesthetic" else {}
    with pytest.raises(ValidationError, match=f"(?s){refused}"):
        Filter.model_validate({rule: {"model": model, **threshold}})


def test_a_model_of_several_numbers_is_refused_where_one_is_compared(tmp_path):
    model = onnx_models.settings(onnx_models.channel_means(tmp_path / "a.onnx"), output={"range": (0, 1)})
    settings = Filter.model_validate({"unsafe": {"model": model}})
    (rule,) = rules.decided("pictures", settings)
    for use in (rule.verify, lambda settings: computed(tmp_path, shades(0.5), settings)):
        with pytest.raises(ConfigError, match=r"gives 3 numbers a picture, .* name it in output.index"):
            use(settings)


def test_an_impossible_score_is_refused_before_the_first_stage(tmp_path):
    model = red(tmp_path / "red.onnx", range=(0, 0.4))
    settings = Filter.model_validate({"unsafe": {"model": model}})
    (rule,) = rules.decided("pictures", settings)
    with pytest.raises(ConfigError, match=r"gives 0.50\d+ for a gray picture, and 0 to 0.4 is expected"):
        rule.verify(settings)


def test_a_detector_of_other_outputs_finds_no_faces_in_silence(tmp_path):
    model = onnx_models.settings(onnx_models.channel_means(tmp_path / "a.onnx"), input={"resize": "squash", "size": 32})
    settings = Filter.model_validate({"faces": {"model": model}})
    with pytest.raises(ConfigError, match=r"gives outputs of \(3,\) for a picture: a detector like CenterFace"):
        computed(tmp_path, shades(0.5), settings)
