"""``wukong run --data``: from a folder or list to an experiment, and what is said before it runs."""

from functools import partial
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import own_data
from wukong.config import documents
from wukong.crawl import own_files, url_list
from wukong.errors import ConfigError
from wukong.registry import sweep
from wukong.store import storage


def folder_of(place: Path, pictures: int, captions: int | None = None) -> Path:
    place.mkdir(parents=True)
    for number in range(pictures):
        (place / f"{number}.jpg").write_bytes(b"1")
        if number < (pictures if captions is None else captions):
            (place / f"{number}.txt").write_text(f"第{number}张图片")
    return place


def test_a_folder_becomes_an_experiment(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "My Pictures (2026)", 100)
    made = own_data.experiment_of(str(folder), None, [])
    assert made.name == "my-pictures-2026"
    assert made.registry.model_name == "my-pictures-2026"
    assert (made.crawl.engine, made.crawl.endpoint) == ("files", storage.from_path(folder))
    assert made.pretrain.batch_size == made.finetune.batch_size == 8
    assert [holdout.captions for holdout in made.filter.split.holdouts] == ["unseen"]
    assert own_data.check(made) == []


def test_a_folder_of_lists_is_the_released_set(tmp_path: Path) -> None:
    """As ``wukong_release.zip`` is: 256 files of ``url,caption``."""
    folder = tmp_path / "wukong_release"
    folder.mkdir()
    for part in range(2):
        rows = (f'https://site.test/{part}/{n}.jpg,"第{n}张图片，在第{part}个文件"\n' for n in range(1000))
        (folder / f"wukong_100m_{part}.csv").write_text("url,caption\n" + "".join(rows), encoding="utf-8")
    made = own_data.experiment_of(str(folder), None, [])
    assert (made.name, made.crawl.engine) == ("wukong-release", "urls")
    assert made.pretrain.batch_size == 16, "of an old list most URLs may be dead"
    files = url_list.list_files(made.crawl.endpoint)
    found = [table for number, file in enumerate(files) for table in url_list.read_list(file, number, made.crawl)]
    assert sum(table.num_rows for table in found) == 2000
    assert found[1].column("caption").to_pylist()[0].endswith("在第1个文件")
    (folder / "a.png").write_bytes(b"1")
    assert own_data.experiment_of(str(folder), None, []).crawl.engine == "files", "a picture makes it a folder of them"


def test_a_list_of_urls_is_fetched_row_by_row(tmp_path: Path) -> None:
    lines = "".join(f"https://site.test/{n}.jpg,第{n}张图片\n" for n in range(80))
    (tmp_path / "my list.csv").write_text(f"url,caption\n{lines}", encoding="utf-8")
    made = own_data.experiment_of(str(tmp_path / "my list.csv"), None, [])
    assert (made.name, made.crawl.engine, made.pretrain.batch_size) == ("my-list", "files", 8)
    first = next(own_files.pictures_of(made.crawl))
    assert (first.url, first.caption) == ("https://site.test/0.jpg", "第0张图片")
    assert own_data.check(made) == []


def test_what_the_user_sets_counts(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "p", 40)
    made = own_data.experiment_of(str(folder), None, ["name=mine", "pretrain.batch_size=4", "pretrain.epochs=2"])
    assert (made.name, made.pretrain.batch_size, made.pretrain.epochs) == ("mine", 4, 2)
    assert made.finetune.batch_size == 4
    own = own_data.experiment_of(str(folder), Path("configs/paper/vit-l.yaml"), [])
    assert (own.name, own.crawl.engine, own.pretrain.batch_size) == ("paper", "files", 10240)


def test_a_config_without_a_name_says_what_differs(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "p", 100)
    (tmp_path / "shared.yaml").write_text("pretrain: {epochs: 3, batch_size: 16}", encoding="utf-8")
    part = tmp_path / "part.yaml"
    part.write_text("base: shared.yaml\nmodel: {similarity: token, text: {layers: 1}}", encoding="utf-8")
    made, plain = (own_data.experiment_of(str(folder), file, ["finetune.epochs=1"]) for file in (part, None))
    assert (made.name, made.crawl, made.filter, made.finetune.batch_size) == ("p", plain.crawl, plain.filter, 8)
    assert (made.pretrain.epochs, made.pretrain.batch_size, plain.pretrain.batch_size) == (3, 16, 8)
    assert (made.model.text.layers, made.model.text.width) == (1, plain.model.text.width)
    assert (made.model.image.tokens, plain.model.image.tokens) == (4, None), "what the file's objective wants"
    part.write_text("modle: {similarity: token}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"modle: .*did you mean model"):
        own_data.experiment_of(str(folder), part, [])


def test_a_sweep_starts_from_the_experiment_of_the_data(tmp_path: Path) -> None:
    folder, file = folder_of(tmp_path / "p", 100), tmp_path / "sweep.yaml"
    start = partial(own_data.experiment_of, str(folder))
    changes = "parameters: {pretrain.epochs: [1, 2]}\nset: [finetune.epochs=1]\n"
    file.write_text(f"name: s\n{changes}", encoding="utf-8")
    assert sweep.load(file, start)[1] == start(None, ["finetune.epochs=1"])
    (tmp_path / "part.yaml").write_text("model: {similarity: token}", encoding="utf-8")
    file.write_text(f"name: s\nexperiment: part.yaml\n{changes}", encoding="utf-8")
    assert sweep.load(file, start)[1] == start(None, ["finetune.epochs=1", "model.similarity=token"])


def test_a_relative_path_and_a_uri_are_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "猫", 20)
    monkeypatch.chdir(tmp_path)
    made = [own_data.experiment_of(place, None, []) for place in ("猫", storage.from_path(folder), "./猫/")]
    assert made[0] == made[1] == made[2]
    assert made[0].name == "mao"
    other = own_data.experiment_of(str(folder_of(tmp_path / "狗", 20)), None, [])
    assert other.name != made[0].name, "models of other data have a name of their own"


@pytest.mark.parametrize(
    ("folder", "name"),
    [("重庆火锅", "chong-qing-huo-guo"), ("我的猫2024年.csv", "wo-de-mao-2024-nian"), ("貓 Photos", "mao-photos")],
)
def test_a_chinese_folder_has_a_readable_name(folder: str, name: str) -> None:
    assert own_data.name_of(f"file:///data/{quote(folder)}/") == own_data.name_of(f"s3://b/{folder}") == name


def test_nothing_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--data .*/none: there is nothing"):
        own_data.experiment_of(str(tmp_path / "none"), None, [])


def test_no_caption_at_all_says_where_they_go(tmp_path: Path) -> None:
    made = own_data.experiment_of(str(folder_of(tmp_path / "p", 30, captions=0)), None, [])
    with pytest.raises(ConfigError, match=r"none of the 30 pictures .* put NAME\.txt beside NAME\.jpg"):
        own_data.check(made)


def test_too_few_pairs_name_the_key(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "p", 30)
    for key in ("pretrain.batch_size", "finetune.batch_size", "validation.min_pairs"):
        made = own_data.experiment_of(str(folder), None, [f"{key}=64"])
        with pytest.raises(ConfigError, match=rf"{key}: 64 is more than the 30 pictures .* --set {key}=3"):
            own_data.check(made)


def test_bad_rows_are_said_and_do_not_end_it(tmp_path: Path) -> None:
    rows = "".join(f"{number}.jpg,第{number}张\n" for number in range(30))
    (tmp_path / "l.csv").write_text(f"path,caption\n{rows}a.jpg,b,c\nd.jpg,\n")
    made = own_data.experiment_of(str(tmp_path / "l.csv"), None, [])
    assert own_data.check(made) == [
        "rows that cannot be used: 1: row 32: it has 3 values and the header 2: put captions with commas in quotes",
        "pictures without a caption, which will be left out: 1",
    ]


@given(st.text(max_size=80))
def test_every_place_gives_a_name_that_an_experiment_may_have(last: str) -> None:
    name = own_data.name_of(f"file:///data/{last}")
    crawl = {"engine": "files", "endpoint": "file:///data/x"}
    assert documents.parse({"name": name, "crawl": crawl}).name == name


@given(st.integers(min_value=0, max_value=10**9))
def test_a_batch_fits_the_pairs_and_two_workers(pairs: int) -> None:
    size = own_data.batch_for(pairs)
    assert size % 2 == 0 and 2 <= size <= 256
    assert size <= max(2, pairs // 8)
