"""The section ``filter`` of an experiment (sections 3.1 and 3.2). Each rule owns its settings."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from wukong.config.section import Positive
from wukong.config.split import Split
from wukong.curate import rules

if TYPE_CHECKING:
    # The settings that the type checker knows. A rule whose settings nothing but its own file reads need not be here.
    from wukong.curate.rules import aspect_ratio, duplicate_image, frequency, length, overlap, sensitive, similarity
    from wukong.curate.rules import size as sides

    class _RuleSettings(
        sides.SizeRule.Settings,
        aspect_ratio.AspectRatioRule.Settings,
        length.LengthRule.Settings,
        frequency.FrequencyRule.Settings,
        sensitive.SensitiveRule.Settings,
        similarity.SimilarityRule.Settings,
        duplicate_image.DuplicateImageRule.Settings,
        overlap.OverlapRule.Settings,
    ):
        pass

else:
    _RuleSettings = rules.section_of("Settings")


class Filter(_RuleSettings):
    """Sections 3.1 and 3.2: the settings of the rules (``wukong/curate/rules``), and what else is done to pairs."""

    mask_names: bool = Field(True, description="replace names of persons in captions by '<人名>', as in the paper")
    name_care: Literal["precise", "balanced", "thorough"] = Field(
        "balanced", description="'precise' masks fewer words that are no names, 'thorough' leaves fewer names unmasked"
    )
    clean_markup: bool = Field(False, description="take HTML and emoji out of captions, before all else")
    simplify: bool = Field(False, description="turn captions into Simplified Chinese (OpenCC), before they are counted")
    shard_size: Positive = Field(1_000, description="pairs a training shard")
    seed: int = Field(0, ge=0, description="of the order of pairs in shards, and of the examples on cards and reports")
    split: Split = Split()
