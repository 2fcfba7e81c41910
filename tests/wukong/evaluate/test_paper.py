"""The paper's tables were copied without an error: their own averages and mean recalls say so."""

from itertools import chain

import pytest

from wukong.evaluate import paper, sets

ROWS = [
    (table, data_set, method, row)
    for table, rows in (("6", paper.TABLE_6), ("7", paper.TABLE_7))
    for data_set, methods in rows.items()
    for method, row in methods.items()
]


def test_table_5_averages_to_its_last_row() -> None:
    assert len(paper.TABLE_5) == 17
    for column, printed in enumerate(paper.AVERAGE_OF_TABLE_5):
        mean = sum(row[column] for row in paper.TABLE_5.values()) / 17
        assert mean == pytest.approx(printed, abs=0.051), paper.MODELS_OF_TABLE_5[column]


def test_every_row_has_a_number_for_every_model() -> None:
    assert {len(row) for row in paper.TABLE_5.values()} == {len(paper.MODELS_OF_TABLE_5)}


@pytest.mark.parametrize(("table", "data_set", "method", "row"), [row for row in ROWS if row[3].text_to_image])
def test_a_mean_recall_is_the_mean_of_its_row(table: str, data_set: str, method: str, row: paper.Recalls) -> None:
    recalls = list(chain(row.image_to_text or (), row.text_to_image or ()))
    assert sum(recalls) / len(recalls) == pytest.approx(row.mean_recall, abs=0.051)
    for each in (row.image_to_text, row.text_to_image):
        assert each is None or list(each) == sorted(each)


def test_the_sets_are_those_that_are_measured() -> None:
    for name in (*paper.TABLE_5, *paper.TABLE_6, *paper.TABLE_7):
        assert name in sets.REGISTRY
    assert set(paper.TABLE_7) - set(paper.TABLE_6) == {"aic-icc"}
