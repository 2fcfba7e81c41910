"""How a set came about, in English sentences, as its manifests tell it: for the documents of a release."""

from collections.abc import Collection, Iterator
from datetime import datetime, timedelta

from wukong.crawl import engines
from wukong.crawl.source import Searched
from wukong.crawl.status import Status
from wukong.report import checks
from wukong.report.removed import Removed
from wukong.runtime.language import _
from wukong.store.manifest import Manifest


def period(crawl: Manifest) -> tuple[datetime, datetime] | None:
    """Return from when to when the last attempt at a crawl downloaded; None if its manifest does not say it."""
    created, seconds = crawl.provenance.get("created"), crawl.provenance.get("seconds")
    if created is None or seconds is None:
        return None
    end = datetime.fromisoformat(created)
    return end - timedelta(seconds=seconds), end


def origin(crawl: Manifest) -> str:
    """Return where the addresses of pictures and their captions come from."""
    name = crawl.config.get("engine")
    if isinstance(engines.REGISTRY.get(str(name)), Searched):
        return _(
            "The search engine {name} was asked for Chinese words; each result is a picture with its text."
        ).format(name=name)
    if name is None:
        return _("Where the addresses of the pictures come from is not known.")
    return _("The addresses of the pictures and their captions come from a list of the operator ({name}).").format(
        name=name
    )


def manners(crawl: Manifest) -> Iterator[str]:
    """Yield what the crawler respected and how many pictures it left out for it, and what it did not respect."""
    polite, refused = crawl.config.get("politeness", {}), crawl.dropped
    if "robots_txt" in polite:
        left_out = refused.get(Status.ROBOTS_DISALLOWED, 0)
        yield (
            _("The robots.txt of each host was obeyed: {left_out:,} pictures were not requested.").format(
                left_out=left_out
            )
            if polite["robots_txt"]
            else _("The robots.txt of hosts was not obeyed.")
        )
    if "respect_noai" in polite:
        left_out = refused.get(Status.NOAI, 0)
        yield (
            _("Pictures with noai or noimageai in X-Robots-Tag were left out: {left_out:,}.").format(left_out=left_out)
            if polite["respect_noai"]
            else _("Pictures with noai or noimageai in X-Robots-Tag were not left out.")
        )
    yield _("The crawler's opt-out list kept {refused:,} addresses out.").format(
        refused=refused.get(Status.OPTED_OUT, 0)
    )
    yield _("The crawler solves no captcha, logs in nowhere and passes no paywall.")


def rules(filtered: Manifest, names: Collection[str] | None = None) -> Iterator[str]:
    """Yield what rules of the filter removed; those of some names, or all that were on."""
    for rule in checks.applied(filtered, Removed()):
        if names is None or rule.name in names:
            settings = ", ".join(f"{name} {value}" for name, value in rule.settings)
            told = f"{rule.name} ({settings})" if settings else rule.name
            yield _("The rule {told} removed {removed:,} pairs. What is left passes: {title}.").format(
                told=told, removed=rule.removed, title=rule.title
            )


def edits(filtered: Manifest) -> Iterator[str]:
    """Yield what the filter did to captions besides masking names."""
    if filtered.config.get("clean_markup"):
        yield _("HTML and emoji were taken out of captions.")
    if filtered.config.get("simplify"):
        yield _("Captions were turned into Simplified Chinese.")


def personal(filtered: Manifest) -> Iterator[str]:
    """Yield what was done about personal and sensitive information."""
    care = filtered.config.get("name_care", "balanced")
    yield (
        _(
            "Names of persons in captions were replaced by a mark, by a tagger that misses some (name_care: {care})."
        ).format(care=care)
        if filtered.config.get("mask_names", True)
        else _("Names of persons in captions were not replaced.")
    )
    yield _("Captions with words of the lists of sensitive words: {left_out:,} left out.").format(
        left_out=filtered.dropped.get("sensitive", 0)
    )
    yield _("Pictures of persons are in the set; their addresses are published, the pictures are not.")
