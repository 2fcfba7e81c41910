"""What is damaged or deleted of a filter's output is made again, to the same bytes, by doing what the message says."""

import io
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from crawled import Row, corpus, experiment, picture_of
from made_again import cut, flipped, is_made_again, made_again, refused_wherever_a_bit_is_flipped
from PIL import Image

from cli.release import copied
from ray_jobs import exchange, validate
from ray_jobs import filter as job
from wukong.config.experiment import Experiment
from wukong.evaluate import holdouts
from wukong.publish import release, unneeded
from wukong.report import removed, statistics
from wukong.stages import places
from wukong.store import storage
from wukong.store.damage import Compared
from wukong.store.manifest import Manifest, Stage


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tasks of Ray run in this process, when they are asked for."""

    def remote(task: Callable[..., Any]) -> Any:
        return SimpleNamespace(remote=task, options=lambda **_: SimpleNamespace(remote=task))

    for name in ("get", "put"):
        monkeypatch.setattr(ray, name, lambda value: value)
    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray, "cluster_resources", dict)
    exchange._remote.cache_clear()
    yield
    exchange._remote.cache_clear()


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
    for deletions in (1, names // 2, names - 1):
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


def noise(row: Row) -> bytes:
    stream, random = io.BytesIO(), np.random.default_rng(list(str(row["url"]).encode()))
    small = Image.fromarray(random.integers(0, 255, (6, 8, 3), np.uint8))
    small.resize((256, 256), Image.Resampling.BICUBIC).save(stream, "JPEG")
    return stream.getvalue()


@pytest.mark.parametrize("looks", [False, True])
def test_a_filter_compares_each_tar_once(tmp_path, make_crawl, looks: bool, monkeypatch) -> None:
    crawl = make_crawl(corpus(), part_size=200, picture=noise)
    asked = experiment(tmp_path, **({"duplicate_images": "similar"} if looks else {}))
    finish, compared = Compared.finish, Counter[str]()

    def counted(self: Compared) -> None:
        finish(self)
        compared[self._uri] += 1

    monkeypatch.setattr(Compared, "finish", counted)
    first = job.run(asked, {"crawl": crawl})
    tars = dict.fromkeys(crawl.part_uris("parts/", ".tar"), 1)
    assert compared == tars
    if looks:  # what was computed of the pictures by another run says nothing of the tars now
        storage.delete(first.uri)
        compared.clear()
        job.run(asked, {"crawl": crawl})
        assert compared == tars
        look = places.look(asked, crawl)
        for uri in (first.uri, look.path("manifest.json"), look.path("parts/00000.parquet")):
            storage.delete(uri)
        compared.clear()
        job.run(asked, {"crawl": crawl})
        assert compared == {**tars, crawl.part_uris("parts/", ".tar")[0]: 2}


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


def test_each_damaged_part_of_a_gate_and_of_a_release_is_made_again(tmp_path, make_crawl) -> None:
    e = experiment(tmp_path)
    e = e.model_copy(
        update={
            "validation": e.validation.model_copy(update={"min_pairs": 50}),
            "release": e.release.model_copy(update={"files": 2}),
        }
    )
    filtered = job.run(e, {"crawl": make_crawl([{**row, "url": f"{row['url']}.jpg"} for row in corpus()])})

    def gated() -> Manifest:
        made = validate.run(e, {"filter": filtered})
        statistics.read(made), removed.read(made)
        return made

    def released() -> Manifest:
        made = release.release(e, gated())
        copied(made, storage.from_path(tmp_path / "public"))
        return made

    first = released()
    for path, read in ((statistics.PATH, statistics.read), (removed.PATH, removed.read)):
        uri = gated().file(path)[0]
        refused_wherever_a_bit_is_flipped(uri, partial(read, gated()), 4)
        is_made_again(uri, gated, [cut])
    for number, uri in enumerate(first.part_uris()):
        refused_wherever_a_bit_is_flipped(uri, lambda: copied(first, storage.from_path(tmp_path / "public")), 2)
        is_made_again(uri, released, [(cut, flipped)[number % 2]])


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
