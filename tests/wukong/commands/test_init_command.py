"""``wukong init``: what it writes can be run."""

from pathlib import Path

from typer.testing import CliRunner

from cli import own_data
from wukong.commands.app import app
from wukong.commands.init import Kind
from wukong.config import documents
from wukong.errors import ConfigError

DEFAULT = Path(__file__).parents[3] / "configs" / "own-data.yaml"


def test_there_is_a_template_for_each_kind() -> None:
    templates = Path(documents.__file__).parent / "templates"
    assert {path.stem for path in templates.iterdir()} == set(Kind)


def test_the_file_is_an_experiment(tmp_path: Path) -> None:
    file = tmp_path / "cats.yaml"
    said = CliRunner().invoke(app, ["init", str(file)], catch_exceptions=False).stdout
    made = documents.load(file)
    assert (made.name, made.crawl.engine, made.model.image.name) == ("cats", "searxng", "tf_efficientnet_lite0")
    assert f"wukong run --config {file} --dry-run" in said


def test_the_file_for_own_pictures_changes_nothing_until_it_is_edited(tmp_path: Path) -> None:
    file, pictures = tmp_path / "mine.yaml", tmp_path / "pictures"
    pictures.mkdir()
    for number in range(40):
        (pictures / f"{number}.jpg").write_bytes(b"1")
        (pictures / f"{number}.txt").write_text("猫", encoding="utf-8")
    CliRunner().invoke(app, ["init", "--from", "pictures", str(file)], catch_exceptions=False)
    made = own_data.experiment_of(str(pictures), file, [])
    assert made == own_data.experiment_of(str(pictures), None, [])
    assert documents.is_part(file) and not documents.is_part(DEFAULT)


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("mine", encoding="utf-8")
    for name, expected in ((file, "is there already"), (tmp_path / "My.yaml", "(got 'My')")):
        refused = CliRunner().invoke(app, ["init", str(name)])
        assert isinstance(refused.exception, ConfigError) and expected in str(refused.exception)
    assert file.read_text(encoding="utf-8") == "mine" and [*tmp_path.iterdir()] == [file]
