"""Captions with a sensitive word are dropped (section 3.2); ``wukong/curate/sensitive_words`` finds the words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from wukong.config.disguise import Disguise
from wukong.config.section import Strict
from wukong.curate.rule import Batch, Check, Columns, Dropped, Pairs, Rule

if TYPE_CHECKING:
    import polars as pl

    from wukong.curate.sensitive_words import SensitiveWords


class SensitiveRule(Rule):
    place = 70
    title = "no sensitive word"
    uris = ("sensitive_words",)

    class Settings(Strict):
        sensitive_words: str | None = Field(
            None, description="URI of a folder, one file a category; the default set if absent"
        )
        default_words: bool = Field(False, description="look for the default set too, beside that of sensitive_words")
        word_categories: list[str] | None = Field(
            None,
            min_length=1,
            description="the lists whose words drop pairs, by the names of their files; all lists if absent",
        )
        word_disguises: list[Disguise] = Field(
            [],
            description="how else words may be written; docs/curation-words.md describes and measures each",
        )

        @model_validator(mode="after")
        def _categories_are_known(self) -> Self:
            if self.sensitive_words is None:  # the operator's lists are read before the first stage
                lists = Path(__file__).parents[1] / "sensitive_words" / "lists"
                known = sorted(file.stem for file in lists.glob("*.txt"))
                if unknown := set(self.word_categories or ()) - set(known):
                    raise ValueError(
                        f"word_categories: there is no list {min(unknown)!r}; there are {', '.join(known)}"
                    )
            return self

    def problem(self, key: str, uri: str) -> str:
        from wukong.store import storage

        if storage.list_files(uri):
            return ""
        return f"{uri} holds no list; name a folder with a file of words for each category"

    def load(self, settings: Settings) -> SensitiveWords:
        from wukong.curate import sensitive_words

        return sensitive_words.load(
            settings.sensitive_words,
            with_default=settings.default_words,
            categories=settings.word_categories,
            disguises=settings.word_disguises,
        )

    def digests(self, settings: Settings) -> Mapping[str, str]:
        if settings.sensitive_words is None:
            return {}
        from wukong.curate import sensitive_words

        return {"sensitive_words": sensitive_words.digest(settings.sensitive_words)}

    def compute(self, batch: Batch, settings: Settings) -> Columns:
        words: SensitiveWords = batch.loaded[self.name]
        return {"sensitive": words.categories_of_normal(batch.normal)}

    def drops(self, pairs: Pairs, settings: Settings) -> Dropped:
        return pairs["sensitive"].is_not_null()

    def check(self, settings: Settings, gate: Strict) -> Check:
        return Check("sensitive_words", "sensitive_word", {}, "ExpectColumnValuesToBeNull")

    def audit(self, pairs: Pairs, loaded: SensitiveWords) -> Columns:
        """The first word in each caption, by the search of every caption for every word."""
        import polars as pl

        each = loaded.find_each(pairs["caption"])
        words = [matches[0].word if matches else None for matches in each]
        return {"sensitive_word": pl.Series(words, dtype=pl.String)}

    def kinds(self, pairs: Pairs, settings: Settings) -> pl.Series:
        from wukong.curate.text.normalize import normal_forms

        return self.load(settings).categories_of_normal(normal_forms(pairs["caption"]))


RULE = SensitiveRule()
