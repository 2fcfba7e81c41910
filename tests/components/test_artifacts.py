"""The manifests that a component gets and hands on: KFP's artifacts, and an earlier run's by its URI."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from components.functions import pretrain
from components.stage import load_artifact, save_artifact
from wukong.config import documents, stored
from wukong.errors import DataError
from wukong.store import manifest, storage
from wukong.store.manifest import Stage


@pytest.mark.parametrize("parts", [3, 4])
def test_an_artifact_is_the_manifest_and_stays_small(
    tmp_path: Path, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "MOST_IN_JSON", 3)
    stage = Stage(storage.from_path(tmp_path / "store"), "crawl", {"a": 1})
    for number in range(parts):
        storage.write_bytes(stage.path(f"parts/{number}"), b"%d" % number)
    made = stage.commit([stage.describe(f"parts/{number}") for number in range(parts)])
    artifact = tmp_path / "outputs" / "manifest"
    save_artifact(made, str(artifact))
    assert ("parts" in json.loads(artifact.read_text())) == (parts == 3)
    assert load_artifact(str(artifact)) == made


def test_pre_training_goes_on_from_the_manifest_that_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    experiment = documents.parse({"name": "x", "storage": storage.from_path(tmp_path / "store"), "crawl": crawl})
    uri, artifacts, uris = stored.store(experiment), {}, []
    for name in ("filter", "validate"):
        made = Stage(experiment.root, name, {}).commit([])
        artifacts[f"{name}_manifest"] = SimpleNamespace(path=str(tmp_path / name))
        save_artifact(made, str(tmp_path / name))
        uris.append(f"{made.uri}/manifest.json")
    asked: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(
        "components.stage.launch", lambda name, _experiment, _run, given, _more: asked.append((name, given)) or made
    )
    output, earlier = SimpleNamespace(path=str(tmp_path / "out"), metadata={}), "s3://b/earlier/manifest.json"
    for start in ("", earlier):
        pretrain.python_func(experiment=uri, run="r", manifest=output, start=start, **artifacts)
    assert asked == [("pretrain", uris), ("pretrain", [*uris, earlier])]


def test_an_artifact_of_another_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    artifact.write_text('{"schema_version": 1, "stage": "crawl", "uri": "s3://b/c", "config": {}, "parts": []}')
    with pytest.raises(DataError, match="was written by another version of Wukong"):
        load_artifact(str(artifact))
