"""Certificates of a server and keys of clients, as Flower's SuperLink and SuperNode read them."""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedtune.errors import ScenarioError

AUTHORITY, AUTHORITY_KEY = "ca.crt", "ca.key"
SERVER, SERVER_KEY = "server.crt", "server.key"
MODE = 0o600


def make_certificates(folder: Path, hosts: Sequence[str], days: int = 825) -> list[Path]:
    """A certificate authority, and a server's certificate that it signs.

    Args:
        folder: gets `ca.crt` (for clients), `ca.key` (to be kept elsewhere), `server.crt` and
            `server.key`; all mode 0600.
        hosts: names and addresses that clients reach the server by.
        days: until they expire.

    Raises:
        ScenarioError: if one of the files is there already, or no host is given.
    """
    if not hosts:
        raise ScenarioError("HOSTS: give the names or addresses that clients reach the server by")
    authority_key, server_key = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    authority = _certificate("fedtune federation", authority_key.public_key(), days)
    authority = authority.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
    authority = authority.add_extension(_usage(signs=True), True)
    signed = authority.issuer_name(_name("fedtune federation")).sign(authority_key, hashes.SHA384())
    server = _certificate(hosts[0], server_key.public_key(), days).issuer_name(signed.subject)
    server = server.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
    server = server.add_extension(_usage(signs=False), True)
    names = x509.SubjectAlternativeName([_host(host) for host in hosts])
    server = server.add_extension(names, False)
    server = server.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    server = server.add_extension(identifier, False)
    pem = serialization.Encoding.PEM
    return _write_new(
        folder,
        {
            AUTHORITY: signed.public_bytes(pem),
            AUTHORITY_KEY: _private(authority_key),
            SERVER: server.sign(authority_key, hashes.SHA384()).public_bytes(pem),
            SERVER_KEY: _private(server_key),
        },
    )


def make_client_keys(folder: Path, names: Sequence[str]) -> list[Path]:
    """A key pair a client, in OpenSSH's format: `NAME` stays with it, `NAME.pub` is registered.

    Raises:
        ScenarioError: if one of the files is there already.
    """
    files: dict[str, bytes] = {}
    for name in names:
        key = ec.generate_private_key(ec.SECP384R1())
        files[name] = _private(key, serialization.PrivateFormat.OpenSSH)
        public, encoding = serialization.PublicFormat.OpenSSH, serialization.Encoding.OpenSSH
        files[f"{name}.pub"] = key.public_key().public_bytes(encoding, public) + b"\n"
    return _write_new(folder, files)


def _write_new(folder: Path, files: dict[str, bytes]) -> list[Path]:
    if found := [name for name in files if (folder / name).exists()]:
        raise ScenarioError(f"{str(folder / found[0])!r}: is there already; nothing was written")
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(folder / name, flags, MODE), "wb") as file:
            file.write(data)
    return [folder / name for name in files]


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _certificate(
    name: str, public: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
    )


def _usage(signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=not signs, key_cert_sign=signs, crl_sign=signs,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _private(
    key: ec.EllipticCurvePrivateKey,
    form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8,
) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
