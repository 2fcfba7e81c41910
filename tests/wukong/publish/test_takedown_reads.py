"""What a takedown reads of a crawl and of a filtered set of many parts: what the indexes name, and nothing else."""

import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pyarrow as pa
import pytest

from wukong.crawl import attempt, previous
from wukong.crawl.url import key_of
from wukong.curate import lookup, repack
from wukong.data.shards import END, packed
from wukong.publish import parallel, takedown, takedown_plan
from wukong.runs import located
from wukong.store import manifest, storage
from wukong.store.manifest import Stage

NOW = datetime(2026, 11, 28, tzinfo=UTC)
ROWS, A_PART, SEED = 600, 6, 5
URLS = [f"http://h{n % 7}.example.com/{n}.jpg" for n in range(ROWS)]
GONE = [URLS[n] for n in (17, 101, 333)]


def pairs() -> pl.DataFrame:
    rows = [
        {"key": key_of(url), "url": url, "caption": f"第{n}张", "sha256": f"{n:064x}", "status": "success"}
        for n, url in enumerate(URLS)
    ]
    return pl.DataFrame(rows).sort("key")


def tar_of(rows: pl.DataFrame) -> bytes:
    return b"".join(packed(f"{key}.jpg", f"picture of {key}".encode()) for key in rows["key"]) + END


def write(stage: Stage, name: str, rows: pl.DataFrame) -> list[manifest.Part]:
    storage.write_table(stage.path(f"{name}.parquet"), rows.to_arrow())
    storage.write_bytes(stage.path(f"{name}.tar"), tar_of(rows))
    return [stage.describe(f"{name}.{end}", len(rows)) for end in ("tar", "parquet")]


@pytest.fixture
def root(tmp_path: Path) -> str:
    """A crawl of a hundred parts, which is filtered: shards of two splits, and dropped pairs."""
    root, all_pairs, parts, bounds = storage.from_path(tmp_path / "store"), pairs(), [], []
    crawl = Stage(root, "crawl", {})
    for number, rows in enumerate(all_pairs.iter_slices(A_PART)):
        parts += write(crawl, f"parts/{number:05d}", rows)
        bounds.append((f"parts/{number:05d}", rows["key"][0], rows["key"][-1]))
    index = dict(zip(previous.INDEX_SCHEMA.names, zip(*bounds, strict=True), strict=True))
    storage.write_table(crawl.path(previous.INDEX), pa.table(index, schema=previous.INDEX_SCHEMA))
    found = all_pairs.select("key", "url", "caption").to_arrow()
    for path in ("search/00000.parquet", "plan/00000.parquet"):
        with storage.open_output(crawl.path(path)) as stream:
            pa.parquet.write_table(found, stream, row_group_size=A_PART)
    parts += [crawl.describe(path) for path in (previous.INDEX, "search/00000.parquet")]
    counts = {"urls": ROWS, "success": ROWS, "results": ROWS}
    crawled = crawl.commit(parts, counts=counts)

    shuffled = all_pairs.drop("status").with_columns(position=repack.positions(all_pairs["key"], SEED)).sort("position")
    filtered, parts, places = Stage(root, "filter", {}, [crawled]), [], []
    for split, some in ("train", shuffled[:480]), ("held", shuffled[480:560]):
        for number, rows in enumerate(some.iter_slices(A_PART)):
            parts += write(filtered, f"{split}/{number:05d}", rows.drop("position"))
            places.append((f"{split}/{number:05d}.parquet", int(rows["position"][0]), int(rows["position"][-1])))
    lookup.write(filtered.uri, places, SEED)
    dropped = shuffled[560:].with_columns(dropped_by=pl.lit("size")).drop("position")
    storage.write_table(filtered.path("dropped/00000.parquet"), dropped.to_arrow())
    parts.append(filtered.describe("dropped/00000.parquet", len(dropped)))
    filtered.commit(parts, counts={"pairs": ROWS, "kept": 560, "train": 480, "held": 80}, dropped={"size": 40})
    shown = [{"image": key_of(GONE[0]), "caption": "第17张"}, {"caption": "第102张"}]
    storage.write_json(f"{root}/runs/a/examples.json", shown)
    return root


def take_down(root: str, urls: Sequence[str] = GONE) -> None:
    listed = Path(storage.filesystem(root)[1]).with_name("list.txt")
    listed.write_text("\n".join(urls))
    takedown.carry_out(root, takedown_plan.plan(root, storage.from_path(listed), "case 1", NOW))


def files_below(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".partial"):
        data = path.read_bytes()
        if path.name == "manifest.json":
            data = json.dumps(json.loads(data) | {"provenance": {}}).encode()
        if path.parent.name != "takedowns" and path.name not in (previous.INDEX, lookup.PATH):
            found[str(path.relative_to(folder))] = data
    return found


def named(root: str) -> set[str]:
    """The URIs, without a suffix, of the parts and shards that the indexes name."""
    keys = sorted(key_of(url) for url in GONE)
    return {
        storage.join(stage.uri, path).removesuffix(".parquet")
        for stage in takedown_plan.stages_at(root)
        for path in located.tables(stage, keys)
    }


def folder_of(root: str) -> Path:
    return Path(storage.filesystem(root)[1])


def test_what_is_not_named_is_not_needed(root: str, tmp_path: Path) -> None:
    named_files = named(root)
    assert len(named_files) <= 2 * len(GONE) * 2 + 3
    whole = tmp_path / "whole"
    shutil.copytree(folder_of(root), whole)
    take_down(root)
    others = [
        path
        for path in whole.rglob("*")
        if path.suffix in (".tar", ".parquet")
        and path.parent.name in ("parts", "train", "held")
        and storage.from_path(folder_of(root) / path.relative_to(whole)).rpartition(".")[0] not in named_files
    ]
    assert len(others) > 300
    kept = files_below(folder_of(root))
    for path in others:
        kept.pop(str(path.relative_to(whole)))
        path.unlink()
    shutil.rmtree(folder_of(root))
    shutil.move(whole, folder_of(root))
    take_down(root)
    assert files_below(folder_of(root)) == kept


def test_it_does_what_it_does_without_indexes(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whether others have a caption is read of all tables, but only if something shows it that does not go anyway.
    storage.write_json(f"{root}/runs/a/examples.json", [{"caption": "第101张"}, {"caption": "第102张"}])
    shutil.copytree(folder_of(root), tmp_path / "whole")
    take_down(root)
    with_indexes = files_below(folder_of(root))
    assert storage.read_json(f"{root}/runs/a/examples.json") == [{"caption": "第102张"}]
    for stage in takedown_plan.stages_at(root):
        for part in stage.parts:
            assert manifest.describe(stage.uri, part.path, part.rows) == part
    shutil.rmtree(folder_of(root))
    shutil.move(tmp_path / "whole", folder_of(root))
    monkeypatch.setattr(located, "_parts", lambda crawl, _: crawl.parts.below("parts/", ".parquet").paths)
    monkeypatch.setattr(lookup, "tables", lambda filtered, _: filtered.parts.below(suffix=".parquet").paths)
    before = files_below(folder_of(root))
    take_down(root)
    without = files_below(folder_of(root))
    assert without == with_indexes
    assert len([name for name in without if without[name] != before[name]]) >= 2 * 2 * len(GONE)


def test_requests_grow_with_the_named_parts(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Counter[str] = Counter()
    for name in (
        "read_with",
        "read_bytes",
        "exists",
        "list_names",
        "list_files",
        "open_input",
        "open_output",
        "delete",
    ):
        original = getattr(storage, name)

        def counted(uri: str, *rest: object, _original=original):
            asked[uri] += 1
            return _original(uri, *rest)

        monkeypatch.setattr(storage, name, counted)
    named_files = named(root)
    asked.clear()
    take_down(root)
    parts = {uri: n for uri, n in asked.items() if "/parts/" in uri or "/train/" in uri or "/held/" in uri}
    assert {uri.rpartition(".")[0] for uri in parts} <= named_files
    assert max(parts.values()) <= 6
    assert sum(asked.values()) - sum(parts.values()) < 160


def test_no_file_is_read_while_another_worker_replaces_it(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys that go begin a part and end another, so the index of the crawl changes with the parts."""
    used: dict[str, set[str]] = {"read": set(), "written": set()}
    names = {"read": ("read_with", "read_bytes", "open_input"), "written": ("open_output", "write_bytes")}
    for kind, name in ((kind, name) for kind, some in names.items() for name in some):
        original = getattr(storage, name)

        def noted(uri: str, *rest: Any, _original: Any = original, _kind: str = kind, **named: Any) -> Any:
            used[_kind].add(uri)
            return _original(uri, *rest, **named)

        monkeypatch.setattr(storage, name, noted)
    replaced = []

    def one_after_another(what: str, items: Sequence[Any], work: Callable[[Any], Any], **_: Any) -> Iterator[Any]:
        of_items = []
        for item in items:
            used.update(read=set(), written=set())
            yield work(item)
            of_items.append((set(used["read"]), set(used["written"])))
        for number, (read, _written) in enumerate(of_items):
            for other, (_read, written) in enumerate(of_items):
                assert number == other or read.isdisjoint(written), f"{what}: {sorted(read & written)}"
        replaced.extend(uri for _read, written in of_items for uri in written)

    monkeypatch.setattr(takedown, "for_each", one_after_another)
    ordered = pairs()["url"]
    take_down(root, [ordered[0], ordered[2 * A_PART - 1], *GONE])
    (index,) = (uri for uri in replaced if uri.endswith(f"/{previous.INDEX}"))
    assert storage.read_table(index)["first_key"][0].as_py() == pairs()["key"][1]


def test_a_failed_crawl_whose_files_are_deleted_is_left(root: str) -> None:
    (crawl,) = (stage for stage in takedown_plan.stages_at(root) if stage.stage == "crawl")
    manifest.save(crawl, f"{crawl.uri}/{attempt.FAILED}")
    for name in ("manifest.json", "parts", "plan", "search"):
        storage.delete(f"{crawl.uri}/{name}")
    take_down(root)
    assert storage.exists(f"{crawl.uri}/{previous.INDEX}")


IN_PROCESSES = """
import sys
from datetime import datetime
from wukong.publish import parallel, takedown, takedown_plan
if __name__ == "__main__":
    place, listed, now = sys.argv[1:]
    parallel.FEW = 3
    takedown.carry_out(place, takedown.pending(place) or takedown_plan.plan(
        place, listed, "case 1", datetime.fromisoformat(now)))
"""


@pytest.mark.long
def test_in_processes_it_writes_the_same_also_when_it_is_killed(root: str, tmp_path: Path) -> None:
    pristine, folder = tmp_path / "pristine", folder_of(root)
    shutil.copytree(folder, pristine)
    take_down(root)
    in_threads = files_below(folder)
    shutil.rmtree(folder)
    shutil.move(pristine, folder)
    before = files_below(folder)
    script = tmp_path / "takedown.py"
    script.write_text(IN_PROCESSES)
    listed = storage.from_path(folder.with_name("list.txt"))
    command = [sys.executable, str(script), root, listed, NOW.isoformat()]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[3])
    changed = [name for name in before if name.endswith(".parquet") and before[name] != in_threads[name]]
    while all((folder / name).read_bytes() == before[name] for name in changed):
        assert process.poll() is None
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert takedown.pending(root) is not None
    assert files_below(folder) != in_threads
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert workers and not alive, "the workers of a takedown that is gone have ended"
    subprocess.run(command, cwd=Path(__file__).parents[3], check=True)
    assert files_below(folder) == in_threads


def test_manifests_with_tables_are_rewritten_alike_and_a_killed_takedown_goes_on(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "_THREADS", 1)
    pristine, folder = tmp_path / "pristine", folder_of(root)
    shutil.copytree(folder, pristine)
    take_down(root)
    in_json = takedown_plan.stages_at(root)

    def again() -> None:
        shutil.rmtree(folder)
        shutil.copytree(pristine, folder)

    again()
    monkeypatch.setattr(manifest, "MOST_IN_JSON", 20)
    for stage in takedown_plan.stages_at(root):
        manifest.save(stage, f"{stage.uri}/manifest.json")
    shutil.rmtree(pristine)
    shutil.copytree(folder, pristine)
    written: list[str] = []
    dies_at: list[int] = []
    original = storage.open_output

    def dying(uri: str):
        if dies_at == [len(written)]:
            raise KeyboardInterrupt
        written.append(uri)
        return original(uri)

    monkeypatch.setattr(storage, "open_output", dying)
    take_down(root)
    assert takedown_plan.stages_at(root) == in_json
    for stage in in_json:
        assert "parts_table" in storage.read_json(f"{stage.uri}/manifest.json")
        assert len([name for name in storage.list_names(stage.uri) if name.startswith("manifest-")]) == 1
    undisturbed, writes = files_below(folder), len(written)
    for write_number in range(writes - 6, writes):  # among the manifests and their tables
        again()
        written.clear()
        dies_at[:] = [write_number]
        with pytest.raises(KeyboardInterrupt):
            take_down(root)
        dies_at.clear()
        takedown.carry_out(root, takedown.pending(root))
        assert files_below(folder) == undisturbed
