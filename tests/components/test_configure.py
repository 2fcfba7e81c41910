"""The first task of a pipeline: what cannot be run ends here, before any pod of a stage."""

import hashlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from components.functions import configure
from components.parameters import Parameters
from wukong.config import stored
from wukong.stages import WHOLE_RUN
from wukong.store import storage

HOLDOUTS = [{"name": "h", "source": "*", "captions": "unseen"}]


def configured(
    tmp_path: Path, overrides: list[str], *, run: str = "first", stages: tuple[str, ...] = WHOLE_RUN, **numbers: str
) -> tuple[str, str, str]:
    (tmp_path / "urls.csv").write_text("url,caption\n")
    value: dict[str, Any] = {
        "name": "x",
        "storage": storage.from_path(tmp_path / "data"),
        "crawl": {"engine": "urls", "endpoint": storage.from_path(tmp_path / "urls.csv")},
        "filter": {"split": {"held_out_captions": 0.1, "holdouts": HOLDOUTS}},
    }
    made: tuple[str, str, str] = configure.python_func(value, overrides, run, "kfps-own", list(stages), **numbers)
    return made


def test_its_parameters_are_those_of_a_run() -> None:
    """KFP wants them written out, under the types and defaults of the one list."""
    written = inspect.signature(configure.python_func).parameters
    assert written.keys() == Parameters.model_fields.keys() - {"of_run"}
    for name, parameter in written.items():
        field = Parameters.model_fields[name]
        assert parameter.annotation == field.annotation, name
        assert parameter.default in (field.default, inspect.Parameter.empty), name


def test_what_can_be_run_is_handed_on(tmp_path: Path) -> None:
    uri, run, start = configured(tmp_path, ["seed=3"], epochs="5")
    assert (run, start) == ("first", "")
    experiment = stored.load(uri)
    assert (experiment.seed, experiment.pretrain.epochs) == (3, 5)
    assert uri.startswith(f"{experiment.root}/experiments/")
    assert configured(tmp_path, [], run=" ")[1] == "kfps-own"


def test_what_an_address_holds_is_noted_for_every_pod(tmp_path: Path) -> None:
    """A run of the same name that begins after the file was replaced is another one's, and is refused."""
    vocabulary = tmp_path / "vocab.txt"
    changed = [f"model.text.vocabulary={storage.from_path(vocabulary)}"]
    vocabulary.write_text("[PAD]\n")
    text = stored.load(configured(tmp_path, changed)[0]).model.text
    assert text.vocabulary_sha256 == hashlib.sha256(b"[PAD]\n").hexdigest()
    vocabulary.write_text("[UNK]\n")
    with pytest.raises(SystemExit, match=r"vocabulary_sha256: (.|\n)*choose another --name"):
        configured(tmp_path, changed)
    assert configured(tmp_path, changed, run="second")[1] == "second"


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("filter.split.holdouts=[]", r"filter\.split\.holdouts: there is none"),
        ("crawl.endpoint=file:///none.csv", r"crawl\.endpoint: file:///none\.csv is no list of URLs"),
        ("model.image.weights=file:///none", r"model\.image\.weights: file:///none does not exist"),
        ("model.image.weights=packge", r"model\.image\.weights: .*'packge'"),
    ],
)
def test_what_cannot_be_run_is_named(tmp_path: Path, override: str, named: str) -> None:
    with pytest.raises(SystemExit, match=named):
        configured(tmp_path, [override])


def test_a_folder_is_refused_where_stages_run_on_several_machines(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WUKONG_CLUSTER", "wukong")
    with pytest.raises(SystemExit, match=r"storage: file://.* is a folder of one machine(.|\n)*s3://BUCKET"):
        configured(tmp_path, [])
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["../x", "Run of training (8f1e9)", "ends-with-", "x" * 64])
def test_a_name_that_is_no_folder_or_label_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=rf"run: run name {re.escape(repr(name))}(.|\n)*leave the parameter run empty"):
        configured(tmp_path, [], run=name)
    assert not (tmp_path / "data").exists()


def test_a_list_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text("a b c d\n")
    with pytest.raises(SystemExit, match=r"release\.opt_out: "):
        configured(tmp_path, [f"release.opt_out={storage.from_path(tmp_path / 'out.txt')}"])


def test_a_data_set_needs_neither_hold_out_nor_weights(tmp_path: Path) -> None:
    none = ["filter.split.holdouts=[]", "model.image.weights=file:///none"]
    configured(tmp_path, none, stages=("crawl", "filter", "validate", "release"))


def test_measuring_again_needs_no_list(tmp_path: Path) -> None:
    configured(tmp_path, ["crawl.endpoint=file:///gone.csv"], stages=("evaluate",))
