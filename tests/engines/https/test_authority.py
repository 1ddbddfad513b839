"""The authority's files and certificates, judged by OpenSSL's own command line or by cryptography's verifier."""

from __future__ import annotations

import os
import stat
import time
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from hypothesis import given, settings
from hypothesis import strategies as st

from insitu.core.errors import ConfigError, Refusal, TokenError
from insitu.engines.https.authority import Authority, Token, certificates, fingerprint, keys
from insitu.engines.https.authority.names import checked_name, checked_role, shown
from insitu.engines.https.authority.tokens import digest_of

NOW = 1_800_000_000.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority.make(tmp_path_factory.mktemp("a") / "authority", "my-study", ["host.example", "10.0.0.1"])


def csr(key, name="x"):
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, algorithm)
    return made.public_bytes(serialization.Encoding.PEM)


def usage(certificate):
    return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_an_authority_may_sign_members_for_ten_years_and_no_other_authority(authority):
    (certificate,) = authority.trusted()
    limits = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (limits.critical, limits.value.ca, limits.value.path_length) == (True, True, 0)
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert timedelta(days=3652) <= life <= timedelta(days=3654)
    assert isinstance(certificate.public_key().curve, ec.SECP256R1)


def test_a_verifier_that_is_not_ours_accepts_the_coordinator_and_a_member(authority):
    store = Store(authority.trusted())
    leaf = x509.load_pem_x509_certificates(authority.chain.read_bytes())[0]
    when = datetime.now(UTC)
    server = PolicyBuilder().store(store).time(when).build_server_verifier(x509.DNSName("host.example"))
    assert len(server.verify(leaf, [])) == 2
    with pytest.raises(VerificationError):
        PolicyBuilder().store(store).time(when).build_server_verifier(x509.DNSName("evil.example")).verify(leaf, [])
    assert usage(leaf) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert authority.hosts() == ["host.example", "10.0.0.1"]


def test_name_and_role_are_the_callers_and_nothing_of_the_request_but_its_key(authority):
    key = keys.new_key()
    subject = x509.Name([
        x509.NameAttribute(NameOID.COMMON_NAME, "root"), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "operator"),
    ])  # fmt: skip
    wishful = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("host.example")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    made = authority.sign(wishful.public_bytes(serialization.Encoding.PEM), "berlin", "site")
    assert made.subject.rfc4514_string() == "O=site,CN=berlin"
    assert made.public_key() == key.public_key()
    assert made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    with pytest.raises(x509.ExtensionNotFound):
        made.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert usage(made) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    made.verify_directly_issued_by(authority.trusted()[0])
    assert (made.not_valid_after_utc - datetime.now(UTC)).days in (396, 397)


@pytest.mark.parametrize("key", [keys.new_key(), ed25519.Ed25519PrivateKey.generate()])
def test_good_kinds_of_keys(authority, key):
    assert authority.sign(csr(key), "a", "site").public_key() == key.public_key()


@pytest.mark.parametrize("key", [rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())])
def test_weak_and_other_kinds_of_keys_are_refused(authority, key):
    with pytest.raises(Refusal, match="take EC P-256") as refused:
        authority.sign(csr(key), "a", "site")
    assert refused.value.code == "BAD_REQUEST"


def test_a_request_that_is_not_signed_by_its_own_key_is_refused(authority):
    data = bytearray(x509.load_pem_x509_csr(csr(keys.new_key())).public_bytes(serialization.Encoding.DER))
    data[-1] ^= 1
    damaged = b"-----BEGIN CERTIFICATE REQUEST-----\n" + __import__("base64").encodebytes(bytes(data))
    with pytest.raises(Refusal) as refused:
        keys.key_of(damaged + b"-----END CERTIFICATE REQUEST-----\n")
    assert refused.value.code == "BAD_REQUEST"


@given(st.one_of(st.text(max_size=300), st.binary(max_size=300)))
@settings(max_examples=60, deadline=None)
def test_whatever_stands_for_a_request_is_refused_in_one_way(text):
    with pytest.raises(Refusal) as refused:
        keys.key_of(text)
    assert refused.value.code == "BAD_REQUEST"


def test_keys_are_private_and_never_overwritten(authority, tmp_path):
    for path in authority.folder.glob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(list(authority.folder.glob("*.key"))) == 2
    assert not list(authority.folder.glob(".*"))
    with pytest.raises(ConfigError, match="there already"):
        Authority.make(authority.folder, "again", ["x"])
    os.chmod(authority.key, 0o644)
    try:
        with pytest.raises(ConfigError, match="chmod 600"):
            authority.certify_coordinator(["x"])
    finally:
        os.chmod(authority.key, 0o600)


def test_an_authority_that_is_not_whole_says_what_is_missing(tmp_path):
    with pytest.raises(ConfigError, match=r"authority\.pem is not there"):
        Authority.load(tmp_path)
    made = Authority.make(tmp_path / "a", "t", ["x"])
    next(p for p in made.folder.glob("authority-*.key")).unlink()
    with pytest.raises(ConfigError, match="restore it from a backup"):
        Authority.load(tmp_path / "a")


def test_an_authority_is_replaced_with_an_overlap(tmp_path):
    authority = Authority.make(tmp_path / "a", "t", ["x"])
    first, mark = authority.trusted(), authority.mark
    authority.rotate("t")
    both = authority.trusted()
    assert both[:1] == first
    assert len(both) == 2
    assert authority.mark != mark
    # Members get new certificates of the new one; the coordinator is still known by the old one.
    authority.sign(csr(keys.new_key()), "a", "site").verify_directly_issued_by(both[1])
    assert authority.fingerprint == fingerprint(both[0])
    with pytest.raises(ConfigError, match="retire the old one"):
        authority.rotate("t")
    authority.retire()
    assert Authority.load(tmp_path / "a").trusted() == both[1:]
    assert authority.fingerprint == fingerprint(both[1])
    assert len(list(authority.folder.glob("authority-*.key"))) == 1
    with pytest.raises(ConfigError, match="holds one authority"):
        authority.retire()


def test_the_coordinators_certificate_is_renewed_before_it_ends(tmp_path):
    now = [time.time()]
    authority = Authority.make(tmp_path / "a", "t", ["x", "10.0.0.1"], clock=lambda: now[0])
    assert authority.renew_coordinator() is False
    before = authority.expires()["coordinator"]
    now[0] += 340 * 86400
    assert authority.renew_coordinator() is True
    assert authority.expires()["coordinator"] > before
    assert authority.hosts() == ["x", "10.0.0.1"]
    now[0] -= 340 * 86400  # it had been made by a clock that was ahead, and nobody would accept it for most of a year
    assert authority.renew_coordinator() is True
    assert authority.expires()["coordinator"] == pytest.approx(before, abs=2)
    assert authority.renew_coordinator() is False


@pytest.mark.parametrize("host", ["", "*.example", "a b", "höst", "host:8443", "x" * 300, "a/b"])
def test_hosts_that_are_none(tmp_path, host):
    with pytest.raises(ConfigError):
        Authority.make(tmp_path / "a", "t", [host])


def test_a_renewed_serial_names_the_one_before_and_no_other():
    first = f"{certificates.fresh_serial():x}"
    second = f"{certificates.renewed_serial(first):x}"
    assert certificates.renews(second, first)
    assert not certificates.renews(first, first)
    assert not certificates.renews(second, f"{certificates.fresh_serial():x}")
    assert len(bytes.fromhex("0" * (len(second) % 2) + second)) <= 20  # RFC 5280, 4.1.2.2


@pytest.mark.parametrize("name", ["a", "9", "a.b-c_d", "a" * 63])
def test_names(name):
    assert checked_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "A", ".a", "-a", "_a", "a" * 64, "a b", "a/b", "..", "a\n", "a\x00", "ä", "а", "a;drop", "x" * 4096, 7, None],
)
def test_names_that_are_none(name):
    with pytest.raises(Refusal) as refused:
        checked_name(name)
    assert str(refused.value).isascii()
    assert len(str(refused.value)) < 300


def test_roles():
    assert checked_role("viewer") == "viewer"
    with pytest.raises(Refusal, match="there are site, operator, viewer"):
        checked_role("admin")


@given(st.text(max_size=400))
@settings(max_examples=100, deadline=None)
def test_what_is_shown_can_do_nothing_to_a_log(text):
    line = shown(text)
    assert line.isascii()
    assert line.isprintable()
    assert len(line) < 1000


URLS = ("https://host.example:8443", "https://10.0.0.1")


def test_a_token_says_what_was_put_in_and_keeps_its_secret():
    token = Token.new(URLS, "ab" * 32, "berlin", "site")
    assert Token.parse(token.text()) == token
    # Mail programs break lines.
    assert Token.parse(f"  {token.text()[:40]}\r\n {token.text()[40:]}\n") == token
    assert token.secret not in repr(token)
    invitation = token.invitation(NOW)
    assert (invitation.token, invitation.name, invitation.role) == (digest_of(token.secret), "berlin", "site")
    assert token.secret not in repr(invitation)


def test_two_tokens_are_never_the_same():
    assert Token.new(URLS, "ab" * 32, "a", "site").secret != Token.new(URLS, "ab" * 32, "a", "site").secret


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda t: t[:-7], "damaged or cut off"),
        (lambda t: t[:60], "damaged or cut off"),
        (lambda t: "insitu2." + t[8:], "version 2.*reads 1"),
        (lambda t: t[8:], "starts with"),
        (lambda t: "", "starts with"),
        (lambda t: t[:8] + "!!" + t[10:], "damaged or cut off"),
        (lambda t: t + "A" * 20000, "at most"),
        (lambda t: "insitu1.e30", "not what an invitation holds"),
    ],
)
def test_a_token_that_is_damaged_says_how(damage, said):
    token = Token.new(URLS, "ab" * 32, "berlin", "site")
    with pytest.raises(TokenError, match=said) as refused:
        Token.parse(damage(token.text()))
    assert token.secret not in str(refused.value)


@given(st.one_of(st.text(max_size=200), st.text(max_size=200).map("insitu1.".__add__)))
@settings(max_examples=150, deadline=None)
def test_whatever_stands_for_a_token_is_refused_in_one_way(text):
    with pytest.raises(TokenError):
        Token.parse(text)


@pytest.mark.parametrize(
    "url", ["http://x", "https://", "https://u:p@x", "https://x/path", "https://x?q", "x", "https://x:0"]
)
def test_addresses_that_are_none(url):
    with pytest.raises(ValueError, match="no address"):
        Token.new([url], "ab" * 32, "a", "site")
