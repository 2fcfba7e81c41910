"""The section ``release`` of an experiment."""

from pydantic import Field

from wukong.config.section import Positive, Strict


class Release(Strict):
    """The set as it is published: CSV files of ``url,caption``."""

    files: Positive = Field(256, description="CSV files to write; the paper's set has 256")
    opt_out: str | None = Field(
        None, description="URI of a file of domains, URLs and SHA-256 digests to leave out; if absent, the crawler's"
    )
    licence: str = Field("", description="of the list of URLs and captions, a name or an address")
    version: str = Field("1.0.0", description="of the released set")
