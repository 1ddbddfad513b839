"""An authority as a folder of files: made once, kept like money, and replaced without a break.

::

    authority.pem          the certificates that members trust: one, or two while the authority is being replaced
    authority-XXXXXXXX.key its private key, by the first 8 digits of the certificate's fingerprint
    coordinator.pem        the coordinator's certificate, followed by that of the authority that signed it
    coordinator.key
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from insitu.core.errors import ConfigError
from insitu.core.federation import Role
from insitu.engines.https.authority import certificates, files, keys
from insitu.engines.https.authority.names import checked_name, checked_role

BUNDLE, CHAIN, KEY = "authority.pem", "coordinator.pem", "coordinator.key"


@dataclass
class Authority:
    """A federation's certificate authority. Reads its files whenever it signs: another process may replace them."""

    folder: Path
    clock: Callable[[], float] = field(default=time.time)
    _marked: tuple[tuple[int, int, int], str] | None = field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def make(cls, folder: Path, title: str, hosts: Sequence[str], clock: Callable[[], float] = time.time) -> Authority:
        """A new authority, and the coordinator's certificate for ``hosts``. Raises ConfigError where one is there."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = cls(folder, clock)
        if made.bundle.exists():
            raise ConfigError(f"{made.bundle} is there already: a federation keeps its authority; take another folder")
        files.write(made.bundle, certificates.pem(made._new_authority(title)), replace=False)
        made.certify_coordinator(hosts)
        return made

    @classmethod
    def load(cls, folder: Path, clock: Callable[[], float] = time.time) -> Authority:
        """The authority in a folder. Raises ConfigError where it is not whole."""
        found = cls(folder, clock)
        found._signer(found.trusted()[-1])
        found._issuer()
        return found

    @property
    def bundle(self) -> Path:
        return self.folder / BUNDLE

    @property
    def chain(self) -> Path:
        return self.folder / CHAIN

    @property
    def key(self) -> Path:
        return self.folder / KEY

    def trusted(self) -> list[x509.Certificate]:
        """The certificates of the authority that count now, the newest last."""
        return _read(self.bundle)

    def bundle_text(self) -> str:
        """The same as PEM, as members get it."""
        return certificates.pem(*self.trusted()).decode()

    @property
    def fingerprint(self) -> str:
        """Of the authority that signed the coordinator's certificate: what invitations carry."""
        return certificates.fingerprint(self._issuer())

    @property
    def mark(self) -> str:
        """A short text that changes when the trusted certificates do, so that members know when to fetch them.

        It stands in every answer, so the file is read again only when it is another one.
        """
        told = self.bundle.stat()
        seen = (told.st_mtime_ns, told.st_ino, told.st_size)
        if self._marked is None or self._marked[0] != seen:
            self._marked = (seen, "-".join(certificates.fingerprint(c)[:16] for c in self.trusted()))
        return self._marked[1]

    def hosts(self) -> list[str]:
        """The names and addresses in the coordinator's certificate."""
        names = _read(self.chain)[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return [str(n.value) for n in names]

    def expires(self) -> dict[str, float]:
        """When what ends, as seconds since 1970: ``authority`` (the first to end) and ``coordinator``."""
        first = min(c.not_valid_after_utc.timestamp() for c in self.trusted())
        return {"authority": first, "coordinator": _read(self.chain)[0].not_valid_after_utc.timestamp()}

    def sign(self, request: str | bytes, name: str, role: Role, serial: int | None = None) -> x509.Certificate:
        """A member's certificate for the key in a request (PEM); name and role are the caller's, never the request's.

        Raises Refusal BAD_REQUEST for a request, name or role that is none.
        """
        issuer = self.trusted()[-1]
        number = certificates.fresh_serial() if serial is None else serial
        key = keys.key_of(request)
        return certificates.member(
            key, checked_name(name), checked_role(role), number, issuer, self._signer(issuer), self.clock()
        )

    def certify_coordinator(self, hosts: Sequence[str], newest: bool = False) -> None:
        """A new certificate for the coordinator, for the key that it has (one is made if it has none).

        Signed by the authority that members know for longest, or by the ``newest``.
        """
        key = keys.load_key(self.key) if self.key.exists() else keys.new_key()
        if not self.key.exists():
            files.write(self.key, keys.private_text(key), mode=0o600, replace=False)
        issuer = self.trusted()[-1 if newest else 0]
        made = certificates.coordinator(key.public_key(), hosts, issuer, self._signer(issuer), self.clock())
        files.write(self.chain, certificates.pem(made, issuer))

    def renew_coordinator(self, before: timedelta = timedelta(days=60)) -> bool:
        """Renews the coordinator's certificate where it ends within ``before``, or has not begun; whether it did.

        One that has not begun was made by a clock that was ahead, and has been set right since.
        """
        leaf, now = _read(self.chain)[0], self.clock()
        left = leaf.not_valid_after_utc.timestamp() - now
        if left > before.total_seconds() and leaf.not_valid_before_utc.timestamp() <= now:
            return False
        self.certify_coordinator(self.hosts())
        return True

    def rotate(self, title: str) -> None:
        """Begins to replace the authority: a second one is trusted as well, and signs members from now on.

        Members get both when they renew. When all have, `retire` ends the first one. Raises ConfigError where two are
        there already.
        """
        now = self.trusted()
        if len(now) > 1:
            raise ConfigError(f"{self.bundle} holds {len(now)} authorities: retire the old one before making another")
        files.write(self.bundle, certificates.pem(*now, self._new_authority(title)))

    def retire(self) -> None:
        """Ends the older authority: members whose certificate it signed must have renewed theirs before."""
        now = self.trusted()
        if len(now) < 2:
            raise ConfigError(f"{self.bundle} holds one authority: begin with a new one before you retire it")
        self.certify_coordinator(self.hosts(), newest=True)  # first, since those who trust both accept it already
        files.write(self.bundle, certificates.pem(now[-1]))
        for old in now[:-1]:
            self._key_path(old).unlink(missing_ok=True)
        files.sync_folder(self.folder)

    def _new_authority(self, title: str) -> x509.Certificate:
        key = keys.new_key()
        made = certificates.authority(key, title, self.clock())
        files.write(self._key_path(made), keys.private_text(key), mode=0o600, replace=False)
        return made

    def _issuer(self) -> x509.Certificate:
        leaf = _read(self.chain)[0]
        for candidate in self.trusted():
            try:
                leaf.verify_directly_issued_by(candidate)
            except Exception:  # whatever is wrong with it, it is not this one
                continue
            return candidate
        raise ConfigError(f"{self.chain} is signed by no authority in {self.bundle}: restore both from one backup")

    def _key_path(self, certificate: x509.Certificate) -> Path:
        return self.folder / f"authority-{certificates.fingerprint(certificate)[:8]}.key"

    def _signer(self, certificate: x509.Certificate) -> ec.EllipticCurvePrivateKey:
        path = self._key_path(certificate)
        try:
            key = keys.load_key(path)
        except FileNotFoundError as error:
            raise ConfigError(f"{path} is not there, so nothing can be signed: restore it from a backup") from error
        if key.public_key() != certificate.public_key():
            raise ConfigError(
                f"{path} is not the key of the certificate in {self.bundle}: restore both from one backup"
            )
        return key


def _read(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is not there: make a federation with `insitu federation init`") from error
    except ValueError as error:
        raise ConfigError(f"{path} holds no certificates that can be read: restore it from a backup") from error
