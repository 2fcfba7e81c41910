"""Captions that are too short or too long are dropped (section 3.2: at least one, fewer than 32 "Chinese words").

The paper does not say what a word is. Its table 2 (22 tokens a caption on average, median 24, standard deviation 7) is
what a limit of 32 *characters* leaves: under a limit of 32 segmented words captions would have some 50 characters. So
the unit is the character.

Only Chinese counts. So a second limit is on characters of any kind: one Chinese character before 200,000
Latin letters is no caption.
"""

from typing import Self

from pydantic import Field, model_validator

from wukong.config.section import Strict
from wukong.curate.rule import Batch, Check, Column, Columns, Dropped, Pairs, Rule

_MOST_CHARACTERS = 1_000  # of any kind


class LengthRule(Rule):
    place = 50
    title = "caption of the right length"
    stored = (Column("length", "int32", place=10, of_caption=True),)

    class Settings(Strict):
        min_length: int = Field(1, ge=0, description="Chinese characters, inclusive")
        max_length: int = Field(31, ge=1, description="Chinese characters, inclusive: fewer than 32")

        @model_validator(mode="after")
        def _lengths_are_a_range(self) -> Self:
            if self.min_length > self.max_length:
                raise ValueError(
                    f"min_length is {self.min_length} and max_length {self.max_length}: no caption is of that length; "
                    "min_length is at most max_length"
                )
            return self

    def compute(self, batch: Batch, settings: Settings) -> Columns:
        # The Chinese characters have been counted for the language check.
        return {"length": batch.scripts[0], "characters": batch.captions.str.len_chars()}

    def drops(self, pairs: Pairs, settings: Settings) -> Dropped:
        in_range = pairs["length"].is_between(settings.min_length, settings.max_length)
        return ~in_range | (pairs["characters"] > _MOST_CHARACTERS)

    def check(self, settings: Settings, gate: Strict) -> Check:
        return Check("length", "length", {"min_value": settings.min_length, "max_value": settings.max_length})


RULE = LengthRule()
