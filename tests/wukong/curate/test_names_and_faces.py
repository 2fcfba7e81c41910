"""A masked name beside one large face is counted; everything else is not."""

from typing import Any

import polars as pl
import pytest

from wukong.curate import names_and_faces

_FACES = pl.List(pl.Struct(dict.fromkeys(("x", "y", "width", "height", "score"), pl.Float32)))
_CAPTIONS = pl.List(pl.Struct({"caption": pl.String, "caption_original": pl.String}))
LARGE, SMALL = (0.4, 0.5), (0.05, 0.06)


def pair(*faces: tuple[float, float], caption: str = "<人名>在公园", original: str = "王小明在公园") -> dict[str, Any]:
    boxes = [{"x": 0.1, "y": 0.1, "width": width, "height": height, "score": 0.9} for width, height in faces]
    return {"faces": boxes, "caption": caption, "caption_original": original}


def counted(*pairs: dict[str, Any]) -> int:
    return names_and_faces.count(pl.DataFrame(list(pairs), schema_overrides={"faces": _FACES, "captions": _CAPTIONS}))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (pair(LARGE), 1),
        (pair(LARGE, SMALL, SMALL), 1),  # a crowd behind one person
        (pair(LARGE, LARGE), 0),
        (pair(SMALL), 0),
        (pair((0.2, 0.21)), 1),
        (pair((0.2, 0.19)), 0),
        (pair(), 0),
        (pair(LARGE) | {"faces": None}, 0),
        (pair(LARGE, caption="公园里的人", original="公园里的人"), 0),
        (pair(LARGE, caption="<人名>在公园", original="<人名>在公园"), 0),  # as it was found
        (pair(LARGE, caption="<人名>和<人名>", original="<人名>和王小明"), 1),
    ],
)
def test_which_pairs_count(row: dict[str, Any], expected: int) -> None:
    assert counted(row) == expected
    assert counted(row, row, pair()) == 2 * expected


def test_of_several_captions_any_counts() -> None:
    plain, masked = ({"caption": text, "caption_original": "王小明"} for text in ("公园", "<人名>"))
    first = pair(LARGE, caption="公园", original="公园")
    assert counted(first | {"captions": [plain, masked]}) == 1
    assert counted(first | {"captions": [plain, plain]}) == 0
    assert counted(first | {"captions": None}, pair(LARGE) | {"captions": None}) == 1


def test_a_pair_that_was_dropped_does_not_count() -> None:
    assert counted(pair(LARGE) | {"dropped_by": "unsafe"}, pair(LARGE) | {"dropped_by": None}) == 1


def test_no_pairs_are_none() -> None:
    texts = dict.fromkeys(("caption", "caption_original"), pl.String)
    assert names_and_faces.count(pl.DataFrame(schema={"faces": _FACES, **texts})) == 0
