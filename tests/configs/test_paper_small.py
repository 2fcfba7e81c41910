"""The small versions of the paper's experiments: the same structure at the demo's size, with towers that are built."""

from pathlib import Path

import pytest
import torch

from wukong.config import documents
from wukong.config.decontaminate import Decontaminate
from wukong.config.section import flatten
from wukong.data.tokenizer import Tokenizer
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.runs.run_records import differences

CONFIGS = Path(__file__).parents[2] / "configs" / "paper"
NAMES = sorted(path.stem for path in (CONFIGS / "small").glob("*.yaml") if path.stem != "base")
FAMILIES = {"resnet": "ByobNet", "vit": "VisionTransformer", "swin": "SwinTransformer"}
"""Class of the tower in timm, by the beginning of the original's name."""
DIFFERS = {
    "the data are the demo's": (
        *("name", "crawl.queries", "crawl.endpoint", "crawl.max_queries", "validation.min_pairs"),
        *("filter.split.held_out_captions", *(f"filter.decontaminate.{key}" for key in Decontaminate.model_fields)),
        "filter.decontaminate",
    ),
    "the towers are small and random": (
        *("model.image.name", "model.image.weights", "model.image.image_size", "model.image.block"),
        *("model.text.layers", "model.text.heads", "model.text.width", "model.embedding", "registry.model_name"),
    ),
    "two cores train in a minute": (
        *("pretrain.epochs", "pretrain.batch_size", "pretrain.workers", "pretrain.gpus_per_worker"),
        *("pretrain.loader_workers", "pretrain.precision", "pretrain.deterministic", "pretrain.validation.every_steps"),
    ),
    "the published sets have published sizes": (
        *("pretrain.validation.tasks", "pretrain.validation.metric", "evaluate.tasks"),
    ),
}
"""The keys in which a small version and its original may differ, by the reason."""


def test_each_column_has_a_small_version() -> None:
    columns = {path.stem for path in CONFIGS.glob("*.yaml") if not path.stem.startswith("finetune-")}
    assert columns - {"base"} == {*NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_small_version_differs_in_the_listed_keys_alone(name: str) -> None:
    original, small = (documents.load(folder / f"{name}.yaml") for folder in (CONFIGS, CONFIGS / "small"))
    found = differences(*(flatten(each.model_dump(mode="json")) for each in (original, small)))
    allowed = {key for keys in DIFFERS.values() for key in keys}
    assert found.keys() <= allowed, found.keys() - allowed
    assert small.pretrain.validation.keep == "best" and small.model.similarity == original.model.similarity


@pytest.mark.parametrize("name", NAMES)
def test_the_tower_is_small_and_of_the_originals_family(name: str) -> None:
    original, small = (documents.load(folder / f"{name}.yaml").model for folder in (CONFIGS, CONFIGS / "small"))
    with torch.device("meta"):
        tower = ImageEncoder(small.image, with_weights=False)
        DualEncoder(small, Tokenizer.of(small.text), tower, with_weights=False)
    family = next(kind for begin, kind in FAMILIES.items() if original.image.name.startswith(begin))
    assert type(tower.backbone).__name__ == family
    assert sum(parameter.numel() for parameter in tower.backbone.parameters()) < 2_000_000


def test_all_share_a_crawl_and_a_filter() -> None:
    experiments = [documents.load(CONFIGS / "small" / f"{name}.yaml") for name in NAMES]
    for part in ("name", "crawl", "filter", "validation"):
        assert (
            len({getattr(each, part).model_dump_json() if part != "name" else each.name for each in experiments}) == 1
        )
