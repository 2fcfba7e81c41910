"""``wukong search`` on pictures of colours, with a model that knows the words of colours."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import colours
import mlflow_server
import pytest
from typer.testing import CliRunner

from cli.main import app
from wukong.commands.search import champion
from wukong.errors import ConfigError, DataError, StorageError
from wukong.model import address
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage

if TYPE_CHECKING:
    from mlflow import MlflowClient

PAIRS = [(a, b) for a in colours.COLOURS for b in colours.COLOURS if a != b]
KEYS = {f"{a}色和{b}色": f"{number:020x}" for number, (a, b) in enumerate(PAIRS)}
FILES = {
    KEYS[f"{a}色和{b}色"]: colours.encoded(colours.picture(a, b), "JPEG", quality=95, subsampling=0) for a, b in PAIRS
}

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def saved() -> Any:
    return colours.model().saved


@pytest.fixture
def filtered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: Any) -> Manifest:
    """The output of a filter; any model that is loaded is the one of colours."""
    monkeypatch.setenv("WUKONG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("wukong.load", lambda *_, **__: saved)
    rows = [(KEYS[caption], caption, FILES[KEYS[caption]], KEYS[caption]) for caption in KEYS]
    return colours.stage(tmp_path / "data", {"train/00000": rows[:9], "train/00001": rows[9:]})


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Iterator[MlflowClient]":
    """A client of an MLflow server that knows no model yet."""
    from mlflow import MlflowClient

    (tmp_path / "mlflow").mkdir()
    with mlflow_server.running(tmp_path / "mlflow") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        yield MlflowClient(server.address, server.address)


def search(*arguments: str) -> str:
    ended = CliRunner().invoke(app, ["search", *arguments], catch_exceptions=False)
    assert ended.exit_code == 0
    return ended.stdout


def test_a_text_finds_the_pictures_with_its_colours(filtered: Manifest, tmp_path: Path) -> None:
    common = ("--model", "any", "--data", filtered.uri)
    with pytest.raises(DataError, match=r"the 20 pictures of .* have no index by any .* `wukong search` makes it with"):
        search("红蓝", *common)
    assert not (tmp_path / "home" / "indexes").exists()
    folder = tmp_path / "found"
    found = json.loads(search("紅藍", *common, "--encode", "--top", "2", "--save", str(folder), "--json"))
    assert {hit["captions"][0] for hit in found["results"]} == {"红色和蓝色", "蓝色和红色"}
    assert [hit["rank"] for hit in found["results"]] == [1, 2] and found["read_as"] == "红蓝"
    for hit in found["results"]:
        assert hit["key"] == KEYS[hit["captions"][0]] and hit["url"] == f"http://site.test/{hit['key']}.jpg"
        assert Path(hit["file"]).read_bytes() == FILES[hit["key"]]
    assert sorted(path.suffix for path in folder.iterdir()) == [".jpeg", ".jpeg"]
    lines = search("红蓝", *common, "--top", "3").splitlines()
    assert lines[0].split() == ["rank", "score", "caption", "url", "key"]
    first = found["results"][0]
    assert lines[1].split() == ["1", f"{first['score']:.4f}", first["captions"][0], first["url"], first["key"]]
    assert len(lines) == 1 + 3 + 1


def test_filters_say_which_pictures_may_be_found(filtered: Manifest, tmp_path: Path) -> None:
    common = ("红蓝", "--model", "any", "--data", filtered.uri, "--encode", "--json")

    def found(*filters: str) -> set[str]:
        options = [word for each in filters for word in ("--filter", each)]
        return {hit["captions"][0] for hit in json.loads(search(*common, "--top", "20", *options))["results"]}

    assert found() == set(KEYS)
    assert found("word=绿", "source=Site.test") == {caption for caption in KEYS if "绿" in caption}
    assert found("word=绿", "source=other.test") == set()
    for given, said in [
        (("colour=red",), "'colour=red' is no filter; write NAME=VALUE, where NAME is one of source, min_width"),
        (("word",), "'word' is no filter"),
        (("min_width=wide",), "the filter min_width cannot be read"),
        (("word=红", "word=绿"), "the filter word is given more than once"),
    ]:
        with pytest.raises(ConfigError, match=said):
            found(*given)
    with pytest.raises(ConfigError, match="similar to a picture cannot be filtered"):
        search("--picture", str(tmp_path), "--filter", "word=红")


def test_a_picture_finds_pictures_like_it(filtered: Manifest, tmp_path: Path) -> None:
    picture = tmp_path / "mine.png"
    picture.write_bytes(colours.encoded(colours.picture("绿", "黄")))
    common = ("--model", "any", "--data", filtered.uri, "--encode", "--top", "2")
    found = json.loads(search("--picture", str(picture), *common, "--json"))
    assert {hit["captions"][0] for hit in found["results"]} == {"绿色和黄色", "黄色和绿色"}
    assert {each["caption"] for each in found["captions"]} == {"绿色和黄色", "黄色和绿色"}
    assert "绿色和黄色" in search("--picture", str(picture), *common)
    picture.write_bytes(b"no picture")
    with pytest.raises(ConfigError, match="no picture of a known type"):
        search("--picture", str(picture), *common)


def test_pictures_of_a_folder_have_the_url_of_their_file(filtered: Manifest, tmp_path: Path) -> None:
    folder = colours.every_pair(tmp_path / "pictures")
    found = json.loads(search("红蓝", "--model", "any", "--data", folder, "--encode", "--top", "2", "--json"))
    assert {hit["url"] for hit in found["results"]} == {f"{folder}/{name}.png" for name in ("红蓝", "蓝红")}


def test_the_champion_searches_what_its_run_filtered_and_without_one_the_newest_version(
    filtered: Manifest, client: "MlflowClient", tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = Stage(storage.from_path(tmp_path / "data"), "evaluate", {}, [filtered]).commit([])
    tags = {"wukong.evaluation.uri": storage.join(evaluation.uri, "manifest.json")}
    with pytest.raises(ConfigError, match=r"no model is registered yet: `wukong run` trains"):
        search("红蓝")
    for name in ("demo", "other", "demo"):
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        client.create_model_version(name, "s3://nowhere/model", tags=tags)
        client.set_registered_model_alias(name, "old", "1")
    assert champion() == "models:/demo/2"
    assert "No model has the alias champion: models:/demo/2, the newest version, is taken" in capsys.readouterr().err
    client.set_registered_model_alias("demo", "champion", "1")
    found = json.loads(search("红蓝", "--encode", "--json"))
    assert (found["model"], found["data"]) == ("models:/demo@champion", filtered.uri)
    client.set_registered_model_alias("other", "champion", "1")
    with pytest.raises(ConfigError, match=r"by --model, of models:/demo@champion, models:/other@champion"):
        search("红蓝")


def test_an_alias_that_nobody_holds_says_which_versions_to_take(client: "MlflowClient", tmp_path: Path) -> None:
    client.create_registered_model("demo")
    for uri in ("models:/demo@champion", "models:/none@champion"):
        with pytest.raises(StorageError, match=r"no version holds .*the gate gave @champion to none .*models:/\w+/1"):
            address.fetch(uri, tmp_path)


def test_a_models_folder_says_what_it_was_trained_on(filtered: Manifest, tmp_path: Path) -> None:
    made = Stage(storage.from_path(tmp_path / "data"), "finetune", {}, [filtered]).commit([])
    found = json.loads(search("红蓝", "--model", storage.join(made.uri, "model"), "--encode", "--json"))
    assert found["data"] == filtered.uri
    with pytest.raises(DataError, match=r"lies in no stage's output, .*: give --data"):
        search("红蓝", "--model", str(tmp_path / "model"))
    alone = Stage(storage.from_path(tmp_path / "data"), "pretrain", {}).commit([])
    with pytest.raises(DataError, match=r"without pictures of a filter stage: say by --data"):
        search("红蓝", "--model", storage.join(alone.uri, "model"))


def test_what_cannot_be_searched_is_refused(filtered: Manifest, tmp_path: Path) -> None:
    for words in ([], ["红", "--picture", "x.png"]):
        with pytest.raises(ConfigError, match="give a text or --picture FILE, one of them"):
            search(*words)
    with pytest.raises(ConfigError, match=r"there is no file .*x\.png"):
        search("--picture", str(tmp_path / "x.png"))
    with pytest.raises(ConfigError, match="there is nothing to read in the query: give a word"):
        search(" ", "--model", "any", "--data", filtered.uri, "--encode")
