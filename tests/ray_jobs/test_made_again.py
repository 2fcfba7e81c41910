"""What is damaged or deleted of a filter's output is made again, to the same bytes, by doing what the message says."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crawled import corpus, experiment
from made_again import cut, made_again

from ray_jobs import filter as job
from wukong.config.experiment import Experiment
from wukong.publish import unneeded
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage

pytestmark = pytest.mark.usefixtures("local_ray")


def every_pass(folder: Path) -> Experiment:
    """A filter with each of its passes."""
    looked_for = {"sets": ["new-word"], "min_cosine": None}
    return experiment(folder, decontaminate=looked_for, duplicate_images="equal")


class KilledError(Exception):
    """The process ends."""


def killed(run: Callable[[], Manifest], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a stage up to its manifest."""

    def die(stage: Stage, *_: Any, **__: Any) -> Manifest:
        if stage.name == "filter":
            raise KilledError
        return commit(stage, *_, **__)

    commit = Stage.commit
    with monkeypatch.context() as patched:
        patched.setattr(Stage, "commit", die)
        with pytest.raises(KilledError):
            run()


def test_a_filter_whose_manifest_is_damaged_or_deleted_is_made_again(tmp_path, make_crawl) -> None:
    crawl = make_crawl(corpus())
    run = lambda: job.run(every_pass(tmp_path), {"crawl": crawl})  # noqa: E731
    first = run()
    assert not storage.list_files(storage.join(first.uri, "_work"))
    manifest = storage.join(first.uri, "manifest.json")
    cut(manifest)
    again, told = made_again(run)
    assert told == [manifest]
    assert again.digest == first.digest
    storage.delete(manifest)
    storage.delete(storage.join(first.uri, "train/00000.tar"))
    assert run().digest == first.digest
    assert storage.exists(storage.join(first.uri, "train/00000.tar"))


def test_each_kind_of_work_file_of_a_killed_filter_is_made_again(tmp_path, make_crawl, monkeypatch) -> None:
    crawl = make_crawl(corpus(), part_size=100)
    undisturbed = job.run(every_pass(tmp_path / "a"), {"crawl": crawl})
    run = lambda: job.run(every_pass(tmp_path / "b"), {"crawl": crawl})  # noqa: E731
    killed(run, monkeypatch)
    (output,) = (tmp_path / "b" / "store" / "test" / "filter").iterdir()
    believed = {"rules", "looked", "placed", "overlaps", "overlap-captions", "held-out"}
    assert believed <= {path.name for path in (output / "_work").iterdir()}
    kept = shutil.copytree(output, tmp_path / "kept")
    read = set()
    for kind in sorted(believed):
        for damage in (cut, storage.delete):
            shutil.rmtree(output)
            shutil.copytree(kept, output)
            damaged = storage.from_path(min((output / "_work" / kind).iterdir()))
            damage(damaged)
            again, told = made_again(run)
            assert again.digest == undisturbed.digest, kind
            if told:
                assert told == [damaged, storage.from_path(output / "manifest.json")]
                read.add(kind)
    assert read == {"placed", "overlaps"}, "nobody reads the others again where all groups are done"


@pytest.mark.slow
def test_what_a_killed_deletion_has_left_of_a_filter_is_made_again(tmp_path, make_crawl, monkeypatch) -> None:
    crawl = make_crawl(corpus(), part_size=100)
    run = lambda: job.run(every_pass(tmp_path), {"crawl": crawl})  # noqa: E731
    first = run()
    delete, left = storage.delete, 0

    def die(uri: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KilledError
        delete(uri)

    names = len(storage.list_names(first.uri))
    for deletions in range(1, names):
        left = deletions
        with monkeypatch.context() as patched:
            patched.setattr(unneeded.storage, "delete", die)
            with pytest.raises(KilledError):
                unneeded._delete(first.uri)
        assert run().digest == first.digest, deletions
