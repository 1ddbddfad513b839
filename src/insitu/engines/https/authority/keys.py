"""Private keys and certificate requests: made where they are used, so that a key never travels."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from insitu.core.errors import ConfigError, Refusal
from insitu.engines.https.authority import files

Public = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey
MAX_REQUEST = 16 * 1024
"""The longest certificate request in bytes: one with a 16,384 bit key has 6 kB."""
LEAST_RSA = 3072
MOST_RSA = 8192


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh key on P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def private_text(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as PEM (PKCS #8, not encrypted: a process must read it at night)."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A key of ours from its file. Raises ConfigError."""
    files.check_private(path)
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} holds no private key that can be read: restore it from a backup") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} holds another kind of key than EC: restore it from a backup")
    return key


def request_for(key: ec.EllipticCurvePrivateKey, name: str) -> bytes:
    """A certificate request (PEM) that shows that its sender has ``key``. The name in it is only for people."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def key_of(request: str | bytes) -> Public:
    """The public key in a certificate request; nothing else in it is looked at. Raises Refusal BAD_REQUEST."""
    text = request.encode("ascii", "replace") if isinstance(request, str) else request
    if len(text) > MAX_REQUEST:
        raise Refusal("BAD_REQUEST", f"the certificate request has {len(text)} bytes, and may have {MAX_REQUEST}")
    try:
        read = x509.load_pem_x509_csr(text)
        key, good = read.public_key(), read.is_signature_valid
    except (ValueError, TypeError, InvalidSignature, x509.InvalidVersion) as error:
        raise Refusal("BAD_REQUEST", "'csr' is no certificate request in PEM: send what `openssl req` makes") from error
    except Exception as error:  # UnsupportedAlgorithm and its kin: whatever a stranger's bytes may bring about
        raise Refusal("BAD_REQUEST", "'csr' has a key or a signature that is not known here: take EC P-256") from error
    if not good:
        raise Refusal("BAD_REQUEST", "the certificate request is not signed by its own key: make a new one")
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, rsa.RSAPublicKey) and LEAST_RSA <= key.key_size <= MOST_RSA:
        return key
    size = getattr(key, "key_size", "?")
    raise Refusal(
        "BAD_REQUEST",
        f"the certificate request has a {type(key).__name__} of {size} bits: take EC P-256, Ed25519, or RSA of "
        f"{LEAST_RSA} to {MOST_RSA} bits",
    )


def key_bytes(key: Public) -> bytes:
    """A public key as bytes that are the same whenever the key is."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
