"""An index in shards with candidates by FAISS: searched, grown, taken down, resumed and damaged.

The oracle is a comparison of everything with everything in numpy. Vectors are drawn at random by what they are of.
"""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import colours
import drawn
import numpy as np
import pytest
import torch
from made_again import cut, is_made_again, refused_wherever_a_bit_is_flipped

from wukong.errors import DataError
from wukong.evaluate.model import OwnModel
from wukong.publish import superseded, takedown, takedown_plan
from wukong.serve import collection, earlier, encode, index, recall, served_shard, shard, taken_down
from wukong.serve.approximate import Candidates
from wukong.serve.filters import NO_FILTERS
from wukong.serve.index import Index
from wukong.serve.search import Searcher
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest

faiss = pytest.importorskip("faiss")
Pairs = list[tuple[str, str, bytes, str]]
EACH = 60
PATIENCE = 20.0
ONE_KIND = pytest.mark.parametrize("data", ["token"], indirect=True)
"""For what does not depend on what vectors are compared."""


def pairs(first: int, count: int = EACH) -> Pairs:
    """Pictures of noise, each with a caption and a digest of its own."""
    found = []
    for number in range(first, first + count):
        image = colours.picture("红", size=(8, 8))
        image.frombytes(np.random.default_rng(number).integers(0, 256, 8 * 8 * 3, np.uint8).tobytes())
        data = colours.encoded(image, "JPEG", quality=95)
        found.append((f"{number:020d}", f"第{number}张图片", data, f"digest of {number}"))
    return found


@dataclass
class Data:
    """A filter's output, where its indexes lie, and the model."""

    root: Path
    model: OwnModel
    shards: dict[str, Pairs]

    @property
    def indexes(self) -> str:
        return storage.from_path(self.root / "indexes")

    def stage(self) -> Manifest:
        """The output at one place, whatever its shards are."""
        made = colours.stage(self.root / "x", self.shards)
        place = self.root / "data"
        if place.exists():
            storage.delete(storage.from_path(place))
        Path(made.uri.removeprefix("file://")).rename(place)
        return made.model_copy(update={"uri": storage.from_path(place)})

    def build(self) -> Manifest:
        return encode.build(collection.of(self.stage().uri), self.model, self.indexes)

    def opened(self, made: Manifest) -> list[Index]:
        """The shards, which look through all lists: what they find is exact."""
        shards = [index.open_index(made, self.model, number) for number in range(index.shards(made))]
        for each in shards:
            assert each.picture_candidates is not None
            each.picture_candidates.probes = each.picture_candidates.lists
        return shards


@pytest.fixture(params=["global", "token"])
def data(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Data:
    """Two shards of the search, of two pieces each; each has enough pictures for candidates."""
    monkeypatch.setattr(shard, "EXACT_BELOW", EACH)
    monkeypatch.setattr(encode, "SHARD_PICTURES", 2 * EACH)
    return Data(tmp_path, drawn.model(request.param), {f"train/{n:05d}": pairs(n * EACH) for n in range(4)})


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Pictures and captions that the model encodes while an index is made."""
    found: list[str] = []
    images, texts = drawn.Drawn.encode_image, drawn.Drawn.encode_text

    def encode_image(self: Any, pictures: Any, *rest: Any, **named: Any) -> torch.Tensor:
        found.extend("picture" for _ in pictures)
        return images(self, pictures, *rest, **named)

    def encode_text(self: Any, captions: Any, *rest: Any, **named: Any) -> Any:
        found.extend(caption for caption in captions if caption.startswith("第"))
        return texts(self, captions, *rest, **named)

    monkeypatch.setattr("wukong.serve.calibration.calibrate", lambda *_: {"threshold": 0.5})
    monkeypatch.setattr(drawn.Drawn, "encode_image", encode_image)
    monkeypatch.setattr(drawn.Drawn, "encode_text", encode_text)
    yield found


def exact(data: Data, query: str, shown: Pairs) -> list[str]:
    """Keys of the ten best of some pictures; of a token-wise model those whose tokens match best."""
    image = data.model.saved.encode_image([picture for _, _, picture, _ in shown]).half().float()
    text = data.model.saved.encode_text([query])
    if data.model.token_wise:
        products = np.einsum("ipd,td->ipt", image.numpy(), text.vectors[0].numpy())
        scores = products.max(1)[:, text.counted[0].numpy()].mean(1)
    else:
        scores = image.numpy() @ text.vectors[0].numpy()
    order = sorted(range(len(shown)), key=lambda row: (-round(float(scores[row]), 4), row))
    return [shown[row][0] for row in order[:10]]


def found(data: Data, query: str, shards: list[Index], **options: Any) -> list[list[str]]:
    """Keys of the ten best of each shard."""
    searched = [Searcher(each, data.model).pictures_of_texts([query], 10, **options)[0] for each in shards]
    return [[each.keys[hit.row] for hit in result.hits] for each, result in zip(shards, searched, strict=True)]


def of_shards(data: Data, count: int = 2) -> list[Pairs]:
    pieces = list(data.shards.values())
    return [[*chain(*pieces[start : start + count])] for start in range(0, len(pieces), count)]


def test_candidates_and_exact_scores_rank_as_everything_compared(data: Data) -> None:
    made = data.build()
    shards = data.opened(made)
    assert made.counts == {"pictures": 4 * EACH, "captions": 4 * EACH, "left_out": 0}
    for each, shown in zip(shards, of_shards(data), strict=True):
        assert list(each.keys) == [pair[0] for pair in shown] and each.picture_candidates is not None
        assert [each.captions[row] for (row,) in each.captions_of] == [pair[1] for pair in shown]
        assert [each.row_of(key) for key in (shown[7][0], shown[0][0], "no key", "9" * 20)] == [7, 0, None, None]
    for query in drawn.QUERIES[:10]:
        assert found(data, query, shards) == [exact(data, query, shown) for shown in of_shards(data)]


def test_recall_is_measured_on_questions_whose_answers_are_kept(data: Data) -> None:
    first = index.open_index(data.build(), data.model)
    assert first.picture_candidates is not None and len(first.questions) == 2 * EACH
    pictures, captions = first.picture_vectors.read().numpy(), first.caption_vectors.read().numpy()
    best = np.argsort(-(captions[first.questions] @ pictures.T), 1, kind="stable")[:, :10]
    scores = np.take_along_axis(captions[first.questions] @ pictures.T, first.answers.astype(np.int64), 1)
    assert np.allclose(scores, np.take_along_axis(captions[first.questions] @ pictures.T, best, 1))
    measured = recall.measure(first)
    assert measured is not None and measured.questions == 2 * EACH and measured.found >= 0.98
    first.picture_candidates.probes = 1
    worse = recall.measure(first)
    assert worse is not None and worse.found < measured.found


@ONE_KIND
def test_the_recall_of_a_served_shard_waits_for_those_who_search(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_shard, "_MEASURED_EVERY", 0.001)
    first = index.open_index(data.build(), data.model)
    searcher, measure, released, asked = Searcher(first, data.model), recall.measure, threading.Event(), list[Index]()
    answer = searcher.pictures_of

    def slow(*arguments: Any) -> Any:
        released.wait(PATIENCE)  # so that a failure below is seen
        return answer(*arguments)

    monkeypatch.setattr(searcher, "pictures_of", slow)

    def counted(part: Index) -> recall.Recall | None:
        asked.append(part)
        return measure(part)

    monkeypatch.setattr(recall, "measure", counted)

    async def serve() -> served_shard.Description:
        with ThreadPoolExecutor(1) as pool:
            shard = served_shard.LocalShard(searcher, pool, pool, 8)
            text = searcher.encode_texts(drawn.QUERIES[:1])
            search = asyncio.create_task(shard.search(served_shard.Question(text, 1, NO_FILTERS)))
            await shard.describe()
            await asyncio.sleep(0.3)
            assert len(asked) <= 1, "the next one is asked when none has searched, or two seconds later"
            released.set()
            await search
            while (description := await shard.describe()).recall is None:
                await asyncio.sleep(0.01)
            return description

    whole = measure(first)
    assert whole is not None
    assert asyncio.run(serve()).recall == (pytest.approx(whole.found), whole.questions)
    assert len(asked) == whole.questions


@pytest.mark.parametrize("few", [5, 10**6], ids=["by lists", "compared"])
def test_a_filter_leaves_what_is_allowed(data: Data, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wukong.serve.search._FEW", few)
    shards = data.opened(data.build())[:1]
    shown = of_shards(data)[0]
    allowed = np.zeros(len(shown), bool)
    allowed[::8] = True
    for query in drawn.QUERIES[:5]:
        assert found(data, query, shards, allowed=allowed) == [exact(data, query, shown[::8])]
    assert found(data, drawn.QUERIES[0], shards, allowed=np.zeros(len(shown), bool)) == [[]]
    searcher = Searcher(shards[0], data.model)
    vector = searcher.stored_picture(8)
    assert searcher.similar_pictures(vector, 1)[0].row == 8
    allowed[8] = False
    assert {hit.row for hit in searcher.similar_pictures(vector, 30, allowed)} == set(np.flatnonzero(allowed).tolist())


def test_new_pictures_are_added_and_others_are_not_encoded_again(data: Data, seen: list[str]) -> None:
    before = data.build()
    old = superseded.listed(before.uri).keys
    files = {file: storage.read_bytes(file) for file in storage.list_files(f"{data.indexes}/index-shard/{old[0]}")}
    seen.clear()
    data.shards["train/00004"] = pairs(4 * EACH)
    added = data.build()
    new = superseded.listed(added.uri).keys
    assert new[:2] == old and len(new) == 3
    assert seen.count("picture") == EACH and set(seen) == {"picture"} | {pair[1] for pair in pairs(4 * EACH)}
    assert files == {file: storage.read_bytes(file) for file in files}
    assert storage.list_names(f"{data.indexes}/index") == [added.uri.rsplit("/", 1)[1]], "the earlier one is gone"

    seen.clear()
    data.shards["train/00005"] = pairs(5 * EACH, 20)
    grown = data.build()
    assert seen.count("picture") == 20, "those of the shard that is filled are known"
    shown = [*of_shards(data)[:2], data.shards["train/00004"] + data.shards["train/00005"]]
    for query in drawn.QUERIES[:3]:
        assert found(data, query, data.opened(grown)) == [exact(data, query, each) for each in shown]
    assert storage.list_names(f"{data.indexes}/index-shard") == sorted(superseded.listed(grown.uri).keys)


@ONE_KIND
def test_vectors_of_an_index_of_another_version_are_kept(
    data: Data, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(encode, "_VERSION", encode._VERSION - 1)
        made = data.build()
    for key in superseded.listed(made.uri).keys:
        old = Path(superseded.shard_uri(made.uri, key).removeprefix("file://"))
        (old / "pictures.codes.faiss").rename(old / "pictures.faiss")
        (old / "pictures.faiss").write_bytes(bytes((old / "pictures.faiss").stat().st_size))
        listed = (old / "manifest.json").read_text()
        (old / "manifest.json").write_text(listed.replace("pictures.codes.faiss", "pictures.faiss"))
    assert seen.count("picture") == 4 * EACH
    seen.clear()
    again = data.build()
    assert again.uri != made.uri and not seen
    assert found(data, "第7张图片", data.opened(again)) == [exact(data, "第7张图片", each) for each in of_shards(data)]


def test_a_build_that_goes_on_takes_what_it_began_with(
    data: Data, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers of earlier pictures and captions mean the same after a kill, whatever other indexes there are then."""
    data.build()
    data.shards["train/00000"] = data.shards["train/00000"][5:]

    def killed(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as once, pytest.raises(KeyboardInterrupt):
        once.setattr(shard, "finish", killed)
        data.build()
    other = Data(data.root / "other", data.model, {"train/00000": pairs(900)})
    encode.build(collection.of(other.stage().uri), data.model, data.indexes)
    seen.clear()
    made = encode.build(collection.of(storage.from_path(data.root / "data")), data.model, data.indexes)
    assert seen == []
    shards = data.opened(made)
    for each, shown in zip(shards, of_shards(data), strict=True):
        assert [each.captions[row] for (row,) in each.captions_of] == [pair[1] for pair in shown]
        texts = data.model.saved.encode_text([pair[1] for pair in shown]).vectors
        stored = each.caption_vectors[torch.arange(len(shown))]
        if not data.model.token_wise:
            torch.testing.assert_close(stored, texts.half().float())
    for query in drawn.QUERIES[:3]:
        assert found(data, query, shards) == [exact(data, query, shown) for shown in of_shards(data)]


def planned(data: Data, keys: list[str]) -> tuple[str, takedown_plan.Plan]:
    place = storage.from_path(data.root / "data")
    listed = storage.from_path(data.root / "listed.txt")
    storage.write_bytes(listed, "".join(f"http://site.test/{key}.jpg\n" for key in keys).encode())
    return place, takedown_plan.plan(place, listed, "case 1", datetime(2026, 11, 1, tzinfo=UTC))


def nearest_centre(candidates: Candidates | None, vector: np.ndarray) -> float:
    """The cosine of a vector and the centre of a cluster that is nearest to it."""
    assert candidates is not None
    empty, _ = candidates.emptied()
    centres = faiss.downcast_index(empty.index).quantizer.reconstruct_n(0, candidates.lists)
    (wanted,) = faiss.downcast_VectorTransform(empty.chain.at(0)).apply(vector.astype(np.float32)[None])
    lengths = np.maximum(np.linalg.norm(centres, axis=1), 1e-9) * np.linalg.norm(wanted)
    return float((centres @ wanted / lengths).max())


def test_a_takedown_takes_a_picture_out_of_the_files_within_its_run(data: Data, seen: list[str]) -> None:
    """Its key, vector and caption are in no file; nothing is encoded, and the other shard is as it was.

    The picture is one that is alone in its cluster, so that the cluster's centre is about its vector.
    """
    before = data.build()
    candidates = index.open_index(before, data.model).picture_candidates
    assert candidates is not None
    clusters = candidates.emptied()[1][:-1]
    alone = int(np.flatnonzero(np.bincount(clusters)[clusters] == 1)[0])
    first, second = superseded.listed(before.uri).keys
    kept = {file: storage.read_bytes(file) for file in storage.list_files(f"{data.indexes}/index-shard/{second}")}
    (key, caption, picture, _) = of_shards(data)[0][alone]
    vectors = data.model.saved.encode_image([picture])[0].half().numpy()
    mean = vectors.reshape(-1, drawn.WIDTH).astype(np.float32).mean(0).astype(np.float16)
    traces = [caption.encode(), vectors.tobytes(), mean.tobytes()]  # its key may be seen in two others side by side

    def left() -> list[bytes]:
        files = [storage.read_bytes(file) for file in storage.list_files(data.indexes)]
        return [trace for trace in traces if any(trace in content for content in files)]

    assert left() == traces and nearest_centre(candidates, mean) > 0.999
    seen.clear()
    place, plan = planned(data, [key])
    takedown.carry_out(place, plan, [lambda _: taken_down.update(data.indexes, place)])
    assert left() == [] and seen == []
    assert kept == {file: storage.read_bytes(file) for file in kept}
    assert not storage.list_files(f"{data.indexes}/index-shard/{first}")

    again = encode.build(collection.of(place), data.model, data.indexes)
    assert seen == [], "it is the index of what is left"
    data.shards = {name: [pair for pair in mine if pair[0] != key] for name, mine in data.shards.items()}
    shards = data.opened(again)
    assert nearest_centre(shards[0].picture_candidates, mean) < 0.999
    assert [each.calibration for each in shards] == [{"threshold": 0.5}] * 2
    assert [list(each.keys) for each in shards] == [[pair[0] for pair in shown] for shown in of_shards(data)]
    for query in drawn.QUERIES[:3]:
        assert found(data, query, shards) == [exact(data, query, shown) for shown in of_shards(data)]


@ONE_KIND
def test_a_takedown_that_was_killed_goes_on(data: Data, seen: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    data.build()
    key = data.shards["train/00000"][0][0]
    place, plan = planned(data, [key])
    takedown.carry_out(place, plan)

    def killed(_: object) -> None:
        raise KeyboardInterrupt

    seen.clear()
    with monkeypatch.context() as once, pytest.raises(KeyboardInterrupt):
        once.setattr(shard, "finish", killed)
        taken_down.update(data.indexes, place)
    assert storage.list_files(f"{data.indexes}/index", "/manifest.json") == [], "nothing can open it meanwhile"
    taken_down.update(data.indexes, place)
    made = encode.build(collection.of(place), data.model, data.indexes)
    assert seen == [] and made.counts["pictures"] == 4 * EACH - 1
    assert all(each.row_of(key) is None for each in data.opened(made))


@ONE_KIND
def test_a_build_that_was_killed_makes_each_part_once(
    data: Data, seen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, calls = encode._encode_piece, []

    def killed(stage: object, found: object, piece: collection.Piece, *rest: Any) -> Any:
        calls.append(piece.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encoded(stage, found, piece, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(encode, "_encode_piece", killed)
    with pytest.raises(KeyboardInterrupt):
        data.build()
    made = encode.build(collection.of(storage.from_path(data.root / "data")), data.model, data.indexes)
    assert calls == ["train-00000", "train-00001", "train-00002", "train-00002", "train-00003"]
    assert seen.count("picture") == 4 * EACH == made.counts["pictures"]
    assert sorted(set(seen) - {"picture"}) == sorted(pair[1] for shown in of_shards(data) for pair in shown)


@ONE_KIND
def test_what_cannot_be_opened_is_said(data: Data) -> None:
    made = data.build()
    other = OwnModel(drawn.model("global").saved, "another")
    other.digest = "1" * 64
    with pytest.raises(DataError, match="was made with another model than another: its vectors cannot be compared"):
        index.open_index(made, other)
    lost, damaged = (superseded.shard_uri(made.uri, key) for key in superseded.listed(made.uri).keys)
    candidates = storage.read_bytes(storage.join(damaged, "pictures.codes.faiss"))
    for content in (candidates[:-8], bytes(len(candidates))):
        storage.write_bytes(storage.join(damaged, "pictures.codes.faiss"), content)
        with pytest.raises(DataError, match=r"shard 2 of 2 of the index at .* is damaged: .*makes this shard anew"):
            index.open_index(made, data.model, 1)
    storage.delete(lost)
    with pytest.raises(DataError, match=r"shard 1 of 2 of the index at .* is missing or damaged"):
        index.open_index(made, data.model)


@ONE_KIND
def test_a_lost_shard_is_made_anew_as_the_message_says(data: Data, seen: list[str]) -> None:
    made = data.build()
    lost, _ = superseded.listed(made.uri).keys
    storage.delete(superseded.shard_uri(made.uri, lost))
    storage.delete(storage.join(made.uri, "manifest.json"))
    seen.clear()
    again = encode.build(collection.of(storage.from_path(data.root / "data")), data.model, data.indexes)
    assert seen.count("picture") == 2 * EACH
    assert [len(each.keys) for each in data.opened(again)] == [2 * EACH] * 2


def files_of(made: Manifest, shard: int) -> list[str]:
    """What an index lists, and a shard of it."""
    uri = superseded.shard_uri(made.uri, superseded.listed(made.uri).keys[shard])
    of_shard = manifest.load(uri).model_copy(update={"uri": uri})
    return [*made.part_uris(), *of_shard.part_uris()]


@ONE_KIND
def test_each_damaged_file_is_made_anew_as_the_message_says(data: Data, seen: list[str]) -> None:
    made = data.build()
    place = collection.of(storage.from_path(data.root / "data"))

    def build() -> Manifest:
        found = encode.build(place, data.model, data.indexes)
        assert [len(each.keys) for each in data.opened(found)] == [2 * EACH] * 2
        return found

    for number, uri in enumerate(files_of(made, 1)):
        if uri.endswith(("/collection.json", "/pieces.json")):
            continue  # read by who makes an index alone
        seen.clear()
        is_made_again(uri, build, [storage.delete if "/index-shard/" in uri and number % 2 else cut])
        assert seen.count("picture") in (0, 2 * EACH), "the other shard is kept"


@pytest.mark.long
@ONE_KIND
def test_no_altered_file_of_an_index_is_made_anything_of(data: Data) -> None:
    made = data.build()
    for uri in made.part_uris():
        if not uri.endswith("/collection.json"):  # it is read where the index is not finished
            refused_wherever_a_bit_is_flipped(uri, lambda: data.opened(made), 2)
    data.shards["train/00003"] += pairs(5 * EACH, 3)
    grown = collection.of(data.stage().uri)

    def grow() -> None:
        earlier.opened.cache_clear()
        encode.build(grown, data.model, data.indexes)

    for uri in files_of(made, 1)[len(made.parts) :]:
        if not uri.endswith(f"/{index.RECALL}"):  # nothing of it is taken over
            refused_wherever_a_bit_is_flipped(uri, grow, 2)
