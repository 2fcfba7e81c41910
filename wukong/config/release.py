"""The section ``release`` of an experiment."""

from datetime import date

from pydantic import Field

from wukong.config.section import Positive, Strict


class Release(Strict):
    """The set as it is published: CSV files of ``url,caption``."""

    files: Positive | None = Field(
        None,
        description="CSV files to write; by default 256, as in the paper's set, but at most one for each pair",
    )
    opt_out: str | None = Field(
        None, description="URI of a file of domains, URLs and SHA-256 digests to leave out; if absent, the crawler's"
    )
    licence: str = Field("", description="of the list of URLs and captions, a name or an address")
    version: str = Field("1.0.0", description="of the released set")
    publisher: str = Field("", description="who publishes the set, a name; documents say 'not known' without it")
    contact: str = Field("", description="an address or a page where to ask the publisher to leave a pair out")
    address: str = Field("", description="URL of the page where the set is published")
    published: date | None = Field(None, description="when the set is published, for instance 2026-11-30")
    small_publisher: bool = Field(
        False,
        description="whether the publisher is a small or medium-sized enterprise: the EU's summary of training content "
        "then names 5 % of the domains, at most 1,000, instead of 10 %",
    )
    show_dropped: bool = Field(
        False, description="show blurred examples of dropped pictures on the released card too, not only on the gate's"
    )
