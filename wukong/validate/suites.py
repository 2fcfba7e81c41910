"""The expectations of the gate: on each pair, and on the set as a whole.

Each has a name. ``validation.severity`` can make an expectation of that name a warning, and messages call it so. Those
that belong to a rule are written in the rule's file (``wukong/curate/rules``, ``Rule.check``).
"""

from typing import Any, Literal

from great_expectations import expectations as gxe

from wukong.config.experiment import Experiment
from wukong.curate import rules
from wukong.curate.pairs import PAIRS
from wukong.errors import ConfigError
from wukong.report.statistics import DISTRIBUTIONS
from wukong.validate import audit

Severity = Literal["fail", "warn"]
_GX_SEVERITY = {"fail": "critical", "warn": "warning"}


def pair_expectations(experiment: Experiment) -> list[Any]:
    """Expectations on the rows that ``wukong.validate.audit.audit`` returns."""
    settings, gate = experiment.filter, experiment.validation
    splits = ["train", *(holdout.name for holdout in settings.split.holdouts)]
    checks = rules.checks(settings, gate)
    known = [*PAIRS.names, *sorted(rules.optional_columns(settings)), *(check.column for check in checks)]
    expectations = {
        "columns": gxe.ExpectTableColumnsToMatchSet(
            column_set=[*dict.fromkeys(known), audit.NAME_LEFT], exact_match=True
        ),
        "no_missing_captions": gxe.ExpectColumnValuesToNotBeNull(column="caption"),
        "no_missing_digests": gxe.ExpectColumnValuesToMatchRegex(column="sha256", regex="^[0-9a-f]{64}$"),
        "keys_well_formed": gxe.ExpectColumnValuesToMatchRegex(column="key", regex="^[0-9a-f]{20}$"),
        "downloaded": gxe.ExpectColumnValuesToBeInSet(column="status", value_set=["success"]),
        "known_splits": gxe.ExpectColumnValuesToBeInSet(column="split", value_set=splits),
    }
    for check in checks:
        expectations[check.name] = getattr(gxe, check.expectation)(column=check.column, **check.arguments)
    expectations["unmasked_names"] = gxe.ExpectColumnValuesToBeInSet(
        column=audit.NAME_LEFT, value_set=[False], mostly=1 - gate.max_unmasked_name_rate
    )
    return _named(expectations, experiment)


def dataset_expectations(experiment: Experiment) -> list[Any]:
    """Expectations on the one row of a ``wukong.validate.audit.Dataset``."""
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
    """Check that every name in ``validation.severity`` is the name of an expectation.

    Raises:
        ConfigError: one is not; the message lists the names that there are.
    """
    known = [each.meta["name"] for each in (*pair_expectations(experiment), *dataset_expectations(experiment))]
    for name in experiment.validation.severity:
        if name not in known:
            raise ConfigError(f"validation.severity: no expectation is called {name!r}; there are {', '.join(known)}")


def _named(expectations: dict[str, Any], experiment: Experiment) -> list[Any]:
    for name, expectation in expectations.items():
        severity: Severity = experiment.validation.severity.get(name, "fail")
        expectation.meta = {"name": name, "severity": severity}
        expectation.severity = _GX_SEVERITY[severity]
    return list(expectations.values())
