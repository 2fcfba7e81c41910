"""Whether what a crawl ended with is a finished crawl, or what an outage or a mistake left of one."""

from collections.abc import Mapping, Sequence

from wukong.config import Crawl
from wukong.crawl.status import Status, is_transient
from wukong.errors import DataError

Examples = Mapping[str, Sequence[str]]
"""Status -> a URL that ended with it, and its error."""

_ADVICE = {
    Status.DNS_ERROR: "Check that this machine resolves names: DNS, proxy, network policy",
    Status.TIMEOUT: "Check the network, and whether crawl.concurrency is more than it carries",
    Status.CONNECTION_ERROR: "Check the network: firewall, proxy, network policy",
    Status.INCOMPLETE: "Check the network, and whether crawl.concurrency is more than it carries",
    Status.HTTP_ERROR: "Servers are busy or refuse: lower crawl.politeness.per_host_concurrency, or set per_host_delay",
    Status.ROBOTS_UNAVAILABLE: "Servers fail or cannot be reached: check the network, or ask them less at once",
    Status.HOST_TOO_SLOW: "If you can wait longer, raise crawl.politeness.max_host_seconds and max_crawl_delay",
}


class CrawlFailedError(DataError):
    """Too much of a crawl failed for it to count as finished; the next run tries again what may end otherwise."""


def failure(counts: Mapping[str, int], config: Crawl, examples: Examples | None = None) -> str | None:
    """Say why a crawl counts as failed; None where it is finished.

    Args:
        counts: of its manifest: ``queries``, ``queries_failed``, ``queries_unexpected``, ``urls``, ``transient`` and
            one a status.
        config: the crawl's settings; ``max_transient_share`` and ``max_unexpected_share`` decide, and a crawl that
            stored no picture is always a failure.
        examples: named in the message where there are some.
    """
    examples = examples or {}
    urls, stored, queries = counts["urls"], counts[Status.SUCCESS], counts["queries"]
    failed = _by_number({status: counts[status] for status in Status if status is not Status.SUCCESS})
    kept = f"Run again: the {stored:,} pictures that are stored are kept, and the others are tried again."

    for what, wrong, total in (
        ("URLs", counts[Status.INTERNAL_ERROR], urls),
        ("searches", counts.get("queries_unexpected", 0), queries),
    ):
        if wrong > config.max_unexpected_share * total:
            return (
                f"the crawl has failed: {wrong:,} of {total:,} {what} ended in an error of Wukong's own code, more "
                f"than crawl.max_unexpected_share = {config.max_unexpected_share:g} allows"
                f"{_instance([Status.INTERNAL_ERROR], examples)}. The log has a traceback of each kind; please report "
                f"it. {kept}"
            )
    if counts["queries_failed"] > config.max_transient_share * queries:
        return (
            f"the crawl has failed: {counts['queries_failed']:,} of {queries:,} searches failed, more than "
            f"crawl.max_transient_share = {config.max_transient_share:g} allows{_instance(['search'], examples)}. "
            f"Check that crawl.endpoint = {config.endpoint!r} is the engine's search address and answers. Run again: "
            "what was found is kept, and the others are tried again."
        )
    if counts["transient"] > config.max_transient_share * urls:
        passing = [status for status, _ in failed if is_transient(status, 503)]
        return (
            f"the crawl has failed: {counts['transient']:,} of {urls:,} URLs ended for reasons that pass "
            f"({_listed(failed, passing)}), more than crawl.max_transient_share = {config.max_transient_share:g} "
            f"allows{_instance(passing, examples)}. {_ADVICE[Status(passing[0])]}. {kept} If this is how these URLs "
            "are, raise crawl.max_transient_share."
        )
    if stored:
        return None
    if urls:
        return (
            f"the crawl stored no picture: {urls:,} URLs ended as {_listed(failed)}"
            f"{_instance([status for status, _ in failed], examples)}. Check that crawl.{_source(config)} gives "
            "pictures, and the limits of crawl.* that leave them out."
        )
    if config.engine == "urls":
        return (
            f"the crawl found nothing: the list at crawl.endpoint = {config.endpoint!r} holds no URL in the column "
            f"that crawl.url_column names, {config.url_column!r}."
        )
    return (
        f"the crawl found nothing: {queries:,} searches gave no result. Check that crawl.endpoint = "
        f"{config.endpoint!r} is the search address of {config.engine!r}, and that crawl.queries = {config.queries!r} "
        "holds words that it knows."
    )


def may_end_otherwise(counts: Mapping[str, int]) -> bool:
    """Tell whether another run has something to try again: what failed may pass, and what gave nothing may give."""
    return not counts["urls"] or bool(counts["queries_failed"] or sum(counts[s] for s in Status if s.may_be_retried))


def _by_number(counts: Mapping[Status, int]) -> list[tuple[Status, int]]:
    return sorted(((status, number) for status, number in counts.items() if number), key=lambda entry: -entry[1])


def _listed(failed: Sequence[tuple[Status, int]], only: Sequence[Status] | None = None) -> str:
    return ", ".join(f"{status.value} {number:,}" for status, number in failed if only is None or status in only)


def _instance(statuses: Sequence[str], examples: Examples) -> str:
    shown = [": ".join(examples[status]) for status in statuses if status in examples][:3]
    return f"; for instance {'; '.join(shown)}" if shown else ""


def _source(config: Crawl) -> str:
    listed = config.engine in ("urls", "files")
    return f"endpoint = {config.endpoint!r}" if listed else f"queries = {config.queries!r}"
