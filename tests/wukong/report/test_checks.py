"""The rules on a card say what the filter's manifest says; what was off is named."""

from collections import Counter
from typing import Any

from wukong.curate.rules import REGISTRY
from wukong.report import checks
from wukong.report.removed import Removed
from wukong.store.manifest import Manifest


def filtered(config: dict[str, Any] | None = None, **counts: int) -> Manifest:
    dropped = {"size": 30, "sensitive": 5, "duplicate_image": 2}
    numbers = {"pairs": 120_000, "train": 100_000} | {name.replace("__", "/"): rows for name, rows in counts.items()}
    return Manifest(stage="filter", uri="file:///f", config=config or {}, counts=numbers, dropped=dropped)


def test_each_rule_that_was_on_stands_with_its_version_its_settings_and_what_it_removed() -> None:
    config = {
        "min_side": 250,
        "duplicate_images": "similar",
        "sensitive_words": "s3://private/lists/mine",
        "default_words": True,
        "rule_versions": {"usage": 1, "sensitive": 4},
        "seed": 9,
    }
    kinds = Counter({"violence": 1, "gambling": 3, "drugs": 1})
    found = Removed({"sensitive": kinds}, {"size": Counter({"": 20, "stamps": 10})})
    applied = {rule.name: rule for rule in checks.applied(filtered(config), found)}
    assert list(applied) == [rule.name for rule in REGISTRY if rule.name in applied], "in the order of the filter"
    assert "similarity" not in applied
    size, sensitive = applied["size"], applied["sensitive"]
    assert (size.removed, size.version, size.settings) == (30, 0, (("min_side", "250"),))
    assert size.sources == (("", 20), ("stamps", 10))
    assert (sensitive.removed, sensitive.version) == (5, 4)
    assert sensitive.settings == (("sensitive_words", "mine"), ("default_words", "true")), (
        "where lists lie stays unsaid"
    )
    assert sensitive.kinds == (("gambling", 3), ("drugs", 1), ("violence", 1))
    assert applied["duplicate_image"].settings == (("duplicate_images", "similar"),)
    assert "seed" not in str(applied)


def test_settings_of_a_section_have_dotted_names_and_empty_ones_are_left_out() -> None:
    model = {"uri": "s3://private/models/unsafe.onnx", "licence": "BSD-2", "sha256": None}
    flat = dict(checks._flat("unsafe", {"model": model, "max_score": 0.8, "sets": [], "of": ["a", "s3://b/c"]}))
    assert flat == {
        "unsafe.model.uri": "unsafe.onnx",
        "unsafe.model.licence": "BSD-2",
        "unsafe.max_score": "0.8",
        "unsafe.of": "a, c",
    }


def test_what_was_found_is_told_with_its_share() -> None:
    counts = {"overlap__coco-cn": 12, "overlap_captions__coco-cn": 7, "unread__unsafe": 3, "name_and_face": 1_500}
    told = checks.found(filtered({"decontaminate": {"action": "mark"}}, **counts))
    assert told == (
        "Overlap with coco-cn: 12 pictures, 0.01 % of all pairs; they are marked.",
        "Captions of coco-cn: 7 pairs have one, 0.0058 % of all pairs.",
        "Pictures that the rule unsafe could not judge, and did not drop: 3.",
        "Captions with a masked name beside a picture with one large face: 1,500.",
    )
    dropped = checks.found(filtered({"decontaminate": {"action": "drop"}}, **counts))
    assert dropped[0].endswith("they were left out.")
    assert checks.found(filtered(overlap__muge=0)) == (
        "Overlap with muge: 0 pictures, 0 % of all pairs; they were left out.",
    )
    assert checks.found(filtered()) == ()


def test_every_rule_that_was_off_is_named() -> None:
    told = checks.unchecked(filtered())
    assert "No model looked whether captions fit their pictures." in told
    assert "Equal and similar pictures were not looked for." not in told, "it was on"
    off = [rule for rule in REGISTRY if rule.optional and rule.name not in filtered().dropped]
    assert len(told) == len(off)
    assert checks.unchecked(filtered(overlap__muge=0))[-1].startswith("Overlap with other test sets")


def test_every_rule_that_can_be_off_says_what_nobody_then_looked_for() -> None:
    assert not [rule.name for rule in REGISTRY if rule.optional and not rule.unchecked]
