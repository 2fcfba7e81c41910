"""Where a run came from: read from real repositories of git, and from the variables of CI where there is no git."""

import subprocess
from pathlib import Path

import pytest

from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.runs import origin
from wukong.runs.origin import Source
from wukong.runs.run import Run
from wukong.store import storage

DIGEST = f"sha256:{'0a' * 32}"


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.invalid")
    return subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A config that a repository holds."""
    written = tmp_path / "team" / "configs" / "my.yaml"
    written.parent.mkdir(parents=True)
    written.write_text("name: demo\n")
    (tmp_path / "team" / "notes.txt").write_text("one")
    git(tmp_path / "team", "init", "--quiet")
    git(tmp_path / "team", "remote", "add", "origin", "https://ci-token:s3cret@git.example:8443/team/runs.git")
    git(tmp_path / "team", "add", ".")
    git(tmp_path / "team", "commit", "--quiet", "-m", "first")
    return written


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    crawl = {"queries": "file:///q.txt", "endpoint": "http://site.invalid"}
    return documents.parse({"name": "demo", "storage": storage.from_path(tmp_path / "data"), "crawl": crawl})


def test_a_config_has_the_revision_of_its_own_repository(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "code_revision", lambda: "c0de")
    made = origin.of_file(file, ["seed=3"])
    assert made.revision == git(file.parent, "rev-parse", "HEAD")
    assert made.repository == "https://git.example:8443/team/runs.git", "without the token"
    assert (made.file, made.dirty, made.overrides, made.code) == ("configs/my.yaml", False, ("seed=3",), "c0de")


def test_what_the_revision_lacks_is_dirty(file: Path) -> None:
    (file.parents[1] / "left-over.txt").write_text("git does not know it")
    assert origin.of_file(file).dirty is False
    (file.parents[1] / "notes.txt").write_text("two")
    assert origin.of_file(file).dirty is True, "a file beside the config is another"
    git(file.parent, "checkout", "--quiet", ".")
    new = file.with_name("new.yaml")
    new.write_text("name: demo\n")
    assert origin.of_file(new).dirty is True, "the config itself is not in the repository"
    git(file.parent, "add", ".")
    assert origin.of_file(new).dirty is True, "nor in the revision"


def test_outside_of_a_repository_nothing_is_known(tmp_path: Path) -> None:
    written = tmp_path / "my.yaml"
    written.write_text("name: demo\n")
    made = origin.of_file(written)
    assert (made.repository, made.revision, made.dirty, made.file) == ("", "", None, "")


@pytest.mark.parametrize(
    "variables",
    [
        {"CI_PROJECT_DIR": "", "CI_PROJECT_URL": "https://git.example/team/runs", "CI_COMMIT_SHA": "f00"},
        {
            "GITHUB_WORKSPACE": "",
            "GITHUB_SERVER_URL": "https://git.example",
            "GITHUB_REPOSITORY": "team/runs",
            "GITHUB_SHA": "f00",
        },
    ],
)
def test_without_git_the_variables_of_ci_say_it(
    variables: dict[str, str], file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image ``wukong/data`` has no git."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value or str(file.parents[1]))
    monkeypatch.setenv("WUKONG_REVISION", "c0de")
    made = origin.of_file(file)
    assert (made.repository, made.revision) == ("https://git.example/team/runs", "f00")
    assert (made.file, made.dirty) == ("configs/my.yaml", None), "whether it was changed nobody says"
    elsewhere = tmp_path / "other.yaml"
    elsewhere.write_text("name: demo\n")
    assert origin.of_file(elsewhere).revision == "", "it is in another folder than the checkout"


@pytest.mark.parametrize(
    ("submitted", "image", "said"),
    [
        ("a1", "b2", "submitted by revision a1 of Wukong, and the image of its components has revision b2"),
        ("a1", "a1", ""),
        ("a1-dirty", "a1", "a1-dirty"),
        ("", "a1", ""),
        ("a1", "unknown", ""),
    ],
)
def test_another_revision_of_the_image_is_said(
    submitted: str, image: str, said: str, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(origin, "code_revision", lambda: image)
    difference = origin.store(experiment, "r", Source(code=submitted)).difference
    assert (said in difference) if said else difference == ""


def test_a_run_says_where_it_came_from(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "code_revision", lambda: "b2")
    assert Run.of(experiment, "r").origin is None and Run.of(experiment, "r").tags == {}
    origin.store(experiment, "r", Source(revision="f00", dirty=False, file="my.yaml", code="a1"))
    origin.store_images(experiment, "r", origin.COMPONENTS, "configure", [f"registry.example/data:1@{DIGEST}"])
    assert Run.of(experiment, "r").tags == {
        "wukong.source.revision": "f00",
        "wukong.source.dirty": "false",
        "wukong.source.file": "my.yaml",
        "wukong.source.code": "a1",
        "wukong.images": f"registry.example/data:1@{DIGEST}",
    }
    read = Run.of(experiment, "r").origin
    assert read is not None and read.image_revision == "b2"


@pytest.mark.parametrize(
    ("image", "identity", "expected"),
    [
        (
            "registry.example:5000/data:1",
            f"registry.example:5000/data@{DIGEST}",
            f"registry.example:5000/data:1@{DIGEST}",
        ),
        ("data:1", f"docker-pullable://data@{DIGEST}", f"data:1@{DIGEST}"),
        ("localhost/data:1", DIGEST, f"localhost/data:1@{DIGEST}"),
        (f"data:1@sha256:{'1b' * 32}", f"data@{DIGEST}", f"data:1@{DIGEST}"),
        ("data:1", "", "data:1"),
    ],
)
def test_an_image_is_named_with_what_was_run(image: str, identity: str, expected: str) -> None:
    assert origin.reference(image, identity) == expected


def test_all_attempts_at_a_stage_say_what_they_ran(experiment: Experiment) -> None:
    origin.store_images(experiment, "r", "filter", "a", ["ray:1@sha256:aa", "ray:1@sha256:bb"])
    origin.store_images(experiment, "r", "filter", "b", ["ray:1@sha256:bb"])
    origin.store_images(experiment, "other", "filter", "a", ["ray:2@sha256:cc"])
    assert Run.of(experiment, "r").images == {"filter": ["ray:1@sha256:aa", "ray:1@sha256:bb"]}
