"""A task in blocks: equal results however it is divided, and each image once through towers that are equal."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from multiprocessing.context import SpawnProcess
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from wukong.config.model import Model as Settings
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.errors import DataError
from wukong.evaluate import answers, classification, encoding, prompts, retrieval, tasks
from wukong.evaluate.blocks import FLOPS, Block, Files, Sizes, Work
from wukong.evaluate.data_set import ClassificationData, Data, RetrievalData
from wukong.evaluate.formats import pictures
from wukong.evaluate.model import OwnModel
from wukong.evaluate.protocol import PROTOCOLS, Protocol
from wukong.evaluate.published import Caption
from wukong.evaluate.results import Outcome
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.model.saved_model import SavedModel

NAMES = [f"{colour}色的{shape}" for colour in "红绿蓝黄黑灰" for shape in ("圆", "方块")]
IMAGES = 70


def saved(similarity: str = "global") -> SavedModel:
    torch.manual_seed(0)
    settings = Settings.model_validate(
        {
            "image": {"name": "vit_tiny_patch16_224", "weights": "random", "image_size": 32, "block": 0},
            "text": {"layers": 1, "heads": 2, "width": 16, "pooling": "mean"},
            "embedding": 8,
            "similarity": similarity,
        }
    )
    tokenizer = Tokenizer(packaged_vocabulary())
    dual = DualEncoder(settings, tokenizer, ImageEncoder(settings.image, with_weights=False))
    with torch.no_grad():
        dual.text.tokens.weight.mul_(50)  # random weights alone give all texts nearly one vector
    return SavedModel(dual.eval().requires_grad_(requires_grad=False), tokenizer)


def two_models(similarity: str = "global", *, equal_towers: bool = True) -> dict[str, OwnModel]:
    """A model, and one that was trained further: its heads are others, and its tower if it was not locked."""
    first = saved(similarity)
    second = SavedModel(deepcopy(first.model), first.tokenizer)
    with torch.no_grad():
        second.model.image_head.weight.add_(torch.randn_like(second.model.image_head.weight))
        if not equal_towers:
            next(second.model.image.parameters()).add_(1e-6)  # type: ignore[union-attr]
    models = {"pretrained": OwnModel(first, "first"), "finetuned": OwnModel(second, "second")}
    encoding.share_towers(models.values())
    return models


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> pictures.Files:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 5, 3), np.uint8)
        Image.fromarray(pixels).resize((50, 40)).save(folder / f"{number:03d}.png")
    return pictures.Files(folder, [f"{number:03d}.png" for number in range(IMAGES)])


def classified(images: pictures.Encoded) -> ClassificationData:
    labels = np.arange(IMAGES) % len(NAMES)
    return ClassificationData("mine", "test", NAMES, [f"i{n}" for n in range(IMAGES)], labels, images, "Mine", NAMES)


def captioned(images: pictures.Encoded) -> RetrievalData:
    captions = [Caption(f"第{n}张是{NAMES[n % len(NAMES)]}", (n * IMAGES // 110,)) for n in range(110)]
    return RetrievalData("mine", "test", [f"i{n}" for n in range(IMAGES)], captions, False, images, "Mine")


def measured(
    models: Mapping[str, OwnModel], data: Data, protocol: Protocol, sizes: Sizes, folder: Path
) -> dict[str, Outcome]:
    def encode(rows: slice) -> Mapping[str, Tensor]:
        return encoding.encode(models, data, protocol, rows)

    work = Work(data, protocol, models, encode, Files(folder), Files(folder.parent / "classes"), sizes)
    for phase in tasks.blocks(data, protocol, list(models), sizes):
        for block in reversed(phase):  # blocks of a phase may be done in any order
            tasks.make(work, block)
    return {role: tasks.outcome(work, role) for role in models}


@pytest.fixture(autouse=True)
def few_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "of", lambda *_: ["{}", "一张{}的照片"])


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of images of each forward pass of a tower."""
    seen: list[int] = []
    forward = ImageEncoder.forward

    def counted(self: ImageEncoder, pixels: Tensor) -> object:
        seen.append(len(pixels))
        return forward(self, pixels)

    monkeypatch.setattr(ImageEncoder, "forward", counted)
    return seen


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("make", [classified, captioned])
def test_an_image_passes_an_equal_tower_once(
    make: Callable[[pictures.Encoded], Data], equal: bool, files: pictures.Files, forwards: list[int], tmp_path: Path
) -> None:
    models = two_models(equal_towers=equal)
    forwards.clear()
    measured(models, make(files), PROTOCOLS["paper"], Sizes(32), tmp_path)
    assert sum(forwards) == (1 if equal else 2) * IMAGES


@pytest.mark.parametrize("similarity", ["global", "token"])
@pytest.mark.parametrize("protocol", ["paper", "clip-benchmark"])
@pytest.mark.parametrize("make", [classified, captioned])
def test_results_are_those_of_each_model_by_itself_on_all_images_at_once(
    make: Callable[[pictures.Encoded], Data], protocol: str, similarity: str, files: pictures.Files, tmp_path: Path
) -> None:
    rules, data, models = PROTOCOLS[protocol], make(files), two_models(similarity)
    one = measured(models, data, rules, Sizes(), tmp_path / "one")
    many = measured(models, data, rules, Sizes(32, 48), tmp_path / "many")
    for role, model in models.items():
        assert one[role].as_json(role) == many[role].as_json(role)
        # As an evaluation of one model was: images in batches of 32, projected with their tower.
        alone = model.encode_images([files.image(i) for i in range(IMAGES)], rules)
        expected = alone_on(model, data, rules, alone, tmp_path / "classes")
        for found in (one[role], many[role]):
            assert found.answers is not None
            for name, values in found.answers.results.items():
                np.testing.assert_array_equal(values, expected.results[name])
        if isinstance(data, RetrievalData):
            blocks = [Block("images", "", rows) for rows in ((0, 32), (32, 64), (64, IMAGES))]
            stored = [Files(tmp_path / "many" / role).read(block.name)["vectors"] for block in blocks]
            assert torch.equal(torch.cat(stored), alone), "a block has whole batches, so not a bit is another"


def alone_on(model: OwnModel, data: Data, rules: Protocol, images: Tensor, cache: Path) -> answers.Answers:
    if isinstance(data, ClassificationData):
        asked = prompts.of(rules.prompts, data.name)
        classes = classification.embed(model, NAMES, asked, rules, Files(cache))
        scores = classification.scores(model, images, classes, rules)
        labels = torch.from_numpy(data.labels)
        best, mean = (
            classification.right(scores, labels, ties) for ties in (rules.classification_ties, rules.mean_ties)
        )
        results = {"top1": best[:, 0], "top5": best[:, 1], "mean_per_class": mean[:, 0]}
        return answers.of_images(data.ids, data.labels, results).ordered(data.order, sorted(data.ids))
    texts = model.encode_texts([caption.text for caption in data.captions], rules)
    scored = model.similarity(images, texts)
    pairs = retrieval.Pairs.of([caption.images for caption in data.captions], IMAGES)
    right = pairs.block(slice(0, pairs.texts), slice(0, pairs.images))
    numbers = [str(number) for number in range(pairs.texts)]
    of_text = retrieval.hits(scored.text_to_image.T, right, rules.retrieval_ties, data.image_ids)
    of_image = retrieval.hits(scored.image_to_text, right.T, rules.retrieval_ties, numbers)
    found = retrieval.Found(of_text, of_image, retrieval.CUTOFFS)
    captions = [caption.text for caption in data.captions]
    answered = answers.of_retrieval(found, pairs, captions, data.image_ids, share=rules.hit == "share")
    order, by_id = data.order
    queries = [*numbers, *(data.image_ids[i] for i in by_id)]
    return answered.ordered([*order, *(pairs.texts + i for i in by_id)], queries)


def test_equal_images_in_a_block_are_no_collapse_and_in_all_blocks_they_are(
    files: pictures.Files, tmp_path: Path
) -> None:
    models = two_models()
    some = replace(files, paths=[*files.paths[:32], *files.paths[:1] * 38])
    measured(models, classified(some), PROTOCOLS["paper"], Sizes(32), tmp_path / "some")
    same = replace(files, paths=files.paths[:1] * IMAGES)
    for make in (classified, captioned):
        with pytest.raises(DataError, match=f"all {IMAGES} items .image. are equal"):
            measured(models, make(same), PROTOCOLS["paper"], Sizes(32), tmp_path / make.__name__)


def test_a_damaged_image_is_an_error_that_names_it(files: pictures.Files, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes((files.root / files.paths[0]).read_bytes()[:60])
    paths = [str(files.root / path) for path in files.paths]
    paths[60] = "bad.png"
    with pytest.raises(DataError, match=r"bad\.png cannot be decoded .*download the set again"):
        measured(two_models(), classified(pictures.Files(tmp_path, paths)), PROTOCOLS["paper"], Sizes(32), tmp_path)


@pytest.mark.slow
def test_processes_that_decode_give_the_same_vectors_and_are_started_once(
    files: pictures.Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    start = SpawnProcess.start
    monkeypatch.setattr(SpawnProcess, "start", lambda process: (started.append(process), start(process))[1])
    models, data = two_models(), classified(files)
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 3, 8, 8), np.uint8)
    others = replace(data, images=pictures.Arrays([pixels[:40], pixels[40:]]))
    loading = encoding.loaders(models, 2)
    for each, protocol, rows in (
        (data, PROTOCOLS["paper"], slice(3, 60)),
        (others, PROTOCOLS["paper"], slice(0, 64)),
        (others, PROTOCOLS["clip-benchmark"], slice(64, IMAGES)),
    ):
        here, there = (encoding.encode(models, each, protocol, rows, given) for given in (None, loading))
        assert here.keys() == there.keys() == models.keys()
        assert all(torch.equal(here[role], there[role]) for role in models)
    damaged = classified(pictures.Files(files.root, [*files.paths[:5], "none.png"] * 20))
    with pytest.raises(DataError, match=r"none\.png cannot be read"):
        encoding.encode(models, damaged, PROTOCOLS["paper"], slice(0, 100), loading)
    assert torch.equal(*(encoding.encode(models, data, protocol, rows, each)["pretrained"] for each in (None, loading)))
    assert len(started) == 2, "the processes are started once for all sets, blocks and protocols"


def flops_of(sizes: Sizes, image: float, pair: float) -> tuple[float, float]:
    return sizes.images * image, pair * sizes.side**2


@pytest.mark.parametrize(
    ("image", "pair", "image_bytes", "expected"),
    [
        (162e9, 2 * 256 * 22 * 256.0, 4 * 256 * 256, (64, 2048)),  # ViT-L/14, token-wise
        (8.8e9, 2 * 49 * 22 * 256.0, 4 * 49 * 256, (1024, 4096)),  # ViT-B/32, token-wise
        (8.8e9, 2 * 256.0, 4 * 256, (1024, 65_536)),  # ViT-B/32, global
    ],
)
def test_a_block_takes_a_core_some_minutes(
    image: float, pair: float, image_bytes: int, expected: Sequence[int]
) -> None:
    sizes = Sizes.of(image, pair, image_bytes)
    assert (sizes.images, sizes.side) == tuple(expected)
    assert max(flops_of(sizes, image, pair)) < 1.1 * FLOPS
    on_gpu = Sizes.of(image, pair, image_bytes, gpu=True)
    assert on_gpu.images == 1024 and on_gpu.side * image_bytes <= 2**29


def test_blocks_cover_everything_once(files: pictures.Files) -> None:
    data = captioned(files)
    for protocol in ("paper", "clip-benchmark"):
        texts_and_images, scores = tasks.blocks(data, PROTOCOLS[protocol], ["a", "b"], Sizes(32, 48))
        seen = {role: torch.zeros(110, IMAGES, dtype=torch.int64) for role in "ab"}
        for block in scores:
            seen[block.role][slice(*block.rows), slice(*block.columns)] += 1
        times = 2 if protocol == "clip-benchmark" else 1  # whole rows, in each direction
        assert all((each == times).all() for each in seen.values())
        images = [block.rows for block in texts_and_images if block.kind == "images"]
        assert images == [(0, 32), (32, 64), (64, IMAGES)]
        names = [block.name for block in [*texts_and_images, *scores]]
        assert len(set(names)) == len(names)


def test_a_captions_vectors_are_those_of_a_batch(files: pictures.Files, tmp_path: Path) -> None:
    models, data, rules = two_models("token"), captioned(files), PROTOCOLS["paper"]
    measured(models, data, rules, Sizes(32, 48), tmp_path)
    stored = Files(tmp_path / "finetuned").read(Block("texts", "finetuned", (0, 110)).name)
    texts = models["finetuned"].encode_texts([caption.text for caption in data.captions], rules)
    assert torch.equal(stored["vectors"], texts.vectors) and torch.equal(stored["counted"], texts.counted)
    assert torch.allclose(F.normalize(texts.vectors, dim=-1), texts.vectors, atol=1e-5)
