"""The section ``crawl`` of an experiment (section 3 of the paper)."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from wukong.config.section import Fraction, Positive, Strict
from wukong.crawl import engines

if TYPE_CHECKING:
    Engine = str
else:
    Engine = Literal[*engines.REGISTRY]

BYTES_IN_FLIGHT = 256 * 2**20
"""Of answers that a process holds in memory at a time; one for which there is no room is requested when there is."""


class Politeness(Strict):
    """How the crawler treats the sites it visits; every relaxation is the operator's decision."""

    robots_txt: bool = Field(True, description="obey the robots.txt of each host that images are fetched from")
    search_robots_txt: bool = Field(
        True, description="obey the search engine's robots.txt too; switch it off only where you may query the engine"
    )
    respect_noai: bool = Field(True, description="leave out images whose X-Robots-Tag says noai or noimageai")
    per_host_concurrency: Positive = Field(8, description="requests to one host at the same time, in the whole cluster")
    per_host_delay: float = Field(0.0, ge=0.0, description="seconds between two requests to one host")
    max_host_seconds: float = Field(
        3_600.0,
        gt=0,
        description="that one host's slowness may cost each process: its Crawl-delay and Retry-After, requests that "
        "fail or crawl, pictures that are hard to decode; after that it is left alone",
    )
    user_agent: str = Field(
        "wukong-crawler/0.1",
        description="sent with each request, and the name that robots.txt rules are looked up by",
    )
    contact: str = Field(
        "",
        pattern=r"^[!-'*-~]*$",
        max_length=200,
        description="an e-mail address or a page where the owner of a site reaches you, without spaces and brackets; "
        "sent after the user agent. A search engine that is not your own is not asked without one",
    )
    opt_out: str | None = Field(None, description="URI of a file of domains, URLs and SHA-256 digests to leave out")

    @property
    def signature(self) -> str:
        """The value of the header ``User-Agent``: the crawler's name, and whom to write to."""
        return f"{self.user_agent} (+{self.contact})" if self.contact else self.user_agent

    @property
    def is_signed(self) -> bool:
        """Whether the owner of a site can find out whom to write to."""
        return any(mark in self.signature for mark in ("@", "://"))


class Crawl(Strict):
    """Section 3: from queries to downloaded image-text pairs."""

    queries: str = Field(
        "", description="URI of the query list: one word a line, most frequent first; for engines that are searched"
    )
    max_queries: Positive = Field(200_000, description="only the first of the list are searched; the paper has 200,000")
    engine: Engine = Field(
        "baidu",
        description="a search engine; 'urls', a list of URLs; 'files', pictures of one's own (docs/own-data.md); or "
        "'published_set', the train part of a published retrieval set (docs/paper.md)",
    )
    endpoint: str = Field(
        description="the engine's search URL; for 'urls' the URI of the list; for 'files' of a folder or a list; for "
        "'published_set' of the set's folder, which has its name"
    )
    max_results_per_query: Positive = Field(1_000, description="search results taken for one query, as in the paper")
    part_size: Positive = Field(1_000, description="URLs a part, that is a task, a tar and a Parquet file")
    concurrency: Positive = Field(64, description="requests in flight for each process")
    min_side: int = Field(
        201, ge=0, description="header-first: pictures with a smaller side are not downloaded further"
    )
    max_aspect_ratio: float = Field(
        3.0, ge=1.0, description="longer side over shorter side; above it an image is not kept"
    )
    resize: Literal["keep_ratio", "center_crop", "border", "no"] = Field(
        "keep_ratio",
        description="'keep_ratio' makes the shorter side image_size and never enlarges; 'center_crop' and 'border' "
        "give a square, cut or padded with white; 'no' leaves the image as it is",
    )
    image_size: Positive = Field(256, description="pixels of the shorter side after resizing")
    jpeg_quality: int = Field(95, ge=1, le=100, description="of images that are encoded anew")
    keep_small_jpegs: bool = Field(
        True, description="a JPEG that needs no resizing keeps its pixels, and only its metadata is removed"
    )
    url_column: str = Field("url", description="of a URL list")
    caption_column: str = Field("caption", description="of a URL list")
    max_bytes: int = Field(32 * 2**20, gt=0, le=BYTES_IN_FLIGHT, description="an image with a larger file is left out")
    max_seconds: float = Field(
        30.0, gt=0, le=86_400, description="on the wire, over all attempts and redirects of one picture"
    )
    max_pixels: int = Field(
        64_000_000, ge=1, le=178_956_970, description="an image with more pixels is not decoded; Pillow opens no more"
    )
    max_decode_seconds: float = Field(
        10.0, gt=0, le=86_400, description="of processor time, to decode one picture, resize and encode it"
    )
    retries: int = Field(2, ge=0, description="further attempts after a failure that may pass")
    previous: str | None = Field(
        None, description="URI of an earlier crawl: only what it does not have is searched and fetched"
    )
    retry_failed: bool = Field(False, description="fetch again what failed in the previous crawl")
    max_transient_share: Fraction = Field(
        0.5,
        description="of URLs, and of searches, that may fail for reasons that pass (no DNS, timeouts, busy servers): "
        "with more the crawl fails, and the next run tries those again",
    )
    politeness: Politeness = Politeness()

    @property
    def source(self) -> engines.Source:
        """What ``engine`` names: a search engine, which is asked for the query list's words, or lists."""
        return engines.REGISTRY[self.engine]
