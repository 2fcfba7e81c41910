"""Evaluation protocols: the settings in which evaluations differ.

``PROTOCOLS`` has the named protocols of ``wukong evaluate``. ``sentences`` describes the settings of an experiment's
own evaluate stage, for reports.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, TypeAlias

from wukong.config.experiment import Experiment
from wukong.errors import ConfigError
from wukong.runtime.language import _

Transform: TypeAlias = Literal["squash", "crop", "model"]
Writing: TypeAlias = Literal["published", "lower", "lower, straight quotes"]
Metric: TypeAlias = Literal["top1", "mean_per_class"]
Ties: TypeAlias = Literal["against", "first", "topk", "id"]
Aggregation: TypeAlias = Literal["similarity", "softmax"]
Hit: TypeAlias = Literal["any", "share"]

_TRANSFORMS = {
    "squash": _("Pictures are squashed to the square (bicubic)."),
    "crop": _("Pictures are resized by their shorter side (bicubic) and cut to the square in their middle."),
    "model": _(
        "Pictures are shown as the model was trained to see them (`model.image.view`); those of other projects' models "
        "are cut to the square in their middle, or shown whole where the settings of an open_clip model say so."
    ),
}
_WRITINGS = {
    "published": _("Texts go to the model's tokenizer as they are published."),
    "lower": _("Texts are lower-cased."),
    "lower, straight quotes": _("Texts are lower-cased, and Chinese quotation marks become straight ones."),
}
_TIES = {
    "against": _("An equal wrong score ranks before the right one."),
    "first": _("Of equal scores the first in the files' order ranks first."),
    "topk": _("Equal scores rank as torch.topk leaves them."),
    "id": _("Of equal scores the larger id, compared as text, ranks first."),
}
_AGGREGATIONS = {
    "similarity": _("The token-wise score of a class is the mean of its prompts' similarities."),
    "softmax": _("The token-wise score of a class is the mean over prompts of the softmax over classes."),
}
_HITS = {
    "any": _("A query is hit if any right answer is among the first K."),
    "share": _("A query counts the share of its right answers that are among the first K."),
}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """All settings of an evaluation that change its numbers.

    Attributes:
        name: its name on the command line.
        source: whose practice it is.
        transform: how a picture becomes the square that the model reads.
        context: most tokens of a text, with [CLS] and [SEP]; None for as many as the model reads.
        writing: how texts are changed before the tokenizer.
        class_names: name of the list of class names.
        prompts: name of the prompts.
        splits: the split of each set that is not measured on its ``test`` part.
        per_class: the sets whose number is the mean over classes; all others have plain top-1.
        text_to_image_only: the sets without image-to-text retrieval.
        hit: what counts as found.
        classification_ties: how equal scores of classes rank for top-1 and top-5.
        mean_ties: how they rank for the mean over classes.
        retrieval_ties: how equal scores of candidates rank.
        aggregation: how the prompts of a class become one token-wise score.
        remarks: other practices of its source, which this project does not follow.
    """

    name: str
    source: str
    transform: Transform
    context: int | None
    writing: Writing
    class_names: str
    prompts: str
    splits: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    per_class: frozenset[str] = frozenset()
    text_to_image_only: frozenset[str] = frozenset({"muge"})
    hit: Hit = "any"
    classification_ties: Ties
    mean_ties: Ties
    retrieval_ties: Ties
    aggregation: Aggregation = "similarity"
    remarks: tuple[str, ...] = ()

    def split(self, data_set: str) -> str:
        """Return the split of a set that is measured."""
        return self.splits.get(data_set, "test")

    def metric(self, data_set: str) -> Metric:
        """Return the metric of a classification set."""
        return "mean_per_class" if data_set in self.per_class else "top1"

    def written(self, text: str) -> str:
        """Return a text as it goes to the model's tokenizer."""
        if self.writing == "published":
            return text
        lower = text.lower()
        return lower if self.writing == "lower" else lower.replace("“", '"').replace("”", '"')

    def for_pairs(self, captions: str) -> "Protocol":
        """Return the protocol with the rule for captions of hold-outs (``evaluate.captions``) among its remarks."""
        return replace(self, remarks=(*self.remarks, _("Hold-outs: {captions}").format(captions=_CAPTIONS[captions])))

    def describe(self) -> list[str]:
        """Describe the protocol, one sentence for each setting; this is printed with every number."""
        writing, aggregation = _WRITINGS[self.writing], _AGGREGATIONS[self.aggregation]
        return [
            _("Protocol {name}: {source}.").format(name=self.name, source=self.source),
            _TRANSFORMS[self.transform],
            _("{writing} They are cut at {context} tokens.").format(writing=writing, context=self.context)
            if self.context
            else _("{writing} They are cut where the model's tokenizer cuts them.").format(writing=writing),
            _("Class names: {class_names}; prompts: {prompts}.").format(
                class_names=self.class_names, prompts=self.prompts
            ),
            _("The vector of a class is the normalised mean of its prompts' normalised vectors. {aggregation}").format(
                aggregation=aggregation
            ),
            self._describe_splits(),
            self._describe_classification(),
            self._describe_retrieval(),
            *self.remarks,
        ]

    def _describe_splits(self) -> str:
        splits = ", ".join(f"{name} {split}" for name, split in sorted(self.splits.items()))
        return _("Split: test; {splits}.").format(splits=splits) if splits else _("Split: test.")

    def _describe_classification(self) -> str:
        ties, sets = _TIES[self.classification_ties], ", ".join(sorted(self.per_class))
        of_all = (
            _("Classification: top-1; the mean over classes for {sets}. {ties}").format(sets=sets, ties=ties)
            if sets
            else _("Classification: top-1. {ties}").format(ties=ties)
        )
        if self.mean_ties == self.classification_ties:
            return of_all
        return _("{of_all} For the mean: {ties}").format(of_all=of_all, ties=_TIES[self.mean_ties])

    def _describe_retrieval(self) -> str:
        sets = ", ".join(sorted(self.text_to_image_only)) or "none"
        hit, ties = _HITS[self.hit], _TIES[self.retrieval_ties]
        return _("Retrieval: {hit} Ties: {ties} Only text to image: {sets}.").format(hit=hit, ties=ties, sets=sets)


# The test parts of ImageNet, AIC-ICC and MUGE have no public answers; the others have no official parts.
_SPLITS: Mapping[str, str] = MappingProxyType(
    {
        "imagenet": "val",
        "imagenet-v2": "matched-frequency",
        "aic-icc": "val-10k",
        "muge": "val",
        "caltech101": "all",
        "caltech256": "all",
        "eurosat": "all",
    }
)

PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        protocol.name: protocol
        for protocol in (
            Protocol(
                name="paper",
                source=_("Wukong (Gu et al., 2022), sections 5.2 and 5.3"),
                transform="crop",
                context=32,
                writing="lower",
                class_names="authors",
                prompts="authors",
                splits=_SPLITS,
                classification_ties="against",
                mean_ties="against",
                retrieval_ties="against",
                remarks=(
                    _(
                        "The paper does not say how equal scores rank; here they count as wrong. The authors' code "
                        "averages the softmax over prompts where the paper averages similarities."
                    ),
                ),
            ),
            Protocol(
                name="cn-clip",
                source=_("Chinese-CLIP 1.6, with ELEVATER's metrics"),
                transform="squash",
                context=52,
                writing="lower, straight quotes",
                class_names="authors",
                prompts="cn-clip",
                splits=_SPLITS,
                per_class=frozenset({"caltech101", "flowers102", "pets", "aircraft"}),
                classification_ties="topk",
                mean_ties="first",
                retrieval_ties="first",
                remarks=(
                    _(
                        "Chinese-CLIP has class names of its own, which differ on 241 of ImageNet's 1,000; its package "
                        "does not carry them, and they are not used here."
                    ),
                ),
            ),
            Protocol(
                name="clip-benchmark",
                source=_("CLIP_benchmark 1.6 with language cn"),
                transform="crop",
                context=None,
                writing="published",
                class_names="authors",
                prompts="authors",
                splits=MappingProxyType({**_SPLITS, "sun397": "all"}),
                classification_ties="topk",
                mean_ties="first",
                retrieval_ties="topk",
                remarks=(_("CLIP_benchmark has Chinese class names for ImageNet alone; the other sets use ours."),),
            ),
        )
    }
)
"""The protocols that other evaluations can be compared by."""

OWN = Protocol(
    name="own",
    source=_("this project's own, for the hold-outs of an experiment"),
    transform="model",
    context=None,
    writing="published",
    class_names="authors",
    prompts="ours",
    splits=_SPLITS,
    classification_ties="against",
    mean_ties="against",
    retrieval_ties="against",
    remarks=(_("The classes of a hold-out have the names that the experiment gives them."),),
)
"""The protocol of the hold-outs, whose pictures and captions are like those that the model was trained on."""


def named(name: str) -> Protocol:
    """Return the protocol with this name.

    Raises:
        ConfigError: there is none.
    """
    known = {**PROTOCOLS, OWN.name: OWN}
    if name not in known:
        raise ConfigError(f"protocol: there is no {name!r}; allowed: {', '.join(known)}")
    return known[name]


_CAPTIONS = {
    "distinct": _("Equal captions are one caption, and every picture that has it is right."),
    "all": _("Every caption of a picture is a separate query, and only its own picture is right."),
    "first": _("Only the first caption of each picture is used, and only its own picture is right."),
}
_VIEWS = {
    "whole": _("Pictures are shown whole, on a white square."),
    "crop": _("Pictures are resized by their shorter side and cut to the square in their middle."),
}
_CLS = {
    True: _("A patch may match the text's [CLS] (s^I, as in section 4.3 and the authors' code); s^T leaves [CLS] out."),
    False: _("Neither similarity uses the text's [CLS]; section 4.3 leaves it out of s^T only."),
}


def descriptions() -> list[list[str]]:
    """Return how each protocol is described, for each rule for captions too."""
    protocols = (*PROTOCOLS.values(), OWN)
    return [each.describe() for one in protocols for each in (one, *map(one.for_pairs, _CAPTIONS))]


_POOLING = {
    "areas": _("the means of square areas"),
    "attention": _("by attention maps that the patches give, as in some of the authors' released models"),
}


def sentences(experiment: Experiment) -> list[str]:
    """Describe the evaluation protocol, one sentence for each setting.

    Args:
        experiment: the experiment; ``evaluate.captions``, ``model.image.view`` and, for the token-wise similarity,
            ``model.match_text_cls``, ``model.image.tokens`` and ``model.image.pooling`` are used.
    """
    described = [
        _("Each picture is one candidate, however many captions it has."),
        _CAPTIONS[experiment.evaluate.captions],
        _VIEWS[experiment.model.image.view],
    ]
    if experiment.model.is_token_wise:
        described.append(_CLS[experiment.model.match_text_cls])
    if (tokens := experiment.model.image.tokens) is not None:
        how = _POOLING[experiment.model.image.pooling]
        described.append(_("An image's patches are pooled to {tokens} tokens, {how}.").format(tokens=tokens, how=how))
    return described
