"""Releasing what the jobs made, and taking pairs out of all of it."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import polars as pl
import pytest
from crawled import complete, corpus, experiment
from english import english

from infra.stack import ports, processes, services
from infra.stack.state import Stack
from ray_jobs import filter as filter_job
from ray_jobs import validate as validate_job
from wukong.config import stored
from wukong.crawl.url import key_of
from wukong.errors import ConfigError, DataError
from wukong.publish import parallel, release, takedown, takedown_plan
from wukong.report.funnel import funnel
from wukong.store import manifest, storage, takedowns
from wukong.store.manifest import Stage

pytestmark = pytest.mark.usefixtures("local_ray")

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
ROWS = [{**row, "url": str(row["url"]).replace("http://x/", "http://img.example.com/")} for row in corpus()]
ROWS += [{"url": f"https://photos.elsewhere.org:8443/{n}.jpg", "caption": f"{n}号摄影棚的花"} for n in range(1, 6)]
GONE_URL = "http://img.example.com/noto/50.png"
GONE_DIGEST = complete({"url": "http://img.example.com/noto/51.png", "caption": ""})["sha256"]
DROPPED_URL = "http://img.example.com/noto/english"
FAILED_URL = "http://img.example.com/noto/gone"
LIST = f"# requests\nELSEWHERE.org\n{GONE_URL}#top\n{GONE_DIGEST}\n{DROPPED_URL}\n{FAILED_URL}\n"
GONE = {GONE_URL, "http://img.example.com/noto/51.png", DROPPED_URL, FAILED_URL,
        *(str(row["url"]) for row in ROWS if "elsewhere" in str(row["url"]))}  # fmt: skip


def settings(tmp_path, **values):
    e = experiment(tmp_path)
    update = {"release": e.release.model_copy(update={"files": 4} | values), "about": "动物的名字"}
    return e.model_copy(update=update | {"validation": e.validation.model_copy(update={"min_pairs": 50})})


@pytest.fixture(scope="module")
def made(tmp_path_factory, local_ray):
    """A crawl, filtered, validated and released, in a folder that ``restored`` puts back into this state."""
    folder = tmp_path_factory.mktemp("released")
    e = settings(folder)
    crawl = make_crawl_with_a_plan(e)
    filtered = filter_job.run(e, {"crawl": crawl})
    validated = validate_job.run(e, {"filter": filtered})
    released = release.release(e, validated)
    listed = folder / "requests.txt"
    listed.write_text(LIST, encoding="utf-8")
    shutil.copytree(folder / "store", folder / "pristine")
    return e, validated, released, storage.from_path(listed), folder


@pytest.fixture
def restored(made):
    *_, folder = made
    shutil.rmtree(folder / "store")
    shutil.copytree(folder / "pristine", folder / "store")
    return made


def make_crawl_with_a_plan(e):
    from crawled import picture_of

    from wukong.crawl.part_writer import Spool, write_part

    stage, size, parts = Stage(e.root, "crawl", {}), 40, []
    rows = [complete(row) for row in ROWS]
    for number, start in enumerate(range(0, len(rows), size)):
        some, name = rows[start : start + size], f"parts/{number:05d}"
        with Spool() as pictures:
            success = [row for row in some if row["status"] == "success"]
            for row in success:
                pictures.add(row["key"], picture_of(row))
            write_part(stage.path(name), some, pictures)
        parts += [stage.describe(f"{name}.tar", len(success)), stage.describe(f"{name}.parquet", len(some))]
    for path in ("search/00000.parquet", "plan/00000.parquet"):
        storage.write_table(stage.path(path), pl.DataFrame(rows).select("key", "url", "caption").to_arrow())
    parts.append(stage.describe("search/00000.parquet", 0))
    failed = sum(row["status"] != "success" for row in rows)
    counts = {"results": len(rows), "urls": len(rows), "success": len(rows) - failed, "http_error": failed}
    return stage.commit(parts, counts=counts, dropped={"http_error": failed})


@contextmanager
def dying_at(write, monkeypatch):
    """Let the process "die" before the given number of files is written; gives a list of what was written."""
    written, original = [], storage.open_output

    @contextmanager
    def open_output(uri):
        if len(written) == write:
            raise KeyboardInterrupt
        with original(uri) as stream:
            yield stream
        written.append(uri)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "open_output", open_output)
        yield written


def files_below(folder):
    """All bytes, but for what says when, where and by which revision something was made."""
    found = {}
    for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
        data = path.read_bytes()
        if path.name == "manifest.json":
            data = json.dumps(json.loads(data) | {"provenance": {}}).encode()
        found[str(path.relative_to(folder))] = data
    return found


def rows_of(released):
    uris = released.part_uris(suffix=".csv")
    return [list(csv.DictReader(io.StringIO(storage.read_bytes(uri).decode(), newline=""))) for uri in uris]


def check_manifest(found):
    for part in found.parts:
        uri = storage.join(found.uri, part.path)
        assert manifest.describe(found.uri, part.path, part.rows) == part
        if part.path.endswith(".parquet") and part.rows:
            assert storage.read_table(uri).num_rows == part.rows
        if part.path.endswith(".tar"):
            with tarfile.open(fileobj=io.BytesIO(storage.read_bytes(uri))) as tar:
                assert sum(name.endswith(".jpg") for name in tar.getnames()) == part.rows


def test_a_release_is_the_training_pairs_as_csv(made):
    _, _, released, *_ = made
    tables = rows_of(released)
    assert len(tables) == 4
    assert max(map(len, tables)) - min(map(len, tables)) <= 1
    filtered = manifest.load(released.parents[0].uri)
    shards = pl.concat([pl.DataFrame(storage.read_table(uri)) for uri in filtered.part_uris("train/", ".parquet")])
    assert [(row["url"], row["caption"]) for rows in tables for row in rows] == shards.select("url", "caption").rows()
    assert released.counts["pairs"] == filtered.counts["train"]
    assert any("<人名>" in row["caption"] for rows in tables for row in rows)
    card = storage.read_bytes(f"{released.uri}/docs/card.html").decode()
    assert f"{released.counts['pairs']:,}" in card
    assert len(re.findall("data-key", card)) == 48


def test_its_checksums_and_its_description_are_true(made):
    _, _, released, *_ = made
    folder = storage.filesystem(released.uri)[1]
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    described = json.loads(Path(folder, "croissant.json").read_text())
    listed = {entry["contentUrl"]: entry["sha256"] for entry in described["distribution"] if "sha256" in entry}
    assert listed == {part.path: part.sha256 for part in released.parts if part.path.endswith(".csv")}
    assert len(listed) == 4
    check_manifest(released)


def shown_blurred(uri):
    page = storage.read_bytes(f"{uri}/docs/card.html").decode()
    pairs, _, blurred = page.partition('<div class="sheet blurred">')
    return set(re.findall('data-key="(.+?)"', pairs)), set(re.findall('data-key="(.+?)"', blurred))


def test_the_gates_card_shows_dropped_pictures_blurred_and_the_released_one_if_asked(made):
    e, validated, released, listed, _ = made
    filtered = release.filtered_of(validated)
    dropped = pl.concat([pl.DataFrame(storage.read_table(uri)) for uri in filtered.part_uris("dropped/", ".parquet")])
    by_rule = dropped.filter(pl.col("dropped_by") != "held_back")
    gates = shown_blurred(validated.uri)[1]
    assert gates and gates <= set(by_rule["key"])
    assert len(gates) == min(20, len(by_rule))
    assert shown_blurred(released.uri)[1] == set()
    asked = e.model_copy(update={"release": e.release.model_copy(update={"show_dropped": True, "opt_out": listed})})
    shown = shown_blurred(release.release(asked, validated).uri)[1]
    gone = {key_of(url) for url in GONE}
    assert gates & gone and shown and not shown & gone
    counts = storage.read_json(f"{validated.uri}/removed.json")
    sensitive = by_rule.filter(dropped_by="sensitive")
    assert sum(counts["kinds"]["sensitive"].values()) == len(sensitive) > 0


def test_the_domains_of_a_release_are_those_of_its_pairs(made):
    _, _, released, *_ = made
    hosts = Counter(urlsplit(row["url"]).hostname for rows in rows_of(released) for row in rows)
    told = storage.read_bytes(f"{released.uri}/docs/domains.tsv").decode().splitlines()
    host, pairs, _ = told[1].split("\t")
    assert len(told) == 2 and int(pairs) == hosts[host] == max(hosts.values())
    summary = english(storage.read_bytes(f"{released.uri}/docs/training_summary.html").decode())
    assert f"are of {len(hosts)} domains" in summary and "Listed are the 1 with" in summary
    assert not storage.list_files(f"{released.uri}/_work")


def test_what_is_listed_is_left_out_and_out_of_the_numbers_and_pictures(made, tmp_path):
    e, validated, whole, listed, _ = made
    e = e.model_copy(update={"release": e.release.model_copy(update={"opt_out": listed, "files": 3})})
    released = release.release(e, validated)
    before = {row["url"] for rows in rows_of(whole) for row in rows}
    after = {row["url"] for rows in rows_of(released) for row in rows}
    assert before - after == before & GONE
    assert len(before & GONE) >= 6
    assert released.dropped == {"opted_out": len(before & GONE)}
    card = storage.read_bytes(f"{released.uri}/docs/card.html").decode()
    assert f"−{len(before & GONE)}" in card
    assert not {key_of(url) for url in GONE} & set(re.findall('data-key="(.+?)"', card))
    assert release.release(e, validated) == released


def test_a_killed_release_goes_on_to_the_same_bytes(restored, monkeypatch):
    e, validated, _, listed, folder = restored
    e = e.model_copy(update={"release": e.release.model_copy(update={"opt_out": listed})})
    monkeypatch.setattr(parallel, "_THREADS", 1)
    with dying_at(-1, monkeypatch) as written:
        release.release(e, validated)
    undisturbed = files_below(folder / "store")
    for write in range(0, len(written), 2):
        shutil.rmtree(folder / "store")
        shutil.copytree(folder / "pristine", folder / "store")
        with dying_at(write, monkeypatch), pytest.raises(KeyboardInterrupt):
            release.release(e, validated)
        release.release(e, validated)
        assert files_below(folder / "store") == undisturbed


def test_by_default_a_small_set_has_as_many_files_as_pairs(restored, tmp_path):
    _, validated, whole, *_ = restored
    released = release.release(settings(tmp_path, files=None), validated)
    tables = [part for part in released.parts if part.path.endswith(".csv") and "-of-" in part.path]
    pairs = whole.counts["pairs"]
    assert pairs < 256
    assert [part.rows for part in tables] == [1] * pairs
    assert tables[-1].path == f"test-{pairs - 1:05d}-of-{pairs:05d}.csv"
    as_before = settings(tmp_path, files=256)
    with pytest.raises(ConfigError, match=f"256, but there are only {pairs} pairs"):
        release.release(as_before.model_copy(update={"about": "another"}), validated)


def test_what_cannot_be_released_is_explained(restored, tmp_path):
    e, validated, *_ = restored
    with pytest.raises(ConfigError, match="ask for fewer files"):
        release.release(settings(tmp_path, files=100_000), validated)
    everything = tmp_path / "all.txt"
    everything.write_text("example.com\nelsewhere.org\n")
    with pytest.raises(DataError, match="nothing is left to release"):
        release.release(settings(tmp_path, opt_out=storage.from_path(everything)), validated)
    filtered = release.filtered_of(validated)
    changed = filtered.model_copy(update={"counts": {}})
    storage.write_json(f"{filtered.uri}/manifest.json", changed.model_dump(mode="json"))
    with pytest.raises(DataError, match="validate it again"):
        release.release(e, validated)


def test_a_takedown_leaves_everything_as_if_the_pairs_had_never_been_there(restored):
    e, _, _, listed, folder = restored
    before = {found.stage: found for found in takedown_plan.stages_at(e.root)}
    for computed, parent in ("look", "crawl"), ("features", "filter"):
        stage = Stage(e.root, computed, {}, [before[parent]])
        storage.write_bytes(stage.path("parts/00000"), b"of pictures")
        stage.commit([stage.describe("parts/00000")])
    record = takedown.carry_out(e.root, takedown_plan.plan(e.root, listed, "case 1", NOW))
    after = {found.stage: found for found in takedown_plan.stages_at(e.root)}
    assert not storage.list_files(f"{e.root}/look") + storage.list_files(f"{e.root}/features")
    assert set(record["keys"]) == {key_of(url) for url in GONE}
    for name, found in after.items():
        check_manifest(found)
        told = next(entry for entry in record["stages"] if entry["stage"] == name)
        assert (told["digest_before"], told["digest_after"]) == (before[name].digest, found.digest)
        for parent in found.parents:
            assert parent.digest == after[parent.stage].digest
    # Nothing of them is left but their hashes, and of the others every byte is.
    for path in (folder / "store").rglob("*"):
        if path.is_file():
            text = (
                str(pl.read_parquet(path).to_dicts())
                if path.suffix == ".parquet"
                else path.read_bytes().decode("latin-1")
            )
            assert not [url for url in GONE if f"{url}'" in text or f'{url}"' in text or f"{url}," in text], path
    for uri in after["crawl"].part_uris(suffix=".tar") + after["filter"].part_uris(suffix=".tar"):
        assert members_of(uri) == {
            name: data
            for name, data in members_of(uri.replace("/store/", "/pristine/")).items()
            if name.rsplit(".", 1)[0] not in record["keys"]
        }
    # The same filter over a crawl that never had them keeps the same pairs.
    again = filter_job.run(e, {"crawl": after["crawl"]})
    assert again.counts == after["filter"].counts
    assert {k: v for k, v in after["filter"].dropped.items() if k != "taken_down"} == again.dropped
    assert keys_of(again) == keys_of(after["filter"])
    steps = funnel(after["crawl"], after["filter"])
    assert [step.rows for step in steps] == [step.rows for step in funnel(after["crawl"], again)]
    folder = storage.filesystem(after["release"].uri)[1]
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    assert f"takedowns/{record['id']}.json" in Path(folder, "SHA256SUMS").read_text()
    assert takedown_plan.plan(e.root, listed, "again", NOW).keys == ()


SAMPLE = {"key": key_of(GONE_URL), "caption": "x"}
OTHER = {"key": "0" * 20, "caption": "y"}


@pytest.mark.parametrize(
    ("samples", "unexpected", "left", "docs_stay"),
    [
        ([], 0, [], True),
        ([OTHER], 1, [OTHER], True),
        ([OTHER], 9, [OTHER], False),  # the data docs may show rows that the results do not list
        ([OTHER, SAMPLE], 2, [OTHER], False),
    ],
)
def test_data_docs_that_may_show_the_pairs_go_and_so_does_the_link_to_them(
    restored, samples, unexpected, left, docs_stay
):
    e, _, _, listed, _ = restored
    (validated,) = (found for found in takedown_plan.stages_at(e.root) if found.stage == "validate")
    results = storage.read_json(f"{validated.uri}/results.json")
    for outcome in results["expectations"]:
        outcome |= {"samples": [], "unexpected": 0}
    results["expectations"][0] |= {"samples": samples, "unexpected": unexpected}
    storage.write_json(f"{validated.uri}/results.json", results)
    takedown.carry_out(e.root, takedown_plan.plan(e.root, listed, "case 1", NOW))
    assert storage.read_json(f"{validated.uri}/results.json")["expectations"][0]["samples"] == left
    pages = {uri.removeprefix(f"{validated.uri}/docs/") for uri in storage.list_files(f"{validated.uri}/docs")}
    assert ("index.html" in pages) == docs_stay
    assert docs_stay or pages == {"card.html"}
    page = storage.read_bytes(f"{validated.uri}/docs/card.html").decode()
    assert ('href="index.html"' in page) == docs_stay
    assert not {key_of(url) for url in GONE} & set(re.findall('data-key="(.+?)"', page))
    (found,) = (found for found in takedown_plan.stages_at(e.root) if found.stage == "validate")
    described = {part.path: part for part in found.parts}["docs/card.html"]
    assert manifest.describe(found.uri, "docs/card.html") == described


def test_a_card_whose_data_were_not_stored_goes_whole(restored):
    e, _, _, listed, _ = restored
    stages = {found.stage: found for found in takedown_plan.stages_at(e.root)}
    for name in ("validate", "release"):
        storage.delete(f"{stages[name].uri}/card.json")
    takedown.carry_out(e.root, takedown_plan.plan(e.root, listed, "case 1", NOW))
    after = {found.stage: found for found in takedown_plan.stages_at(e.root)}
    for name in ("validate", "release"):
        assert not storage.exists(f"{after[name].uri}/docs/card.html")
        assert {part.path for part in stages[name].parts} - {part.path for part in after[name].parts} == {
            "docs/card.html"
        }
        check_manifest(after[name])
    folder = storage.filesystem(after["release"].uri)[1]
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder, check=True)


def members_of(uri):
    with tarfile.open(fileobj=io.BytesIO(storage.read_bytes(uri))) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def keys_of(filtered):
    uris = filtered.part_uris(suffix=".parquet")
    return {(uri.rsplit("/", 2)[1], key) for uri in uris for key in storage.read_table(uri, ["key"])["key"].to_pylist()}


@pytest.mark.long
def test_a_takedown_killed_at_any_write_ends_at_the_same_bytes(restored, monkeypatch):
    e, *_, listed, folder = restored
    monkeypatch.setattr(parallel, "_THREADS", 1)
    with dying_at(-1, monkeypatch) as written:
        takedown.carry_out(e.root, takedown_plan.plan(e.root, listed, "case 1", NOW))
    undisturbed = files_below(folder / "store")
    assert len(written) > 20
    for write in range(len(written)):
        shutil.rmtree(folder / "store")
        shutil.copytree(folder / "pristine", folder / "store")
        with dying_at(write, monkeypatch), pytest.raises(KeyboardInterrupt):
            takedown.carry_out(e.root, takedown_plan.plan(e.root, listed, "case 1", NOW))
        begun = takedown.pending(e.root)
        assert (begun is None) == (write <= 1)  # the mark is written before the plan
        takedown.carry_out(e.root, begun or takedown_plan.plan(e.root, listed, "case 1", NOW))
        assert files_below(folder / "store") == undisturbed, written[write]


@pytest.fixture(scope="module")
def object_store(tmp_path_factory):
    """The embedded stack's object store, by itself; the environment names it."""
    home = tmp_path_factory.mktemp("home")
    new = Stack.load_or_new(home)
    stack = new.with_changes(ports=ports.choose_ports(new, (), {}))
    try:
        services.start(stack, [services.ObjectStore()])
        with pytest.MonkeyPatch.context() as patch:
            for name, value in stack.environment().items():
                if name.startswith("AWS_"):
                    patch.setenv(name, value)
            yield "s3://wukong"
    finally:
        processes.stop(lambda: processes.find(stack.identity, services.scratch(home)))


def objects_below(root):
    found = {}
    for uri in storage.list_files(root):
        data = storage.read_bytes(uri)
        if uri.endswith("manifest.json"):
            data = json.dumps(json.loads(data) | {"provenance": {}}).encode()
        found[uri.removeprefix(f"{root}/")] = data
    return found


KILLED = """
import os, signal, sys
from contextlib import contextmanager
from datetime import datetime
from wukong.store import storage
from wukong.publish import takedown, takedown_plan
place, listed, now, writes = sys.argv[1:]
original, begun = storage.open_output, []

@contextmanager
def open_output(uri):
    begun.append(uri)
    with original(uri) as stream:
        yield stream
        if len(begun) > int(writes):
            os.kill(os.getpid(), signal.SIGKILL)

storage.open_output = open_output
planned = takedown.pending(place) or takedown_plan.plan(place, listed, "case 1", datetime.fromisoformat(now))
takedown.carry_out(place, planned)
"""


@pytest.mark.long
def test_a_takedown_in_an_object_store_killed_twice_ends_at_the_same_bytes(restored, object_store):
    e, *_, listed, folder = restored
    place = f"{object_store}/store/{e.name}"

    def put():
        for path in sorted((folder / "pristine").rglob("*")):
            if path.is_file():
                data = path.read_bytes()
                if path.name == "manifest.json":
                    data = data.replace(e.root.encode(), place.encode())
                storage.write_bytes(f"{object_store}/store/{path.relative_to(folder / 'pristine')}", data)

    put()
    takedown.carry_out(place, takedown_plan.plan(place, listed, "case 1", NOW))
    undisturbed = objects_below(place)
    for found in takedown_plan.stages_at(place):
        check_manifest(found)
    storage.delete(f"{object_store}/store")

    put()
    files = sum(len(change.files) for change in takedown_plan.plan(place, listed, "case 1", NOW).changes)
    code = [sys.executable, "-c", KILLED, place, listed, NOW.isoformat()]
    for writes in (files // 2, files + 2):  # among the files; among the manifests
        done = subprocess.run([*code, str(writes)], env=os.environ, cwd=Path(__file__).parents[2], check=False)
        assert done.returncode == -signal.SIGKILL
        assert takedown.pending(place) is not None
        assert objects_below(place) != undisturbed
    takedown.carry_out(place, takedown.pending(place))
    assert objects_below(place) == undisturbed

    # And what lies in an object store is what would lie in a folder.
    takedown.carry_out(e.root, takedown_plan.plan(e.root, listed, "case 1", NOW))
    data = (".parquet", ".tar", ".csv", ".html")
    assert {name: value for name, value in undisturbed.items() if name.endswith(data)} == {
        name: value for name, value in files_below(storage.filesystem(e.root)[1]).items() if name.endswith(data)
    }


@pytest.mark.long
def test_the_command_takes_pairs_out_of_a_set_published_in_an_object_store(restored, object_store, tmp_path):
    from typer.testing import CliRunner

    from cli.main import app
    from wukong.runs import run_records
    from wukong.runs.run_records import Record

    e, validated, released, *_ = restored
    config_file, public = tmp_path / "e.yaml", f"{object_store}/public"
    config_file.write_text(e.model_dump_json())
    run_records.claim(e, "r")
    run_records.write(e, "r", Record(stage="validate", state="succeeded", manifest=f"{validated.uri}/manifest.json"))
    urls = tmp_path / "urls.txt"
    urls.write_text(f"{GONE_URL}\nelsewhere.org\n")
    for command in (["release", "--output", public], ["takedown", str(urls), "--reason", "case 3", "--at", public]):
        result = CliRunner().invoke(app, [*command, "--config", str(config_file)])
        assert result.exit_code == 0, result.output
    check_manifest(manifest.load(public).model_copy(update={"uri": public}))
    left = {row["url"] for uri in storage.list_files(public, ".csv") for row in release.read_csv(uri).to_dicts()}
    before = {row["url"] for rows in rows_of(released) for row in rows}
    assert before - left == {url for url in before if url == GONE_URL or "elsewhere.org" in url}
    assert len(before - left) >= 5
    folder = tmp_path / "copy"
    for uri in storage.list_files(public):
        storage.download(uri, folder, uri.removeprefix(f"{public}/"))
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder, check=True)


def test_a_copy_of_a_release_alone_can_be_taken_down_from(restored, tmp_path):
    _, _, released, _, _ = restored
    copy = tmp_path / "copy"
    shutil.copytree(storage.filesystem(released.uri)[1], copy)
    urls = tmp_path / "urls.txt"
    urls.write_text(f"{GONE_URL}\n")
    record = takedown.carry_out(
        storage.from_path(copy), takedown_plan.plan(storage.from_path(copy), storage.from_path(urls), "", NOW)
    )
    assert record["keys"] == [key_of(GONE_URL)]
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=copy, check=True)
    assert GONE_URL not in "".join(path.read_text() for path in copy.glob("*.csv"))
    assert GONE_URL in "".join(storage.read_bytes(uri).decode() for uri in released.part_uris(suffix=".csv"))
    assert json.loads((copy / "takedowns" / f"{record['id']}.json").read_text())["keys"] == record["keys"]
    urls.write_text(f"{GONE_DIGEST}\n")
    with pytest.raises(ConfigError, match="no shards to find them by"):
        takedown_plan.plan(storage.from_path(copy), storage.from_path(urls), "", NOW)
    with pytest.raises(DataError, match="neither a release"):
        takedown_plan.plan(storage.from_path(tmp_path / "nothing"), storage.from_path(urls), "", NOW)


def test_the_components_hand_on_the_release_and_show_the_card(restored, tmp_path, monkeypatch):
    from kfp import dsl

    from components.functions import data_card
    from components.functions import release as component

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    e, validated, released, *_ = restored
    filtered = release.filtered_of(validated)
    chain = {"crawl": manifest.load(filtered.parents[0].uri), "filter": filtered, "validate": validated}
    handed = {name: tmp_path / f"{name}.json" for name in chain}
    for name, path in handed.items():
        path.write_text(chain[name].model_dump_json())

    def artifact(kind, path):
        return kind(name="a", uri=str(path))

    inputs = {f"{name}_manifest": artifact(dsl.Artifact, path) for name, path in handed.items()}
    page, card = artifact(dsl.Markdown, tmp_path / "page.md"), artifact(dsl.HTML, tmp_path / "card.html")
    data_card.python_func(**inputs, page=page, metrics=artifact(dsl.Metrics, tmp_path / "m"), card=card)
    assert "101,483,885" in (tmp_path / "card.html").read_text()
    out = artifact(dsl.Artifact, tmp_path / "released.json")
    component.python_func(stored.store(e), "run-1", inputs["validate_manifest"], out)
    assert manifest.Manifest.model_validate_json((tmp_path / "released.json").read_text()).digest == released.digest
    assert storage.read_json(f"{e.root}/runs/run-1/release.json")["state"] == "succeeded"


def test_the_command_releases_and_takes_down(restored, tmp_path):
    from typer.testing import CliRunner

    from cli.main import app
    from wukong.runs import run_records
    from wukong.runs.run_records import Record

    e, validated, _, listed, _ = restored
    config_file = tmp_path / "e.yaml"
    config_file.write_text(e.model_dump_json())
    run_records.claim(e, "r")
    run_records.write(e, "r", Record(stage="validate", state="succeeded", manifest=f"{validated.uri}/manifest.json"))

    def call(*arguments):
        result = CliRunner().invoke(app, [*arguments, "--config", str(config_file)])
        assert result.exit_code == 0, result.output
        return result.output

    copy = tmp_path / "copy"
    assert "in 5 files" in call("release", "--files", "5", "--output", str(copy))
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=copy, check=True)
    path = storage.filesystem(listed)[1]
    before = files_below(storage.filesystem(e.root)[1])
    assert "Nothing was changed" in call("takedown", path, "--reason", "case 2", "--dry-run")
    assert files_below(storage.filesystem(e.root)[1]) == before
    begun = takedown_plan.plan(e.root, listed, "begun before", NOW)
    storage.write_json(f"{e.root}/takedowns/pending.json", begun.model_dump(mode="json"))
    output = call("takedown", path, "--reason", "case 2")
    assert "Finishing the takedown by requests.txt" in output
    assert "covers 0 URLs" in output
    assert storage.read_json(f"{e.root}/takedowns/{begun.id}.json")["reason"] == "begun before"
    assert not storage.exists(f"{e.root}/takedowns/pending.json")
    storage.write_json(f"{e.root}/takedowns/begun.json", {"when": "now"})  # of one that was killed at its last write
    assert "covers 0 URLs" in call("takedown", path, "--reason", "case 2")
    assert not takedowns.is_begun(e.root)
