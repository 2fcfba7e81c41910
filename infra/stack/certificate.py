"""Mutual TLS for SeaweedFS's own ports: one certificate, which only the stack's user can read, is server and client.

SeaweedFS's filer, master, volume and admin ports ask for no key, and their answers allow every web page to read them.
With these settings each of them refuses a connection that does not show the certificate. Only the S3 port, which asks
for a key, takes plain HTTP.
"""

import datetime
import ipaddress
import json
from pathlib import Path

from infra.stack.state import write_private

_YEARS = 10
_GRPC = ("admin", "client", "filer", "master", "mq", "msg_agent", "msg_broker", "s3", "volume", "worker")
_HTTPS = ("admin", "filer", "master", "volume")


def write_security(folder: Path) -> None:
    """Write a new certificate, its key, and the ``security.toml`` that makes SeaweedFS demand it on every port.

    Args:
        folder: where to; it is created with access for its owner only. SeaweedFS gets it as ``-config_dir``.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    for path, text in zip((certificate, key), _self_signed(), strict=True):
        write_private(path, text)
    # A string of JSON is a string of TOML, as long as no character is written as two halves.
    own = {"cert": certificate, "key": key}
    sections = {"grpc": {"ca": certificate}}
    sections |= {f"grpc.{name}": own for name in _GRPC}
    sections |= {f"https.{name}": own | {"ca": certificate} for name in (*_HTTPS, "client")}
    lines = []
    for section, values in sections.items():
        lines.append(f"[{section}]")
        lines += [f"{name} = {json.dumps(str(path), ensure_ascii=False)}" for name, path in values.items()]
    lines.append("enabled = true")  # of https.client, the last section
    write_private(folder / "security.toml", "\n".join(lines) + "\n")


def _self_signed() -> tuple[str, str]:
    """Return a certificate for 127.0.0.1 that vouches for itself, and its private key, as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "wukong embedded stack")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=365 * _YEARS))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    return certificate.public_bytes(pem).decode(), private.decode()
