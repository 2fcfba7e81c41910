"""Where a crawl writes: its key, and which attempt has finished or comes next.

A crawl of which too much failed has not finished (``wukong.crawl.verdict``). It leaves ``failed.json`` instead of its
manifest, and the next attempt has a key of its own, which names the failed one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wukong.config.crawl import Crawl
from wukong.config.experiment import Experiment
from wukong.crawl import verdict
from wukong.crawl.queries import read_queries
from wukong.crawl.source import Searched
from wukong.store import manifest as manifests
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage, digest_of

FAILED = "failed.json"
"""The manifest of an attempt that failed."""

FIRST_DIGEST = "first_digest"
"""Name, in the provenance of such a manifest, of the digest that it had before a takedown."""

_PACE = {
    "concurrency",
    "max_seconds",
    "max_decode_seconds",
    "retries",
    "max_transient_share",
}
_PACE_POLITE = {"per_host_concurrency", "per_host_delay", "max_host_seconds", "contact"}


@dataclass(frozen=True)
class Attempt:
    """How far an experiment's crawl is.

    Attributes:
        stage: the attempt that has finished, or else the next one.
        finished: its manifest, if it has finished.
        failed: earlier attempts, in which too much failed.
        last: what the last of these left.
        queries: words to search.
        lists: what is read instead (``wukong.crawl.source.Listed.lists``).
    """

    stage: Stage
    finished: Manifest | None
    failed: tuple[Stage, ...]
    last: Manifest | None
    queries: Sequence[str]
    lists: Sequence[str]

    def is_outdated(self) -> bool:
        """Whether what the last failed attempt left has been changed, by a takedown, since it was read."""
        if self.last is None:
            return False
        now = self.failed[-1].finished() or _failed(self.failed[-1])
        return now is None or now.digest != self.last.digest

    def clean(self) -> None:
        """Delete what earlier attempts stored, when one has finished. Through their ``failed.json`` it is found."""
        for left in self.failed:
            if left.finished() is None:
                manifests.clean(left.uri, ("parts", "plan", "search", "_work"))


def of(
    experiment: Experiment,
    parents: Mapping[str, Manifest],
    earlier: Manifest | None,
    digests: Callable[[list[str]], list[str]],
    version: int,
) -> Attempt:
    """Find the attempt at an experiment's crawl that has finished, or else the next one.

    Args:
        experiment: the experiment.
        parents: manifests that the crawl continues from.
        earlier: manifest of the previous crawl, which ``crawl.previous`` names.
        digests: returns the SHA-256, in hex, of files.
        version: the stage's.

    Raises:
        ConfigError: the query list cannot be read.
        DataError: a list of URLs or images cannot be read.
    """
    config = experiment.crawl
    source = config.source
    queries, lists = [], []
    if isinstance(source, Searched):
        content: Sequence[str] = (queries := read_queries(config.queries, config.max_queries))
    else:
        lists = source.lists(config)
        content = source.content(config) if source.content else digests(lists)
    made_from = [*parents.values(), *([earlier] if earlier else [])]
    identified = identity(config, content)
    stage = Stage(experiment.root, "crawl", identified, made_from, version)
    failed: list[Stage] = []
    last: Manifest | None = None
    while (attempt := stage.finished() or _failed(stage)) is not None:
        if stage.finished() is not None and verdict.failure(attempt.counts, config) is None:
            return Attempt(stage, attempt, tuple(failed), last, queries, lists)
        failed.append(stage)
        last = attempt
        again = attempt.provenance.get(FIRST_DIGEST, attempt.digest)
        stage = Stage(experiment.root, "crawl", identified | {"again": again}, made_from, version)
    return Attempt(stage, None, tuple(failed), last, queries, lists)


def identity(config: Crawl, content: Sequence[str]) -> dict[str, Any]:
    """Return what decides a crawl's output: its settings except the pace, and the lists' content, not their place.

    Args:
        config: the crawl's settings.
        content: the queries, or what says what the lists hold (``wukong.crawl.source.Listed.content``).
    """
    left_out = {"queries", "max_queries", "previous", *_PACE, *config.source.not_in_key}
    value = config.model_dump(mode="json", exclude=left_out)
    value["politeness"] = {k: v for k, v in value["politeness"].items() if k not in _PACE_POLITE}
    return value | {"content_sha256": digest_of(list(content))}


def _failed(stage: Stage) -> Manifest | None:
    return manifests.load(stage.path(FAILED)) if storage.exists(stage.path(FAILED)) else None
