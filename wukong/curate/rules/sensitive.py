"""Captions with a sensitive word are dropped (section 3.2); ``wukong/curate/sensitive_words`` finds the words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from wukong.config.disguise import Disguise
from wukong.config.section import Strict
from wukong.curate.rule import Batch, Check, Rule
from wukong.runtime.language import message

if TYPE_CHECKING:
    import polars as pl

    from wukong.curate.sensitive_words import SensitiveWords


class SensitiveSettings(Strict):
    """Keys of ``filter``."""

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
    def _categories_are_known(self) -> SensitiveSettings:
        if self.sensitive_words is None:  # the operator's lists are read before the first stage
            lists = Path(__file__).parents[1] / "sensitive_words" / "lists"
            known = sorted(file.stem for file in lists.glob("*.txt"))
            if unknown := set(self.word_categories or ()) - set(known):
                raise ValueError(f"word_categories: there is no list {min(unknown)!r}; there are {', '.join(known)}")
        return self


def load(settings: SensitiveSettings) -> SensitiveWords:
    """Read the words that the settings name.

    Raises:
        ConfigError: the lists cannot be used.
    """
    from wukong.curate import sensitive_words

    return sensitive_words.load(
        settings.sensitive_words,
        with_default=settings.default_words,
        categories=settings.word_categories,
        disguises=settings.word_disguises,
    )


def _digests(settings: SensitiveSettings) -> dict[str, str]:
    """Of the operator's lists: what they hold decides, and their address does not change with it."""
    if settings.sensitive_words is None:
        return {}
    from wukong.curate import sensitive_words

    return {"sensitive_words": sensitive_words.digest(settings.sensitive_words)}


def _compute(batch: Batch, _settings: SensitiveSettings) -> dict[str, pl.Series]:
    words: SensitiveWords = batch.loaded["sensitive"]
    return {"sensitive": words.categories_of_normal(batch.normal)}


def _drops(_settings: SensitiveSettings) -> pl.Expr:
    import polars as pl

    return pl.col("sensitive").is_not_null()


def _audit(pairs: pl.DataFrame, words: SensitiveWords) -> pl.Series:
    """The first word in each caption, by the search of every caption for every word."""
    import polars as pl

    each = words.find_each(pairs["caption"])
    return pl.Series([matches[0].word if matches else None for matches in each], dtype=pl.String)


def _kinds(pairs: pl.DataFrame, _settings: SensitiveSettings, words: SensitiveWords) -> pl.Series:
    from wukong.curate.text.normalize import normal_forms

    return words.categories_of_normal(normal_forms(pairs["caption"]))


def _folder_problem(uri: str) -> str:
    from wukong.store import storage

    if storage.list_files(uri):
        return ""
    return message(f"{uri} holds no list; name a folder with a file of words for each category")


RULE = Rule(
    name="sensitive",
    place=70,
    title="no sensitive word",
    version=1,
    settings=SensitiveSettings,
    load=load,
    digests=_digests,
    compute=_compute,
    drops=_drops,
    check=Check(
        name="sensitive_words",
        place=60,
        column="sensitive_word",
        expectation="ExpectColumnValuesToBeNull",
        arguments=lambda settings, gate: {},
        audit=_audit,
    ),
    uris={"sensitive_words": _folder_problem},
    kinds=_kinds,
)
