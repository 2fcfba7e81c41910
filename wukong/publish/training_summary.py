"""The public summary of training content that Article 53(1)(d) of the EU's AI Act asks of providers of models.

The page has the headings and questions of the Commission's template of 24 July 2025 (in its final form C(2025) 8311).
It describes a release, and is filled from its card and its manifests: what they do not know is "not known", for the
provider of a model to fill in.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from wukong.config.release import Release
from wukong.publish import collection
from wukong.publish.hosts import Host
from wukong.report import template
from wukong.report.card import Card
from wukong.report.statistics import Statistics
from wukong.store import storage
from wukong.store.manifest import Manifest, Part, Stage

PAGE = "docs/training_summary.html"
"""Where a release stores the summary, a page."""

DOMAINS = "docs/domains.tsv"
"""Where it stores the domains with most content. It is no CSV file, as those of a release hold pairs."""

_SHOWN = 50
"""Domains on the page."""

_AGAINST_ILLEGAL = ("forbidden", "unsafe", "sensitive")
"""The rules that find what may be illegal."""


@dataclass(frozen=True)
class Domains:
    """The domains of a release: how many there are, how many are listed, and the first of these."""

    all: int
    listed: int
    first: tuple[Host, ...]


def write(
    stage: Stage,
    release: Release,
    card: Card,
    crawl: Manifest,
    filtered: Manifest,
    counted: Statistics,
    left_out: int,
    domains: Domains,
) -> Part:
    """Write the summary of a release, and return it as a part.

    Args:
        stage: the release.
        release: the experiment's section.
        card: the release's.
        crawl: the crawl stage's manifest.
        filtered: the filter stage's manifest.
        counted: counts over the released pairs.
        left_out: pairs that are not released because the opt-out list covers them.
        domains: what ``write_domains`` returned.
    """
    values = {
        "card": card,
        "release": release,
        "domains": domains,
        "domains_file": DOMAINS.rpartition("/")[2],
        "pairs": counted.pairs,
        "tokens": round(counted.token_mean * counted.pairs),
        "period": [each.strftime("%m/%Y") for each in collection.period(crawl) or ()],
        "agent": crawl.config.get("politeness", {}).get("user_agent"),
        "origin": collection.origin(crawl),
        "manners": tuple(collection.manners(crawl)),
        "refused": filtered.dropped.get("usage", 0),
        "left_out": left_out,
        "against_illegal": tuple(collection.rules(filtered, _AGAINST_ILLEGAL)),
        "personal": tuple(collection.personal(filtered)),
    }
    storage.write_bytes(stage.path(PAGE), template.fill("training_summary.html.j2", values).encode())
    return stage.describe(PAGE)


def write_domains(stage: Stage, hosts: int, largest: Iterator[Host]) -> Domains:
    """Write the domains with most content, as they come: a line each with the pairs and the bytes of its pictures.

    Args:
        stage: the release.
        hosts: number of all domains.
        largest: those that are listed.
    """
    first: list[Host] = []
    listed = 0
    with storage.open_output(stage.path(DOMAINS)) as stream:
        stream.write(b"domain\tpairs\tbytes\n")
        for host in largest:
            stream.write(f"{host.name}\t{host.pairs}\t{host.size}\n".encode())
            listed += 1
            if len(first) < _SHOWN:
                first.append(host)
    return Domains(hosts, listed, tuple(first))
