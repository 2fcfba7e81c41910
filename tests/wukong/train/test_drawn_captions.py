"""Which caption a pair has in an epoch: as often as its count says, and the same however the run is divided."""

from collections import Counter
from hashlib import blake2b
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pair_files import TOKENIZER, pictures, seven_pairs
from scipy.stats import chisquare

from wukong.data import feature_files
from wukong.store import storage
from wukong.store.manifest import Manifest, Part
from wukong.train.batches import Batch
from wukong.train.captions import drawn
from wukong.train.corpus import Corpus
from wukong.train.feature_pairs import FeaturePairs

WORDS = ["猫", "狗", "鸟", "鱼", "马"]


@pytest.mark.parametrize("counts", [[1, 1], [7, 2, 1], [1, 1000], [5, 0, 5]])
def test_each_caption_is_drawn_as_often_as_its_count_says(counts: list[int]) -> None:
    total = 20_000
    by_key = Counter(drawn(counts, 3, 1, f"{number:020x}") for number in range(total))
    by_epoch = Counter(drawn(counts, 3, epoch, "0" * 20) for epoch in range(total))
    by_seed = Counter(drawn(counts, seed, 3, "0" * 20) for seed in range(total))
    for observed in by_key, by_epoch, by_seed:
        assert observed.keys() <= {number for number, count in enumerate(counts) if count}
        expected = [(number, total * count / sum(counts)) for number, count in enumerate(counts) if count]
        assert chisquare([observed[number] for number, _ in expected], [each for _, each in expected]).pvalue > 1e-4


@given(
    st.lists(st.integers(1, 2**31 - 1), min_size=1, max_size=9), st.integers(0), st.integers(0), st.text(max_size=20)
)
def test_a_number_of_a_caption_is_drawn_whatever_the_counts(counts: list[int], seed: int, epoch: int, key: str) -> None:
    number = drawn(counts, seed, epoch, key)
    assert number in range(len(counts))
    assert number == drawn(counts, seed, epoch, key)
    assert drawn([0] * 3 + counts, seed, epoch, key) == number + 3, "what was never found is never drawn"


TEXTS = [f"{word}{number}" for word in [*WORDS, "甲", "乙"] for number in range(7)]
BY_IDS = dict(zip(map(tuple, TOKENIZER.encode(TEXTS)), TEXTS, strict=True))
BY_HASH = {
    int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True): text for text in TEXTS
}


def texts_of(batch: Batch) -> list[str]:
    """The captions of a batch, by their token ids and again by their hashes."""
    texts = [BY_IDS[tuple(each for each in ids if each != TOKENIZER.pad)] for ids in batch.ids.tolist()]
    assert texts == [BY_HASH[number] for number in batch.captions.tolist()]
    return texts


def corpus(folder: Path, *, sampled: bool, rows: int = 40) -> Corpus:
    """Pairs of two shards with their features; every third pair has one caption, the others several."""
    (folder / "train").mkdir(exist_ok=True)
    parts = []
    for shard in range(2):
        table = []
        for n in range(shard * rows, (shard + 1) * rows):
            captions = [
                {"caption": f"{WORDS[n % 5]}{place}", "caption_original": "", "count": place + 1, "query": None}
                for place in range(n % 3 + 1)
            ]
            table.append(
                {
                    "key": f"k{n}",
                    "url": f"http://x/{n}",
                    "caption": captions[0]["caption"],
                    "captions": captions if len(captions) > 1 else None,
                }
            )
        path = f"train/{shard:05d}"
        pq.write_table(pa.Table.from_pylist(table), folder / f"{path}.parquet")
        uri = storage.join(storage.from_path(folder), feature_files.path_of("train", f"{shard:05d}", 0))
        feature_files.write(uri, [row["key"] for row in table], torch.zeros(rows, 4).half())
        parts += [Part(path=f"{path}{suffix}", rows=rows, bytes=1, sha256="0") for suffix in (".parquet", ".tar")]
    filtered = Manifest(
        stage="filter", uri=storage.from_path(folder), config={}, parts=parts, counts={"more_captions": rows}
    )
    made = Corpus.of(filtered, sampled=sampled)
    return Corpus(made.prefix, made.names, made.rows, made.digest, all_captions=made.all_captions)


def shown(pairs: FeaturePairs, seed: int, first: int, last: int, workers: int = 1) -> list[dict[int, str]]:
    """Of each step the captions, by the number of the pair."""
    steps: list[dict[int, str]] = [{} for _ in range(first, last)]
    for rank in range(workers):
        for number, batch in enumerate(pairs.batches(8, seed, first, rank, workers, last)):
            steps[number] |= dict(zip(batch.rows.tolist(), texts_of(batch), strict=True))
    return steps


def test_every_epoch_has_a_draw_of_its_own_that_neither_workers_nor_interruptions_change(tmp_path: Path) -> None:
    data = corpus(tmp_path, sampled=True)
    pairs = FeaturePairs(data, TOKENIZER, data.prefix, (0,))
    epochs = 6
    whole = shown(pairs, 5, 0, 10 * epochs)
    for workers in 2, 4:
        assert shown(FeaturePairs(data, TOKENIZER, data.prefix, (0,)), 5, 0, 10 * epochs, workers) == whole
    assert shown(FeaturePairs(data, TOKENIZER, data.prefix, (0,)), 5, 13, 10 * epochs, 2) == whole[13:]
    assert shown(FeaturePairs(data, TOKENIZER, data.prefix, (0,)), 6, 0, 10) != whole[:10]
    for step, batch in enumerate(whole):
        for number, text in batch.items():
            counts = [place + 1 for place in range(number % 3 + 1)]
            assert text == f"{WORDS[number % 5]}{drawn(counts, 5, step // 10, f'k{number}')}"
    assert len({text for batch in whole for text in batch.values()}) == 5 * 3


def test_the_first_is_trained_on_unless_captions_are_sampled(tmp_path: Path) -> None:
    data = corpus(tmp_path, sampled=False)
    assert not data.all_captions
    pairs = FeaturePairs(data, TOKENIZER, data.prefix, (0,))
    assert {text[1] for batch in shown(pairs, 5, 0, 20) for text in batch.values()} == {"0"}
    assert corpus(tmp_path, sampled=True).digest == data.digest, "the order of the pairs is the same"


def test_data_with_one_caption_a_picture_give_the_same_batches(tmp_path: Path) -> None:
    data = corpus(tmp_path, sampled=True)
    uris = [data.uri(shard, ".parquet") for shard in range(2)]
    for uri in uris:
        storage.write_table(uri, storage.read_table(uri).drop_columns(["captions"]))
    plain = Corpus(data.prefix, data.names, data.rows, data.digest)
    for uri in uris:
        table = storage.read_table(uri)
        storage.write_table(uri, table.append_column("captions", pa.nulls(len(table))))
    nulls = FeaturePairs(data, TOKENIZER, data.prefix, (0,))
    assert shown(nulls, 1, 0, 20) == shown(FeaturePairs(plain, TOKENIZER, data.prefix, (0,)), 1, 0, 20)


def test_pictures_and_the_pairs_that_stand_in_lost_places_have_drawn_captions(tmp_path: Path) -> None:
    prefix = seven_pairs(tmp_path)
    uri = storage.join(prefix, "train/00001.parquet")
    table = storage.read_table(uri)
    captions = [[{"caption": f"甲{n}", "count": 1}, {"caption": f"乙{n}", "count": 1}] for n in range(4, 7)]
    storage.write_table(uri, table.append_column("captions", pa.array(captions)))
    lost = Corpus(prefix, ("missing", "00001"), (4, 3), "digest", all_captions=True)
    pairs = pictures(prefix, data=lost, max_lost_shards=1)
    seen = Counter[str]()
    for epoch in range(8):
        for batch in pairs.batches(7, 0, epoch):
            assert batch.lost == {0}
            texts = texts_of(batch)
            assert Counter(text[1] for text in texts) == {"4": 3, "5": 2, "6": 2}, "a smaller shard is repeated"
            expected = {f"{'甲乙'[drawn([1, 1], 0, epoch, f'k{n}')]}{n}" for n in range(4, 7)}
            assert {*texts} == expected, "the same pair has the same caption wherever it stands"
            seen.update(texts)
    assert len(seen) == 6
