"""Certificates as values: what an authority, a coordinator and a member have in theirs.

Source: RFC 5280 (profile), RFC 6125 (host names), CA/Browser Forum Baseline Requirements (397 days).
"""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from insitu.core.errors import ConfigError
from insitu.core.federation import Role
from insitu.engines.https.authority.keys import Public, key_bytes

AUTHORITY_LIFE = timedelta(days=3653)
MEMBER_LIFE = timedelta(days=397)
SKEW = timedelta(hours=1)
"""Certificates are valid from so long before they are made: the other machine's clock may be late."""

CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


def moment(now: float) -> datetime:
    """Seconds since 1970 as a date that a certificate can hold."""
    return datetime.fromtimestamp(int(now), UTC)


def authority(key: ec.EllipticCurvePrivateKey, title: str, now: float) -> x509.Certificate:
    """A certificate authority's own certificate; it may sign members, and no other authority."""
    subject = _name(f"insitu authority of {title}"[:64], "insitu")
    usage = _usage(key_cert_sign=True, crl_sign=True)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(fresh_serial())
        .not_valid_before(moment(now) - SKEW)
        .not_valid_after(moment(now) + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def member(
    key: Public, name: str, role: Role, serial: int, issuer: x509.Certificate, signer: ec.EllipticCurvePrivateKey,
    now: float,
) -> x509.Certificate:  # fmt: skip
    """A site's, operator's or viewer's certificate: good for calling, not for being called."""
    return _leaf(key, _name(name, role), serial, issuer, now, CLIENT).sign(signer, hashes.SHA256())


def coordinator(
    key: Public, hosts: Sequence[str], issuer: x509.Certificate, signer: ec.EllipticCurvePrivateKey, now: float
) -> x509.Certificate:
    """The coordinator's certificate for these host names and IP addresses."""
    found: list[x509.GeneralName] = [_host(h) for h in hosts]
    if not found:
        raise ConfigError("a coordinator needs a host name or an IP address that its sites call it by: hosts=[…]")
    built = _leaf(key, _name("coordinator", "insitu"), fresh_serial(), issuer, now, SERVER)
    return built.add_extension(x509.SubjectAlternativeName(found), critical=False).sign(signer, hashes.SHA256())


def fresh_serial() -> int:
    """A serial number of 152 random bits."""
    return int.from_bytes(b"\x01" + secrets.token_bytes(18), "big")


def enrolled_serial(secret: str, key: Public) -> int:
    """The serial of the certificate that an invitation brings to a key.

    A function of both, so that a site whose answer was lost on the way may ask again, with the same key, and gets the
    same certificate; with another key the invitation is used up.
    """
    mixed = hashlib.sha256(b"insitu enrolment\0" + secret.encode() + b"\0" + key_bytes(key)).digest()
    return int.from_bytes(b"\x01" + mixed[:18], "big")


def renewed_serial(before: str) -> int:
    """A serial that says which one it takes the place of: its last 64 bits are a digest of that."""
    return int.from_bytes(b"\x01" + secrets.token_bytes(10) + _link(before), "big")


def renews(serial: str, before: str) -> bool:
    """Whether the certificate with this serial was made in renewal of the one with serial ``before``."""
    return int(serial, 16).to_bytes(20, "big")[-8:] == _link(before)


def serial_text(certificate: x509.Certificate) -> str:
    """A serial as the ledger keeps it: lower-case hexadecimal digits without leading zeros."""
    return f"{certificate.serial_number:x}"


def fingerprint(certificate: x509.Certificate | bytes) -> str:
    """The SHA-256 of a certificate's DER bytes."""
    return hashlib.sha256(certificate if isinstance(certificate, bytes) else der(certificate)).hexdigest()


def der(certificate: x509.Certificate) -> bytes:
    """A certificate as DER."""
    return certificate.public_bytes(serialization.Encoding.DER)


def pem(*certificates: x509.Certificate) -> bytes:
    """Certificates as PEM, one after the other."""
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in certificates)


def _link(before: str) -> bytes:
    return hashlib.sha256(b"insitu renewal\0" + before.encode()).digest()[:8]


def _leaf(
    key: Public, subject: x509.Name, serial: int, issuer: x509.Certificate, now: float, use: x509.ObjectIdentifier
) -> x509.CertificateBuilder:
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(moment(now) - SKEW)
        .not_valid_after(min(moment(now) + MEMBER_LIFE, issuer.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
    )


def _name(common: str, organisation: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
        ]
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not host or len(host) > 253 or "*" in host or not all(c.isalnum() or c in "-._" for c in host):
        raise ConfigError(f"{host!r} is no host name or IP address: name what the sites will call, without a port")
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise ConfigError(f"{host!r} is no host name in ASCII: write it in punycode (xn--…)") from error


def _usage(digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=key_cert_sign, crl_sign=crl_sign,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
