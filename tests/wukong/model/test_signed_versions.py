"""Versions that are signed when they are registered, or later, in a real MLflow store."""

import subprocess
import sys
from pathlib import Path

import measured
import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from typer.testing import CliRunner

import wukong
from cli.main import app
from wukong.config import documents
from wukong.config.model import Model
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.errors import DataError
from wukong.model import saved_model
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.store import storage
from wukong.store.manifest import Stage
from wukong.tracking import mlflow_runs, model_versions

mlflow = pytest.importorskip("mlflow")
pytest.importorskip("model_signing", reason="model-signing is not installed: it is in the extra sign")
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / f"{name}.pem").write_bytes(private)
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (folder / f"{name}.pub").write_bytes(public)
    return folder


def register(name: str, root: Path) -> str:
    """Register a small model as the register stage does, and return its run."""
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    experiment = documents.parse({"name": name, "storage": storage.from_path(root), "crawl": crawl})
    torch.manual_seed(0)
    settings = Model.model_validate(
        {"image": {"image_size": 64}, "text": {"layers": 1, "heads": 2, "width": 16}, "embedding": 8}
    )
    tokenizer = Tokenizer(packaged_vocabulary())
    model = DualEncoder(settings, tokenizer, ImageEncoder(settings.image)).eval()
    trained = Stage(experiment.root, "finetune", {}, [])
    files = saved_model.save(trained.path("model"), model, tokenizer)
    finetuned = trained.commit([trained.describe(f"model/{file}") for file in files])
    found_half = measured.searched("x", np.arange(400) % 2 == 0)
    evaluation = measured.evaluation(experiment.root, [found_half], [finetuned])
    with mlflow_runs.stage_run(experiment, "first", "register") as run_id:
        model_versions.register(experiment, str(run_id), finetuned, evaluation, {})
    return str(mlflow.MlflowClient().get_model_version(name, "1").run_id)


def test_versions_are_signed(tmp_path: Path, mlflow_address: str, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_address)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    register("unsigned", tmp_path / "unsigned")
    with monkeypatch.context() as signing:
        signing.setenv("WUKONG_SIGNING_KEY_FILE", str(keys / "ours.pem"))
        run = register("signed", tmp_path / "signed")

    # As a person has it who downloads the version, without this project.
    copy = mlflow.artifacts.download_artifacts(artifact_uri="models:/signed/1", dst_path=str(tmp_path / "copy"))
    theirs = ("verify", "key", "--public_key", keys / "ours.pub", "--signature", Path(copy, "model.sig"), copy)
    checked = subprocess.run(
        [sys.executable, "-m", "model_signing", *theirs], check=False, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr

    wanted = wukong.load("models:/signed/1").encode_text("猫").vectors
    found = wukong.load("models:/signed/1", public_key=keys / "ours.pub").encode_text("猫").vectors
    torch.testing.assert_close(found, wanted, atol=0, rtol=0)
    with pytest.raises(DataError, match=r"models:/signed/1 is not what the key of .*theirs\.pub has signed: Key mism"):
        wukong.load("models:/signed/1", public_key=keys / "theirs.pub")
    with pytest.raises(DataError, match=r"models:/unsigned/1 has no model\.sig"):
        wukong.load("models:/unsigned/1", public_key=keys / "ours.pub")

    made = CliRunner().invoke(app, ["model", "sign", "models:/unsigned/1", "--key", str(keys / "theirs.pem")])
    assert made.exception is None, made.exception
    wukong.load("models:/unsigned/1", public_key=keys / "theirs.pub")
    again = CliRunner().invoke(app, ["model", "sign", f"runs:/{run}/model", "--key", str(keys / "theirs.pem")])
    assert again.exception is None, again.exception
    by_them = ["model", "verify", "models:/signed/1", "--public-key", str(keys / "theirs.pub")]
    assert CliRunner().invoke(app, by_them).exception is None

    # MLflow runs the code that lies with the weights, so it is signed too.
    (tmp_path / "saved_model.py").write_text("import os")
    mlflow.MlflowClient().log_artifact(run, str(tmp_path / "saved_model.py"), "model/code/wukong/model")
    refused = CliRunner().invoke(app, by_them)
    assert isinstance(refused.exception, DataError)
    assert "Hash mismatch for 'code/wukong/model/saved_model.py'" in str(refused.exception)
