"""What is damaged or deleted of a filter's output is made again, to the same bytes, by doing what the message says."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crawled import corpus, experiment, picture_of
from made_again import cut, flipped, made_again, refused_wherever_a_bit_is_flipped

from ray_jobs import filter as job
from ray_jobs import validate
from wukong.config.experiment import Experiment
from wukong.evaluate import holdouts
from wukong.publish import unneeded
from wukong.stages import places
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
        for damages in (cut, storage.delete):
            shutil.rmtree(output)
            shutil.copytree(kept, output)
            damaged = storage.from_path(min((output / "_work" / kind).iterdir()))
            damages(damaged)
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


@pytest.mark.parametrize("suffix", [".parquet", ".tar"])
@pytest.mark.parametrize("looks", [False, True])
def test_an_altered_part_of_a_crawl_is_refused_by_the_filter(tmp_path, make_crawl, suffix: str, looks: bool) -> None:
    crawl = make_crawl(corpus()[:40], part_size=30, picture=lambda row: picture_of(row) + bytes(2000))
    asked = experiment(tmp_path, split={}, **({"duplicate_images": "similar"} if looks else {}))
    refused_wherever_a_bit_is_flipped(crawl.part_uris("parts/", suffix)[0], lambda: job.run(asked, {"crawl": crawl}), 4)


def test_altered_columns_of_pictures_are_refused_and_computed_again(tmp_path, make_crawl) -> None:
    crawl = make_crawl(corpus(), part_size=200)
    run = lambda: job.run(every_pass(tmp_path), {"crawl": crawl})  # noqa: E731
    first = run()
    look = places.look(every_pass(tmp_path), crawl)
    altered = look.path("parts/00000.parquet")
    whole = storage.read_bytes(altered)
    storage.delete(first.uri)
    flipped(altered)
    again, told = made_again(run)
    assert told == [altered, look.path("manifest.json")]
    assert again.digest == first.digest
    assert storage.read_bytes(altered) == whole


def test_altered_shards_are_refused_by_the_gate_and_by_an_evaluation_and_made_again(tmp_path, make_crawl) -> None:
    crawl = make_crawl(corpus())
    e = experiment(tmp_path)
    e = e.model_copy(update={"validation": e.validation.model_copy(update={"min_pairs": 50})})
    filtered = job.run(e, {"crawl": crawl})
    held = holdouts.read(e, filtered, "new-word")
    assert held is not None

    def look() -> None:
        again = holdouts.read(e, filtered, "new-word")
        assert again is not None
        again.images.image(0)

    table, tar = (filtered.part_uris("new-word/", suffix)[0] for suffix in (".parquet", ".tar"))
    for uri in (table, tar):
        refused_wherever_a_bit_is_flipped(uri, look, 4)
    for uri in (table, filtered.part_uris("train/", ".parquet")[0], filtered.part_uris("dropped/", ".parquet")[0]):
        flipped(uri)
        _, told = made_again(lambda: validate.run(e, {"filter": job.run(e, {"crawl": crawl})}))
        assert told == [uri, storage.join(filtered.uri, "manifest.json")]
        storage.delete(places.validation(e, filtered).uri)
