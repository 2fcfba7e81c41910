"""The expectations: what must hold for each pair, and what must hold for the set as a whole.

Each has a name, by which ``validation.severity`` makes it a warning and a failing gate is reported.
"""

from typing import Any, Literal

from great_expectations import expectations as gxe

from wukong.config import Experiment
from wukong.data.schema import PAIRS
from wukong.errors import ConfigError
from wukong.report.statistics import DISTRIBUTIONS

Severity = Literal["fail", "warn"]
_GX_SEVERITY = {"fail": "critical", "warn": "warning"}


def pair_expectations(experiment: Experiment) -> list[Any]:
    """Expectations on the rows of a batch, as ``wukong.validate.audit.audit`` gives them."""
    rules, gate = experiment.filter, experiment.validation
    splits = ["train", *(holdout.name for holdout in rules.split.holdouts)]
    expectations = {
        "columns": gxe.ExpectTableColumnsToMatchSet(column_set=[*PAIRS.names, *_AUDITED], exact_match=True),
        "no_missing_captions": gxe.ExpectColumnValuesToNotBeNull(column="caption"),
        "no_missing_digests": gxe.ExpectColumnValuesToMatchRegex(column="sha256", regex="^[0-9a-f]{64}$"),
        "keys_well_formed": gxe.ExpectColumnValuesToMatchRegex(column="key", regex="^[0-9a-f]{20}$"),
        "downloaded": gxe.ExpectColumnValuesToBeInSet(column="status", value_set=["success"]),
        "known_splits": gxe.ExpectColumnValuesToBeInSet(column="split", value_set=splits),
        "sides": gxe.ExpectColumnValuesToBeBetween(column="shorter_side", min_value=rules.min_side),
        "aspect_ratio": gxe.ExpectColumnValuesToBeBetween(column="ratio", max_value=rules.max_aspect_ratio),
        "length": gxe.ExpectColumnValuesToBeBetween(
            column="length", min_value=rules.min_length, max_value=rules.max_length
        ),
        "caption_frequency": gxe.ExpectColumnValuesToBeBetween(
            column="caption_count", min_value=1, max_value=gate.max_caption_count
        ),
        "chinese": gxe.ExpectColumnValuesToBeBetween(column="han", min_value=1, mostly=gate.min_chinese_share),
        "sensitive_words": gxe.ExpectColumnValuesToBeNull(column="sensitive_word"),
        "unmasked_names": gxe.ExpectColumnValuesToBeInSet(
            column="name_left", value_set=[False], mostly=1 - gate.max_unmasked_name_rate
        ),
    }
    return _named(expectations, experiment)


def dataset_expectations(experiment: Experiment) -> list[Any]:
    """Expectations on the one row of ``wukong.validate.audit.Dataset``."""
    gate = experiment.validation

    def none(column: str) -> Any:
        return gxe.ExpectColumnMaxToBeBetween(column=column, max_value=0)

    expectations = {
        "training_pairs": gxe.ExpectColumnMaxToBeBetween(column="pairs_train", min_value=gate.min_pairs),
        "unique_keys": none("duplicate_keys"),
        "caption_repeats": gxe.ExpectColumnMaxToBeBetween(
            column="most_frequent_caption", max_value=gate.max_caption_count
        ),
        "unseen_captions_disjoint": none("unseen_captions_in_train"),
        "seen_captions_trained": none("seen_captions_not_in_train"),
        "pictures_disjoint": none("holdout_pictures_in_train"),
    }
    if gate.reference is not None:
        for name in DISTRIBUTIONS:
            expectations[f"drift_{name}"] = gxe.ExpectColumnMaxToBeBetween(
                column=f"drift_{name}", max_value=gate.max_drift
            )
    for holdout in experiment.filter.split.holdouts:
        column = f"pairs_{holdout.name}"
        expectations[f"holdout_{holdout.name}"] = gxe.ExpectColumnMaxToBeBetween(column=column, min_value=1)
    return _named(expectations, experiment)


def check_severities(experiment: Experiment) -> None:
    """See that every name in ``validation.severity`` is one of an expectation.

    Raises:
        ConfigError: one is not; the message lists those that are.
    """
    known = [each.meta["name"] for each in (*pair_expectations(experiment), *dataset_expectations(experiment))]
    for name in experiment.validation.severity:
        if name not in known:
            raise ConfigError(f"validation.severity: no expectation is called {name!r}; there are {', '.join(known)}")


_AUDITED = ("shorter_side", "ratio", "han", "sensitive_word", "name_left")


def _named(expectations: dict[str, Any], experiment: Experiment) -> list[Any]:
    for name, expectation in expectations.items():
        severity: Severity = experiment.validation.severity.get(name, "fail")
        expectation.meta = {"name": name, "severity": severity}
        expectation.severity = _GX_SEVERITY[severity]
    return list(expectations.values())
