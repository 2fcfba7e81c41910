"""Running models of others on pictures: the numbers they see, what is refused, and what cannot be read."""

import re

import numpy as np
import onnx_models
import onnxruntime
import pytest
import torch
from onnx import helper
from PIL import Image, ImageOps
from pydantic import ValidationError
from torchvision.transforms import v2

from wukong.config.picture_model import PictureModel
from wukong.curate import picture_models, picture_weights
from wukong.errors import ConfigError, DataError

SIDES = [(100, 80), (80, 100), (64, 64), (300, 40), (33, 57)]


def pictures(sides=SIDES):
    random = np.random.default_rng(0)
    small = [random.integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), np.uint8) for width, height in sides]
    return [Image.fromarray(each).resize(size) for each, size in zip(small, sides, strict=True)]


def model(file, **further):
    return PictureModel.model_validate(onnx_models.settings(file, **further))


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("settings", "view"),
    [
        ({"size": 48}, [v2.Resize(48), v2.CenterCrop(48)]),
        ({"size": 48, "resize_to": 56}, [v2.Resize(56), v2.CenterCrop(48)]),
        (
            {"size": 48, "interpolation": "bicubic"},
            [v2.Resize(48, v2.InterpolationMode.BICUBIC), v2.CenterCrop(48)],
        ),
        ({"size": 48, "resize": "squash"}, [v2.Resize((48, 48))]),
        ({"size": 40, "resize": "squash", "resize_to": 48}, [v2.Resize((48, 48)), v2.CenterCrop(40)]),
        (
            {"size": 48, "resize": "whole", "margin": 255},
            [lambda image: ImageOps.pad(image, (48, 48), Image.Resampling.BILINEAR, color="white")],
        ),
    ],
)
def test_a_model_sees_what_torchvision_would_show_it(settings, view, tmp_path):
    shown = v2.Compose([*view, v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    expected = torch.stack([shown(each).mean(dim=(1, 2)) for each in pictures()])
    means = model(onnx_models.channel_means(tmp_path / "a.onnx"), input={**settings, "mean": MEAN, "std": STD})
    np.testing.assert_allclose(picture_models.outputs(means, pictures()), expected, atol=1e-5)


def test_channels_layout_and_scale_are_the_models(tmp_path):
    colour = Image.new("RGB", (20, 10), (10, 100, 200))
    file = onnx_models.channel_means(tmp_path / "a.onnx", axes=(1, 2), input_shape=("n", 16, 16, 3))
    swapped = model(file, input={"size": 16, "channels": "bgr", "layout": "nhwc", "scale": 1, "mean": (104, 117, 123)})
    np.testing.assert_allclose(picture_models.outputs(swapped, [colour]), [[200 - 104, 100 - 117, 10 - 123]])


def test_a_view_is_compressed_once_more_where_the_authors_do(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8))
    noise.save(tmp_path / "noise.jpg", quality=30)
    with Image.open(tmp_path / "noise.jpg") as stored:
        expected = np.asarray(stored, np.float32).mean(axis=(0, 1)) / 255
    means = model(onnx_models.channel_means(tmp_path / "a.onnx"), input={"size": 48, "jpeg": 30})
    np.testing.assert_allclose(picture_models.outputs(means, [noise])[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ({}, lambda means: means),
        ({"index": 2}, lambda means: means[:, 2:]),
        ({"activation": "sigmoid", "index": 0}, lambda means: means.sigmoid()[:, :1]),
        ({"activation": "softmax"}, lambda means: means.softmax(1)),
        ({"activation": "softmax", "index": [0, 2]}, lambda means: means.softmax(1)[:, [0, 2]].sum(1, keepdim=True)),
    ],
)
def test_scores_are_made_of_the_models_numbers(output, expected, tmp_path):
    file = onnx_models.channel_means(tmp_path / "a.onnx")
    at = {"size": 32, "resize": "squash", "scale": 1, "mean": (120, 120, 120)}
    means = torch.from_numpy(picture_models.outputs(model(file, input=at), pictures()))
    found = picture_models.outputs(model(file, input=at, output=output), pictures())
    np.testing.assert_allclose(found, expected(means), atol=1e-5)


def test_a_graph_that_takes_a_number_of_pictures_gets_that_many(tmp_path):
    four = onnx_models.channel_means(tmp_path / "four.onnx", input_shape=(4, 3, 32, 32), outputs={"y": (4, 3)})
    free = onnx_models.channel_means(tmp_path / "free.onnx")
    many = pictures(SIDES * 2)[:7]
    expected = picture_models.outputs(model(free, input={"size": 32}), many)
    np.testing.assert_array_equal(picture_models.outputs(model(four, input={"size": 32}), many), expected)


def test_more_pictures_than_fit_into_memory_at_once_give_the_same(tmp_path, monkeypatch):
    means = model(onnx_models.channel_means(tmp_path / "a.onnx"), input={"size": 32, "resize": "keep"})
    expected = picture_models.outputs(means, pictures(SIDES * 3))
    monkeypatch.setattr(picture_models, "_PIXELS_AT_ONCE", 2500)
    np.testing.assert_array_equal(picture_models.outputs(means, pictures(SIDES * 3)), expected)


def test_a_detector_gets_the_whole_picture_in_its_shape_though_its_graph_fixed_its_sides(tmp_path):
    kernel = np.random.default_rng(0).normal(size=(1, 3, 4, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["map"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Sigmoid", ["map"], ["heat"]),
        helper.make_node("Neg", ["map"], ["less"]),
    ]
    file = onnx_models.write(
        tmp_path / "a.onnx",
        nodes,
        constants={"kernel": kernel},
        input_shape=(10, 3, 32, 32),
        outputs={"heat": (10, 1, 8, 8), "less": (10, 1, 8, 8)},
    )
    some = pictures([(150, 100), (64, 64), (120, 30), (150, 100)])
    found = picture_models.maps(model(file, input={"size": 64, "resize": "keep"}), some)
    assert [heat.shape for heat, _ in found] == [(1, 16, 24), (1, 16, 16), (1, 16, 64), (1, 16, 24)]
    for image, (heat, less) in zip(some, found, strict=True):
        shown = image.resize((heat.shape[2] * 4, heat.shape[1] * 4), Image.Resampling.BILINEAR)
        pixels = v2.functional.to_dtype(v2.functional.pil_to_tensor(shown), torch.float32, scale=True)[None]
        expected = torch.nn.functional.conv2d(pixels, torch.from_numpy(kernel), stride=4)[0]
        np.testing.assert_allclose(less, -expected, atol=1e-4)
        np.testing.assert_allclose(heat, expected.sigmoid(), atol=1e-5)


def test_pictures_that_the_model_cannot_read_are_none_and_the_others_are_read(tmp_path):
    """The graph looks its answer up in a table of 200 rows, by how bright the picture is: brighter ones fail."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Cast", ["mean"], ["row"], to=7),
        helper.make_node("Gather", ["table", "row"], ["y"]),
    ]
    table = np.arange(200, dtype=np.float32)[:, None]
    file = onnx_models.write(tmp_path / "a.onnx", nodes, constants={"table": table}, outputs={"y": ("n", 1)})
    shades = [Image.new("RGB", (40, 40), (gray,) * 3) for gray in (10, 250, 90, 199, 230)]
    long = Image.new("RGB", (2, 21), (7, 7, 7))
    found = picture_models.outputs(model(file, input={"size": 32, "scale": 1}), [*shades, long])
    np.testing.assert_array_equal(found[:, 0], [10, np.nan, 90, 199, np.nan, np.nan])
    detector = model(file, input={"size": 32, "scale": 1 / 255}, output={"range": (0, 1)})
    assert [each is None for each in picture_models.maps(detector, [*shades, long])] == [False] * 5 + [True]


def test_missing_memory_makes_no_picture_unreadable(tmp_path, monkeypatch):
    means = model(onnx_models.channel_means(tmp_path / "a.onnx"), input={"size": 32})
    network = picture_models._network(means, "cpu")

    def run(_self, _pictures, _taken):
        raise network.errors[0]("Failed to allocate memory for requested buffer of size 1")

    monkeypatch.setattr(type(network), "__call__", run)
    with pytest.raises(ConfigError, match=r"too little memory for 5 pictures of 32 x 32 pixels \(.*smaller input.size"):
        picture_models.outputs(means, pictures())


def test_other_weights_are_refused_with_both_digests(tmp_path):
    file = onnx_models.channel_means(tmp_path / "a.onnx")
    expected = model(file)
    picture_weights.verify(expected)
    file.write_bytes(file.read_bytes() + b"\x00")
    now = model(file).sha256
    for use in (picture_weights.verify, picture_models.check):
        with pytest.raises(ConfigError, match=f"has the SHA-256 {now}, and {expected.sha256} is expected: bring the"):
            use(expected)


def test_weights_that_are_not_there_are_named(tmp_path):
    file = onnx_models.channel_means(tmp_path / "a.onnx")
    assert picture_weights.missing(file.as_uri()) == ""
    file.unlink()
    assert picture_weights.missing(file.as_uri()) == f"{file.as_uri()} does not exist; name a file that is there"
    (tmp_path / "config.json").touch()
    assert f"{tmp_path.as_uri()} lacks model.safetensors; name an ONNX file" in picture_weights.missing(
        tmp_path.as_uri()
    )
    (tmp_path / "model.safetensors").touch()
    assert picture_weights.missing(tmp_path.as_uri()) == ""


def test_a_number_that_is_none_is_refused_with_the_name_of_the_picture(tmp_path):
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("Log", ["mean"], ["y"]),
    ]
    logarithms = model(onnx_models.write(tmp_path / "a.onnx", nodes), input={"size": 32})
    names = ["a.jpg of the shard", "b.jpg of the shard"]
    black = [Image.new("RGB", (40, 40), "white"), Image.new("RGB", (40, 40), "black")]
    with pytest.raises(DataError, match=r"infinite or none for b.jpg of the shard"):
        picture_models.outputs(logarithms, black, names=names)
    with pytest.raises(DataError, match=r"infinite or none for b.jpg of the shard"):
        picture_models.maps(logarithms, black, names=names)


def test_a_number_outside_its_range_is_refused_with_the_name_of_the_picture(tmp_path):
    file = onnx_models.channel_means(tmp_path / "a.onnx")
    at = {"size": 32, "scale": 1, "mean": (50, 50, 50)}
    dark = [Image.new("RGB", (40, 40), (60, 50, 149)), Image.new("RGB", (40, 40), (60, 50, 152))]
    wide, narrow = (model(file, input=at, output={"range": (0, most)}) for most in (102, 100))
    assert picture_models.outputs(wide, dark).max() == 102
    with pytest.raises(DataError, match=r"gives 102 for second, and 0 to 100 is expected: set output.activation"):
        picture_models.outputs(narrow, dark, names=["first", "second"])
    with pytest.raises(DataError, match=r"gives 10 for first, and 0 to 1 is expected"):
        picture_models.maps(model(file, input=at), dark, names=["first", "second"])


def test_a_size_that_is_not_the_graphs_is_refused_before_any_picture_counts_as_unread(tmp_path):
    file = onnx_models.channel_means(tmp_path / "a.onnx", input_shape=("n", 3, 48, 48))
    with pytest.raises(ConfigError, match=r"cannot look at a gray picture \(.*compare input.size and input.layout"):
        picture_models.check(model(file, input={"size": 32}))


@pytest.mark.parametrize(
    ("further", "refused"),
    [
        ({"output": {"name": "z"}}, "gives y, and not z"),
        ({"output": {"index": 3}}, "gives 3 numbers a picture, and output.index names 3: 0 to 2 are allowed"),
    ],
)
def test_an_output_that_is_not_there_is_refused(further, refused, tmp_path):
    with pytest.raises(ConfigError, match=refused):
        picture_models.check(model(onnx_models.channel_means(tmp_path / "a.onnx"), **further))


def test_what_is_no_graph_is_refused(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"weights")
    with pytest.raises(ConfigError, match=r"onnxruntime does not load .*a.onnx"):
        picture_models.check(model(tmp_path / "a.onnx"))


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this onnxruntime can use a GPU"
)
def test_a_gpu_that_onnxruntime_cannot_use_is_no_reason_to_compute_elsewhere_unasked(tmp_path):
    file = onnx_models.channel_means(tmp_path / "a.onnx")
    with pytest.raises(ConfigError, match=r"no CUDAExecutionProvider for cuda, it has .*: pip install onnxruntime-gpu"):
        picture_models.outputs(model(file), pictures(), "cuda")
    assert picture_models.outputs(model(file, device="cpu"), pictures(), "cuda").shape == (len(SIDES), 3)


@pytest.mark.parametrize(
    ("wrong", "refused"),
    [
        ({"uri": "model.onnx"}, "'model.onnx' is no URI"),
        ({"sha256": "ABC"}, "'ABC' is no SHA-256; write the 64 hexadecimal digits"),
        ({"licence": ""}, "at least 1 character"),
        ({"input": {"resize": "shrink"}}, "'squash', 'crop', 'whole' or 'keep'"),
        ({"input": {"std": (1, 0, 1)}}, "has a number that is not above 0"),
        ({"input": {"size": 64, "resize_to": 32}}, "resize_to is 32: at least size is allowed, 64"),
        ({"input": {"resize": "keep", "resize_to": 256}}, "resize is 'keep', which cuts nothing"),
        ({"input": {"resize": "keep", "size": 16}}, "at least 32 is allowed"),
        ({"output": {"range": (1, 0)}}, "has its greater number first"),
        ({"output": {"index": -1}}, "greater than or equal to 0"),
        ({"output": {"index": []}}, "at least 1 item"),
        ({"weights": "a"}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, refused):
    right = {"uri": "s3://bucket/a.onnx", "sha256": "0" * 64, "licence": "MIT"}
    PictureModel.model_validate(right)
    with pytest.raises(ValidationError, match=re.escape(refused)):
        PictureModel.model_validate(right | wrong)
