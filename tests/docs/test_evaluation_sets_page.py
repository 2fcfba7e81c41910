"""docs/evaluation-sets.md says of each set what the code says."""

import re
from pathlib import Path

import pytest

from wukong.evaluate import sets
from wukong.evaluate.data_set import Classification, WordOrder

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation-sets.md").read_text("utf-8")
SECTIONS = {
    name: " ".join(section.split())
    for name, section in re.findall(r"^### [^\n]*: `([a-z0-9-]+)`\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
}


def test_each_set_has_a_section():
    assert SECTIONS.keys() == sets.REGISTRY.keys()


@pytest.mark.parametrize("name", sets.REGISTRY)
def test_the_section_has_notes_numbers_and_how_to_get_it(name):
    data_set, section = sets.of(name), SECTIONS[name]
    how = data_set.how_to_get
    assert all(each in section for each in (data_set.note, *how.download, how.place, how.licence))
    assert f"Measured: {data_set.split}." in section
    published = () if isinstance(data_set, WordOrder) else data_set.splits.items()
    for split, counts in published:
        if not re.search(r"-[01][0-9]$", split):  # numbered partitions
            numbers = [counts] if isinstance(counts, int) else counts
            assert f"{split} {' / '.join(f'{number:,}' for number in numbers)}" in section
    if isinstance(data_set, Classification) and data_set.webdataset:
        stated = ", ".join(f"{split} {count:,}" for split, count in data_set.webdataset.items())
        lies = "".join(f"; {split} lies in {folder}" for split, folder in data_set.webdataset_folders.items())
        assert f"WebDataset form: {stated}{lies}." in section
