"""Index and search against a comparison of everything with everything, in numpy."""

import random
from collections.abc import Callable
from datetime import UTC, datetime
from math import comb
from pathlib import Path

import colours
import drawn
import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import binom

from wukong.errors import DataError
from wukong.publish import superseded, takedown, takedown_plan
from wukong.serve import calibration, collection, encode, index, search
from wukong.serve.search import Searcher
from wukong.store import storage
from wukong.store.manifest import Stage


@pytest.fixture(scope="module", params=["global", "token"])
def searcher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    root = tmp_path_factory.mktemp("serve")
    model = colours.model(request.param)
    found = collection.of(colours.every_pair(root / "pictures"))
    made = encode.build(found, model, storage.from_path(root / "indexes"))
    return Searcher(index.open_index(made, model), model)


def captions_of(searcher: Searcher, rows: list[int]) -> list[str]:
    return [searcher.index.captions[each] for row in rows for each in searcher.index.captions_of[row]]


def test_the_two_colours_of_a_text_find_the_two_pictures_that_have_both(searcher: Searcher) -> None:
    hits = searcher.pictures_of_texts(["红蓝"], 3)[0].hits
    assert sorted(captions_of(searcher, [hit.row for hit in hits[:2]])) == ["红色和蓝色", "蓝色和红色"]
    assert hits[1].score > hits[2].score


def test_ranks_are_those_of_every_picture_compared(searcher: Searcher) -> None:
    model = searcher.model
    files = list(colours.COLOURS)
    shown = [colours.picture(a, b) for a in files for b in files if a != b]
    by_caption = {f"{a}色和{b}色": row for row, (a, b) in enumerate((a, b) for a in files for b in files if a != b)}
    image = model.saved.encode_image(shown)
    for query in ("红", "黄色和黑色", "猫"):
        text = model.saved.encode_text([query])
        if model.token_wise:
            products = np.einsum("ipd,td->ipt", image.numpy(), text.vectors[0].numpy())
            counted = text.counted[0].numpy()
            expected = products.max(1)[:, counted].mean(1)
        else:
            expected = image.numpy() @ text.vectors[0].numpy()
        (answer,) = searcher.pictures_of_texts([query], len(shown))
        hits = answer.hits
        found = {by_caption[captions_of(searcher, [hit.row])[0]]: hit.score for hit in hits}
        assert len(found) == len(shown)
        # Stored tokens are float16.
        assert [found[row] for row in range(len(shown))] == pytest.approx(expected.tolist(), abs=1e-3)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        # All pictures are the reference.
        assert answer.stands_out == pytest.approx(expected.max() - expected.mean(), abs=2e-3)


def test_a_picture_finds_its_caption_and_itself(searcher: Searcher) -> None:
    vectors = searcher.model.saved.encode_image([colours.picture("绿", "黄")])[0]
    best = [searcher.index.captions[hit.row] for hit in searcher.captions_of_picture(vectors, 2)]
    assert set(best) == {"绿色和黄色", "黄色和绿色"}
    first, *_ = searcher.similar_pictures(vectors, 3)
    assert captions_of(searcher, [first.row])[0] in best
    assert first.score == pytest.approx(1.0, abs=1e-3)
    assert torch.allclose(searcher.stored_picture(first.row).mean(0), vectors.mean(0), atol=1e-3)


def test_labels_share_the_probability(searcher: Searcher) -> None:
    vectors = searcher.model.saved.encode_image([colours.picture("绿")])[0]
    scores, probabilities = search.label_scores(searcher.model, vectors, ["红", "绿", "蓝"])
    assert int(scores.argmax()) == 1
    assert float(probabilities.sum()) == pytest.approx(1.0)
    ratio = np.exp(searcher.model.scale * float(scores[1] - scores[0]))
    assert float(probabilities[1] / probabilities[0]) == pytest.approx(ratio, rel=1e-3)


def test_blocks_change_nothing(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["红", "蓝黄", "绿色和黑色"]
    whole = searcher.pictures_of_texts(texts, 5)
    monkeypatch.setattr(search, "_BLOCK_SCORES", 9)
    assert searcher.pictures_of_texts(texts, 5) == whole
    assert [searcher.pictures_of_texts([text], 5)[0] for text in texts] == whole


def test_equal_scores_are_in_the_order_of_the_rows() -> None:
    scores = torch.tensor([[0.5, 0.50000001, 0.7, 0.5]])
    hits = search._ranked(scores[0], torch.tensor([9, 3, 5, 4]), 3)
    assert [(hit.row, hit.score) for hit in hits] == [(5, 0.7), (3, 0.5), (4, 0.5)]
    same = search._best(torch.ones(1, 1), torch.tensor([[0.5], [0.5], [0.7], [0.5]]), 2)[0]
    assert [hit.row for hit in same] == [2, 0]


def test_the_best_of_many_vectors_are_found() -> None:
    numbers = np.random.default_rng(0)
    vectors, queries = numbers.standard_normal((5000, 16), np.float32), numbers.standard_normal((7, 16), np.float32)
    found = search._best(torch.from_numpy(queries), torch.from_numpy(vectors), 20)
    assert [[hit.row for hit in hits] for hits in found] == np.argsort(-(queries @ vectors.T), 1)[:, :20].tolist()


def test_an_index_is_made_once_and_goes_on_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that was interrupted after its first piece has the same bytes as one that was not."""
    model = colours.model("token")
    pairs = [
        (f"{number:020d}", f"{a}和{b}", colours.encoded(colours.picture(a, b), "JPEG"), f"{a}{b}")
        for number, (a, b) in enumerate((a, b) for a in colours.COLOURS for b in colours.COLOURS if a != b)
    ]
    data = collection.of(colours.stage(tmp_path, {"train/00000": pairs[:9], "train/00001": pairs[9:]}).uri)
    monkeypatch.setattr(encode, "_BLOCK", 4)
    whole = encode.build(data, model, storage.from_path(tmp_path / "whole"))
    encoded: Callable[..., object] = encode._encode_piece
    calls: list[str] = []

    def killed(stage: object, found: object, piece: collection.Piece, *rest: object) -> object:
        calls.append(piece.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encoded(stage, found, piece, *rest)

    monkeypatch.setattr(encode, "_encode_piece", killed)
    with pytest.raises(KeyboardInterrupt):
        encode.build(data, model, storage.from_path(tmp_path / "killed"))
    again = encode.build(data, model, storage.from_path(tmp_path / "killed"))
    assert calls == ["train-00000", "train-00001", "train-00001"]
    assert (again.digest, again.parts) == (whole.digest, whole.parts)
    assert encode.build(data, model, storage.from_path(tmp_path / "killed")) == again
    assert len(calls) == 3
    opened = index.open_index(again, model)
    assert list(opened.keys) == [pair[0] for pair in pairs]
    shown = [colours.encoded(colours.picture(a, b), "JPEG") for a in colours.COLOURS for b in colours.COLOURS if a != b]
    assert opened.picture_tokens is not None
    stored = opened.picture_tokens.read(torch.tensor([17, 0, 9]))
    expected = model.saved.encode_image([shown[17], shown[0], shown[9]])
    torch.testing.assert_close(stored, expected.half().float())


def test_what_was_taken_down_is_in_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three indexes, one of them unfinished, none is left; the new one is made of what the takedown left."""
    pairs = [
        (f"{number:020d}", f"{colour}的画", colours.encoded(colours.picture(colour), "JPEG"), colour)
        for number, colour in enumerate(colours.COLOURS)
    ]
    pairs.append(("9" * 20, "不要看的画", colours.encoded(colours.picture("红", "黑"), "JPEG"), "secret"))
    uri, root = colours.stage(tmp_path / "x", {"train/00000": pairs}).uri, storage.from_path(tmp_path / "indexes")
    other = colours.stage(tmp_path / "y", {"train/00000": pairs}).uri
    model = colours.model("token")
    for each, of in ((model, uri), (colours.model("global"), uri), (model, other)):
        encode.build(collection.of(of), each, root)
    monkeypatch.setattr(encode, "_VERSION", 0)  # one that lacks its manifest, as after a kill
    storage.delete(storage.join(encode.build(collection.of(uri), model, root).uri, "manifest.json"))
    monkeypatch.undo()
    (tmp_path / "listed.txt").write_text(f"http://site.test/{'9' * 20}.jpg\n", encoding="utf-8")
    place = storage.from_path(tmp_path / "x")
    planned = takedown_plan.plan(
        place, storage.from_path(tmp_path / "listed.txt"), "case 1", datetime(2026, 11, 1, tzinfo=UTC)
    )
    storage.write_json(storage.join(place, "takedowns", "pending.json"), planned.model_dump(mode="json"))
    with pytest.raises(DataError, match=r"has not ended: run `wukong takedown` again"):
        collection.of(uri)
    takedown.carry_out(place, planned)

    made = encode.build(collection.of(uri), model, root)
    searcher = Searcher(index.open_index(made, model), model)
    assert "不要看的画" not in searcher.index.captions and len(searcher.index.keys) == 5
    assert "9" * 20 not in [searcher.index.keys[hit.row] for hit in searcher.pictures_of_texts(["红黑"], 9)[0].hits]
    kept = {encode.build(collection.of(other), model, root).uri, made.uri}
    assert {f"{root}/index/{name}" for name in storage.list_names(f"{root}/index")} == kept
    kept |= {superseded.shard_uri(folder, key) for folder in kept for key in superseded.listed(folder).keys}
    assert {file.rsplit("/", 1)[0] for file in storage.list_files(root, "/manifest.json")} == kept
    left = [file for file in storage.list_files(root) if not file.startswith(tuple(kept))]
    assert left == [], "nothing of the earlier indexes of this collection"


def test_pictures_of_one_hash_are_one_group_in_all_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filtered, model = drawn.pictures(tmp_path / "filtered", 6), drawn.model()
    hashes = ([7, 2**64 - 2, None], [7, None, 2**64 - 2])
    hashed, parts = Stage(storage.from_path(tmp_path / "hashed"), "filter", {}), []
    for number, each in enumerate(hashes):
        name = f"train/{number:05d}"
        pairs = storage.read_table(storage.join(filtered.uri, f"{name}.parquet"))
        pairs = pairs.append_column("image_hash", pa.array(each, pa.uint64()))
        storage.write_table(hashed.path(f"{name}.parquet"), pairs)
        storage.write_bytes(hashed.path(f"{name}.tar"), storage.read_bytes(storage.join(filtered.uri, f"{name}.tar")))
        parts += [hashed.describe(f"{name}.{suffix}", 3) for suffix in ("tar", "parquet")]
    found = collection.of(hashed.commit(parts).uri)
    monkeypatch.setattr(encode, "SHARD_PICTURES", 3)
    made = encode.build(found, model, storage.from_path(tmp_path / "indexes"))
    groups = [index.open_index(made, model, number).columns["group"].tolist() for number in (0, 1)]
    assert groups == [[7, -2, -1], [7, -1, -2]]


def test_what_cannot_be_decoded_in_a_folder_is_left_out_and_counted(tmp_path: Path) -> None:
    data = colours.encoded(colours.picture("红"))
    uri = colours.folder(tmp_path / "p", {"a.png": ["红"], "b.png": ["坏"]}, {"a.png": data, "b.png": data[:60]})
    made = encode.build(collection.of(uri), colours.model("global"), storage.from_path(tmp_path / "i"))
    assert made.counts == {"pictures": 1, "captions": 1, "left_out": 1}, "no caption without its picture"


def test_texts_about_other_things_find_nothing_and_captions_their_pictures(tmp_path: Path) -> None:
    """40 captions of one colour each; a word that names no colour is far from every picture."""
    model = colours.model("global")
    pictures, captions = {}, {}
    for number in range(40):
        colour = list(colours.COLOURS)[number % 5]
        pictures[f"{number}.png"] = colours.encoded(colours.picture(colour, size=(64, 64 + number)))
        captions[f"{number}.png"] = [colour * (2 + number // 5) + "一二三四五六七八九十百千"[number % 12]]
    made = encode.build(
        collection.of(colours.folder(tmp_path / "p", captions, pictures)), model, storage.from_path(tmp_path / "i")
    )
    found = index.open_index(made, model).calibration
    assert found["texts"] == 40
    assert found["false_alarms"] <= 0.3 and found["misses"] <= 0.3 and found["used"]
    assert calibration.calibrate([index.open_index(made, model)], model) == found


@pytest.mark.parametrize(("one", "other"), [(8, 1), (12, 9), (0, 0), (3, 7)])
def test_kinds_of_texts_are_told_apart_by_the_hypergeometric_law(one: int, other: int) -> None:
    drawn, of = one + other, 20
    ways = [comb(of, k) * comb(of, drawn - k) for k in range(one, min(drawn, of) + 1)]
    assert calibration._more(one, other, of) == pytest.approx(sum(ways) / comb(2 * of, drawn))


def test_a_model_that_tells_nothing_apart_has_no_threshold(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every text stands out by chance alone. By the test's level, one in a hundred such models has a threshold."""
    numbers = np.random.default_rng(7)

    def by_chance(_: Searcher, texts: list[str], _count: int) -> list[search.SearchResult]:
        return [search.SearchResult([], float(each)) for each in numbers.random(len(texts))]

    monkeypatch.setattr(Searcher, "pictures_of_texts", by_chance)
    monkeypatch.setattr(calibration, "_words_of_none", lambda *_: ["词语"] * 20)  # the dictionary is long
    used = [calibration.calibrate([searcher.index], searcher.model, seed)["used"] for seed in range(60)]
    assert sum(used) <= binom.ppf(0.999, 60, calibration.SIGNIFICANCE)


def test_texts_about_other_things_have_words_of_no_caption(searcher: Searcher) -> None:
    numbers = random.Random(0)
    words = calibration._words_of_none(["我们去公园", "天气"], numbers)
    assert len(set(words)) == 2000 and not {"我们", "公园", "天气"} & set(words)
    assert [len(calibration._text(words, length, numbers)) for length in (1, 2, 9)] == [2, 2, 9]


def test_too_few_captions_give_no_threshold(searcher: Searcher, tmp_path: Path) -> None:
    data = colours.encoded(colours.picture("红"))
    uri = colours.folder(tmp_path / "p", {"a.png": ["红"]}, {"a.png": data})
    made = encode.build(collection.of(uri), searcher.model, storage.from_path(tmp_path / "i"))
    assert index.open_index(made, searcher.model).calibration == {}
