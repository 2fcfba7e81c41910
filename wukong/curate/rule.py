"""The type of a rule. Each rule is one file in ``wukong/curate/rules``, which assigns a ``Rule`` to ``RULE``.

The experiment's types (``wukong.config.experiment``) read the rules' settings. They are imported where neither polars
nor another large library is installed, so this module and the rules' files import such libraries inside functions only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from wukong.config.section import Strict

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import polars as pl
    import pyarrow as pa
    from PIL import Image

    from wukong.curate.caption_counts import CaptionCounts, Hashes

S = TypeVar("S", bound=Strict)

HELD_BACK = "held_back"
"""Drop reason of a pair that passed every rule and is in no split: neither training nor a test set may have it."""

Decided = Literal["pairs", "pictures", "corpus", "tests"]
"""When a rule decides: over what is known of each pair by itself and of how often its caption occurs (``pairs``); after
the pictures were read (``pictures``); after all pairs that are left were compared with each other (``corpus``); after
those that would be trained on were compared with test sets and hold-outs (``tests``)."""


class Batch:
    """Pairs of which the rules compute their columns, and what several rules need of them, computed once.

    Attributes:
        pairs: one row a caption, so that a pair may have several; with ``caption``, ``width`` and ``height``.
        counts: how often captions occur in the whole corpus.
        loaded: what each rule's ``load`` returned, by the rule's name.
    """

    def __init__(self, pairs: pl.DataFrame, counts: CaptionCounts, loaded: Mapping[str, Any]) -> None:
        self.pairs = pairs
        self.counts = counts
        self.loaded = loaded

    @property
    def captions(self) -> pl.Series:
        """The captions."""
        return self.pairs["caption"]

    @cached_property
    def normal(self) -> pl.Series:
        """The captions in normal form (``wukong.curate.text.normalize``)."""
        from wukong.curate.text.normalize import normal_forms

        return normal_forms(self.captions)

    @cached_property
    def scripts(self) -> tuple[pl.Series, pl.Series]:
        """The number of Chinese characters in each caption, and whether the caption is Chinese."""
        from wukong.curate.text.characters import scripts

        return scripts(self.captions)


@dataclass(frozen=True)
class PictureBatch:
    """Some pictures, with their captions; the lists are of one length.

    Attributes:
        pictures: encoded.
        captions: the captions of the pairs.
        names: what an error message calls each picture.
        device: where a model computes, as torch names it.
    """

    pictures: Sequence[bytes]
    captions: Sequence[str]
    names: Sequence[str]
    device: str = "cpu"

    @cached_property
    def decoded(self) -> list[Image.Image]:
        """The pictures in RGB, upright; decoded once for all rules.

        Raises:
            DataError: a picture cannot be decoded.
        """
        from wukong.data.decoding import decode

        return [decode(data, name) for data, name in zip(self.pictures, self.names, strict=True)]

    @cached_property
    def pdq(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Their PDQ hashes in eight forms and the quality of each (``wukong.curate.pdq.dihedral``), for all rules."""
        from wukong.curate import pdq

        return pdq.dihedral(self.decoded)


@dataclass(frozen=True)
class Column:
    """A column that is stored with every pair, kept or dropped (``wukong.data.schema``), and in the shards' JSON.

    Attributes:
        name: the name of the column.
        type: Arrow's name of the type, for instance ``int32``, or a function that returns the type.
        place: stored columns lie in the order of their places, and of their rules where places are equal.
        nullable: whether the value may be missing.
        of_caption: whether it belongs to a caption and not to the picture: of several captions each has its own.
        optional: whether tables have it only where the settings switch its rule on. It may then be missing, so it is
            nullable and has no check of the gate.
    """

    name: str
    type: str | Callable[[], pa.DataType]
    place: int = 100
    nullable: bool = False
    of_caption: bool = False
    optional: bool = False

    def field(self) -> pa.Field:
        """The column in a schema of Arrow."""
        import pyarrow as pa

        kind = pa.type_for_alias(self.type) if isinstance(self.type, str) else self.type()
        return pa.field(self.name, kind, nullable=self.nullable or self.optional)


def _always(_settings: Any) -> bool:
    return True


@dataclass(frozen=True)
class FromPictures(Generic[S]):
    """How a rule computes a column from the pictures of the pairs that are left.

    Two rules may ask for the same column, with the same ``compute``: it is computed once. A column that no rule stores
    stays in the stage ``look``.

    Attributes:
        column: name of the column.
        compute: one value a picture.
        thresholds: settings that decide over the column and do not change it, of a section ``SECTION.SETTING``: with
            another value of them no picture is read again.
        needed: whether the settings of a rule that is on ask for it.
        runs_model: whether a GPU computes it faster.
    """

    column: str
    compute: Callable[[PictureBatch, S], pl.Series]
    thresholds: tuple[str, ...]
    needed: Callable[[S], bool] = _always
    runs_model: bool = False


@dataclass(frozen=True)
class Comparison(Generic[S]):
    """How a rule compares all pairs that are left: by a value of 64 bits for each.

    Attributes:
        column: true for a pair whose value differs in at most ``distance`` bits from that of a pair with an earlier
            key.
        values: the values of the rows of a table with the stored columns.
        distance: in bits, 0 to 3.
    """

    column: str
    values: Callable[[pl.DataFrame, S], Hashes]
    distance: Callable[[S], int]


@dataclass(frozen=True)
class Nearness(Generic[S]):
    """How a rule compares the vectors of all pairs that are left (``wukong.curate.near_duplicates``).

    ``drops`` then reads ``nearest_cosine``: the highest cosine with the vector of a pair that is preferred, null below
    the lowest that is told.

    Attributes:
        vector: name of a column that is computed from pictures, null where a picture has none.
        scores: of two near pairs the one with the higher score is preferred, of equal ones the first by key; from the
            stored columns and those that were computed from pictures.
    """

    vector: str
    scores: Callable[[pl.DataFrame, S], pl.Series]


@dataclass(frozen=True)
class Check(Generic[S]):
    """What the gate expects of every kept pair, computed anew from its caption and size.

    Attributes:
        name: the name of the expectation, as ``validation.severity`` and the gate's results call it.
        column: the column that is looked at: stored, or computed by ``audit``.
        expectation: a class of Great Expectations.
        arguments: the expectation's arguments besides the column, from the ``filter`` and the ``validation`` section.
        audit: computes the column, from rows of ``wukong.curate.pairs.PAIRS`` and what the rule's ``load`` returned;
            null where the column is a stored one.
        place: the gate lists expectations in the order of their places, and of their rules where places are equal.
    """

    name: str
    column: str
    expectation: str
    arguments: Callable[[S, Any], Mapping[str, Any]]
    audit: Callable[[pl.DataFrame, Any], pl.Expr | pl.Series] | None = None
    place: int = 100


@dataclass(frozen=True, kw_only=True)
class Rule(Generic[S]):
    """Why pairs are dropped: what is computed, which settings it has, and how it decides.

    Attributes:
        name: the drop reason, as stored and counted.
        place: rules drop pairs in the order of their places; a pair keeps the name of the first rule that drops it.
        title: what the pairs that pass have in common, in a few words; the funnel of each report shows it.
        version: it begins at 1. Raise it when the rule computes or decides otherwise under the same settings: filtered
            data of an earlier version is then not reused.
        drops: from the settings an expression over the columns, true for a pair that is dropped. Null drops nothing.
        settings: its keys in the ``filter`` section of the experiment.
        gate_settings: its keys in the ``validation`` section.
        compute: the columns that ``drops`` reads, by name; never raises on any caption.
        stored: those of its columns that are kept with every pair.
        enabled: whether the settings switch the rule on; a rule that is always on needs none.
        load: reads what ``compute`` and the gate need, for instance word lists, once a task; of a rule with ``look_up``
            what that needs. Raises ``ConfigError``.
        digests: digests of the content of the files that ``load`` reads, by setting: with other content the stage is
            another one. Raises ``ConfigError``.
        from_pictures: the columns that it reads of pictures.
        look_up: further columns, after the pictures were read: from the columns of the crawl and of pictures, and from
            what ``load`` read. No picture is read again where that changes.
        counts: further counts of the stage's manifest, of the pairs of a part that were left when the pictures were
            read, with ``dropped_by``. Its rule must have ``from_pictures`` or ``look_up``.
        comparison: for a rule that compares each pair with all others.
        nearness: for a rule that compares the vector of each pair with all others, once the other comparisons are done.
        check: what the gate expects.
        uris: settings that are URIs or lists of them, of a section ``SECTION.SETTING``, each with a function that
            returns why a URI cannot be used, in words that name it, or an empty string.
        verify: compares files that the settings name with what they say of them; for preflight checks, because it may
            read much. Raises ``ConfigError``.
        crawl_limits: settings that the crawl applies too, under the same name in its section, each with a function of
            the filter's and the crawl's value that returns whether the filter's lets more pictures pass.
        against_tests: whether it compares what would be trained on with test sets and hold-outs.
        kinds: for the dataset card, the kind of each pair that the rule dropped, for instance the category of a word;
            from rows of ``wukong.curate.pairs.DROPPED`` and what ``load`` returned.
        unchecked: what a dataset card says where the rule is off: a sentence that names what nobody looked for.
        never_shown: whether nobody may see what the rule drops, not even blurred.
    """

    name: str
    place: int
    title: str
    version: int
    drops: Callable[[S], pl.Expr]
    settings: type[S]
    gate_settings: type[Strict] | None = None
    compute: Callable[[Batch, S], Mapping[str, pl.Expr | pl.Series]] | None = None
    stored: tuple[Column, ...] = ()
    enabled: Callable[[S], bool] = _always
    load: Callable[[S], Any] | None = None
    digests: Callable[[S], Mapping[str, str]] | None = None
    from_pictures: tuple[FromPictures[S], ...] = ()
    look_up: Callable[[pl.DataFrame, S, Any], Mapping[str, pl.Series]] | None = None
    counts: Callable[[pl.DataFrame, S], Mapping[str, int]] | None = None
    comparison: Comparison[S] | None = None
    nearness: Nearness[S] | None = None
    check: Check[S] | None = None
    uris: Mapping[str, Callable[[str], str]] | None = None
    verify: Callable[[S], None] | None = None
    crawl_limits: Mapping[str, Callable[[float, float], bool]] | None = None
    against_tests: bool = False
    kinds: Callable[[pl.DataFrame, S, Any], pl.Series] | None = None
    unchecked: str = ""
    never_shown: bool = False

    @property
    def decided(self) -> Decided:
        """When the rule decides."""
        if self.against_tests:
            return "tests"
        if self.comparison is not None or self.nearness is not None:
            return "corpus"
        return "pictures" if self.from_pictures or self.look_up is not None else "pairs"

    @property
    def optional(self) -> bool:
        """Whether settings can switch the rule off."""
        return self.enabled is not _always
