"""The configs of the paper: one for each column of Table 5, with its numbers, and a reason beside each other value."""

import re
from pathlib import Path

import pytest
import yaml

from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.config.section import flatten
from wukong.evaluate import paper, sets
from wukong.evaluate.data_set import Retrieval
from wukong.evaluate.protocol import PROTOCOLS
from wukong.runs.run_records import differences
from wukong.stages import estimate, fit

PAPER = PROTOCOLS["paper"]
CONFIGS = Path(__file__).parents[2] / "configs" / "paper"
COLUMNS = {
    "rn50": ("ResNet50", "resnet50_clip", "global"),
    "rn101": ("ResNet101", "resnet101_clip", "global"),
    "vit-b-32": ("ViT-B/32", "vit_base_patch32_clip", "global"),
    "vit-b-16": ("ViT-B/16", "vit_base_patch16_clip", "global"),
    "vit-l-global": ("Wukong ViT, global", "vit_large_patch14_clip", "global"),
    "vit-l": ("Wukong ViT", "vit_large_patch14_clip", "token"),
    "vit-l-500m": ("Wukong ViT-500M", "vit_large_patch14_clip", "token"),
    "swin-l-global": ("Wukong Swin, global", "swin_large_patch4_window7_224", "global"),
    "swin-l": ("Wukong Swin", "swin_large_patch4_window7_224", "token"),
}
"""The config of each column of Table 5, with its tower and similarity."""
FINETUNED = {
    "flickr8k-cn": ("flickr8k-cn", "val"),
    "flickr30k-cn": ("flickr30k-cn", "val"),
    "coco-cn": ("coco-cn", "val"),
    "aic-icc": ("aic-icc", "val-20k"),
    "muge": ("held-out", ""),
}
"""The sets of Table 7, each with the task that chooses the model and its part."""
ABLATIONS = {
    "unlocked": {"pretrain.lock"},
    "scratch-global": {"pretrain.lock", "model.image.weights"},
    "scratch-token": {"pretrain.lock", "model.image.weights", "model.similarity"},
    "image-projection-locked": {"pretrain.image_head_rate"},
    "text-projection-locked": {"pretrain.text_head_rate"},
    "no-autoaugment": {"pretrain.augmentations"},
}
"""Where each ablation differs from ViT-B/32, besides its model's name."""


def load(name: str) -> Experiment:
    return documents.load(CONFIGS / f"{name}.yaml")


def differing(first: Experiment, second: Experiment) -> set[str]:
    return set(differences(flatten(first.model_dump(mode="json")), flatten(second.model_dump(mode="json"))))


def test_there_is_a_config_for_each_column() -> None:
    assert [title for title, _, _ in COLUMNS.values()] == list(paper.MODELS_OF_TABLE_5)
    finetuned = {f"finetune-{name}" for name in FINETUNED}
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {"base", *COLUMNS, *finetuned}
    assert {path.stem for path in (CONFIGS / "ablations").glob("*.yaml")} == ABLATIONS.keys()


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_has_the_papers_numbers(name: str) -> None:
    experiment, (title, tower, similarity) = load(name), COLUMNS[name]
    assert f'# Table 5, "{title}"' in (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    assert experiment.model.image.name.startswith(tower) and experiment.model.similarity == similarity
    text = experiment.model.text
    # Table 3, and table 4.
    assert (experiment.model.embedding, experiment.model.image.image_size) == (256, 224)
    assert (text.max_tokens, text.layers, text.width, text.heads, text.weights) == (32, 12, 768, 12, "random")
    trained = experiment.pretrain
    assert (experiment.model.temperature, trained.epochs, trained.optimizer, trained.epsilon) == (
        0.07,
        20,
        "lamb",
        1e-2,
    )
    # Sections 4.3, 4.4 and 5.1.
    assert (trained.lock, trained.exclude_same_captions, "autoaugment" in trained.augmentations) == ("all", False, True)
    assert experiment.filter.decontaminate is not None and experiment.filter.decontaminate.action == "mark"
    assert experiment.decontaminated_sets == list(experiment.evaluate.tasks)
    # Table 5 shows the pre-trained model, and the run registers it.
    assert experiment.finetune.epochs == 0
    chosen = trained.validation
    assert (chosen.keep, chosen.tasks, chosen.metric) == ("best", ("imagenet",), "classification/imagenet/top1")
    # Section 3: pictures of a word; both sides greater than 200, a ratio of at most 3, fewer than 32 characters, a
    # caption at most ten times.
    assert experiment.crawl.max_results_per_query == 1_000
    rules = experiment.filter
    assert (rules.min_side, rules.max_aspect_ratio, rules.max_length, rules.max_caption_count) == (201, 3, 31, 10)
    assert rules.mask_names
    # Sections 5.2 and 5.3: 17 sets and five.
    assert experiment.evaluate.tasks == (*paper.TABLE_5, *paper.TABLE_7) and experiment.evaluate.protocol == "paper"
    assert list(fit.too_few(experiment, estimate.urls(experiment, experiment.crawl.max_queries)[1])) == []


@pytest.mark.parametrize("name", FINETUNED)
def test_a_set_is_trained_on_chosen_by_and_measured_on_parts_of_its_own(name: str) -> None:
    experiment, data_set, (task, split) = load(f"finetune-{name}"), sets.of(name), FINETUNED[name]
    assert isinstance(data_set, Retrieval)
    assert (experiment.crawl.engine, experiment.crawl.endpoint) == (
        "published_set",
        f"{experiment.evaluate.sets}/{name}",
    )
    assert experiment.pretrain.from_model == "models:/paper-vit-l@champion" and experiment.model == load("vit-l").model
    assert experiment.evaluate.tasks == (name,) and experiment.published_sets == [name]
    assert experiment.decontaminated_sets == [name], "the others are not measured"
    chosen, settings = experiment.finetune.validation, experiment.finetune
    assert (chosen.tasks, chosen.split, chosen.keep, chosen.every_steps) == ((task,), split, "best", "epoch")
    assert split != PAPER.split(name) and chosen.metric.split("/")[1] == task
    assert bool(experiment.held_out_tasks) == (task == "held-out")
    captions = data_set.splits["train"].captions
    assert captions > experiment.validation.min_pairs and captions // settings.batch_size >= 30
    assert experiment.root == f"s3://wukong/paper-{name}" and experiment.registry.model_name == f"paper-vit-l-{name}"


def test_no_rule_leaves_out_a_pair_of_a_set() -> None:
    kept = load("finetune-coco-cn").filter
    assert (kept.min_side, kept.min_length, kept.mask_names, kept.duplicate_images) == (1, 0, False, "keep")
    assert min(kept.max_length, kept.max_aspect_ratio, kept.max_caption_count) >= 1000


def test_the_columns_share_a_crawl_and_have_a_model_each() -> None:
    columns = {name: load(name) for name in COLUMNS}
    of_100_million = [each for name, each in columns.items() if name != "vit-l-500m"]
    for part in ("crawl", "filter", "validation", "evaluate"):
        assert all(getattr(each, part) == getattr(of_100_million[0], part) for each in of_100_million), part
    assert {each.root for each in of_100_million} == {"s3://wukong/paper"}
    assert columns["vit-l-500m"].root != "s3://wukong/paper" and columns["vit-l-500m"].model == columns["vit-l"].model
    assert {each.registry.model_name for each in columns.values()} == {f"paper-{name}" for name in COLUMNS}
    assert all(each.crawl.max_queries == 200_000 for each in of_100_million)


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_differs_where_it_says(name: str) -> None:
    found = load(f"ablations/{name}")
    assert differing(load("vit-b-32"), found) == ABLATIONS[name] | {"registry.model_name"}


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_each_value_says_where_it_is_from(path: Path) -> None:
    if path.parent.name == "small":
        return  # tests/configs/test_paper_small.py
    for line in path.read_text(encoding="utf-8").splitlines():
        value, _, comment = line.partition("  # ")
        alone = re.fullmatch(r"\s*(#.*|[a-z_]+:|- .*|base: \S+|name: paper)", line)
        assert alone or re.search(r"section|table|not in the paper: \w", comment), f"{path.name}: {value}"


def test_the_files_hold_only_what_differs() -> None:
    for name in COLUMNS:
        own = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
        below = flatten(documents.load(CONFIGS / own.pop("base"), ["registry.model_name=x"]).model_dump(mode="json"))
        same = {key for key, value in flatten(own).items() if key in below and below[key] == value}
        assert same <= {"model.similarity", "model.architecture"}, f"{name}: {same} is in its base"
