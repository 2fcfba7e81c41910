"""A model that is taken in the place of pre-training: what of it is checked, copied, and known of its origin."""

import json
from pathlib import Path
from typing import Any

import pytest

from wukong import stages
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.config.model import Model
from wukong.errors import ConfigError
from wukong.stages import places, start
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage
from wukong.tracking import model_versions

MODEL: dict[str, Any] = {"embedding": 32, "text": {"layers": 2, "heads": 2, "width": 64}}


def experiment(root: Path, uri: str, **changed: Any) -> Experiment:
    crawl = {"engine": "urls", "endpoint": "file:///none"}
    value = {"name": "after", "storage": storage.from_path(root), "crawl": crawl, "pretrain": {"from_model": uri}}
    return documents.parse(value | changed)


@pytest.fixture
def trained(tmp_path: Path) -> Manifest:
    """A pre-training of another experiment, whose weights are no more than a few bytes."""
    stage = Stage(f"{storage.from_path(tmp_path)}/before", "pretrain", {})
    config = {"format": 1, "model": Model.model_validate(MODEL).model_dump(mode="json")}
    storage.write_json(stage.path("model/config.json"), config)
    storage.write_bytes(stage.path("model/model.safetensors"), b"weights")
    storage.write_bytes(stage.path("model/vocab.txt"), b"[PAD]\n")
    return stage.commit([stage.describe(f"model/{name}") for name in start.FILES], counts={"pairs": 9})


def test_the_model_section_is_the_models_own(trained: Manifest, tmp_path: Path) -> None:
    uri = f"{trained.uri}/model"
    own = start.with_its_model(experiment(tmp_path, uri))
    assert own.model == Model.model_validate(MODEL)
    assert start.with_its_model(own) == own, "as an experiment that is stored and read again has it"
    assert start.with_its_model(experiment(tmp_path, "")).model == Model()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (
            {"image": {"name": "resnet50_clip.openai"}},
            r"model\.image\.name is 'resnet50_clip\.openai', and the model's",
        ),
        ({"text": {**MODEL["text"], "vocabulary": "s3://b/vocab.txt"}}, r"model\.text\.vocabulary is 's3://b/vocab"),
        ({"similarity": "token"}, r"model\.similarity is 'token', and the model's is 'global'"),
    ],
)
def test_another_tower_or_vocabulary_is_refused(
    trained: Manifest, tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=rf"pretrain\.from_model: .*{named}(.|\n)*--set model=\{{\}}"):
        start.with_its_model(experiment(tmp_path, f"{trained.uri}/model", model=MODEL | changed))


def test_where_its_own_weights_came_from_does_not_matter(trained: Manifest, tmp_path: Path) -> None:
    given = MODEL | {"image": {"weights": "s3://gone/tower.safetensors"}}
    found = start.with_its_model(experiment(tmp_path, f"{trained.uri}/model", model=given))
    assert found.model == Model.model_validate(MODEL)
    assert found.uris()["pretrain.from_model"] == f"{trained.uri}/model"
    assert not [key for key in found.uris() if key.startswith("model.")]


def test_an_alias_is_followed_once(trained: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that has begun keeps its model when the alias moves."""
    asked: list[str] = []
    monkeypatch.setattr(model_versions, "folder_of", lambda uri: asked.append(uri) or f"{trained.uri}/model")
    found = start.with_its_model(experiment(tmp_path, "models:/before@champion"))
    assert asked == ["models:/before@champion"] and found.pretrain.from_model == f"{trained.uri}/model"
    assert start.stage(found).key == start.stage(start.with_its_model(found)).key and len(asked) == 1


@pytest.mark.parametrize("uri", ["open_clip:a/b", "cn_clip:a", "wukong_release:a//x", "transformers:a/b", "onnx:a"])
def test_models_of_others_are_refused_before_anything(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ConfigError, match=r"pretrain\.from_model: .*cannot train.*model\.image\.weights"):
        experiment(tmp_path, uri)


def test_fine_tuning_has_no_model_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"finetune\.from_model: .* set pretrain\.from_model"):
        experiment(tmp_path, "", finetune={"from_model": "models:/x@champion"})


def test_what_is_no_model_is_refused(trained: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pretrain\.from_model: file://.* is no model of this project"):
        start.with_its_model(experiment(tmp_path, trained.uri))
    with pytest.raises(ConfigError, match=r"pretrain\.from_model: it is models:/NAME@ALIAS"):
        experiment(tmp_path, "folder/model")


def test_it_is_copied_with_its_origin_and_found_again(trained: Manifest, tmp_path: Path) -> None:
    asked = start.with_its_model(experiment(tmp_path, f"{trained.uri}/model"))
    made = start.take(asked)
    assert storage.read_bytes(f"{made.uri}/model/model.safetensors") == b"weights"
    assert [parent.digest for parent in made.parents] == [trained.digest] and made.counts == {"pairs": 9}
    filtered = Stage(asked.root, "filter", {}).commit([])
    assert places.finished("pretrain", asked, {"filter": filtered}) == made
    assert places.trained_tower(made) == made, "features are computed by its own tower"


def test_a_model_without_a_manifest_is_known_by_its_files(trained: Manifest, tmp_path: Path) -> None:
    folder = tmp_path / "copied"
    folder.mkdir()
    for name in start.FILES:
        (folder / name).write_bytes(storage.read_bytes(f"{trained.uri}/model/{name}"))
    asked = start.with_its_model(experiment(tmp_path, storage.from_path(folder)))
    made = start.take(asked)
    assert made.parents == ()
    beside = start.stage(start.with_its_model(experiment(tmp_path, f"{trained.uri}/model")))
    assert made.config == beside.config, "the manifest says the same of the files as the files"
    (folder / "model.safetensors").write_bytes(b"others!")
    assert start.stage(asked).key != made.uri.rpartition("/")[2]
    assert json.loads((folder / "config.json").read_text())["format"] == 1


def test_without_an_epoch_of_fine_tuning_the_model_is_handed_on(trained: Manifest, tmp_path: Path) -> None:
    """The stage is a copy whatever else its section says, takes one process without a GPU, and is measured once."""
    asked = start.with_its_model(experiment(tmp_path, f"{trained.uri}/model"))
    plain, other = (
        documents.parse(asked.model_dump() | {"finetune": {"epochs": 0, **more}})
        for more in ({}, {"workers": 8, "batch_size": 64, "gpus_per_worker": 1, "views": 2})
    )
    parents = {"filter": Stage(asked.root, "filter", {}).commit([]), "pretrain": start.take(asked)}
    made = start.hand_on(plain, parents["pretrain"])
    assert places.finished("finetune", other, parents) == made
    assert [storage.read_bytes(f"{made.uri}/model/{name}") for name in start.FILES] == [
        storage.read_bytes(f"{trained.uri}/model/{name}") for name in start.FILES
    ]
    assert [parent.digest for parent in made.parents] == [parents["pretrain"].digest] and made.counts == {"pairs": 9}
    assert places.trained_tower(made) == parents["pretrain"]
    settings = stages.training_of(other, "finetune")
    assert (settings.workers, settings.gpus_per_worker, settings.batch_size) == (1, 0, 1)
    assert places.features(plain, parents["filter"]).key == places.features(other, parents["filter"]).key
    assert places.evaluated(parents | {"finetune": made}) == {"pretrained": "finetune"}
    trained_on = Stage(asked.root, "finetune", {}, [made])
    storage.write_bytes(trained_on.path("model/model.safetensors"), b"others!")
    another = trained_on.commit([trained_on.describe("model/model.safetensors")])
    assert places.evaluated(parents | {"finetune": another}) == {"finetuned": "finetune", "pretrained": "pretrain"}


def test_a_model_that_nobody_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pretrain\.epochs: 0 leaves no model: give at least 1, or .*from_model"):
        experiment(tmp_path, "", pretrain={"epochs": 0})
    assert experiment(tmp_path, "models:/x@champion", pretrain={"epochs": 0, "from_model": "models:/x@champion"})
