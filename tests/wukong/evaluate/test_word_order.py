"""Word order: pairs that are refused, Winoground's scores against their definition, chance, and units."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_tasks import Pixels
from torch import Tensor

from wukong.errors import DataError
from wukong.evaluate import set_folders, sets, tasks, word_order
from wukong.evaluate.data_set import WordOrder, WordOrderData
from wukong.evaluate.formats import pictures
from wukong.evaluate.model import CollapsedError
from wukong.evaluate.protocol import PROTOCOLS, Protocol
from wukong.evaluate.published import Caption, NotThereError
from wukong.evaluate.results import Query
from wukong.model.dual import Texts
from wukong.model.similarity import Scores

PAPER = PROTOCOLS["paper"]
GOOD: dict[str, object] = {
    "id": "1",
    "image_0": "a.jpg",
    "image_1": "b.jpg",
    "caption_0": "狗在追猫",
    "caption_1": "猫在追狗",
}


def write(folder: Path, *rows: dict[str, object]) -> Path:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        Image.new("RGB", (4, 4), (ord(name[0]), 0, 0)).save(folder / "images" / name)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "pairs.jsonl").write_text("\n".join(lines), "utf-8")
    return folder


def read(folder: Path) -> WordOrderData:
    found = sets.of("word-order")
    assert isinstance(found, WordOrder)
    return found.read(folder)


def test_pairs_are_read_with_their_pictures(tmp_path: Path) -> None:
    other = {**GOOD, "id": 2, "image_0": "c.jpg", "caption_0": "Ａ 在 b 上。", "caption_1": "B在a上"}
    data = read(write(tmp_path, GOOD, other))
    assert (data.pair_ids, data.image_ids) == (["1", "2"], ["a.jpg", "b.jpg", "c.jpg"])
    assert data.captions == [
        Caption("狗在追猫", (0,)),
        Caption("猫在追狗", (1,)),
        Caption("Ａ 在 b 上。", (2,)),
        Caption("B在a上", (1,)),
    ]
    assert len(data) == 3 and abs(int(np.asarray(data.image(2))[0, 0, 0]) - ord("c")) < 4
    assert read(write(tmp_path, other, GOOD)).digest == data.digest, "the same pairs in another order"
    turned = {**GOOD, "caption_0": GOOD["caption_1"], "caption_1": GOOD["caption_0"]}
    assert read(write(tmp_path, turned, other)).digest != data.digest, "the captions belong to other pictures"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"caption_1": "猫在追狼"}, r"line 2 of .*pairs\.jsonl has captions of different characters: '狗狼'"),
        ({"caption_1": "猫在追狗狗"}, r"different characters: '狗' is in one of"),
        ({"caption_1": "狗，在追 猫。"}, r"line 2 of .* has one caption twice"),
        ({"image_1": "a.jpg"}, r"line 2 of .* has one picture twice, a\.jpg"),
        ({"image_1": "z.jpg"}, r"1 of the 3 images that .*pairs\.jsonl names are not in .*images, the first is z\.jpg"),
        ({"id": "1"}, r"line 2 of .* has the id '1' of line 1 of"),
        ({"caption_0": " "}, r"line 2 of .* lacks one of id, image_0, image_1, caption_0, caption_1"),
        ({"caption_0": None}, r"line 2 of .* lacks one of"),
    ],
)
def test_a_pair_that_is_none_is_refused_with_its_line(changed: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, GOOD, {**GOOD, "id": "2", **changed}))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotThereError, match=r"Word order: the folder .* is not there\. Download Winoground"):
        read(tmp_path / "none")
    write(tmp_path)
    with pytest.raises(DataError, match=r"pairs\.jsonl has no pair of captions"):
        read(tmp_path)
    for line, wrong in (("[1]", "is no JSON object"), ('{"id": "1"', "is no JSON ")):
        (tmp_path / "pairs.jsonl").write_text(f"\n{line}")
        with pytest.raises(DataError, match=rf"line 2 of .*pairs\.jsonl {wrong}"):
            read(tmp_path)
    (tmp_path / "pairs.jsonl").write_bytes("狗".encode("gbk"))
    with pytest.raises(DataError, match=r"pairs\.jsonl is not UTF-8"):
        read(tmp_path)


def brute_force(by_image: Tensor, by_text: Tensor) -> dict[str, list[bool]]:
    """The definitions of Winoground, equations 1 to 3, word by word; s(C, I) of one pair is ``pair[I][C]``."""
    found: dict[str, list[bool]] = {"text_score": [], "image_score": [], "group_score": []}
    for image_pair, text_pair in zip(by_image.tolist(), by_text.tolist(), strict=True):
        text = image_pair[0][0] > image_pair[0][1] and image_pair[1][1] > image_pair[1][0]
        image = text_pair[0][0] > text_pair[1][0] and text_pair[1][1] > text_pair[0][1]
        found["text_score"].append(text)
        found["image_score"].append(image)
        found["group_score"].append(text and image)
    return found


def test_the_scores_are_winogrounds_for_every_order_of_four_similarities() -> None:
    # With ties: each similarity takes one of three values.
    every = torch.tensor(list(itertools.product((0.0, 0.5, 1.0), repeat=4))).view(-1, 2, 2)
    generator = torch.Generator().manual_seed(0)
    other = every[torch.randperm(len(every), generator=generator)]
    for by_image, by_text in ((every, every), (every, other)):
        found = {name: right.tolist() for name, right in word_order.scored(Scores(by_image, by_text)).items()}
        assert found == brute_force(by_image, by_text)
    equal = word_order.scored(Scores(torch.ones(1, 2, 2), torch.ones(1, 2, 2)))
    assert not any(right.any() for right in equal.values()), "a model that cannot tell is wrong"


def test_chance_is_what_random_similarities_score() -> None:
    drawn = torch.rand(200_000, 2, 2, generator=torch.Generator().manual_seed(0))
    for name, right in word_order.scored(Scores(drawn, drawn)).items():
        assert float(right.double().mean()) == pytest.approx(word_order.CHANCE[name], abs=0.004)


class Looking:
    """A model whose similarities are drawn by picture and caption; token-wise, those of each direction."""

    name, digest, scale = "looking", "0", 1.0

    def __init__(self, captions: Sequence[str], images: int, seed: int = 0, *, token_wise: bool = False) -> None:
        self.token_wise, self._captions = token_wise, list(captions)
        self.drawn = torch.rand(2, images, len(captions), generator=torch.Generator().manual_seed(seed))
        if not token_wise:
            self.drawn[1] = self.drawn[0]

    def encode_images(self, shown: Sequence[Image.Image], protocol: Protocol) -> Tensor:
        numbers = torch.tensor([int(np.asarray(each)[0, 0, 0]) for each in shown])
        return torch.eye(self.drawn.shape[1])[numbers]

    def encode_texts(self, texts: Sequence[str], protocol: Protocol) -> Texts:
        numbers = torch.tensor([self._captions.index(text) for text in texts])
        return Texts(torch.eye(len(self._captions))[numbers], torch.ones(len(texts), 1).bool())

    def count_cut(self, texts: Sequence[str], protocol: Protocol) -> int:
        return sum(len(text) > 4 for text in texts)

    def similarity(self, image: Tensor, text: Texts) -> Scores:
        chosen = self.drawn[:, image.argmax(1)][:, :, text.vectors.argmax(1)]
        return Scores(chosen[0], chosen[1])

    def image_to_text(self, image: Tensor, text: Texts) -> Tensor:
        return self.similarity(image, text).image_to_text

    def rough_image_to_text(self, image: Tensor, text: Texts) -> Tensor | None:
        return None


def drawn_data(pairs: int, *, shared: int = 0) -> WordOrderData:
    """Pairs of captions; the first ``shared`` of them have one picture in common. Their ids are not in order."""
    captions: list[Caption] = []
    for pair in range(pairs):
        first = 0 if pair < shared else 2 * pair
        captions += [Caption(f"甲乙{pair}", (first,)), Caption(f"乙{pair}甲" + "！" * (pair % 2), (2 * pair + 1,))]
    ids = [f"{(7 * pair) % pairs:03d}" for pair in range(pairs)]
    images = 2 * pairs
    return WordOrderData(
        "word-order", "test", ids, [f"i{n}" for n in range(images)], captions, Pixels(range(images)), "Word order"
    )


@pytest.mark.parametrize("token_wise", [False, True])
def test_measured_scores_are_those_of_each_pair_by_itself(token_wise: bool) -> None:
    data = drawn_data(75)  # more than are compared at a time
    model = Looking([each.text for each in data.captions], len(data), token_wise=token_wise)
    outcome = tasks.measure(model, data, PAPER)
    by_pair = [
        torch.stack([model.drawn[side][2 * n : 2 * n + 2, 2 * n : 2 * n + 2] for n in range(75)]) for side in (0, 1)
    ]
    expected = brute_force(*by_pair)
    assert {name: each.value for name, each in outcome.results.items()} == pytest.approx(
        {name: np.mean(right) for name, right in expected.items()}
    )
    assert outcome.answers is not None and list(outcome.answers.queries) == sorted(data.pair_ids)
    order = sorted(range(75), key=data.pair_ids.__getitem__)
    for name, right in expected.items():
        assert outcome.answers.results[name].tolist() == [float(right[pair]) for pair in order]
        assert outcome.results[name].low < outcome.results[name].value < outcome.results[name].high
    assert (outcome.kind, outcome.headline) == ("word_order", "group_score")
    longer = sum(len(each.text) > 4 for each in data.captions)
    assert outcome.sizes == {"images": 150, "pairs": 75, "captions_cut": longer} and longer
    assert set(outcome.chance) == ({"text_score", "image_score"} if token_wise else set(word_order.CHANCE))
    for query in outcome.examples:
        assert isinstance(query, Query)
        pair = next(n for n in range(75) if data.captions[2 * n].text == query.caption)
        assert query.rank == (0 if by_pair[1][pair][0, 0] > by_pair[1][pair][1, 0] else 1)
        assert [each.image for each in query.images if each.right] == [f"i{2 * pair}"]
        assert query.images[query.rank].right
    assert json.dumps(outcome.as_json("pretrained"))


def test_pairs_with_a_picture_in_common_are_one_unit() -> None:
    data = drawn_data(40, shared=5)
    model = Looking([each.text for each in data.captions], len(data))
    answered = tasks.measure(model, data, PAPER).answers
    assert answered is not None
    units = dict(zip(answered.queries, answered.units.tolist(), strict=True))
    of_pair = {
        pair: tuple(data.image_ids[caption.images[0]] for caption in data.captions[2 * n : 2 * n + 2])
        for n, pair in enumerate(data.pair_ids)
    }
    assert answered.pictures == tuple(of_pair[pair] for pair in answered.queries)
    assert len({units[pair] for pair in data.pair_ids[:5]}) == 1
    assert len(set(units.values())) == 36
    alone = tasks.measure(Looking([each.text for each in data.captions], len(data)), drawn_data(40), PAPER).answers
    assert alone is not None and len(set(alone.units.tolist())) == 40


def test_vectors_that_are_all_equal_are_refused() -> None:
    data = drawn_data(8)

    class Blind(Looking):
        def encode_images(self, shown: Sequence[Image.Image], protocol: Protocol) -> Tensor:
            return torch.eye(self.drawn.shape[1])[:1].repeat(len(shown), 1)

    with pytest.raises(CollapsedError, match="image"):
        tasks.measure(Blind([each.text for each in data.captions], len(data)), data, PAPER)


def test_a_similarity_that_is_no_number_is_refused() -> None:
    data = drawn_data(8)
    model = Looking([each.text for each in data.captions], len(data))
    model.drawn[1, 4, 5] = torch.nan
    with pytest.raises(DataError, match="similarities are not numbers"):
        tasks.measure(model, data, PAPER)


def test_it_is_a_set_like_others_and_its_files_are_known_without_it(tmp_path: Path) -> None:
    assert "word-order" in set_folders.NAMES and sets.chosen("word-order") == ["word-order"]
    write(tmp_path / "word-order", GOOD)
    there = tasks.read(["word-order"], {}, tmp_path, PAPER, skip=False).data["word-order"]
    assert isinstance(there, WordOrderData) and isinstance(there.images, pictures.Files)
    assert "pairs.jsonl" in sets.missing(["muge"])["word-order"]
