"""Four people follow the pages from nothing, in one home: `make test-apart NAME=pages`, half an hour or more.

They type what the pages say, in a clone of their own, and see what the pages say that they see. A block is found by its
beginning, so a page that changes fails here until the people follow it. What they put for a placeholder is what the
commands before have printed.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAIRS = 430  # pictures that the researcher has

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(
        os.environ.get("WUKONG_APART") != "pages", reason="installs and trains: `make test-apart NAME=pages`"
    ),
]

_TAKE = """
import io, sys, tarfile
from itertools import islice
from pathlib import Path

from wukong.runtime import environment
from wukong.store import storage

uri, folder, most = sys.argv[1:]
environment.use_for(uri)
tars = (tarfile.open(fileobj=io.BytesIO(storage.read_bytes(tar))) for tar in storage.list_files(uri, ".tar"))
members = ((archive, member) for archive in tars for member in archive)
files = ((archive, member) for archive, member in members if member.name.endswith((".jpg", ".txt")))
for archive, member in islice(files, 2 * int(most)):
    Path(folder, Path(member.name).name).write_bytes(archive.extractfile(member).read())
"""


class Person:
    """Somebody with a clone, a home and a shell in which the clone's programs are found."""

    def __init__(self, folder: Path) -> None:
        self.clone, self.home = folder / "wukong", folder / "home"
        self.home.mkdir()
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(self.clone)], check=True)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("WUKONG_", "AWS_", "MLFLOW_"))}
        kept |= {"HOME": str(self.home), "PATH": f"{self.clone / '.venv' / 'bin'}:{os.environ['PATH']}"}
        # What pip and the corpus download is kept between people: the machine's own, not this project's.
        kept |= {"XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")), "COLUMNS": "200"}
        self.environment = {
            key: value for key, value in kept.items() if not key.startswith(("MAKE", "MFLAGS", "PYTHON"))
        }

    def types(self, text: str, status: int = 0) -> str:
        """Run shell commands; what they print."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.clone, env=self.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == status, f"{text}\n{done.stdout[-8000:]}\n{done.stderr[-8000:]}"
        return done.stdout

    def follows(self, page: str, beginning: str, *replaced: tuple[str, str], status: int = 0) -> str:
        """Execute the block of a page that begins so, with something else for what the page has only as an example."""
        tokens = MarkdownIt().parse((self.clone / page).read_text(encoding="utf-8"))
        blocks = [token for token in tokens if token.type == "fence" and token.content.startswith(beginning)]
        assert len(blocks) == 1, f"{page} has {len(blocks)} blocks that begin with {beginning!r}"
        text = blocks[0].content.removeprefix("$ ")
        for example, own in replaced:
            assert example in text, f"{page}: no {example!r} in the block {beginning!r}"
            text = text.replace(example, own)
        return self.types(f"python - <<'END'\n{text}\nEND" if blocks[0].info == "python" else text, status)

    def runs(self) -> list[str]:
        """Names of the runs, the newest first."""
        return [each["name"] for each in json.loads(self.types("wukong runs --json"))]


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    somebody = Person(tmp_path_factory.mktemp("person"))
    yield somebody
    if (somebody.clone / ".venv" / "bin" / "wukong").exists():
        somebody.types("wukong down")


def test_an_engineer_reads_the_readme_and_the_tutorial(person: Person) -> None:
    seen = person.types("make run")
    for words in ("From query to pair", "On held-out pairs", "Zero-shot classes", "holds @champion", "Report  "):
        assert words in seen
    assert "running" in person.follows("README.md", ".venv/bin/wukong status", ("\n.venv/bin/wukong down", "\n#"))
    listed = person.follows("docs/tutorial.md", ".venv/bin/wukong report")
    assert Path(listed.splitlines()[0]).is_file()
    assert "image tower" in person.follows("docs/tutorial.md", ".venv/bin/wukong show models:/demo@champion")
    changed = person.follows(
        "docs/tutorial.md", ".venv/bin/wukong run --config configs/demo.yaml --set finetune.epochs=6"
    )
    assert [
        stage for stage in ("crawl", "filter", "validate", "pretrain") if f"{stage} (reused)" in changed
    ].__len__() == 4
    assert "wukong compare" in changed
    _put_animals(person)
    assert "一只猫" in person.follows("docs/tutorial.md", "import wukong")


def test_a_developer_compares_and_promotes(person: Person) -> None:
    newest, first = person.runs()[:2]
    beginning = "wukong compare demo-20261101-090000"
    compared = person.follows(
        "docs/comparing.md", beginning, ("demo-20261101-090000", first), ("demo-20261102-090000", newest)
    )
    assert "finetune.epochs" in compared
    assert re.search("[▲▼≈]", compared)
    newest_model = json.loads(person.types("wukong models --json"))[0]["model"].removeprefix("models:/")
    forced = person.follows("docs/comparing.md", "wukong promote demo/7 --force", ("demo/7", newest_model))
    assert "champion" in forced
    assert "champion" in person.types('wukong rollback demo --reason "slower than allowed"')


def test_a_researcher_brings_pictures(person: Person) -> None:
    _put_pictures(person)
    (person.clone / "my.yaml").write_text("model: {text: {layers: 1}}\n", encoding="utf-8")
    given = "wukong run --data ~/pictures"
    seen = person.types(given)
    assert re.search(r"pictures downloaded +430", seen)
    assert "R@1" in seen
    assert "@champion" in seen
    assert "reused" in person.types(f"{given} --dry-run")
    changed = person.types(f"{given} --config my.yaml")
    assert "wukong compare" in changed
    assert "R@1" in changed
    person.follows("docs/own-data.md", "import wukong")


def test_an_operator_serves(person: Person) -> None:
    uri = _filtered(person)
    arguments = ["wukong", "serve", "--model", "models:/demo@champion", "--data", uri]
    with subprocess.Popen(arguments, cwd=person.clone, env=person.environment, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True) as server:  # fmt: skip
        assert server.stdout is not None
        address = next(found[0] for line in server.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        with urllib.request.urlopen(f"{address}/?q={quote('一只猫')}", timeout=60) as page:
            assert "一只猫" in page.read().decode()
        server.send_signal(signal.SIGINT)
        started = time.monotonic()
        server.communicate(timeout=60)
    assert server.returncode == 130
    assert time.monotonic() - started < 30
    assert "rank" in person.types("wukong search 一只猫 --top 3 --model models:/demo@champion")
    assert "Stopped" in person.types("wukong down")


def _filtered(person: Person) -> str:
    shown = person.types(f"wukong show {next(run for run in person.runs() if run.startswith('demo'))}")
    found = re.search(r"s3://wukong/demo/filter/[0-9a-f]+", shown)
    assert found, shown
    return found[0]


def _put_animals(person: Person) -> None:
    """Put two pictures of the demo's pairs beside the clone's files, as the reader has some of her own."""
    person.types("wukong search 猫 --top 2 --encode --save animals")
    first, second = sorted((person.clone / "animals").iterdir())[:2]
    shutil.copy(first, person.clone / "cat.jpg")
    shutil.copy(second, person.clone / "dog.jpg")


def _put_pictures(person: Person) -> None:
    """Put pictures with captions into the person's own folder: some of the demo's pairs, as files."""
    (person.home / "pictures").mkdir()
    (person.clone / "take.py").write_text(_TAKE, encoding="utf-8")
    person.types(f"python take.py {_filtered(person)} {person.home / 'pictures'} {PAIRS}")
