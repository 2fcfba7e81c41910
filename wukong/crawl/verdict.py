"""Decide from the counts whether a crawl is finished or has failed, for instance because of an outage."""

from collections.abc import Mapping, Sequence

from wukong.config.crawl import Crawl
from wukong.crawl.status import Status, is_transient
from wukong.errors import DataError
from wukong.runtime.environment import CONNECT_TO

Examples = Mapping[str, Sequence[str]]
"""Status -> a URL with this status, and its error."""

_ADVICE = {
    Status.FORBIDDEN_ADDRESS: (
        f"Hosts of your own network are fetched from where {CONNECT_TO} names them: "
        f"{CONNECT_TO}=HOST=ADDRESS:PORT, with commas between several"
    ),
    Status.DNS_ERROR: "Check that this machine resolves names: DNS, proxy, network policy",
    Status.TIMEOUT: "Check the network, and whether crawl.concurrency is more than it carries",
    Status.CONNECTION_ERROR: "Check the network: firewall, proxy, network policy",
    Status.INCOMPLETE: "Check the network, and whether crawl.concurrency is more than it carries",
    Status.HTTP_ERROR: "Servers are busy or refuse: lower crawl.politeness.per_host_concurrency, or set per_host_delay",
    Status.ROBOTS_UNAVAILABLE: "Servers fail or cannot be reached: check the network, or send fewer requests at a time",
    Status.HOST_TOO_SLOW: "If you can wait longer, raise crawl.politeness.max_host_seconds",
}

_MOST_UNEXPECTED = 0.1
"""Share of URLs, and of searches, that may end in an error of our own code."""


class CrawlFailedError(DataError):
    """Too much of a crawl failed for it to count as finished. The next run retries what may succeed."""


def failure(counts: Mapping[str, int], config: Crawl, examples: Examples | None = None) -> str | None:
    """Explain why a crawl counts as failed.

    Args:
        counts: the counts of its manifest: ``queries``, ``queries_failed``, ``queries_unexpected``, ``urls``,
            ``transient`` and one for each status; one that is not there is 0.
        config: the crawl's settings; ``max_transient_share`` is a limit. A crawl that stored no image has always
            failed.
        examples: examples for the message.

    Returns:
        The message; None if the crawl is finished.
    """
    examples = examples or {}
    urls, stored, queries = counts["urls"], counts[Status.SUCCESS], counts["queries"]
    failed = _by_number({status: counts.get(status, 0) for status in Status if status is not Status.SUCCESS})
    kept = f"Run again: the {stored:,} pictures that are stored are kept, and the others are retried."

    for searched, wrong, total in (
        (False, counts[Status.INTERNAL_ERROR], urls),
        (True, counts.get("queries_unexpected", 0), queries),
    ):
        if wrong > _MOST_UNEXPECTED * total:
            return (
                f"the crawl has failed: {wrong:,} of {total:,} {'searches' if searched else 'URLs'} ended in an error "
                f"of Wukong's own code, more than {_MOST_UNEXPECTED:.0%}"
                f"{_instance([Status.INTERNAL_ERROR], examples)}. The log has a traceback of each kind; please report "
                f"it. {kept}"
            )
    if counts["queries_failed"] > config.max_transient_share * queries:
        return (
            f"the crawl has failed: {counts['queries_failed']:,} of {queries:,} searches failed, more than "
            f"crawl.max_transient_share = {config.max_transient_share:g} allows{_instance(['search'], examples)}. "
            f"Check that crawl.endpoint = {config.endpoint!r} is the engine's search address and answers. Run again: "
            "the results so far are kept, and the others are retried."
        )
    if counts["transient"] > config.max_transient_share * urls:
        transient = [status for status, _ in failed if is_transient(status, 503)]
        return (
            f"the crawl has failed: {counts['transient']:,} of {urls:,} URLs failed for temporary reasons "
            f"({_counts(failed, transient)}), more than crawl.max_transient_share = {config.max_transient_share:g} "
            f"allows{_instance(transient, examples)}. {_ADVICE[Status(transient[0])]}. {kept} If so many failures are "
            "normal for these URLs, raise crawl.max_transient_share."
        )
    if stored:
        return None
    if urls:
        advice = f"Check that crawl.{_source(config)} gives pictures, and the limits of crawl.* that exclude them"
        if failed[0][0] is Status.FORBIDDEN_ADDRESS:
            advice = _ADVICE[Status.FORBIDDEN_ADDRESS]
        return (
            f"the crawl stored no picture: {urls:,} URLs ended as {_counts(failed)}"
            f"{_instance([status for status, _ in failed], examples)}. {advice}."
        )
    return f"the crawl found nothing: {config.source.nothing(config, queries)}"


def may_change_if_retried(counts: Mapping[str, int]) -> bool:
    """Return whether another run may have other results: queries or URLs that may be retried failed, or none exist."""
    return not counts["urls"] or bool(counts["queries_failed"] or sum(counts[s] for s in Status if s.may_be_retried))


def _by_number(counts: Mapping[Status, int]) -> list[tuple[Status, int]]:
    return sorted(((status, number) for status, number in counts.items() if number), key=lambda entry: -entry[1])


def _counts(failed: Sequence[tuple[Status, int]], only: Sequence[Status] | None = None) -> str:
    return ", ".join(f"{status.value} {number:,}" for status, number in failed if only is None or status in only)


def _instance(statuses: Sequence[str], examples: Examples) -> str:
    shown = [": ".join(examples[status]) for status in statuses if status in examples][:3]
    return f"; for instance {'; '.join(shown)}" if shown else ""


def _source(config: Crawl) -> str:
    return f"queries = {config.queries!r}" if config.source.searched else f"endpoint = {config.endpoint!r}"
