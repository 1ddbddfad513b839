"""What a certificate in a PEM file says, for those who only look."""

from __future__ import annotations

from cryptography import x509
from cryptography.x509.oid import NameOID

from insitu.core.errors import ConfigError


def serial_of(data: bytes) -> str:
    """The serial as the ledger keeps it: lower-case hexadecimal digits. Raises ConfigError."""
    return f"{_loaded(data).serial_number:x}"


def ends(data: bytes) -> float:
    """Until when it is good, in seconds since 1970. Raises ConfigError where it is no certificate."""
    return _loaded(data).not_valid_after_utc.timestamp()


def name_of(data: bytes) -> str:
    """Whose it is: its common name. Raises ConfigError."""
    names = _loaded(data).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def _loaded(data: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(data)
    except ValueError as error:
        raise ConfigError("this is no certificate in PEM: restore it from a backup, or enrol again") from error
