"""An authority of a test's own, and the certificate of a server on loopback that it has signed."""

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


def certified(folder: Path, *names: str) -> tuple[Path, Path, Path]:
    """Write the authority's certificate, the server's, and the server's key; return their paths.

    Args:
        folder: where to.
        names: names of the server beside 127.0.0.1.
    """
    owner, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "an authority of a test")])
    server = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a store of a test")])
    own = _begun(authority, authority, owner).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    named = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), *map(x509.DNSName, names)]
    of_server = _begun(server, authority, key).add_extension(x509.SubjectAlternativeName(named), critical=False)
    paths = folder / "ca.crt", folder / "server.crt", folder / "server.key"
    for path, made in zip(paths, (own, of_server), strict=False):
        path.write_bytes(made.sign(owner, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    paths[2].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


def _begun(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
    )
