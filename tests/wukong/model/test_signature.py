"""Signatures of folders of models; OpenSSF's own command line is the second opinion."""

import base64
import datetime
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

import wukong
from wukong.config.model import Model
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.errors import ConfigError, DataError, StorageError
from wukong.model import address, saved_model, signature, weights
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.model.signature import Signer
from wukong.store import storage

needs_the_package = pytest.mark.usefixtures("package")

NOW, DAY = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
PASSWORD = "碧海青天"


@pytest.fixture(scope="module")
def package() -> None:
    pytest.importorskip("model_signing", reason="model-signing is not installed: it is in the extra sign")


def write_key(file: Path, key: ec.EllipticCurvePrivateKey, encryption: KeySerializationEncryption) -> Path:
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    file.with_suffix(".pub").write_bytes(public)
    return file


def certificate(
    key: ec.EllipticCurvePrivateKey, name: str, by: ec.EllipticCurvePrivateKey, issuer: str, *, ca: bool
) -> bytes:
    """A certificate for three days, of which the first is yesterday, in PEM."""
    subject, signed_by = (x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, each)]) for each in (name, issuer))
    other = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only")
    usage = x509.KeyUsage(
        digital_signature=not ca, key_cert_sign=ca, crl_sign=ca, decipher_only=False, **dict.fromkeys(other, False)
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signed_by)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + 2 * DAY)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .sign(by, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of keys: ours, theirs, locked (ours encrypted), and certificates of ours.

    One is by the authority, the other by one that the authority has certified. The stranger has the authority's name.
    """
    folder = tmp_path_factory.mktemp("keys")
    ours, theirs, authority, between = (ec.generate_private_key(ec.SECP256R1()) for _ in range(4))
    write_key(folder / "ours.pem", ours, NoEncryption())
    write_key(folder / "theirs.pem", theirs, NoEncryption())
    write_key(folder / "locked.pem", ours, BestAvailableEncryption(PASSWORD.encode()))
    (folder / "ours.crt").write_bytes(certificate(ours, "ours", authority, "authority", ca=False))
    by_another = certificate(ours, "ours", between, "between", ca=False)
    chain = by_another + certificate(between, "between", authority, "authority", ca=True)
    (folder / "chain.crt").write_bytes(chain)
    (folder / "authority.crt").write_bytes(certificate(authority, "authority", authority, "authority", ca=True))
    (folder / "stranger.crt").write_bytes(certificate(theirs, "authority", theirs, "authority", ca=True))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with files, and one below it."""
    made = tmp_path / "files"
    (made / "below").mkdir(parents=True)
    (made / "config.json").write_text("{}")
    (made / "weights").write_bytes(bytes(range(256)))
    (made / "below" / "vocab.txt").write_text("猫\n")
    return made


def put(folder: Path, key: Path) -> Path:
    (folder / signature.FILE).write_bytes(signature.sign(folder, Signer(key)))
    return folder


def cli(*words: object) -> subprocess.CompletedProcess[str]:
    """Run OpenSSF's command."""
    command = [sys.executable, "-m", "model_signing", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@needs_the_package
def test_a_signature_holds_wherever_the_folder_is_and_openssf_takes_it(folder: Path, keys: Path) -> None:
    put(folder, keys / "ours.pem")
    moved = folder.rename(folder.with_name("elsewhere"))
    signature.verify(moved, keys / "ours.pub")
    where = ("--signature", moved / "model.sig", moved)
    theirs = cli("verify", "key", "--public_key", keys / "ours.pub", *where)
    assert theirs.returncode == 0, theirs.stderr
    assert cli("verify", "key", "--public_key", keys / "theirs.pub", *where).returncode == 1
    again = signature.sign(moved, Signer(keys / "theirs.pem"))
    (moved / signature.FILE).write_bytes(again)
    signature.verify(moved, keys / "theirs.pub")


@needs_the_package
def test_a_signature_by_openssfs_command_is_taken(folder: Path, keys: Path) -> None:
    made = cli("sign", "key", "--private_key", keys / "ours.pem", "--signature", folder / "model.sig", folder)
    assert made.returncode == 0, made.stderr
    signature.verify(folder, keys / "ours.pub")
    (folder / "weights").write_bytes(b"")
    with pytest.raises(DataError, match="weights"):
        signature.verify(folder, keys / "ours.pub")


@needs_the_package
def test_what_a_signature_leaves_out_is_not_trusted(folder: Path, keys: Path) -> None:
    options = ("--signature", folder / "model.sig", "--ignore-paths", folder / "below")
    assert cli("sign", "key", "--private_key", keys / "ours.pem", *options, folder).returncode == 0
    (folder / "below" / "vocab.txt").write_text("another")
    where = ("--signature", folder / "model.sig", folder)
    assert cli("verify", "key", "--public_key", keys / "ours.pub", *where).returncode == 0, "else there is no danger"
    with pytest.raises(DataError, match="signed in part: its signature leaves out below"):
        signature.verify(folder, keys / "ours.pub")


def edited(folder: Path, change: Callable[[dict[str, object]], None]) -> None:
    """Change what the signature says of the files, and leave its cryptography as it is."""
    bundle = json.loads((folder / "model.sig").read_bytes())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    change(statement)
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    (folder / "model.sig").write_text(json.dumps(bundle))


def changed_weights(folder: Path, _: Path) -> None:
    content = bytearray((folder / "weights").read_bytes())
    content[-1] ^= 1
    (folder / "weights").write_bytes(content)


def exchanged(folder: Path, _: Path) -> None:
    one, other = folder / "weights", folder / "config.json"
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def said_to_be_by_us(folder: Path, keys: Path) -> None:
    """Their signature with our key's name in it."""
    ours = json.loads((folder / "model.sig").read_bytes())
    changed_weights(folder, keys)
    theirs = json.loads(signature.sign(folder, Signer(keys / "theirs.pem")))
    theirs["verificationMaterial"] = ours["verificationMaterial"]
    (folder / "model.sig").write_text(json.dumps(theirs))


def of_another_folder(folder: Path, keys: Path) -> None:
    shutil.copytree(folder, folder.with_name("other"))
    changed_weights(folder.with_name("other"), keys)
    (folder / "model.sig").write_bytes(signature.sign(folder.with_name("other"), Signer(keys / "ours.pem")))


def by_their_certificate(folder: Path, keys: Path) -> None:
    (folder / "model.sig").write_bytes(signature.sign(folder, Signer(keys / "ours.pem", keys / "ours.crt")))


def linked(folder: Path, _: Path) -> None:
    shutil.move(folder / "weights", folder.with_name("weights"))
    (folder / "weights").symlink_to(folder.with_name("weights"))


TAMPERED: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "no signature": (lambda folder, _: (folder / "model.sig").unlink(), "has no model.sig, and must be signed"),
    "a bit": (changed_weights, "Hash mismatch for 'weights'"),
    "a cut": (lambda folder, _: os.truncate(folder / "weights", 255), "Hash mismatch for 'weights'"),
    "exchanged": (exchanged, "Hash mismatch for 'config.json'.*Hash mismatch for 'weights'"),
    "added": (lambda folder, _: (folder / "run.py").write_text(""), "Extra files found.*run.py"),
    "added below": (lambda folder, _: (folder / "below" / "x").touch(), "Extra files found.*below/x"),
    "added and hidden": (lambda folder, _: (folder / ".x").touch(), "Extra files found.*.x"),
    "missing": (lambda folder, _: (folder / "config.json").unlink(), "Missing files.*config.json"),
    "renamed": (lambda folder, _: (folder / "weights").rename(folder / "w"), "Extra files.*w.*Missing files.*weights"),
    "a link": (linked, "symlink"),
    "signed by another": (lambda folder, keys: put(folder, keys / "theirs.pem"), "Key mismatch"),
    "said to be by us": (said_to_be_by_us, "InvalidSignature"),
    "of another folder": (of_another_folder, "Hash mismatch for 'weights'"),
    "another kind": (by_their_certificate, "is not what the key of"),
    "an edited statement": (
        lambda folder, _: edited(folder, lambda said: said.update(predicateType="x")),
        "InvalidSignature",
    ),
    "an empty signature": (lambda folder, _: (folder / "model.sig").write_bytes(b""), "is not what the key of"),
    "half a signature": (lambda folder, _: os.truncate(folder / "model.sig", 300), "is not what the key of"),
    "another document": (lambda folder, _: (folder / "model.sig").write_text("{}"), "is not what the key of"),
    "not even text": (lambda folder, _: (folder / "model.sig").write_bytes(b"\xff\xfe"), "is not what the key of"),
}


@needs_the_package
@pytest.mark.parametrize("how", TAMPERED)
def test_what_was_tampered_with_is_refused(folder: Path, keys: Path, how: str) -> None:
    put(folder, keys / "ours.pem")
    signature.verify(folder, keys / "ours.pub")
    tamper, said = TAMPERED[how]
    tamper(folder, keys)
    with pytest.raises(DataError, match=f"^the model .*{said}") as refused:
        signature.verify(folder, keys / "ours.pub", "the model")
    assert "Digest(" not in str(refused.value), "bytes of digests tell a person nothing"


@needs_the_package
@pytest.mark.parametrize("own", ["ours.crt", "chain.crt"])
def test_a_certificate_is_trusted_by_who_issued_it(folder: Path, keys: Path, own: str) -> None:
    made = signature.sign(folder, Signer(keys / "ours.pem", keys / own))
    (folder / signature.FILE).write_bytes(made)
    signature.verify(folder, keys / "authority.crt")
    where = ("--signature", folder / "model.sig", folder)
    theirs = cli("verify", "certificate", "--certificate_chain", keys / "authority.crt", *where)
    assert theirs.returncode == 0, theirs.stderr
    with pytest.raises(DataError, match=r"is not what the key of .*stranger\.crt has signed"):
        signature.verify(folder, keys / "stranger.crt")
    changed_weights(folder, keys)
    with pytest.raises(DataError, match="Hash mismatch for 'weights'"):
        signature.verify(folder, keys / "authority.crt")
    with pytest.raises(ConfigError, match=r"cannot sign: .*does not match"):
        signature.sign(folder, Signer(keys / "theirs.pem", keys / own))


@needs_the_package
def test_an_encrypted_key_signs_by_its_password(
    folder: Path, keys: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    locked = Signer(keys / "locked.pem")
    assert locked.is_locked and not Signer(keys / "ours.pem").is_locked
    monkeypatch.setenv("WUKONG_SIGNING_KEY_FILE", str(keys / "locked.pem"))
    monkeypatch.setenv("WUKONG_SIGNING_PASSWORD", PASSWORD)
    signer = Signer.of_environment()
    assert signer is not None and not signer.is_locked
    (folder / signature.FILE).write_bytes(signature.sign(folder, signer))
    signature.verify(folder, keys / "ours.pub")
    with pytest.raises(ConfigError, match=r"locked\.pem cannot sign") as refused:
        signature.sign(folder, Signer(keys / "locked.pem", password="another secret"))
    with pytest.raises(ConfigError, match=r"locked\.pem cannot sign"):
        signature.sign(folder, locked)
    with pytest.raises(ConfigError, match="with a plain key only"):
        signature.sign(folder, Signer(keys / "locked.pem", keys / "ours.crt", password=PASSWORD))
    assert "another secret" not in str(refused.value)
    assert PASSWORD not in f"{signer} {signer!r} {caplog.text}"
    monkeypatch.delenv("WUKONG_SIGNING_KEY_FILE")
    assert Signer.of_environment() is None


@needs_the_package
def test_a_key_that_cannot_be_used_is_named(folder: Path, keys: Path, tmp_path: Path) -> None:
    put(folder, keys / "ours.pem")
    public = rsa.generate_private_key(65537, 2048).public_key()
    (tmp_path / "rsa.pub").write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    for wrong in (tmp_path / "rsa.pub", keys / "ours.pem", folder / "config.json"):
        with pytest.raises(ConfigError, match=f"{wrong.name} holds neither the public half of an EC key nor"):
            signature.verify(folder, wrong)
    with pytest.raises(ConfigError, match=r"cannot read the key or certificate .*none\.pub: No such file"):
        signature.verify(folder, keys / "none.pub")
    with pytest.raises(ConfigError, match=r"ours\.pub cannot sign"):
        signature.sign(folder, Signer(keys / "ours.pub"))
    with pytest.raises(ConfigError, match=r"cannot read the key or certificate .*none\.pem"):
        signature.sign(folder, Signer(keys / "none.pem"))


@needs_the_package
def test_what_is_no_folder_of_plain_files_is_not_signed(folder: Path, keys: Path, tmp_path: Path) -> None:
    signer = Signer(keys / "ours.pem")
    (tmp_path / "empty").mkdir()
    for wrong in (tmp_path / "empty", tmp_path / "none", folder / "config.json"):
        with pytest.raises(DataError, match="there is nothing to sign"):
            signature.sign(wrong, signer)
    linked(folder, keys)
    with pytest.raises(DataError, match=r"cannot be signed: .*symlink"):
        signature.sign(folder, signer)


def test_a_missing_package_is_named(folder: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    for refused in (
        lambda: signature.sign(folder, Signer(keys / "ours.pem")),
        lambda: signature.verify(folder, keys / "ours.pub"),
    ):
        with pytest.raises(ConfigError, match=r"not installed \(model_signing\): run `pip install .*model-signing"):
            refused()


def test_only_files_below_an_address_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="there are no files at file://"):
        address.fetch(tmp_path / "none", tmp_path / "copy")
    for name in ("../outside", "below/../../outside"):
        monkeypatch.setattr(storage, "list_files", lambda uri, name=name: [f"{uri}/{name}"])
        with pytest.raises(DataError, match=r"s3://bucket/model/.*outside leads out of .*copy"):
            address.fetch("s3://bucket/model", tmp_path / "copy")
    assert not list(tmp_path.rglob("outside"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, keys: Path, package: None) -> Path:
    """The folder of a saved model, signed by our key."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    settings = Model.model_validate(
        {"image": {"image_size": 64}, "text": {"layers": 1, "heads": 2, "width": 16}, "embedding": 8}
    )
    tokenizer = Tokenizer(packaged_vocabulary())
    model = DualEncoder(settings, tokenizer, ImageEncoder(settings.image)).eval()
    saved_model.save(storage.from_path(folder), model, tokenizer)
    return put(folder, keys / "ours.pem")


@pytest.mark.slow
def test_a_signed_model_is_loaded(model: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = wukong.load(model).encode_text("猫").vectors
    signed = wukong.load(storage.from_path(model), public_key=keys / "ours.pub")
    torch.testing.assert_close(signed.encode_text("猫").vectors, wanted, atol=0, rtol=0)
    monkeypatch.setenv("WUKONG_PUBLIC_KEY", str(keys / "ours.pub"))
    torch.testing.assert_close(wukong.load(model).encode_text("猫").vectors, wanted, atol=0, rtol=0)
    features = saved_model.load_for_features(str(model))
    torch.testing.assert_close(features.encode_text("猫").vectors, wanted, atol=0, rtol=0)


@pytest.mark.slow
def test_no_weights_are_read_of_a_model_that_is_not_signed(
    model: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsigned = Path(shutil.copytree(model, tmp_path / "unsigned"))
    (unsigned / signature.FILE).unlink()

    def read(uri: str, *_: str) -> object:
        raise AssertionError(f"{uri} was read")

    monkeypatch.setattr(weights, "read", read)
    with pytest.raises(AssertionError, match="was read"):
        wukong.load(unsigned)
    with pytest.raises(DataError, match=r"unsigned has no model\.sig"):
        wukong.load(unsigned, public_key=keys / "ours.pub")
    monkeypatch.setenv("WUKONG_PUBLIC_KEY", str(keys / "theirs.pub"))
    for load in (wukong.load, saved_model.load_for_features):
        with pytest.raises(DataError, match="Key mismatch"):
            load(str(model))
    monkeypatch.setenv("WUKONG_PUBLIC_KEY", str(keys / "none.pub"))
    with pytest.raises(ConfigError, match=r"none\.pub: No such file"):
        wukong.load(model)


@pytest.mark.slow
def test_the_bytes_that_are_checked_are_those_that_are_loaded(
    model: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody exchanges the files between the check and the load."""
    place = Path(shutil.copytree(model, tmp_path / "model"))
    wanted = wukong.load(place).encode_text("猫").vectors
    check = signature.verify

    def verify(*arguments: object) -> None:
        check(*arguments)  # type: ignore[arg-type]
        for file in place.iterdir():
            file.write_bytes(b"")

    monkeypatch.setattr(signature, "verify", verify)
    loaded = wukong.load(place, public_key=keys / "ours.pub")
    torch.testing.assert_close(loaded.encode_text("猫").vectors, wanted, atol=0, rtol=0)
