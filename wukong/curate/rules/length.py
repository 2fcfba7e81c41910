"""Captions that are too short or too long are dropped (section 3.2: at least one, fewer than 32 "Chinese words").

The paper does not say what a word is. Its table 2 (22 tokens a caption on average, median 24, standard deviation 7) is
what a limit of 32 *characters* leaves: under a limit of 32 segmented words captions would have some 50 characters. So
the default unit is the character.

Only Chinese counts in these units. So a second limit is on characters of any kind: one Chinese character before 200,000
Latin letters is no caption.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from wukong.config.section import Strict
from wukong.curate.rule import Batch, Check, Column, Columns, Dropped, Pairs, Rule


class LengthRule(Rule):
    place = 50
    title = "caption of the right length"
    stored = (Column("length", "int32", place=10, of_caption=True),)

    class Settings(Strict):
        length_unit: Literal["character", "word", "token"] = Field(
            "character", description="what min_length and max_length count: Chinese characters, words or tokens"
        )
        min_length: int = Field(1, ge=0, description="Chinese units, inclusive")
        max_length: int = Field(31, ge=1, description="Chinese units, inclusive: fewer than 32")

        max_characters: int = Field(1_000, ge=1, description="of a caption, of any kind, inclusive")

        @model_validator(mode="after")
        def _lengths_are_a_range(self) -> Self:
            if self.min_length > self.max_length:
                raise ValueError(
                    f"min_length is {self.min_length} and max_length {self.max_length}: no caption is of that length; "
                    "min_length is at most max_length"
                )
            return self

    def compute(self, batch: Batch, settings: Settings) -> Columns:
        from wukong.curate.text.units import COUNTERS

        # The characters have been counted for the language check.
        characters = settings.length_unit == "character"
        length = batch.scripts[0] if characters else COUNTERS[settings.length_unit](batch.captions)
        return {"length": length, "characters": batch.captions.str.len_chars()}

    def drops(self, pairs: Pairs, settings: Settings) -> Dropped:
        in_units = pairs["length"].is_between(settings.min_length, settings.max_length)
        return ~in_units | (pairs["characters"] > settings.max_characters)

    def check(self, settings: Settings, gate: Strict) -> Check:
        return Check("length", "length", {"min_value": settings.min_length, "max_value": settings.max_length})


RULE = LengthRule()
