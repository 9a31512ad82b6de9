"""Certificates hold for their hosts only, keys are ones Flower reads, nothing is overwritten."""

from __future__ import annotations

import ssl
import stat

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fedtune.deploy.certificates import make_certificates, make_client_keys
from fedtune.errors import ScenarioError


def handshake(folder, authority, name) -> bool:
    """Whether a client that trusts an authority accepts the server's certificate for a name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    trusting = ssl.create_default_context(cafile=authority)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(to_server, to_client, server_side=True)
    client = trusting.wrap_bio(to_client, to_server, server_hostname=name)
    done = set()
    for _ in range(8):
        for side in (client, server):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError:
                return False
    return len(done) == 2


def test_tls_holds_for_the_hosts_given_under_its_own_authority_only(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    make_certificates(one, ["server.example.org", "127.0.0.1", "::1"])
    make_certificates(other, ["server.example.org"])
    for name in ("server.example.org", "127.0.0.1", "::1"):
        assert handshake(one, one / "ca.crt", name)
    assert not handshake(one, one / "ca.crt", "elsewhere.example.org")
    assert not handshake(one, other / "ca.crt", "server.example.org")


def test_files_are_their_owners_only_and_are_never_replaced(tmp_path):
    files = make_certificates(tmp_path, ["localhost"]) + make_client_keys(tmp_path, ["a", "b"])
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    before = {file: file.read_bytes() for file in files}
    with pytest.raises(ScenarioError, match="is there already; nothing was written"):
        make_certificates(tmp_path, ["localhost"])
    with pytest.raises(ScenarioError, match="is there already"):
        make_client_keys(tmp_path, ["c", "b"])
    assert not (tmp_path / "c").exists()
    assert {file: file.read_bytes() for file in files} == before


def test_a_key_pair_is_one_and_each_client_has_its_own(tmp_path):
    make_client_keys(tmp_path, ["a", "b"])
    numbers = []
    for name in "ab":
        private = load_ssh_private_key((tmp_path / name).read_bytes(), None)
        public = load_ssh_public_key((tmp_path / f"{name}.pub").read_bytes())
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        assert private.public_key().public_numbers() == public.public_numbers()
        numbers.append(public.public_numbers())
    assert numbers[0] != numbers[1]


def test_no_host_is_a_mistake(tmp_path):
    with pytest.raises(ScenarioError, match="HOSTS"):
        make_certificates(tmp_path, [])
