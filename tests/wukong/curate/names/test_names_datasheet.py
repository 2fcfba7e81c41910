"""The datasheet of lists and labelled captions: every count in it, against the files."""

import re
from pathlib import Path

import pytest

from tools.name_tagger import captions
from wukong.curate.names import word_lists

REPOSITORY = Path(__file__).parents[4]
DATASHEET = (REPOSITORY / "docs" / "names-datasheet.md").read_text(encoding="utf-8")
ROWS = {
    file: (int(count.replace(",", "")), content)
    for file, count, content in re.findall(r"^\| `([^`]+)` \| ([\d,]+) \| (.*) \|$", DATASHEET, re.MULTILINE)
}
LISTS = "wukong/curate/names/lists"
CAPTIONS = "benchmarks/curate/names/captions"


def lines(path):
    """The lines that are no comments."""
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]


def test_every_file_has_a_row():
    lists = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / LISTS).glob("*.txt")}
    tests = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / CAPTIONS).glob("*.txt")}
    assert set(ROWS) == {*lists, *tests, f"{CAPTIONS}/train/"}


@pytest.mark.parametrize("file", [file for file in ROWS if file.endswith(".txt") and "surnames" not in file])
def test_a_file_has_as_many_entries_as_its_row_says(file):
    assert len(lines(REPOSITORY / file)) == ROWS[file][0]


def test_the_surnames_are_as_many_as_their_row_says():
    single, double = lines(REPOSITORY / LISTS / "surnames.txt")
    count, content = ROWS[f"{LISTS}/surnames.txt"]
    assert count == len(single) + len(double.split())
    assert f"{len(single)} of one character, {len(double.split())} of two or more" in content


@pytest.mark.parametrize("part", ["train/", "test.txt"])
def test_captions_and_names_are_as_many_as_their_row_says(part):
    place = REPOSITORY / CAPTIONS / part
    files = sorted(place.glob("*.txt")) if part == "train/" else [place]
    some = [caption for file in files for caption in captions.read(file)]
    count, content = ROWS[f"{CAPTIONS}/{part}"]
    assert count == len(some)
    named, names = sum(bool(spans) for _, spans in some), sum(len(spans) for _, spans in some)
    assert f"{named:,} captions with a name, {names:,} names" in content
    if part == "train/":
        assert f"{len(files)} files" in content


def test_no_caption_is_in_two_files_or_twice_in_one():
    train = [text for file in (REPOSITORY / CAPTIONS / "train").glob("*.txt") for text, _ in captions.read(file)]
    test = [text for text, _ in captions.read(REPOSITORY / CAPTIONS / "test.txt")]
    second = [text for text, _ in captions.read(REPOSITORY / CAPTIONS / "test_second_labels.txt")]
    assert len(train + test) == len(set(train + test))
    assert sorted(second) == sorted(test)


def test_what_the_datasheet_computes_of_the_lists():
    entries = word_lists.dictionary()
    tagged = {word for word, _, flag in entries if flag.startswith("nr")}
    people, brands = set(word_lists.read_list("people.txt")), set(word_lists.read_list("brands.txt"))
    said = re.sub(r"\s+", " ", DATASHEET)
    assert f"{len(people & tagged):,} of the {len(people):,} entries of `people.txt`" in said
    assert f"(which has {len(tagged):,})" in said
    both = brands & {word for word, *_ in entries}
    assert f"{len(both):,} of the {len(brands):,} of `brands.txt` are in that dictionary" in said


def test_no_labelled_name_was_taken_out():
    files = (REPOSITORY / CAPTIONS).rglob("*.txt")
    some = [text[start:end] for file in files for text, names in captions.read(file) for start, end in names]
    assert word_lists.removed(some) == []
