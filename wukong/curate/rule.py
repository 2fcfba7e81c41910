"""The type of a rule. Each rule is one file in ``wukong/curate/rules``, which assigns a ``Rule`` to ``RULE``.

The experiment's types (``wukong.config.experiment``) read the rules' settings. They are imported where neither polars
nor another large library is installed, so this module and the rules' files import such libraries inside functions only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from wukong.config.section import Strict

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import polars as pl
    import pyarrow as pa
    from PIL import Image

    from wukong.curate.caption_counts import CaptionCounts, Hashes

Pairs: TypeAlias = "pl.DataFrame"
"""A table of pairs."""

Columns: TypeAlias = "Mapping[str, pl.Expr | pl.Series]"
"""Columns by name, of a table of pairs."""

Dropped: TypeAlias = "pl.Expr | pl.Series | bool"
"""True for each pair that is dropped; false and null for the others."""

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

    def __init__(self, pairs: Pairs, counts: CaptionCounts, loaded: Mapping[str, Any]) -> None:
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
        place: stored columns lie in the order of their places, and of their rules where places are equal; the rule's
            place if absent.
        nullable: whether the value may be missing.
        of_caption: whether it belongs to a caption and not to the picture: of several captions each has its own.
        optional: whether tables have it only where the settings switch its rule on. It may then be missing, so it is
            nullable and has no check of the gate.
    """

    name: str
    type: str | Callable[[], pa.DataType]
    place: int | None = None
    nullable: bool = False
    of_caption: bool = False
    optional: bool = False

    def field(self) -> pa.Field:
        """The column in a schema of Arrow."""
        import pyarrow as pa

        kind = pa.type_for_alias(self.type) if isinstance(self.type, str) else self.type()
        return pa.field(self.name, kind, nullable=self.nullable or self.optional)


class FromPictures(NamedTuple):
    """How a rule computes a column from the pictures of the pairs that are left.

    Two rules may ask for the same column, with the same ``compute``: it is computed once. A column that no rule stores
    stays in the stage ``look``.

    Attributes:
        column: name of the column.
        compute: one value a picture, from pictures and the filter's settings.
        runs_model: whether a GPU computes it faster.
    """

    column: str
    compute: Callable[[PictureBatch, Any], pl.Series]
    runs_model: bool = False


class Check(NamedTuple):
    """What the gate expects of every kept pair.

    Attributes:
        name: the name of the expectation, as ``validation.severity`` and the gate's results call it.
        column: the column that is looked at: stored, or computed by the rule's ``audit``.
        arguments: the expectation's arguments besides the column.
        expectation: a class of Great Expectations.
        place: the gate lists expectations in the order of their places; the rule's place if absent.
    """

    name: str
    column: str
    arguments: Mapping[str, Any]
    expectation: str = "ExpectColumnValuesToBeBetween"
    place: int | None = None


class Rule:
    """Why pairs are dropped. A rule gives itself a place and a title, says what it drops, and overrides what it needs.

    ``settings`` are the whole section ``filter``, ``gate`` is the whole section ``validation``; ``loaded`` is what
    ``load`` returned.

    Attributes:
        place: rules drop pairs in the order of their places; a pair keeps the name of the first rule that drops it.
        title: what the pairs that pass have in common, in a few words; the funnel of each report shows it.
        version: raise it when the rule computes or decides otherwise under the same settings: filtered data of an
            earlier version is then not reused.
        Settings: its keys in the ``filter`` section of the experiment.
        GateSettings: its keys in the ``validation`` section.
        decided: when it decides.
        stored: those of its columns that are kept with every pair.
        thresholds: settings that decide over columns of pictures and do not change them, of a section
            ``SECTION.SETTING``: with another value of them no picture is read again.
        uris: settings that are URIs or lists of them, of a section ``SECTION.SETTING``.
        crawl_limits: settings that the crawl applies too, under the same name in its section; of one that begins with
            ``min_`` a smaller value lets more pictures pass, of another a greater one.
        unchecked: what a dataset card says where the rule is off: a sentence that names what nobody looked for.
        never_shown: whether nobody may see what the rule drops, not even blurred.
    """

    place: int
    title: str
    version = 1
    Settings: type[Strict] = Strict
    GateSettings: type[Strict] = Strict
    decided: Decided = "pairs"
    stored: tuple[Column, ...] = ()
    thresholds: tuple[str, ...] = ()
    uris: tuple[str, ...] = ()
    crawl_limits: tuple[str, ...] = ()
    unchecked = ""
    never_shown = False

    @property
    def name(self) -> str:
        """The drop reason, as stored and counted: the name of the rule's file."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def optional(self) -> bool:
        """Whether settings can switch the rule off."""
        return type(self).enabled is not Rule.enabled

    def enabled(self, settings: Any) -> bool:
        """Whether the settings switch the rule on."""
        return True

    def compute(self, batch: Batch, settings: Any) -> Columns:
        """Compute columns from text and sides; it never raises on any caption, and applies no threshold."""
        return {}

    def drops(self, pairs: Pairs, settings: Any) -> Dropped:
        """Decide over the columns; of all methods this one alone applies thresholds."""
        raise NotImplementedError

    def check(self, settings: Any, gate: Any) -> Check | None:
        """What the gate expects, if anything."""
        return None

    def audit(self, pairs: Pairs, loaded: Any) -> Columns:
        """Compute anew the columns that ``check`` names and no rule stores, from ``wukong.curate.pairs.PAIRS``."""
        return {}

    def load(self, settings: Any) -> Any:
        """Read what the rule needs, for instance word lists, once a task.

        Raises:
            ConfigError: it cannot be used.
        """
        return None

    def digests(self, settings: Any) -> Mapping[str, str]:
        """Compute digests of the files that ``load`` reads, by setting: with other files the stage is another one.

        Raises:
            ConfigError: a file cannot be used.
        """
        return {}

    def problem(self, key: str, uri: str) -> str:
        """Say why a URI that one of ``uris`` names cannot be used, in words that name it; empty if it can."""
        return ""

    def verify(self, settings: Any) -> None:
        """Compare files that settings name with what they say of them; for preflight checks, as it may read much.

        Raises:
            ConfigError: a file is another one.
        """

    def from_pictures(self, settings: Any) -> tuple[FromPictures, ...]:
        """The columns that these settings ask to be computed from pictures."""
        return ()

    def look_up(self, pairs: Pairs, settings: Any, loaded: Any) -> Columns:
        """Compute further columns, after the pictures were read. No picture is read again where ``loaded`` changes."""
        return {}

    def counts(self, pairs: Pairs, settings: Any) -> Mapping[str, int]:
        """Count for the stage's manifest, over pairs that were left when pictures were read, with ``dropped_by``."""
        return {}

    def kinds(self, pairs: Pairs, settings: Any) -> pl.Series | None:
        """Tell the kind of each pair that the rule dropped, for instance the category of a word; for dataset cards.

        Args:
            pairs: rows of ``wukong.curate.pairs.DROPPED``.
            settings: those that the filter had.
        """
        return None


class Comparison(Rule):
    """A rule that compares all pairs that are left: by a value of 64 bits for each.

    Attributes:
        column: true for a pair whose value differs in at most ``distance`` bits from that of a pair with an earlier
            key.
    """

    decided = "corpus"
    column: str

    def values(self, pairs: Pairs, settings: Any) -> Hashes:
        """The value of each pair, from the stored columns."""
        raise NotImplementedError

    def distance(self, settings: Any) -> int:
        """The distance in bits, 0 to 3."""
        raise NotImplementedError


class Nearness(Rule):
    """A rule that compares the vectors of all pairs that are left, once the other comparisons are done.

    ``drops`` then reads ``nearest_cosine`` (``wukong.curate.near_duplicates``): the highest cosine with the vector of a
    pair that is preferred, null below the lowest that is told.

    Attributes:
        vector: name of a column that is computed from pictures, null where a picture has none.
    """

    decided = "corpus"
    vector: str

    def scores(self, pairs: Pairs, settings: Any) -> pl.Series:
        """The score of each pair, from the stored columns and those of pictures.

        Of two near pairs the one with the higher score is preferred, of equal ones the first by key.
        """
        raise NotImplementedError
