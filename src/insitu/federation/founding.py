"""A federation is founded: a folder with an authority, the coordinator's certificate and the first operator."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from insitu.core.errors import ConfigError, PlanError
from insitu.core.federation import Ledger, Member, Role
from insitu.engines.https.authority import Authority, Token, certificates, files, keys, new_key, pem, request_for
from insitu.federation import keeping, operator, settings
from insitu.federation.folder import OPERATOR_FILE, Folder
from insitu.federation.settings import Settings

FOUNDER = "operator"
"""What the first operator is called."""
CODE = """\
Code that plans name as file.py:object (models, learners, algorithms) lies here, on the coordinator and, under the same
names, where each site's site.toml says. It never travels: what is not here cannot be asked for.
"""


def found(path: Path, hosts: Sequence[str], port: int, now: Callable[[], float] = time.time) -> Settings:
    """Makes a federation in a new folder, named as that is.

    Raises ConfigError where there is something already, or a name or host cannot be one.
    """
    folder = Folder(path)
    if path.exists() and any(path.iterdir()):
        raise ConfigError(f"{path} is not empty: give the name of a new folder")
    try:
        made = Settings(name=named(path), hosts=list(hosts), port=port)
    except PlanError as error:
        raise ConfigError(str(error)) from error
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        authority = Authority.make(folder.authority, made.name, made.hosts, now)
    except ConfigError:  # a host that is none: nothing of it stays, so that the same command can be given again
        shutil.rmtree(path)
        raise
    folder.code.mkdir()
    (folder.code / "README").write_text(CODE, encoding="utf-8")
    write_operator(folder.operator, FOUNDER, "operator", made.urls(), authority)
    (path / settings.FILE).write_text(settings.new_text(made), encoding="utf-8")
    return made


def named(path: Path) -> str:
    """A federation's name, out of its folder's: in lower case, '-' for what a name cannot have."""
    return re.sub(r"[^a-z0-9._-]+", "-", path.absolute().name.lower()).strip("-._")


def write_operator(folder: Path, name: str, role: Role, urls: Sequence[str], authority: Authority) -> None:
    """An operator's folder: a key, a certificate for it, and where the coordinator is."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = new_key()
    certificate = authority.sign(request_for(key, name), name, role)
    files.write(folder / operator.KEY, keys.private_text(key), mode=0o600)
    files.write(folder / operator.CERTIFICATE, certificates.pem(certificate))
    files.write(folder / operator.AUTHORITY, authority.bundle_text().encode())
    (folder / OPERATOR_FILE).write_text(operator.text(name, list(urls)), encoding="utf-8")


def renew_founder(folder: Folder, authority: Authority) -> None:
    """A new certificate for the founding operator's key, and the authorities of now; where there is its folder.

    The coordinator takes it for the successor of the one that the ledger knows when it is first used.
    """
    path = folder.operator / operator.CERTIFICATE
    if not path.is_file():
        return
    with keeping.ledger_of(folder, folder.settings()) as ledger:
        known = next((m.serial for m in ledger.members() if m.name == FOUNDER and m.revoked is None), None)
    before = pem.serial_of(path.read_bytes()) if known is None else known
    request = request_for(keys.load_key(folder.operator / operator.KEY), FOUNDER)
    made = authority.sign(request, FOUNDER, "operator", certificates.renewed_serial(before))
    files.write(path, certificates.pem(made))
    files.write(folder.operator / operator.AUTHORITY, authority.bundle_text().encode())


def enrol_founder(ledger: Ledger, folder: Folder, now: float) -> None:
    """Makes the founding operator a member, where the ledger has nobody of that name (it is new)."""
    path = folder.operator / operator.CERTIFICATE
    if not path.is_file() or any(member.name == FOUNDER for member in ledger.members()):
        return
    ledger.add_member(Member(FOUNDER, "operator", pem.serial_of(path.read_bytes()), now))
    ledger.audit([{"at": now, "who": FOUNDER, "what": "found", "data": {"name": FOUNDER, "role": "operator"}}])


def token_maker(authority: Authority, urls: Sequence[str]) -> Callable[[str, Role], Token]:
    """Makes invitations to this federation."""
    return lambda name, role: Token.new(urls, authority.fingerprint, name, role)
