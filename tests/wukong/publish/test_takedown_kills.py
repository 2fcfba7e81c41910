"""A takedown that is killed while it deletes what was computed of the pictures: nothing of that stays."""

from pathlib import Path

import pytest

from wukong.publish import takedown
from wukong.publish.takedown_plan import Change, Plan, versions
from wukong.store import storage
from wukong.store.manifest import Stage


@pytest.mark.parametrize("deletion", range(4))
def test_features_of_pictures_that_were_taken_down_do_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deletion: int
) -> None:
    root = storage.from_path(tmp_path)
    filtered, features = Stage(root, "filter", {}).commit([]), []
    for number in range(2):
        stage = Stage(root, "features", {"number": number}, [filtered])
        storage.write_bytes(stage.path("train/00000.view00.safetensors"), b"of a picture")
        features.append(stage.commit([stage.describe("train/00000.view00.safetensors", 1)]))
    other = Stage(root, "features", {}).commit([])
    change = Change(stage="filter", uri=filtered.uri, before=filtered.digest)
    facts = {"when": "now", "reason": "asked", "list_name": "list", "list_sha256": "0", "listed": {}, "keys": ()}
    planned, delete = Plan(**facts, changes=(change,), entries="", seen=versions(root)), storage.delete
    deleted: list[str] = []

    def killed(uri: str) -> None:
        if len(deleted) == deletion:
            raise KeyboardInterrupt
        deleted.append(uri)
        delete(uri)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(storage, "delete", killed)
        takedown.carry_out(root, planned)
    begun = takedown.pending(root)
    assert begun is not None and begun.id == planned.id
    record = takedown.carry_out(root, begun)
    assert record["id"] == planned.id and takedown.pending(root) is None
    assert storage.list_files(storage.join(root, "features")) == [f"{other.uri}/manifest.json"]
