"""The plot of near duplicates by threshold: every number that the filter counted, and the threshold that was chosen."""

import re

import pytest

from wukong.curate import near_duplicates as search
from wukong.report import template
from wukong.report.near_duplicates import curve
from wukong.store import storage
from wukong.store.manifest import Stage

GONE = {0.8 + step / 100: 2_000 - 100 * step for step in range(20)}


def filtered(tmp_path, near, counts):
    config = {"near_duplicates": near} if near else {}
    return Stage(storage.from_path(tmp_path), "filter", config).commit([], counts=counts)


def counts():
    return {"near_duplicates": 4_000, **{f"near_duplicates/{cosine:.2f}": pairs for cosine, pairs in GONE.items()}}


@pytest.mark.parametrize(("lowest", "chosen"), [(None, []), (0.95, ["0.95"]), (0.956, ["0.95"]), (1.0, ["0.99"])])
def test_each_threshold_is_drawn_with_its_share_and_the_chosen_one_stands_out(tmp_path, lowest, chosen):
    made = curve(filtered(tmp_path, {"min_cosine": lowest, "keep": "sharpest"}, counts()))
    assert made is not None
    page = template.fill("near_duplicates.html.j2", {"near": made})
    drawn = re.findall(r'height="([\d.]+)"[^>]*><title>(0\.\d\d): ([\d,]+)</title>', page)
    assert [(float(cosine), int(pairs.replace(",", ""))) for _, cosine, pairs in drawn] == [
        (round(cosine, 2), pairs) for cosine, pairs in GONE.items()
    ]
    assert [float(height) for height, *_ in drawn] == [pytest.approx(pairs / 20) for pairs in GONE.values()]
    assert re.findall(r"<b>(0\.\d\d)</b>", page) == chosen
    assert re.findall(r'<td class="n">([\d.]+)</td></tr>', page) == [f"{pairs / 40:.2f}" for pairs in GONE.values()]
    assert ("None was dropped" in page) is (lowest is None)


def test_a_filter_that_compared_no_vectors_has_no_plot(tmp_path):
    assert curve(filtered(tmp_path, None, {"pairs": 3})) is None


def test_the_drawn_thresholds_are_those_that_are_counted():
    assert [round(cosine, 2) for cosine in GONE] == list(search.THRESHOLDS)
