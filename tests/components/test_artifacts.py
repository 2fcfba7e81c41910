"""The manifest that a component hands on: KFP's artifact."""

import json
from pathlib import Path

import pytest

from components.stage import load_artifact, save_artifact
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


def test_an_artifact_of_another_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    artifact.write_text('{"schema_version": 1, "stage": "crawl", "uri": "s3://b/c", "config": {}, "parts": []}')
    with pytest.raises(DataError, match="was written by another version of Wukong"):
        load_artifact(str(artifact))
