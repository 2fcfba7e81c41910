"""Whether a run that was done again came to the same outputs, and if not, what differs first and why."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from wukong.runs.run_records import differences
from wukong.store.manifest import Manifest

_NO_CAUSE = {"created", "seconds"}
"""What two makings of one thing always differ in."""
_SHOWN = 5


@dataclass(frozen=True)
class Compared:
    """A stage's output and the one that was made again.

    Attributes:
        stage: name of the stage.
        before: digest of the manifest.
        now: digest of the manifest that was made again.
        why: what differs, in words; empty if the digests are equal.
    """

    stage: str
    before: str
    now: str
    why: tuple[str, ...] = ()

    @property
    def is_equal(self) -> bool:
        """Whether both digests are equal."""
        return self.before == self.now


def compare(before: Manifest, now: Manifest) -> Compared:
    """Compare a stage's output with the one that was made again."""
    equal = before.digest == now.digest
    return Compared(before.stage, before.digest, now.digest, () if equal else tuple(_why(before, now)))


def circumstances(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs between where and by which code two outputs were made: their manifests' ``provenance``."""
    keys = sorted((before.keys() | now.keys()) - _NO_CAUSE)
    changed = [key for key in keys if before.get(key) != now.get(key)]
    return [f"{key}: {before.get(key) or 'unknown'} there, {now.get(key) or 'unknown'} now" for key in changed]


def _why(before: Manifest, now: Manifest) -> Iterator[str]:
    yield from (
        f"config {key}: {was} there, {now_is} now"
        for key, (was, now_is) in differences(before.config, now.config).items()
    )
    parents = {parent.stage: parent.digest for parent in now.parents}
    for parent in before.parents:
        if parents.get(parent.stage) != parent.digest:
            yield f"it was made from another output of {parent.stage}"
    yield from _files(before, now)
    for kind in ("counts", "dropped", "metrics"):
        changed = differences(getattr(before, kind), getattr(now, kind))
        for key, (was, now_is) in list(changed.items())[:_SHOWN]:
            yield f"{kind} {key}: {was} there, {now_is} now"
    yield from circumstances(before.provenance, now.provenance)


def _files(before: Manifest, now: Manifest) -> Iterator[str]:
    were, are = ({part.path: part.sha256 for part in made.parts} for made in (before, now))
    if changed := [path for path in sorted(were.keys() | are.keys()) if were.get(path) != are.get(path)]:
        differ = f"{len(changed):,} of {len(were):,} files differ: {', '.join(changed[:_SHOWN])}"
        more = len(changed) - _SHOWN
        yield f"{differ} and {more:,} more" if more > 0 else differ
