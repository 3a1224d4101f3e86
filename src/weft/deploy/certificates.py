"""Keys and certificates for development: an authority, the server's certificate, and one key for each node."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAYS = 90
"""How long development certificates last."""


def write_authority(folder: Path, days: float = DAYS) -> None:
    """``ca.pem`` and ``ca.key``: who trusts the first accepts what the second signs."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("Weft development authority")
    made = (
        _blank(name, name, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    (folder / "ca.pem").write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    _secret(folder / "ca.key", key, serialization.PrivateFormat.PKCS8)


def write_server(folder: Path, hosts: Sequence[str], days: float = DAYS) -> None:
    """``server.pem`` and ``server.key``, signed by the authority in the folder, for these names and addresses.

    `days` below 0 gives a certificate that has expired, for tests.
    """
    authority = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    signer = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    made = (
        _blank(_name(hosts[0]), authority.subject, key.public_key(), days)
        .add_extension(x509.SubjectAlternativeName([_host(h) for h in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(_usage(signs_certificates=False), critical=True)
    )
    (folder / "server.pem").write_bytes(made.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    _secret(folder / "server.key", key, serialization.PrivateFormat.PKCS8)


def write_node(folder: Path, name: str) -> None:
    """``NAME.key``, which stays at the node, and ``NAME.pub``, with which the server is told of it."""
    key = ec.generate_private_key(ec.SECP384R1())
    _secret(folder / f"{name}.key", key, serialization.PrivateFormat.OpenSSH)
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    (folder / f"{name}.pub").write_bytes(public + b"\n")


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _blank(subject: x509.Name, issuer: x509.Name, public: Any, days: float) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
    made = made.serial_number(x509.random_serial_number())
    end = now + datetime.timedelta(days=days)
    # an hour back, since clocks differ; an expired one began before it ended
    return made.not_valid_before(min(now, end) - datetime.timedelta(hours=1)).not_valid_after(end)


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _secret(path: Path, key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> None:
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
