"""The public summary of training content that Article 53(1)(d) of the EU's AI Act asks of providers of models.

Its headings and questions are those of the Commission's template of 24 July 2025 (in its final form C(2025) 8311). It
describes a release, and is filled from its manifests as far as they know: what they do not know is "not known", for the
provider of a model to fill in.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from wukong.config.experiment import Experiment
from wukong.publish import collection
from wukong.publish.hosts import Host
from wukong.report import checks, template
from wukong.report.statistics import Statistics
from wukong.runtime.language import message
from wukong.store import storage
from wukong.store.manifest import Manifest, Part, Stage

PATH = "training_summary.json"
"""Where a release stores the summary."""

PAGE = "docs/training_summary.html"
"""Where it stores the summary as a page."""

DOMAINS = "docs/domains.tsv"
"""Where it stores the domains with most content. It is no CSV file, as those of a release hold pairs."""

_TEMPLATE = (
    "https://digital-strategy.ec.europa.eu/en/library/"
    "explanatory-notice-and-template-public-summary-training-content-general-purpose-ai-models"
)
_SHOWN = 50
"""Domains on the page."""

_AGAINST_ILLEGAL = ("forbidden", "unsafe", "sensitive")
"""The rules that find what may be illegal."""

_NO = message("No.")


@dataclass(frozen=True)
class Answer:
    """A question of the template, and the sentences of its answer; without any it is not known."""

    question: str
    sentences: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """A section of the template: its heading with its number, its depth (1 to 3), and its questions."""

    heading: str
    depth: int
    answers: tuple[Answer, ...] = ()


@dataclass(frozen=True)
class Domains:
    """The domains of a release: how many there are, how many are listed, and the first of these."""

    all: int
    listed: int
    first: tuple[Host, ...]


def write(
    stage: Stage,
    experiment: Experiment,
    crawl: Manifest,
    filtered: Manifest,
    counted: Statistics,
    left_out: int,
    domains: Domains,
) -> list[Part]:
    """Write the summary of a release as data and as a page, and return both as parts.

    Args:
        stage: the release.
        experiment: its ``about``, ``sources``, ``release`` and ``crawl`` sections are used.
        crawl: the crawl stage's manifest.
        filtered: the filter stage's manifest.
        counted: counts over the released pairs.
        left_out: pairs that are not released because the opt-out list covers them.
        domains: what ``write_domains`` returned.
    """
    release = experiment.release
    sections = [*_general(experiment, crawl, counted), *_sources(experiment, crawl, domains)]
    sections += _processing(crawl, filtered, left_out)
    value: dict[str, Any] = {
        "template": _TEMPLATE,
        "name": experiment.name,
        "version": release.version,
        "updated": release.published.isoformat() if release.published else None,
        "sections": [asdict(section) for section in sections],
        "domains": asdict(domains),
    }
    storage.write_json(stage.path(PATH), value)
    beside = {"title_of_set": experiment.name, "domains_file": DOMAINS.rpartition("/")[2]}
    page = template.fill("training_summary.html.j2", value | beside)
    storage.write_bytes(stage.path(PAGE), page.encode())
    return [stage.describe(path) for path in (PATH, PAGE)]


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


def _general(experiment: Experiment, crawl: Manifest, counted: Statistics) -> list[Section]:
    release, during = experiment.release, collection.period(crawl)
    tokens, pairs = round(counted.token_mean * counted.pairs), counted.pairs
    identified = [each for each in (release.publisher, release.contact, release.address) if each]
    return [
        Section(message("1. General information"), 1),
        Section(
            message("1.1. Provider identification"),
            2,
            (
                Answer(message("Provider name and contact details"), tuple(identified)),
                Answer(message("Authorised representative name and contact details")),
            ),
        ),
        Section(
            message("1.2. Model identification"),
            2,
            (
                Answer(message("Versioned model name(s)")),
                Answer(message("Model dependencies")),
                Answer(message("Date of placement of the model on the Union market")),
            ),
        ),
        Section(
            message("1.3. Modalities, overall training data size and other characteristics"),
            2,
            (
                Answer(
                    message("Text: training data size and types of content"),
                    (
                        _size(tokens, "tokens", (10**9, "1 billion"), (10**13, "10 trillion")),
                        message("Texts that stood beside pictures on the web."),
                    ),
                ),
                Answer(
                    message("Image: training data size and types of content"),
                    (
                        _size(pairs, "images", (10**6, "1 million"), (10**9, "1 billion")),
                        message("Pictures on the web, of which nobody counted the types."),
                    ),
                ),
                Answer(message("Audio, video, other"), (message("None."),)),
                Answer(
                    message("Latest date of data acquisition/collection for model training"),
                    (during[1].strftime("%m/%Y"),) if during else (),
                ),
                Answer(
                    message("Description of the linguistic characteristics of the overall training data"),
                    (message("The captions are Chinese."),),
                ),
                Answer(
                    message("Other relevant characteristics of the overall training data"),
                    (experiment.about,) if experiment.about else (),
                ),
            ),
        ),
    ]


def _sources(experiment: Experiment, crawl: Manifest, domains: Domains) -> list[Section]:
    during, polite = collection.period(crawl), crawl.config.get("politeness", {})
    agent = polite.get("user_agent")
    named = [
        message(f"{source.name}: addresses like {source.pattern}; licence: {source.licence or 'not known'}.")
        for source in experiment.sources
    ]
    period: tuple[str, ...] = ()
    if during is not None:
        first, last = (each.strftime("%m/%Y") for each in during)
        period = (message(f"{first} to {last}. Earlier attempts at the crawl may have begun before."),)
    share = "5 %" if experiment.release.small_publisher else "10 %"
    return [
        Section(message("2. List of data sources"), 1),
        Section(
            message("2.1. Publicly available datasets"),
            2,
            (Answer(message("Have you used publicly available datasets to train the model?")),),
        ),
        Section(message("2.2. Private non-publicly available datasets obtained from third parties"), 2),
        Section(
            message("2.2.1. Datasets commercially licensed by rightsholders or their representatives"),
            3,
            (Answer(message("Have you concluded transactional commercial licensing agreements?")),),
        ),
        Section(
            message("2.2.2. Private datasets obtained from other third parties"),
            3,
            (Answer(message("Have you obtained private datasets from third parties?")),),
        ),
        Section(
            message("2.3. Data crawled and scraped from online sources"),
            2,
            (
                Answer(message("Were crawlers used by the provider or on behalf of?"), (message("Yes."),)),
                Answer(message("Crawler name(s)/identifier(s)"), (agent,) if agent else ()),
                Answer(
                    message("Purposes of the crawler(s)"),
                    (message("To collect pictures with Chinese captions for the training of models."),),
                ),
                Answer(message("General description of crawler behaviour"), tuple(collection.manners(crawl))),
                Answer(message("Period of data collection"), period),
                Answer(
                    message("Comprehensive description of the type of content and online sources crawled"),
                    (collection.origin(crawl), *named),
                ),
                Answer(message("Type of modality covered"), (message("Text and image."),)),
                Answer(
                    message("Summary of the most relevant domain names crawled"),
                    (
                        message(f"The released pairs are of {domains.all:,} domains, named by host."),
                        message(f"Listed are the {domains.listed:,} with most bytes of pictures, {share} of them."),
                    ),
                ),
            ),
        ),
        Section(
            message("2.4. User data"),
            2,
            (
                Answer(message("Was data from user interactions with the AI model used to train the model?"), (_NO,)),
                Answer(message("Was data from other services or products of the provider used?"), (_NO,)),
            ),
        ),
        Section(
            message("2.5. Synthetic data"),
            2,
            (
                Answer(
                    message("Was synthetic AI-generated data created by the provider or on their behalf?"),
                    (_NO, message("Whether a model made a picture that was found on the web is not known.")),
                ),
            ),
        ),
        Section(
            message("2.6. Other sources of data"),
            2,
            (Answer(message("Have other data sources than those of sections 2.1 to 2.5 been used?"), (_NO,)),),
        ),
    ]


def _processing(crawl: Manifest, filtered: Manifest, left_out: int) -> list[Section]:
    refused = filtered.dropped.get("usage", 0)
    return [
        Section(message("3. Data processing aspects"), 1),
        Section(
            message("3.1. Respect of reservation of rights from text and data mining exception or limitation"),
            2,
            (
                Answer(message("Are you a signatory to the Code of Practice for general-purpose AI models?")),
                Answer(
                    message("Measures implemented before model training to respect reservations of rights"),
                    (
                        *collection.manners(crawl),
                        message(f"Pictures whose owners refuse this use (Content-Usage): {refused:,} left out."),
                        message(f"Pairs that the opt-out list of the release covers: {left_out:,} left out."),
                    ),
                ),
            ),
        ),
        Section(
            message("3.2. Removal of illegal content"),
            2,
            (
                Answer(
                    message("General description of measures taken"),
                    (*collection.rules(filtered, _AGAINST_ILLEGAL), *checks.unchecked(filtered)),
                ),
            ),
        ),
        Section(
            message("3.3. Other information (optional)"),
            2,
            (
                Answer(
                    message("Other relevant information about data processing"),
                    (*collection.personal(filtered), *checks.found(filtered)),
                ),
            ),
        ),
    ]


def _size(number: int, unit: str, low: tuple[int, str], high: tuple[int, str]) -> str:
    """Return a number and the template's range that it is in."""
    if number < low[0]:
        return message(f"Less than {low[1]} {unit}: {number:,}.")
    if number <= high[0]:
        return message(f"{low[1]} to {high[1]} {unit}: {number:,}.")
    return message(f"More than {high[1]} {unit}: {number:,}.")
