"""``wukong model sign`` and ``wukong model verify``."""

import os
import pty
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat, PublicFormat
from typer.testing import CliRunner, Result

from cli.main import app
from wukong.errors import ConfigError, DataError
from wukong.store import storage

pytest.importorskip("model_signing", reason="model-signing is not installed: it is in the extra sign")

PASSWORD = "海上生明月"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of a file; beside it an encrypted key, and its public half."""
    key = ec.generate_private_key(ec.SECP384R1())
    encrypted = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(PASSWORD.encode()))
    (tmp_path / "key.pem").write_bytes(encrypted)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pub").write_bytes(public)
    made = tmp_path / "clip"
    made.mkdir()
    (made / "weights").write_bytes(b"weights")
    return made


def run(*words: object, password: str = "") -> Result:
    return CliRunner().invoke(app, ["model", *map(str, words)], env={"WUKONG_SIGNING_PASSWORD": password or None})


@pytest.mark.parametrize("named", [str, storage.from_path])
def test_a_folder_is_signed_and_verified(folder: Path, named: Callable[[Path], str]) -> None:
    place, public = named(folder), ("--public-key", folder.with_name("key.pub"))
    made = run("sign", place, "--key", folder.with_name("key.pem"), password=PASSWORD)
    assert made.exception is None, made.exception
    assert "is signed: model.sig is beside its files" in made.output and PASSWORD not in made.output
    assert sorted(file.name for file in folder.iterdir()) == ["model.sig", "weights"]
    verified = run("verify", place, *public)
    assert verified.exception is None, verified.exception
    (folder / "weights").write_bytes(b"others")
    refused = run("verify", place, *public)
    assert isinstance(refused.exception, DataError) and "Hash mismatch for 'weights'" in str(refused.exception)
    again = run("sign", place, "--key", folder.with_name("key.pem"), password=PASSWORD)
    assert again.exception is None
    assert run("verify", place, *public).exception is None


def test_keys_may_be_named_by_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WUKONG_SIGNING_KEY_FILE", str(folder.with_name("key.pem")))
    monkeypatch.setenv("WUKONG_PUBLIC_KEY", str(folder.with_name("key.pub")))
    assert run("sign", folder, password=PASSWORD).exception is None
    assert run("verify", folder).exception is None


def test_a_password_is_asked_for_on_a_terminal_alone(folder: Path) -> None:
    key = folder.with_name("key.pem")
    refused = run("sign", folder, "--key", key)
    assert isinstance(refused.exception, ConfigError)
    assert "is encrypted: set WUKONG_SIGNING_PASSWORD" in str(refused.exception)
    child, terminal = pty.fork()
    if child == 0:
        os.environ.pop("WUKONG_SIGNING_PASSWORD", None)
        os.execv(sys.executable, [sys.executable, "-m", "cli.main", "model", "sign", str(folder), "--key", str(key)])
    shown = b""
    while piece := _read(terminal):
        shown += piece
        if shown.endswith(f"{key.name}: ".encode()):
            os.write(terminal, f"{PASSWORD}\n".encode())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, shown.decode()
    assert PASSWORD not in shown.decode() and "is signed" in shown.decode()
    assert run("verify", folder, "--public-key", folder.with_name("key.pub")).exception is None


def _read(terminal: int) -> bytes:
    """Read what is shown; nothing when the program has ended, which Linux says by an error."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""
