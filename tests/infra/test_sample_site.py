"""Two runs at a time with different samples of the demo corpus: each has its own site, query list and crawl."""

import json
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

import psutil
import pytest
from PIL import Image

from infra import corpus, stack
from infra.corpus import Corpus, catalogue
from infra.stack import processes, services
from infra.stack.state import Stack, folder_id
from wukong.config import documents
from wukong.crawl.addresses import ConnectTo
from wukong.crawl.attempt import identity

ENDPOINT = f"http://{corpus.HOST}/search/acjson"


def sample(folder: Path, *titles: str) -> Corpus:
    folder.mkdir(exist_ok=True)
    entries = []
    for number, title in enumerate(titles):
        Image.new("RGB", (300, 300), "red").save(folder / f"{number}.png")
        entry = corpus.Entry("noto", f"/noto/{title}.png", f"{number}.png", title, (), "MIT", 300, 300, "image/png")
        entries.append(entry)
    return corpus.load(catalogue._write(entries, folder))


@pytest.fixture
def held(tmp_path: Path) -> Stack:
    return Stack(tmp_path / "home", "a", "b", "c", {})


def found(connect_to: str, word: str) -> int:
    """The number of images that a run's site finds."""
    address, port = ConnectTo.parse(connect_to).targets[corpus.HOST]
    query = urllib.parse.urlencode({"word": word, "pn": 0, "rn": 30})
    with urllib.request.urlopen(f"http://{address}:{port}/search/acjson/sample?{query}", timeout=60) as answer:
        return int(json.loads(answer.read())["displayNum"])


@pytest.mark.long
def test_two_sites_at_a_time_serve_their_own_samples(held: Stack, tmp_path: Path) -> None:
    small, large = sample(tmp_path / "s", "红色"), sample(tmp_path / "l", "红色", "红色的花", "红色的山")
    with stack.sample_site(held, small.catalogue) as first, stack.sample_site(held, large.catalogue) as second:
        assert [found(first, "红色"), found(second, "红色"), found(first, "红色")] == [1, 3, 1]
        marked = processes.find(folder_id(held.home), services.scratch(held.home))
        assert [each.service for each in marked] == ["sample", "sample"], "`wukong down` finds them"
        # The stack's entry for the host and the run's entry, joined as in `wukong run`.
        assert found(f"{corpus.HOST}=127.0.0.1:9,other.test=127.0.0.1:8,{first}", "红色") == 1
    assert processes.find(folder_id(held.home), services.scratch(held.home)) == []


@pytest.mark.long
def test_a_site_whose_run_was_killed_ends(held: Stack, tmp_path: Path) -> None:
    made = sample(tmp_path / "s", "红色")
    code = (
        "import os, signal, sys; from pathlib import Path; from infra import stack;\n"
        "from infra.stack.state import Stack\n"
        "with stack.sample_site(Stack(Path(sys.argv[1]), 'a', 'b', 'c', {}), Path(sys.argv[2]), 3):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(held.home), str(made.catalogue)], check=False)
    assert ended.returncode == -signal.SIGKILL
    left = [each.process for each in processes.find(folder_id(held.home), services.scratch(held.home))]
    assert len(left) == 1, "it outlives the run a little, so that what still crawls finds no broken links"
    assert psutil.wait_procs(left, timeout=120)[1] == []


def test_samples_share_neither_list_nor_crawl(tmp_path: Path) -> None:
    whole = documents.parse({"name": "x", "crawl": {"queries": "s3://b/demo/queries.txt", "endpoint": ENDPOINT}})
    samples = [sample(tmp_path / "s", "红色"), sample(tmp_path / "l", "红色", "红色的花")]
    runs = [corpus.of_sample(whole, each) for each in samples]
    assert len({each.crawl.queries for each in (whole, *runs)}) == 3
    assert all(each.crawl.queries.startswith("s3://b/demo/queries-") for each in runs)
    assert all(corpus.serves(each.crawl.endpoint) for each in runs)
    same_words = [identity(each.crawl, ["红"]) for each in (whole, *runs)]
    assert all(same_words.count(each) == 1 for each in same_words)
    again = corpus.of_sample(whole, sample(tmp_path / "s", "红色"))
    assert again == runs[0], "the same sample gives the same experiment, and finds its crawl again"


def test_a_query_list_without_suffix(tmp_path: Path) -> None:
    whole = documents.parse({"name": "x", "crawl": {"queries": "file:///a.b/queries", "endpoint": ENDPOINT}})
    made = corpus.of_sample(whole, sample(tmp_path / "s", "红色")).crawl.queries
    assert made.startswith("file:///a.b/queries-1-")


def test_a_stack_that_was_never_started_serves_nothing_else(tmp_path: Path) -> None:
    assert not stack.serves_another(tmp_path / "none", tmp_path / "catalogue.parquet")
    ports = dict.fromkeys(("s3", "mlflow", "ray", "site"), 1)
    Stack(tmp_path, "a", "b", "c", ports, tmp_path / "other.parquet").save()
    assert not stack.serves_another(tmp_path, tmp_path / "catalogue.parquet"), "it does not run"
