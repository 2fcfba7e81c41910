"""Signatures of folders of models, in the format of OpenSSF Model Signing: made, and checked before anything is loaded.

A signature is the file ``model.sig`` in the folder: a Sigstore bundle with the digest of every other file, signed by an
EC key or by a certificate. The package ``model-signing`` makes and checks it, here and wherever else it is used.
"""

import base64
import json
import os
import re
import tempfile
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path, PurePosixPath
from types import ModuleType

from wukong.errors import ConfigError, DataError
from wukong.runtime.installed import command_for

FILE = "model.sig"
PUBLIC_KEY = "WUKONG_PUBLIC_KEY"
"""The file of the public key, or of the certificates, by which every model that is loaded must be signed."""
KEY_FILE, PASSWORD = "WUKONG_SIGNING_KEY_FILE", "WUKONG_SIGNING_PASSWORD"
"""The file of the private key that signs, and its password if it is encrypted."""

MLFLOW_NOTE = "registered_model_meta"
"""The file that MLflow writes into a copy of a registered version: which version it is."""
_DIGESTS = re.compile(r": Expected 'Digest\(.*?(?=\"[,\]])")
"""Of the package's message on a changed file: the bytes of both digests, which tell a person nothing."""
_NEVER_SIGNED = {FILE, MLFLOW_NOTE, ".git", ".gitattributes", ".github", ".gitignore"}
"""What is left out of every signature, by the package itself git's own files: no loader reads them."""


@dataclass(frozen=True)
class Signer:
    """Who signs.

    Attributes:
        key: the file of the private key in PEM, on one of the curves P-256, P-384 and P-521.
        certificate: the file of the key's certificate in PEM, and after it those between it and the one that is
            trusted; None to sign by the key alone.
        password: of the key; empty if it is not encrypted.
    """

    key: Path
    certificate: Path | None = None
    password: str = field(default="", repr=False)

    @classmethod
    def of_environment(cls) -> "Signer | None":
        """The signer whose key the environment names; None if it names none."""
        named = os.environ.get(KEY_FILE)
        return cls(Path(named), password=os.environ.get(PASSWORD, "")) if named else None

    @property
    def is_locked(self) -> bool:
        """Whether the key is encrypted and its password is not known.

        Raises:
            ConfigError: the key's file cannot be read.
        """
        return not self.password and b"ENCRYPTED" in _read(self.key)


def required(public_key: str | Path | None) -> Path | None:
    """Return the key by which a model must be signed: the one given, or the environment's; None if it need not be."""
    named = public_key or os.environ.get(PUBLIC_KEY)
    return Path(named) if named else None


def sign(folder: Path, signer: Signer) -> bytes:
    """Return the signature of all files of a folder but itself, git's and MLflow's; the folder stays as it is.

    Args:
        folder: the folder of a model, or of an export.
        signer: who signs.

    Raises:
        ConfigError: the key or a certificate cannot be read or used, or the package is not installed.
        DataError: the folder has no files, or a link.
    """
    package = _package()
    if not folder.is_dir() or not any(file.is_file() and file.name != FILE for file in folder.rglob("*")):
        raise DataError(f"{folder} is no folder with files: there is nothing to sign")
    config = package.signing.Config()
    _read(signer.key)
    if signer.certificate is not None and b"ENCRYPTED" in _read(signer.key):
        raise ConfigError(f"{signer.key} is encrypted, and model-signing signs by a certificate with a plain key only")
    try:
        if signer.certificate is None:
            # Its type hint says text, and what it calls takes bytes.
            config.use_elliptic_key_signer(private_key=signer.key, password=signer.password.encode() or None)
        else:
            # It reads the first certificate of the one and all of the other, of which there must be one.
            config.use_certificate_signer(
                private_key=signer.key, signing_certificate=signer.certificate, certificate_chain=[signer.certificate]
            )
    except Exception as error:  # the package lets through what each of the libraries below it raises
        raise ConfigError(f"{signer.key} cannot sign: {_why(error)}") from error
    config.set_hashing_config(package.hashing.Config().set_ignored_paths(paths=[FILE, MLFLOW_NOTE]))
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch, FILE)
        try:
            config.sign(folder, made)
        except ValueError as error:
            raise DataError(f"{folder} cannot be signed: {error}") from error
        return made.read_bytes()


def verify(folder: Path, public_key: Path, name: str = "") -> None:
    """Check that ``model.sig`` in a folder is the signature of exactly its other files, by a key.

    Args:
        folder: the folder; nobody else may write to it until it has been read.
        public_key: the file of the public key in PEM, or of the certificates that are trusted.
        name: what messages call the folder; empty for its path.

    Raises:
        DataError: there is no signature, it is another key's, or a file was changed, added or removed.
        ConfigError: the key cannot be read or used, or the package is not installed.
    """
    package, shown = _package(), name or str(folder)
    config = package.verifying.Config()
    pem = _read(public_key)
    try:
        if b"BEGIN CERTIFICATE" in pem:
            config.use_certificate_verifier(certificate_chain=[public_key])
        else:
            config.use_elliptic_key_verifier(public_key=public_key)
    except Exception as error:
        raise ConfigError(
            f"{public_key} holds neither the public half of an EC key nor certificates, in PEM: {_why(error)}"
        ) from error
    signature = folder / FILE
    if not signature.is_file():
        raise DataError(
            f"{shown} has no {FILE}, and must be signed by the key of {public_key}: ask those who made it for a signed "
            "one; `wukong model sign` signs your own"
        )
    try:
        config.verify(folder, signature)
        left_out = _left_out(signature) - _NEVER_SIGNED
    except Exception as error:  # whatever somebody has put there in place of a signature
        raise DataError(
            f"{shown} is not what the key of {public_key} has signed: {_why(error)}. Nothing of it was loaded; get it "
            "again from those who signed it"
        ) from error
    if left_out:
        raise DataError(f"{shown} is signed in part: its signature leaves out {', '.join(sorted(left_out))}")


def _left_out(signature: Path) -> set[str]:
    """Return the paths that a signature, which has been checked, says it leaves out."""
    envelope = json.loads(signature.read_bytes())["dsseEnvelope"]
    predicate = json.loads(base64.b64decode(envelope["payload"]))["predicate"]
    return {PurePosixPath(path).as_posix() for path in predicate["serialization"].get("ignore_paths", ())}


def _package() -> ModuleType:
    try:
        # Not by a statement: mypy finds its types only where it is installed.
        return import_module("model_signing")
    except ImportError as error:
        raise ConfigError(
            f"signatures need packages that are not installed ({error.name}): run `{command_for('sign')}`"
        ) from error


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the key or certificate {file}: {error.strerror}") from error


def _why(error: Exception) -> str:
    """Return what an error says, with its kind unless it is the package's own; some of the libraries' say nothing."""
    if not (isinstance(error, ValueError) and str(error)):
        return f"{type(error).__name__} {error}".rstrip()
    return _DIGESTS.sub("", str(error))
