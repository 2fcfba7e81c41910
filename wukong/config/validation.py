"""The section ``validation`` of an experiment. Each rule owns the tolerances of its checks."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from wukong.config.section import Fraction, Positive
from wukong.curate import rules

if TYPE_CHECKING:
    # The tolerances that the type checker knows, as in wukong.config.filter.
    from wukong.curate.rules import frequency, language

    class _GateSettings(language.LanguageRule.GateSettings, frequency.FrequencyRule.GateSettings):
        pass

else:
    _GateSettings = rules.section_of("GateSettings")


class Validation(_GateSettings):
    """The gate between data and training: the tolerances of the rules' checks, and what else must hold."""

    min_pairs: Positive = Field(1_000, description="pairs that the set must have")
    max_unmasked_name_rate: Fraction = Field(
        0.05, description="share of captions in which a name of a person may be left, by the recogniser's own count"
    )
    reference: str | None = Field(
        None, description="URI of an earlier validate stage's output: the distributions of its set are compared"
    )
    max_drift: Fraction = Field(
        0.1, description="from the reference: Jensen-Shannon divergence, in bits, of each distribution"
    )
    severity: dict[str, Literal["fail", "warn"]] = Field(
        {}, description="by expectation name; 'fail' unless said otherwise"
    )
